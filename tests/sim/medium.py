"""What a copy is stored on: a medium with, perhaps, a write cache that a power cut empties."""

from __future__ import annotations

from dataclasses import dataclass

from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range


@dataclass(frozen=True, slots=True)
class Stored:
    """What stable storage holds of a sector whose newer content is only in the cache."""

    data: bytes
    unreadable: bool
    hole: bool


class Medium(MemoryCopy):
    """`data` is what reads return, the cache included. `cached`: sector -> what a power cut brings back; empty unless
    `volatile`. `by_read`: those of them that a fenced read has rewritten, not a guest's write."""

    def __init__(self, name: str, data: bytearray) -> None:
        super().__init__(name, data)
        self.brittle: set[int] = set()
        """Sectors that cannot be read any more once a write to them has failed."""
        self.volatile = False
        self.cached: dict[int, Stored] = {}
        self.by_read: set[int] = set()

    def store(self, at: Range, data: bytes, *, by_read: bool = False) -> bool:
        """A write as the daemon makes it; False where a sector refuses it."""
        sectors = range(at.offset // SECTOR_BYTES, at.end // SECTOR_BYTES)
        before = {s: self._now(s) for s in sectors if s not in self.cached} if self.volatile else {}
        if not self.write(at.offset, data):
            self.unreadable.update(self.brittle.intersection(sectors))
            return False
        self.cached |= before
        if self.volatile and by_read:
            self.by_read.update(sectors)
        elif self.by_read:
            self.by_read.difference_update(sectors)
        return True

    def _now(self, sector: int) -> Stored:
        start = sector * SECTOR_BYTES
        return Stored(bytes(self.data[start : start + SECTOR_BYTES]), sector in self.unreadable, sector in self.holes)

    def sync(self) -> None:
        """A flush: nothing is in the cache alone."""
        self.cached.clear()
        self.by_read.clear()

    def keep(self, sector: int) -> None:
        """The cache has written this sector back by itself."""
        self.cached.pop(sector, None)
        self.by_read.discard(sector)

    def would_lose(self, sector: int) -> bool:
        """Whether a power cut would change what this cached sector says. A hole says zeros, as a written sector may."""
        before, now = self.cached[sector], self._now(sector)
        return (before.data, before.unreadable) != (now.data, now.unreadable)

    def lose(self, sector: int) -> None:
        """The power was cut before it did."""
        before = self.cached[sector]
        self.keep(sector)
        self.data[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = before.data
        for flag, sectors in ((before.unreadable, self.unreadable), (before.hole, self.holes)):
            if flag:
                sectors.add(sector)
