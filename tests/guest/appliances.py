"""Copies on appliances of their own, whose power can be cut."""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

from tests.integration.harness import NAME, LiveSet, kill_daemon
from tests.live import NbdServer, wait_for


class Appliances:
    """Three copies over NBD, each behind a cache that only a flush empties, and a power failure loses."""

    def __init__(self, live: LiveSet) -> None:
        self._live = live
        self._servers: list[NbdServer] = []

    async def start(self, seed: int) -> bytearray:
        """A set of them, or that of the last round again; returns what its volume holds. That is written to the images
        themselves, so that no cache hides what rots in it."""
        created = bool(self._live.sources)
        if created:
            await self._live.sets.stop(NAME)
            self.power_off()
        content = random.Random(seed).randbytes(self._live.size_bytes)
        for path in self._live.paths():
            Path(path).write_bytes(content)
        self.power_on()
        if not created:
            await self._live.create(sources=[server.uri for server in self._servers], size_bytes=None)
            self._live.sources = self._live.paths()
        await self._live.start()
        return bytearray(content)

    def power_on(self) -> None:
        for path in self._live.paths():
            at = self._live.directories.config.parent / Path(path).stem
            for left in (at.with_suffix(".sock"), at.with_suffix(".pid")):
                left.unlink(missing_ok=True)
            self._servers.append(NbdServer(at, ["--filter=cache", "file", path, "cache=writeback"]))
        for server in self._servers:
            server.wait_ready()

    def power_off(self) -> None:
        while self._servers:
            self._servers.pop().kill()

    def lose_power(self, dice: random.Random, most_gap_s: float) -> None:
        """All of them and the daemon, in any order, with so much time between two at the most."""
        ends = [*(server.kill for server in self._servers), partial(kill_daemon, self._live.runtime)]
        dice.shuffle(ends)
        for end in ends:
            end()
            at_s = time.monotonic() + dice.random() * most_gap_s
            wait_for(lambda at_s=at_s: time.monotonic() >= at_s, "the next failure")
        self._servers.clear()
