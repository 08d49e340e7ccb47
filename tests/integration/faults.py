"""Faults on demand, and what a qorumctl of its own says of them."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qorumctl.controller.options import Timeouts
from qorumctl.core.ranges import Range
from qorumctl.errors import CopyUnavailableError
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.live import NbdServer, wait_for

Nbdkit = Callable[..., NbdServer]

SHORT = {"copy": "1", "drain": "1.5", "heal": "0.7", "monitor": "1", "status": "1", "stop": "3"}
"""Seconds: for whoever is meant to run into a deadline. 1 s suffices a healthy daemon on a busy machine."""
HASTY = Timeouts(copy_s=1.0, drain_s=1.5, heal_s=0.7, monitor_s=1.0, status_s=1.0, stop_s=3.0)


@dataclass(frozen=True)
class Said:
    """`document`: what stood on standard output, as JSON. `words`: standard error, on one line."""

    code: int
    document: dict[str, Any]
    words: str

    @property
    def summary(self) -> tuple[int, str]:
        return self.code, str(self.document.get("code") or self.document.get("outcome") or self.document.get("state"))


def environment(live: LiveSet, timeouts: Mapping[str, str] = SHORT) -> dict[str, str]:
    return {**live.environment, **{f"QORUM_TIMEOUT_{name.upper()}": text for name, text in timeouts.items()}}


def tell(process: subprocess.Popen[bytes], *, within_s: float = 60) -> Said:
    """Waits for a qorumctl's end. It never ends in a traceback, and with `--json` always prints one document."""
    out, err = process.communicate(timeout=within_s)
    words = " ".join(err.decode().split())
    assert "Traceback" not in words, words
    assert "should not have" not in words, words
    return Said(process.returncode, json.loads(out), words)


def begin(live: LiveSet, *arguments: str, timeouts: Mapping[str, str] = SHORT) -> subprocess.Popen[bytes]:
    return live.cli("--json", *arguments, stderr=subprocess.PIPE, env=environment(live, timeouts))


async def say(live: LiveSet, command: str, *arguments: str, timeouts: Mapping[str, str] = SHORT) -> Said:
    """`qorumctl --json COMMAND web01 ...` as a process of its own."""
    return await asyncio.to_thread(lambda: tell(begin(live, command, NAME, *arguments, timeouts=timeouts)))


class SelfStopping:
    """A copy's server that stops itself (SIGSTOP) in the middle of a request, once, when it is told which."""

    def __init__(self, nbdkit: Nbdkit, path: Path) -> None:
        self._flag = path.with_suffix(".stops-in")
        # A thread that runs on another processor stops a moment later, and could still send the answer.
        running = "grep -L 'State:.T' /proc/$PPID/task/*/status"
        stop = f'rm {{flag}}.{{what}}; kill -STOP $PPID; while [ -n "$({running})" ]; do :; done'
        read = f"""
            if [ -e {self._flag}.read ] && [ $3 -lt 1048576 ] && [ $4 -ge 4096 ]; then
                {stop.format(flag=self._flag, what="read")}
            fi
            tail -c +$(($4 + 1)) {path} | head -c $3"""
        write = f"""
            if [ -e {self._flag}.write ]; then {stop.format(flag=self._flag, what="write")}; fi
            dd of={path} bs=64k conv=notrunc oflag=seek_bytes seek=$4 status=none"""
        self.server = nbdkit(
            "eval",
            f"get_size=echo {path.stat().st_size}",
            f"pread={read}",
            "can_write=exit 0",
            f"pwrite={write}",
            "can_flush=exit 0",
            "flush=exit 0",
        )

    def in_confirmation(self) -> None:
        """In a read that is no chunk of a scan, nor the sign of life, which is asked for at offset 0."""
        Path(f"{self._flag}.read").touch()

    def in_write(self) -> None:
        Path(f"{self._flag}.write").touch()


class ComesBack:
    """A copy's server that can be killed, and started again under the same address."""

    def __init__(self, at: Path, path: Path) -> None:
        self._at, self._path = at, path
        self.up = False
        self.back()

    def back(self) -> None:
        if self.up:
            return
        for suffix in (".sock", ".pid"):
            Path(f"{self._at}{suffix}").unlink(missing_ok=True)
        self._server = NbdServer(self._at, ["file", self._path])
        self._server.wait_ready()
        self.uri, self.up = self._server.uri, True

    def gone(self) -> None:
        if self.up:
            self._server.end()
            self.up = False

    def hang(self) -> None:
        self._server.pause()

    def answer(self) -> None:
        self._server.resume()


class Guests:
    """Guests that write at random, whatever happens to the set. `shadow`: what was acknowledged. A write that was not
    leaves each of its sectors in doubt: it may hold that, or what was there before.

    Each owns a part of the region, so the shadow has one writer per byte.
    """

    def __init__(self, live: LiveSet, shadow: bytearray, within: Range, *, count: int = 3, seed: int = 0) -> None:
        self._live = live
        self.shadow = shadow
        self.doubt: dict[int, set[bytes]] = {}
        self.acknowledged = self.refused = 0
        self._stop = threading.Event()
        part = within.length // count // SECTOR * SECTOR
        self._threads = [
            threading.Thread(target=self._guest, args=(seed * 100 + n, Range(within.offset + n * part, part)))
            for n in range(count)
        ]

    def _guest(self, seed: int, within: Range) -> None:
        dice, link = random.Random(seed), self._live.link(timeout_s=60)
        while not self._stop.is_set():
            length = min(SECTOR * dice.choice([1, 8, 8, 16, 128]), within.length)
            at = within.offset + dice.randrange((within.length - length) // SECTOR + 1) * SECTOR
            data = dice.randbytes(length)
            try:
                acknowledged = link.write(at, data)
            except CopyUnavailableError:
                self._note(at, data, acknowledged=False)
                return
            self._note(at, data, acknowledged=acknowledged)
        link.close()

    def _note(self, at: int, data: bytes, *, acknowledged: bool) -> None:
        for start in range(at, at + len(data), SECTOR):
            sector, new = start // SECTOR, data[start - at : start - at + SECTOR]
            if acknowledged:
                self.doubt.pop(sector, None)
                self.shadow[start : start + SECTOR] = new
            else:
                self.doubt.setdefault(sector, {bytes(self.shadow[start : start + SECTOR])}).add(new)
        self.acknowledged += acknowledged
        self.refused += not acknowledged

    async def go_on(self, count: int = 50) -> None:
        """Until so many writes more are acknowledged."""
        least = self.acknowledged + count
        await asyncio.to_thread(wait_for, lambda: self.acknowledged >= least, "more writes")

    def wrong(self, data: bytes) -> list[int]:
        """The sectors that hold neither what was acknowledged last nor what is in doubt."""
        if data == self.shadow:
            return []
        return [
            at // SECTOR
            for at in range(0, len(data), SECTOR)
            if (part := data[at : at + SECTOR]) != self.shadow[at : at + SECTOR]
            and part not in self.doubt.get(at // SECTOR, ())
        ]

    def __enter__(self) -> Guests:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.acknowledged > 10, "the first writes")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def rot(live: LiveSet, copies: str, dice: random.Random, count: int, within: Range) -> list[int]:
    """Flips a bit in so many sectors of the images, no two of them adjacent. Returns the sectors."""
    sectors = sorted(2 * n for n in dice.sample(range(within.offset // SECTOR // 2, within.end // SECTOR // 2), count))
    for sector in sectors:
        live.flip(dice.choice(copies), sector * SECTOR + dice.randrange(SECTOR), dice.randrange(8))
    return sectors


async def after(seconds: float, act: Callable[[], object]) -> None:
    """At a random instant, which the seed has chosen."""
    await asyncio.sleep(seconds)
    await asyncio.to_thread(act)


def missed(live: LiveSet) -> set[str]:
    """The copies that are on record as having missed a write."""
    with live.sets._context(NAME).store(read_only=True) as store:
        return {s.copy for s in store.suspicions() if s.missed}


async def at_work(live: LiveSet, scrub: subprocess.Popen[bytes]) -> None:
    """Until it holds the set's lock, or has ended."""
    lock = live.directories.state_dir(NAME) / "lock"
    working = f"{scrub.pid} scrub"
    await asyncio.to_thread(wait_for, lambda: working in lock.read_text() or scrub.poll() is not None, "a scrub")
