"""The reader: a daemon of its own that shares memory with a scrub, over the very files that the set's daemon has open.

Not the set's daemon: at the end of each vhost-user connection QEMU closes the socket's descriptor twice, and what
another thread has opened in between is closed in its place (docs/safety.md, 9). Here that costs a scrub, and no guest.
It cannot hold up a drain, either, takes no turn of the set's event loop, and can be killed at any time.

It opens each image by the set's daemon's own descriptor, /proc/PID/fd/N: whatever has become of the path since, the
bytes are those that guests read. Raw images and devices only: what a format keeps in memory nobody else can see.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qorumctl.daemon import process
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.runtime import DaemonPaths
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource

_ENDS_S = 2.0
"""A killed reader that is at an image which hangs ends when the image answers: nobody waits for that."""


class CannotShare(Exception):
    """Why the copies cannot be read so, as a clause."""


@dataclass(frozen=True, slots=True)
class Image:
    """What the set's daemon has open of a copy."""

    copy: str
    path: str
    identity: tuple[int, int]
    device: bool
    direct: bool


@dataclass(frozen=True, slots=True)
class ReaderPaths(DaemonPaths):
    """Of a set's reader, in the set's runtime directory."""

    @property
    def monitors(self) -> Mapping[str, Path]:
        return {"control": self.directory / "reader.qmp"}

    def socket(self, copy: str) -> Path:
        """Of one copy's export."""
        return self.directory / f"shm-{copy}.sock"

    @property
    def server(self) -> Path:
        return self.monitors["control"]

    @property
    def servers(self) -> list[str]:
        return []

    @property
    def transient(self) -> list[Path]:
        return list(self.directory.glob("shm-*.sock"))

    @property
    def pidfile(self) -> Path:
        return self.directory / "reader.pid"

    @property
    def log(self) -> Path:
        return self.directory / "reader.log"

    @property
    def stop_first(self) -> str:
        return "Wait for the scrub to end."


def images(copies: Sequence[CopySpec], pid: int) -> list[Image]:
    """What daemon `pid` has open of each copy. Raises CannotShare."""
    descriptors = _descriptors(pid)
    found = []
    for copy in copies:
        source = copy.source
        if not isinstance(source, FileSource | DeviceSource) or (
            isinstance(source, FileSource) and source.format != "raw"
        ):
            raise CannotShare(f"copy {copy.name} is neither a raw image nor a device")
        try:
            identity = _identity(Path(source.path).stat())
        except OSError as error:
            raise CannotShare(f"copy {copy.name} cannot be looked at: {error.strerror}") from None
        if identity not in descriptors:
            raise CannotShare(f"{source.path} is not what the daemon has open of copy {copy.name}")
        device = isinstance(source, DeviceSource)
        found.append(Image(copy.name, descriptors[identity], identity, device, copy.cache == "none"))
    return found


def check_opened(found: Sequence[Image], pid: int) -> None:
    """Whether reader `pid` has these images open, and not one of them twice. QEMU reopens a file when it begins or
    ceases to write it; a descriptor's number may mean another copy's by the time the reader follows it, and a copy
    compared with itself is always found whole. Raises CannotShare."""
    opened = _descriptors(pid)
    for image in found:
        if image.identity not in opened:
            raise CannotShare(f"the daemon opened copy {image.copy} anew in that moment")


def arguments(paths: ReaderPaths, found: Sequence[Image]) -> list[str]:
    """For the command line: nodes and exports, all read-only."""
    words: list[str] = []
    for image in found:
        node = {
            "driver": "raw",
            "node-name": copy_node(image.copy),
            "read-only": True,
            "force-share": True,
            "file": {
                "driver": "host_device" if image.device else "file",
                "filename": image.path,
                "read-only": True,
                "force-share": True,
                "cache": {"direct": image.direct, "no-flush": False},
                "aio": "native" if image.direct else "threads",
            },
        }
        export = {
            "type": "vhost-user-blk",
            "id": copy_node(image.copy),
            "node-name": copy_node(image.copy),
            "addr": {"type": "unix", "path": str(paths.socket(image.copy))},
            # One event loop for all copies reads them one after the other wherever the kernel answers at once:
            # 2 GiB in memory took 1.3 s instead of 0.85 s, best of 14.
            "iothread": f"io-{image.copy}",
        }
        words += ["--object", f"iothread,id=io-{image.copy}"]
        words += ["--blockdev", json.dumps(node), "--export", json.dumps(export)]
    return words


async def end(paths: ReaderPaths) -> None:
    """Ends a set's reader, if there is one, also of a scrub that was killed. Raises RefusedError where it stays."""
    pid = process.find_pid(paths)
    if pid is not None:
        process.kill(paths, pid)
        await process.wait_gone(paths, pid, deadline_s=_ENDS_S)
    if paths.directory.is_dir():
        process.clear_runtime(paths)
        with contextlib.suppress(OSError):
            # What one has said that ended by itself is kept until there is another one.
            if pid is not None or paths.log.stat().st_size == 0:
                paths.log.unlink()


def _descriptors(pid: int) -> dict[tuple[int, int], str]:
    """What a process has open: identity -> a path that opens the same."""
    found = {}
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                facts = entry.stat()
            except FileNotFoundError:
                # Closed meanwhile: a connection that ended, say. Whose image is missing is found by its identity.
                continue
            if stat.S_ISREG(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
                found[_identity(facts)] = str(entry)
    except OSError as error:
        raise CannotShare(f"what the daemon (pid {pid}) has open cannot be seen: {error.strerror}") from None
    return found


def _identity(facts: os.stat_result) -> tuple[int, int]:
    """Of a device, its number: it can have many names."""
    return (-1, facts.st_rdev) if stat.S_ISBLK(facts.st_mode) else (facts.st_dev, facts.st_ino)
