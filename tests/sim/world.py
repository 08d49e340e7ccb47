"""The world beside the engine: copies, guests, and a storage daemon that does what QEMU does.

The rules are those of the facts this project stands on (docs/architecture.md), in particular:
* a write reaches the copies in any order, and marks every open watch when it has completed, not when it starts;
* a write that a copy refuses is acknowledged as long as `threshold` copies took it;
* a fenced read excludes overlapping writes while it votes and rewrites, but writes overtake it while it waits;
* it votes on its whole range at once; a copy that cannot read all of it has no vote and is not rewritten;
* it fails, and rewrites nothing, when no version has `threshold` votes; stale copies vote like any other;
* a failed rewrite is ignored;
* a drain completes everything that has begun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range, between


class Violation(AssertionError):
    """The engine (or a deliberately broken part of this simulator) did what must never happen."""


def sectors_of(at: Range) -> range:
    return range(at.offset // SECTOR_BYTES, at.end // SECTOR_BYTES)


def range_of(start: int, end: int) -> Range:
    return between(start * SECTOR_BYTES, end * SECTOR_BYTES)


@dataclass(slots=True)
class GuestWrite:
    """`pieces`: what each copy has yet to apply. `acknowledged`: whether enough copies will have taken it."""

    at: Range
    data: bytes
    pieces: dict[str, list[Range]]
    acknowledged: bool


@dataclass(slots=True)
class FencedRead:
    """A guest's read, or the engine's heal. `rewrites` is None while it waits for overlapping requests."""

    at: Range
    of_engine: bool
    rewrites: list[tuple[str, bytes]] | None = None
    succeeded: bool | None = None


@dataclass(slots=True)
class WatchState:
    enabled: bool = True
    marked: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Fault:
    """One copy's damage in one sector. `early`: it was there before the engine first looked."""

    sector: int
    copy: str
    kind: str
    early: bool
    bits: int = 0


@dataclass(slots=True)
class Activity:
    """What guests and fate may still do."""

    writes: int = 0
    reads: int = 0
    faults: int = 0


class World:
    """`shadow` is what guests were promised: the acknowledged writes. Sectors that no guest changed since the start are
    cold; of these everything is known."""

    def __init__(self, dice: Random, names: str, sectors: int, threshold: int, *, rewriting: bool) -> None:
        self.dice = dice
        self.sectors = sectors
        self.threshold = threshold
        self.rewriting = rewriting
        self.stale: frozenset[str] = frozenset()
        self.shadow = bytearray(sectors * SECTOR_BYTES)
        self.copies: dict[str, MemoryCopy] = {name: MemoryCopy(name, bytearray(self.shadow)) for name in names}
        self.writes: list[GuestWrite] = []
        self.reads: list[FencedRead] = []
        self.watches: dict[str, WatchState] = {}
        self.activity = Activity()
        self.hot: list[int] = []
        self.warm: set[int] = set()
        self.doomed: set[int] = set()
        self.untouchable: set[int] = set()
        """Sectors that guests leave alone: what would happen to them is not the engine's doing."""
        self.faults: dict[tuple[int, str], Fault] = {}
        self.struck: Counter[tuple[int, str]] = Counter()
        """How often each sector of each copy was damaged: it cannot be found more often than that."""
        self.now_s = 0.0
        self.log: list[str] = []

    def note(self, line: str) -> None:
        self.log.append(line)

    # --- what moves by itself ---------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A little time passes: any number of things happen, most often none or one."""
        self.now_s += self.dice.random() / 50
        while self.dice.random() < 0.45:
            self.step()

    def step(self) -> None:
        dice = self.dice
        if (self.writes or self.reads) and dice.random() < 0.7:
            self._progress()
        elif self.activity.writes and dice.random() < 0.6:
            self._start_write()
        elif self.activity.reads and dice.random() < 0.7:
            self._start_read()
        elif self.activity.faults:
            self.strike()

    def _progress(self) -> None:
        requests: list[GuestWrite | FencedRead] = [*self.writes, *self.reads]
        request = self.dice.choice(requests)
        if isinstance(request, GuestWrite):
            self._advance_write(request)
        else:
            self._advance_read(request)

    def drain(self) -> None:
        """Completes what has begun; nothing new begins. Waiting reads get their turn once the writes are done."""
        while self.writes or self.reads:
            self._progress()

    # --- guests -----------------------------------------------------------------------------------------------------

    def _some_range(self) -> Range:
        start = self.dice.choice(self.hot)
        return range_of(start, min(self.sectors, start + self.dice.choice([1, 1, 2, 3, 6])))

    def _start_write(self) -> None:
        at = self._some_range()
        executing = [read.at for read in self.reads if read.rewrites is not None]
        if any(other.overlaps(at) for other in [*executing, *(write.at for write in self.writes)]):
            return
        if not self.untouchable.isdisjoint(sectors_of(at)):
            return
        self.activity.writes -= 1
        data = bytes(at.length) if self.dice.random() < 0.1 else self.dice.randbytes(at.length)
        refusing = self._refusing(at)
        pieces = {name: self._pieces(at) for name in self.copies if name not in refusing}
        acknowledged = len(self.copies) - len(refusing) >= self.threshold
        self.writes.append(GuestWrite(at, data, pieces, acknowledged))
        self.warm.update(sectors_of(at))
        self.note(f"write {at.offset}:{at.length} refused by {''.join(refusing) or '-'}")

    def _refusing(self, at: Range) -> list[str]:
        """Copies that fail this write. Only where that leaves every sector a majority of current copies."""
        roll, names = self.dice.random(), sorted(self.copies)
        spare = len(self.copies) - len(self.stale) - self.threshold
        # A disk that cannot read a sector often cannot write it either.
        failing = [name for name in names if not self.copies[name].unreadable.isdisjoint(sectors_of(at))]
        if spare > 0 and (roll < 0.05 or (failing and roll < 0.5)):
            return [self.dice.choice(failing or names)]
        clean = all(not self.wrong(sector) for sector in sectors_of(at))
        if roll < 0.08 and spare > 0 and clean:
            survivor = self.dice.choice(names)
            return [name for name in names if name != survivor]
        return []

    def _pieces(self, at: Range) -> list[Range]:
        if self.dice.random() < 0.5:
            return [at]
        pieces = [range_of(sector, sector + 1) for sector in sectors_of(at)]
        self.dice.shuffle(pieces)
        return pieces

    def _advance_write(self, write: GuestWrite) -> None:
        name = self.dice.choice(sorted(write.pieces))
        piece = write.pieces[name].pop()
        start = piece.offset - write.at.offset
        self.copies[name].write(piece.offset, write.data[start : start + piece.length])
        if not write.pieces[name]:
            del write.pieces[name]
        if not write.pieces:
            self._complete(write)

    def _complete(self, write: GuestWrite) -> None:
        self.writes.remove(write)
        self.mark(write)
        if write.acknowledged:
            self.shadow[write.at.offset : write.at.end] = write.data
        for sector in sectors_of(write.at):
            for name in self.wrong(sector):
                if sector not in self.copies[name].unreadable:
                    self.add_fault(Fault(sector, name, "missed write", early=False))
        self.note(f"done {write.at.offset}:{write.at.length}")

    def mark(self, write: GuestWrite) -> None:
        for watch in self.watches.values():
            if watch.enabled:
                watch.marked.update(sectors_of(write.at))

    def _start_read(self) -> None:
        at = self._some_range()
        if self.untouchable.isdisjoint(set(sectors_of(at)) - (self.doomed if not self.stale else set())):
            self.activity.reads -= 1
            self.reads.append(FencedRead(at, of_engine=False))

    # --- fenced reads -----------------------------------------------------------------------------------------------

    def may_begin(self, read: FencedRead) -> bool:
        executing = [other.at for other in self.reads if other is not read and other.rewrites is not None]
        return not any(at.overlaps(read.at) for at in [*executing, *(write.at for write in self.writes)])

    def _advance_read(self, read: FencedRead) -> None:
        if read.rewrites is None:
            if self.may_begin(read):
                self._begin(read)
        elif read.rewrites:
            name, data = read.rewrites.pop()
            self.copies[name].write(read.at.offset, data)
            if not read.of_engine:
                self.warm.update(sectors_of(read.at))
        else:
            self.reads.remove(read)
            self.note(f"fenced read {read.at.offset}:{read.at.length} {'engine' if read.of_engine else 'guest'}")

    def _begin(self, read: FencedRead) -> None:
        said = {name: data for name, copy in self.copies.items() if (data := copy.peek(read.at)) is not None}
        votes: dict[bytes, list[str]] = {}
        for name, data in said.items():
            votes.setdefault(data, []).append(name)
        winner = max(votes, key=lambda data: len(votes[data]), default=b"")
        read.succeeded = self.wins(len(votes.get(winner, [])))
        losers = [name for name, data in said.items() if data != winner]
        read.rewrites = [(name, winner) for name in losers] if read.succeeded and self.rewriting else []
        self.dice.shuffle(read.rewrites)

    def wins(self, votes: int) -> bool:
        return votes >= self.threshold

    # --- faults and the truth -----------------------------------------------------------------------------------------

    def wrong(self, sector: int) -> list[str]:
        """The copies that do not hold what was acknowledged. Means nothing while a write to the sector is in flight."""
        at = range_of(sector, sector + 1)
        promised = bytes(self.shadow[at.offset : at.end])
        return [name for name, copy in self.copies.items() if copy.peek(at) != promised]

    def in_flight(self) -> Iterator[Range]:
        yield from (write.at for write in self.writes)
        yield from (read.at for read in self.reads if read.rewrites is not None)

    def strike(self) -> None:
        """A fault that leaves the sector's majority alone, somewhere where nothing is wrong yet."""
        self.activity.faults -= 1
        sector = self.dice.choice(self.hot) if self.dice.random() < 0.4 else self.dice.randrange(self.sectors)
        at = range_of(sector, sector + 1)
        spare = len(self.copies) - len(self.stale) - self.threshold
        never_struck = all((sector, name) not in self.faults for name in self.copies)
        if not never_struck or self.wrong(sector) or any(other.overlaps(at) for other in self.in_flight()):
            return
        current = sorted(set(self.copies) - self.stale)
        victims = current if spare > 0 else sorted(self.stale)
        if victims:
            self.damage(sector, self.dice.choice(victims), early=False)

    def damage(self, sector: int, name: str, *, early: bool, kind: str | None = None) -> None:
        """Damages one sector of one copy behind everybody's back."""
        copy, dice = self.copies[name], self.dice
        at = range_of(sector, sector + 1)
        kind = kind or dice.choice(["flip", "flip", "zero", "fill", "torn", "noise", "unreadable", "stuck"])
        before = bytes(copy.data[at.offset : at.end])
        fault = Fault(sector, name, kind, early)
        match kind:
            case "zero" if any(before):
                copy.data[at.offset : at.end] = bytes(SECTOR_BYTES)
            case "fill":
                copy.data[at.offset : at.end] = bytes([dice.randrange(1, 256)]) * SECTOR_BYTES
            case "torn":
                cut = dice.randrange(SECTOR_BYTES)
                copy.data[at.offset + cut : at.end] = dice.randbytes(SECTOR_BYTES - cut)
            case "noise":
                copy.data[at.offset : at.end] = dice.randbytes(SECTOR_BYTES)
            case "unreadable":
                copy.unreadable.add(sector)
            case _:
                fault.bits = dice.randrange(1, 4)
                for bit in dice.sample(range(SECTOR_BYTES * 8), fault.bits):
                    copy.data[at.offset + bit // 8] ^= 1 << bit % 8
                if kind == "stuck":
                    copy.unwritable.add(sector)
                    self.untouchable.add(sector)
        copy.holes.discard(sector)
        if kind != "unreadable" and copy.data[at.offset : at.end] == before:
            return
        self.add_fault(fault)

    def add_fault(self, fault: Fault) -> None:
        self.faults[fault.sector, fault.copy] = fault
        self.struck[fault.sector, fault.copy] += 1
        self.note(f"{fault.kind} in sector {fault.sector} of {fault.copy}{', early' if fault.early else ''}")
