"""What tests of a real storage daemon share beside the fixtures of conftest.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qorumctl.controller.watcher import LOCK_NAME
from qorumctl.daemon import process
from qorumctl.daemon.runtime import DaemonPaths, RuntimePaths
from qorumctl.model.spec import SetSpec
from qorumctl.store import SetLock

MIB = 1 << 20
SIZE = 4 * MIB
DEADLINE_S = 20.0
_ENDS_S = 5.0


def wait_for(condition: Callable[[], Any], what: str, *, deadline_s: float = DEADLINE_S) -> Any:
    """Returns the condition's first true value; fails the test at the deadline."""
    ends_at_s = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > ends_at_s:
            pytest.fail(f"{what}: not within {deadline_s:g} s")
        time.sleep(0.005)
    return value


def below(*roots: Path) -> dict[Path, os.stat_result]:
    """What lies below these directories, by path. A running set's files come and go: one that has gone is left out.

    SQLite removes its -wal and -shm with the last connection, and every look at a set is one; a watcher writes anew.
    """
    found = {}
    for root in roots:
        for directory, names, files in os.walk(root):
            for path in (Path(directory, name) for name in (*names, *files)):
                with contextlib.suppress(FileNotFoundError):
                    found[path] = path.lstat()
    return found


def is_dead(pid: int) -> bool:
    """Or a zombie that nobody reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def end_watcher(state_directory: Path) -> None:
    """The one that `start` began for the set whose state is there, if it lives."""
    for _ in range(2):
        # A second one may have waited for the end of the first.
        holder = SetLock.held_by(state_directory, file_name=LOCK_NAME)
        if holder is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder[0], signal.SIGKILL)
        wait_for(
            lambda pid=holder[0]: (SetLock.held_by(state_directory, file_name=LOCK_NAME) or (0, ""))[0] != pid,
            "the end of the watcher",
        )


class Daemons:
    """Spawns storage daemons in directories of their own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[tuple[DaemonPaths, int]] = []

    def paths(self) -> RuntimePaths:
        """A fresh, empty runtime directory."""
        return RuntimePaths(Path(tempfile.mkdtemp(prefix="d", dir=self._directory)))

    async def spawn(self) -> tuple[RuntimePaths, int]:
        paths = self.paths()
        return paths, await self.spawn_at(paths)

    async def spawn_at(self, paths: DaemonPaths, arguments: Sequence[str] = ()) -> int:
        pid = await process.spawn(paths, arguments)
        self._started.append((paths, pid))
        return pid

    def end_all(self) -> None:
        for paths, pid in self._started:
            process.kill(paths, pid)
        for paths, pid in self._started:
            wait_for(partial(_gone, paths, pid), f"the end of daemon {pid}")


def _gone(paths: DaemonPaths, pid: int) -> bool:
    return process.running_pid(paths) != pid


class NbdServer:
    """An nbdkit of the test's own. `at`: where its socket and pidfile go, without suffix."""

    def __init__(self, at: Path, arguments: Sequence[object]) -> None:
        self.socket = Path(f"{at}.sock")
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self._pidfile = at.with_suffix(".pid")
        command = ["nbdkit", "-f", "-U", f"{at}.sock", "-P", str(self._pidfile), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def wait_ready(self) -> None:
        wait_for(lambda: self._pidfile.exists() or self._process.poll() is not None, "nbdkit")
        assert self._process.poll() is None, "nbdkit did not start"

    def pause(self) -> None:
        """From now on it answers nothing, as storage that hangs."""
        self._process.send_signal(signal.SIGSTOP)
        # A thread that runs on another processor stops a moment later.
        wait_for(lambda: _stopped(self._process.pid), "a stopped server")

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """At once, as a host that loses its power."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """In order where it can: only then it removes its own temporary directory. A paused one hears nothing."""
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            self.kill()


def _stopped(pid: int) -> bool:
    """All of its threads; one may end as they are listed."""
    try:
        return all(" T " in (thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return False


def faulty_server(
    nbdkit: Callable[..., NbdServer], path: Path, bad: Sequence[tuple[int, int]], *, once: Path | None = None
) -> NbdServer:
    """A file whose sectors `bad` (first, last) cannot be read. `once`: only while this file exists; while one with the
    suffix `.flush` does, flushes fail, and with `.write` writes."""
    tests = (
        "false"
        if not bad
        else " || ".join(f"[ $4 -lt {(last + 1) * 512} -a $(($4 + $3)) -gt {first * 512} ]" for first, last in bad)
    )
    condition = f"({tests})" if once is None else f"[ -e {once} ] && ({tests})"
    read = f"if {condition}; then echo EIO bad sector >&2; exit 1; fi; tail -c +$(($4 + 1)) {path} | head -c $3"
    write = f"dd of={path} bs=64k conv=notrunc oflag=seek_bytes seek=$4 status=none"
    if once is not None:
        write = f"[ ! -e {once}.write ] || {{ echo EIO no write >&2; exit 1; }}; {write}"
    size = f"get_size=echo {path.stat().st_size}"
    flush = "exit 0" if once is None else f"[ ! -e {once}.flush ] || {{ echo EIO no flush >&2; exit 1; }}"
    writable = ("can_write=exit 0", f"pwrite={write}", "can_flush=exit 0", f"flush={flush}")
    return nbdkit("eval", size, f"pread={read}", *writable)


def make_spec(sources: Mapping[str, Path | str], *, size_bytes: int = SIZE, **keys: Any) -> SetSpec:
    """A set of image files (the suffix is the format) and NBD URIs, through the page cache: tests need no medium."""
    copies = []
    for name, source in sources.items():
        if isinstance(source, Path):
            entry = {"type": "file", "path": str(source), "format": source.suffix.removeprefix(".")}
        else:
            entry = {"type": "nbd", "uri": source}
        copies.append({"name": name, "source": entry, "cache": "writeback"})
    uuid = "6f1d0a52-9b6e-4a54-8a53-0d7b6f5b6a11"
    return SetSpec.model_validate({"name": "web01", "uuid": uuid, "size": size_bytes, "copies": copies, **keys})
