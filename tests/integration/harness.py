"""A whole set for a test: real images, a real daemon, guests with a shadow of what was acknowledged, and damage."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qorumctl.controller.options import CreateOptions, ScrubOptions, Timeouts
from qorumctl.controller.sets import QuorumSets
from qorumctl.copies.nbd_link import NbdLink, Ticket
from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.daemon.reader import ReaderPaths
from qorumctl.daemon.runtime import DaemonPaths, FrontPaths, RuntimePaths
from qorumctl.daemon.sink import SinkPaths
from qorumctl.model.report import ScrubReport
from qorumctl.paths import Directories
from tests.live import MIB, end_watcher, wait_for

SECTOR = 512
_BLOCK = 4096
NAME = "web01"


class LiveSet:
    """One set named web01 in directories of its own. Its images lie in memory: they are quiet, and take O_DIRECT."""

    def __init__(self, short_dir: Path, images_dir: Path, *, size_bytes: int, timeouts: Timeouts | None = None) -> None:
        self.directories = Directories(short_dir / "c", short_dir / "s", short_dir / "r")
        self.directories.config.mkdir()
        self.images_dir = images_dir
        self.size_bytes = size_bytes
        self.sets = QuorumSets(self.directories, timeouts=timeouts)
        self.sources: list[str] = []

    @property
    def runtime(self) -> RuntimePaths:
        return RuntimePaths(self.directories.runtime_dir(NAME))

    @property
    def environment(self) -> dict[str, str]:
        """For a qorumctl of its own: `cli` uses it."""
        d = self.directories
        names = {"QORUM_CONFIG_DIR": d.config, "QORUM_STATE_DIR": d.state, "QORUM_RUNTIME_DIR": d.runtime}
        return {**os.environ, **{key: str(value) for key, value in names.items()}}

    def paths(self, count: int = 3) -> list[str]:
        return [str(self.images_dir / f"{letter}.img") for letter in "abcdefghi"[:count]]

    async def create(self, *, count: int = 3, sources: Sequence[str] | None = None, **options: Any) -> None:
        """Images that do not exist get the set's size."""
        self.sources = list(sources or self.paths(count))
        options.setdefault("size_bytes", self.size_bytes)
        await self.sets.create(NAME, self.sources, CreateOptions(**options))

    async def start(self, **options: Any) -> None:
        await self.sets.start(NAME, **options)

    async def scrub(self, **options: Any) -> ScrubReport:
        """At full speed, whatever guests do, unless a rate or `full_speed=False` is given."""
        control = options.pop("control", None)
        observer = options.pop("observer", None)
        options.setdefault("full_speed", "rate_bytes_per_s" not in options)
        return await self.sets.scrub(NAME, ScrubOptions(**options), control=control, observer=observer)

    def link(self, export: str = "volume", *, timeout_s: float = 30.0) -> NbdLink:
        return NbdLink(self.runtime.nbd_sock, export, who="The test's guest", timeout_s=timeout_s)

    def fill(self, *, seed: int = 1, length_bytes: int | None = None) -> bytearray:
        """Random data through the volume, from its beginning; returns what the whole disk then holds."""
        shadow = bytearray(self.size_bytes)
        length = self.size_bytes if length_bytes is None else length_bytes
        link = self.link()
        dice = random.Random(seed)
        for at in range(0, length, MIB):
            data = dice.randbytes(min(MIB, length - at))
            assert link.write(at, data)
            shadow[at : at + len(data)] = data
        assert link.flush()
        link.close()
        return shadow

    def image(self, copy: str) -> Path:
        return Path(self.sources["abcdefghi".index(copy)])

    def poke(self, copy: str, offset: int, data: bytes) -> None:
        """Changes an image behind the daemon's back, as rot does."""
        with self.image(copy).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def flip(self, copy: str, offset: int, bit: int = 0) -> None:
        with self.image(copy).open("rb") as file:
            file.seek(offset)
            byte = file.read(1)[0]
        self.poke(copy, offset, bytes([byte ^ 1 << bit]))

    def contents(self, copy: str) -> bytes:
        return self.image(copy).read_bytes()

    def lose_the_state(self) -> None:
        """Its database is gone, as on a host that lost /var. A watcher at work may take SQLite's files itself."""
        for suffix in ("", "-wal", "-shm"):
            (self.directories.state_dir(NAME) / f"state.db{suffix}").unlink(missing_ok=True)

    def equal_to(self, shadow: bytes | bytearray) -> dict[str, bool]:
        """Copy -> whether its raw image holds exactly this."""
        return {copy: self.contents(copy) == bytes(shadow) for copy in "abcdefghi"[: len(self.sources)]}

    def cli(self, *arguments: str, full_speed: bool = True, **options: Any) -> subprocess.Popen[bytes]:
        """A qorumctl process of its own; a scrub, as `scrub`, at full speed unless a rate is given."""
        if full_speed and "scrub" in arguments and "--rate" not in arguments:
            arguments = (*arguments, "--rate", "max")
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.DEVNULL)
        command = [sys.executable, "-m", "qorumctl.cli.main", *arguments]
        options.setdefault("env", self.environment)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)

    def dies_at(self, place: str, *arguments: str) -> None:
        """Runs a qorumctl that is killed as it calls `place`: `module:function`, below qorumctl.controller, as its
        callers find it."""
        module, _, function = place.partition(":")
        program = (
            "import importlib, os, signal, sys\n"
            f"module = importlib.import_module('qorumctl.controller.{module}')\n"
            f"module.{function}  # it must be there\n"
            f"module.{function} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
            "from qorumctl.cli.main import main\n"
            "sys.exit(main())\n"
        )
        command = [sys.executable, "-c", program, *arguments]
        died = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()

    def leftovers(self) -> dict[str, Any]:
        """What the daemon still has of watches: nothing, between commands."""

        async def look() -> tuple[frozenset[str], frozenset[str]]:
            from qorumctl.daemon.client import Monitor
            from qorumctl.daemon.quorum_set import QuorumSet

            spec = self.sets.show(NAME).definition
            async with await Monitor.open(self.runtime.control_sock) as monitor:
                state = await QuorumSet(spec, monitor).describe()
            return state.watches, state.exports

        watches, exports = asyncio.run(look())
        return {"watches": watches, "exports": exports}

    @property
    def front(self) -> FrontPaths:
        return FrontPaths(self.directories.runtime_dir(NAME))

    def end(self) -> None:
        end_watcher(self.directories.state_dir(NAME))
        directory = self.runtime.directory
        for paths in (self.front, self.runtime, ReaderPaths(directory), SinkPaths(directory)):
            kill_daemon(paths)


def kill_daemon(paths: DaemonPaths) -> None:
    """SIGKILL, and nothing else; one that does not run is fine."""
    pid = process.running_pid(paths)
    if pid is not None:
        process.kill(paths, pid)
        wait_for(lambda: process.running_pid(paths) is None, "the daemon's end")


class Writers:
    """Guests that write at random within a region of the volume, and note what was acknowledged.

    Each owns a part of the region, so the shadow has one writer per byte; of its `depth` requests in flight no two
    overlap. `spare`: this one in two blocks of 4096 bytes, 0 or 1, is never written.
    """

    def __init__(
        self,
        live: LiveSet,
        shadow: bytearray,
        within: Range,
        *,
        count: int = 4,
        seed: int = 7,
        depth: int = 1,
        spare: int | None = None,
    ) -> None:
        self._live = live
        self._shadow = shadow
        self._depth = depth
        self._spare = spare
        self._stop = threading.Event()
        self.writes = 0
        part = within.length // count // SECTOR * SECTOR
        self._threads = [
            threading.Thread(target=self._write, args=(seed + n, Range(within.offset + n * part, part)))
            for n in range(count)
        ]

    def _write(self, seed: int, within: Range) -> None:
        link, dice = self._live.link(), random.Random(seed)
        flying: deque[tuple[Ticket, bytes]] = deque()

        def land() -> None:
            ticket, data = flying.popleft()
            assert link.complete(ticket)
            self._shadow[ticket.range.offset : ticket.range.end] = data
            self.writes += 1

        while not self._stop.is_set():
            at = self._place(dice, within)
            while any(at.offset < ticket.range.end and ticket.range.offset < at.end for ticket, _ in flying):
                land()
            data = dice.randbytes(at.length)
            flying.append((link.submit_write(at.offset, data), data))
            if len(flying) >= self._depth:
                land()
        while flying:
            land()
        link.flush()
        link.close()

    def _place(self, dice: random.Random, within: Range) -> Range:
        if self._spare is not None:
            block = 2 * dice.randrange(within.length // _BLOCK // 2) + 1 - self._spare
            return Range(within.offset + block * _BLOCK, _BLOCK)
        length = min(SECTOR * dice.choice([1, 8, 8, 16, 128]), within.length)
        at = within.offset + dice.randrange((within.length - length) // SECTOR + 1) * SECTOR
        return Range(at, length)

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.writes > 10, "the first writes")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Runs something beside the test, and waits for its end."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
