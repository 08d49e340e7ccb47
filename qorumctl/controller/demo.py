"""The set that `qorumctl demo` plays with: a real one, in a directory of its own, driven as any other set is."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

from qorumctl import definitions
from qorumctl.controller import demo_damage
from qorumctl.controller.demo_damage import COPIES, SIZE_BYTES, Damage
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.options import CreateOptions, ScrubOptions
from qorumctl.controller.sets import QuorumSets
from qorumctl.controller.storage_probe import DIRECT, examine_storage
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.ranges import SECTOR_BYTES, Range, between
from qorumctl.daemon.graph import VOLUME
from qorumctl.errors import QorumError, RefusedError
from qorumctl.files import reason
from qorumctl.model.demo import DemoRead
from qorumctl.model.report import ScrubReport
from qorumctl.paths import Directories
from qorumctl.units import MIB

NAME = "demo"
_TIMEOUT_S = 30.0
_MOST_BASE_BYTES = 60
"""Sockets lie 37 bytes below; a path of one holds at most 107."""


class Stopped(Exception):
    """The caller asked, through its ScrubControl, to stop."""


class DemoSet:
    """A directory with three images, and the definition, state and sockets of a set `demo`.

    Whoever makes one removes it: `remove` ends the daemon and deletes all of it. Methods raise QorumError; those that
    take long look at `control` and raise Stopped.
    """

    def __init__(self, control: ScrubControl) -> None:
        self._control = control
        self.directory = _private_directory()
        self.directories = Directories(self.directory / "sets", self.directory / "state", self.directory / "run")
        self.images = {name: self.directory / f"{name}.raw" for name in COPIES}
        self.sets = QuorumSets(self.directories)
        self.cache: Literal["none", "writeback"] = "none"

    @property
    def environment(self) -> dict[str, str]:
        """What other commands need to find the set."""
        found = {
            "QORUM_CONFIG_DIR": str(self.directories.config),
            "QORUM_STATE_DIR": str(self.directories.state),
            "QORUM_RUNTIME_DIR": str(self.directories.runtime),
        }
        daemon = os.environ.get("QORUM_QSD")
        return found | ({"QORUM_QSD": daemon} if daemon else {})

    def proceed(self) -> None:
        """Raises Stopped where that was asked for."""
        if self._control.reason is not None:
            raise Stopped

    async def prepare(self) -> None:
        """Finds out how the images can be opened here."""
        try:
            self.directories.config.mkdir(mode=0o755)
            items = await asyncio.to_thread(examine_storage, self.directory)
        except OSError as error:
            raise _unusable(self.directory, error) from None
        self.cache = "none" if all(item.ok for item in items if item.subject == DIRECT) else "writeback"

    async def make(self) -> None:
        """Creates and starts it with policy "report", so that no read repairs what a scrub is to find."""
        options = CreateOptions(size_bytes=SIZE_BYTES, policy="report", cache=self.cache)
        await self.sets.create(NAME, [str(path) for path in self.images.values()], options)
        self.proceed()
        await self.sets.start(NAME)

    async def allow_repair(self) -> None:
        """Sets policy = "repair" in the definition, and restarts, which puts it into effect."""
        path = Path(self.sets.show(NAME).definition_path)
        definitions.save(path, definitions.load(path).model_copy(update={"policy": "repair"}))
        # Forced: the daemon may not have seen yet that our own connection is closed.
        await self.sets.restart(NAME, force=True)

    async def pid(self) -> int | None:
        return (await self.sets.status([NAME])).sets[0].pid

    async def scrub(self, observer: Observer, *, rate_bytes_per_s: int | None) -> ScrubReport:
        report = await self.sets.scrub(
            NAME, ScrubOptions(rate_bytes_per_s=rate_bytes_per_s), observer=observer, control=self._control
        )
        self.proceed()
        return report

    async def remove(self) -> None:
        """Ends the daemon, then deletes everything. Raises QorumError where a daemon may still be there: nothing is
        deleted then."""
        if self.directories.definition_path(NAME).exists():
            await self.sets.stop(NAME, force=True)
        try:
            shutil.rmtree(self.directory)
        except OSError as error:
            raise RefusedError(
                f"{self.directory} cannot be removed: {reason(error)}.", remedy="Remove it.", path=str(self.directory)
            ) from None

    # What follows blocks: it moves data.

    def write(self) -> str:
        """Fills the volume as a guest would; returns the SHA-256 of what it wrote."""
        digest = hashlib.sha256()
        with closing(self._volume()) as volume:
            torn = demo_damage.TORN
            _write(volume, torn.at.offset, demo_damage.old_text_of(torn.sector))
            for at in _pieces():
                self.proceed()
                data = demo_damage.text_at(at)
                digest.update(data)
                _write(volume, at.offset, data)
            if not volume.flush():
                raise QorumError("The volume did not confirm a flush.", set_name=NAME)
        return digest.hexdigest()

    def damage(self, damages: Iterable[Damage]) -> None:
        """Overwrites sectors in the image files."""
        for one in damages:
            path = self.images[one.copy]
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.pwrite(descriptor, one.content, one.at.offset)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise _unusable(path, error) from None

    def read(self, at: Range, copies: Iterable[str]) -> DemoRead:
        """Reads through the volume, where QEMU votes: all of `at` in one request, then each sector by itself."""
        with closing(self._volume()) as volume:
            whole = _judged(volume, at)
            found = [_judged(volume, Range(offset, SECTOR_BYTES)) for offset in range(at.offset, at.end, SECTOR_BYTES)]
        return DemoRead(
            offset=at.offset,
            length=at.length,
            copies=sorted(set(copies)),
            whole=whole,
            sectors_right=found.count("right"),
            sectors_wrong=found.count("wrong"),
            sectors_failed=found.count("error"),
        )

    def digests(self, *, without: Range | None = None) -> dict[str, str]:
        """Copy -> the SHA-256 of its image, with or without one range."""
        found = {name: hashlib.sha256() for name in COPIES}
        for at in _pieces(without):
            self.proceed()
            for name, digest in found.items():
                digest.update(self.content(name, at))
        return {name: digest.hexdigest() for name, digest in found.items()}

    def written_digest(self, *, without: Range) -> str:
        """The SHA-256 of what was written, but for one range."""
        digest = hashlib.sha256()
        for at in _pieces(without):
            self.proceed()
            digest.update(demo_damage.text_at(at))
        return digest.hexdigest()

    def content(self, copy: str, at: Range) -> bytes:
        try:
            with self.images[copy].open("rb") as file:
                file.seek(at.offset)
                return file.read(at.length)
        except OSError as error:
            raise _unusable(self.images[copy], error) from None

    def _volume(self) -> NbdLink:
        socket = self.directories.runtime_dir(NAME) / "nbd.sock"
        return NbdLink(socket, VOLUME, who="The volume", timeout_s=_TIMEOUT_S)


def _private_directory() -> Path:
    """Raises RefusedError where no temporary directory can be made."""
    base = Path(tempfile.gettempdir()).absolute()
    if len(os.fsencode(base)) > _MOST_BASE_BYTES:
        base = Path("/tmp")  # noqa: S108 - mkdtemp makes a directory that is ours alone
    try:
        return Path(tempfile.mkdtemp(prefix="qorum-", dir=base))
    except OSError as error:
        raise _unusable(base, error) from None


def _unusable(path: Path, error: OSError) -> RefusedError:
    return RefusedError(
        f"{path} cannot be used: {reason(error)}.", remedy="Name another directory in TMPDIR.", path=str(path)
    )


def _pieces(without: Range | None = None) -> Iterator[Range]:
    """The whole disk in pieces of at most 1 MiB, but for one range."""
    hole = (without.offset, without.end) if without else (SIZE_BYTES, SIZE_BYTES)
    for begin, end in ((0, hole[0]), (hole[1], SIZE_BYTES)):
        for offset in range(begin, end, MIB):
            yield between(offset, min(end, offset + MIB))


def _write(volume: NbdLink, offset_bytes: int, data: bytes) -> None:
    if not volume.write(offset_bytes, data):
        raise QorumError(f"The volume refused a write at offset {offset_bytes}.", set_name=NAME)


def _judged(volume: NbdLink, at: Range) -> Literal["right", "wrong", "error"]:
    data = volume.read(at)
    if data is None:
        return "error"
    return "right" if bytes(data) == demo_damage.text_at(at) else "wrong"
