"""What is true of the simulated world: what guests were promised, what each copy holds, and what befell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from qorumctl.core.ranges import SECTOR_BYTES, Range, between
from tests.sim.medium import Medium


class Violation(AssertionError):
    """The engine (or a deliberately broken part of this simulator) did what must never happen."""


def sectors_of(at: Range) -> range:
    return range(at.offset // SECTOR_BYTES, at.end // SECTOR_BYTES)


def range_of(start: int, end: int) -> Range:
    return between(start * SECTOR_BYTES, end * SECTOR_BYTES)


@dataclass(slots=True)
class GuestWrite:
    """`pieces`: what each copy has yet to apply. `acknowledged`: whether enough copies will have taken it. `serial`:
    overlapping writes reach every copy in this order."""

    at: Range
    data: bytes
    pieces: dict[str, list[Range]]
    acknowledged: bool
    serial: int = 0
    refused: tuple[str, ...] = ()


@dataclass(slots=True)
class FencedRead:
    """A guest's read, or the engine's heal. `rewrites` is None while it waits for overlapping requests."""

    at: Range
    of_engine: bool
    rewrites: list[tuple[str, bytes]] | None = None
    succeeded: bool | None = None


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
    hangs: int = 0
    transients: int = 0
    power_cuts: int = 0


KINDS = ["flip", "flip", "zero", "fill", "torn", "noise", "unreadable", "stuck", "brittle", "misplaced", "stale"]


class Truth:
    """`shadow` is what guests were promised: the acknowledged writes. Sectors that no guest changed since the start are
    cold; of these everything is known."""

    def __init__(self, dice: Random, names: str, sectors: int, threshold: int) -> None:
        self.dice = dice
        self.sectors = sectors
        self.threshold = threshold
        self.shadow = bytearray(sectors * SECTOR_BYTES)
        self.former: dict[int, bytes] = {}
        """What a sector held before it was last written."""
        self.copies: dict[str, Medium] = {name: Medium(name, bytearray(self.shadow)) for name in names}
        self.stale: frozenset[str] = frozenset()
        """Copies that are known to have missed writes."""
        self.heeded: frozenset[str] = frozenset()
        """Those of them that the plan in force does not count."""
        self.missing: set[str] = set()
        """Copies that have missed a write, of which word has not come yet."""
        self.tells = False
        """Whether word comes: a watcher listens."""
        self.writes: list[GuestWrite] = []
        self.reads: list[FencedRead] = []
        self.activity = Activity()
        self.hot: list[int] = []
        self.warm: set[int] = set()
        self.doomed: dict[int, dict[str, tuple[bool, bytes]]] = {}
        """Sectors without a majority of current copies, and what every copy held there when they lost it."""
        self.doomed_late: set[int] = set()
        self.untouchable: set[int] = set()
        """Sectors that guests leave alone: what would happen to them is not the engine's doing."""
        self.faults: dict[tuple[int, str], Fault] = {}
        self.struck: Counter[tuple[int, str]] = Counter()
        """How often each sector of each copy was damaged: it cannot be found more often than that."""
        self.fickle: dict[int, str] = {}
        """Sectors that a copy has once read wrongly, or not at all, and rightly afterwards."""
        self.now_s = 0.0
        self.log: list[str] = []
        self.tally: Counter[str] = Counter()

    def note(self, line: str) -> None:
        self.log.append(line)

    def wrong(self, sector: int) -> list[str]:
        """The copies that do not hold what was acknowledged. Means nothing while a write to the sector is in flight."""
        start, end = sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES
        promised = self.shadow[start:end]
        return [
            name for name, copy in self.copies.items() if copy.data[start:end] != promised or sector in copy.unreadable
        ]

    def is_known(self, at: Range) -> bool:
        """Nothing that is in flight makes `wrong` uncertain there."""
        return not any(other.overlaps(at) for other in self.in_flight())

    def in_flight(self) -> Iterator[Range]:
        for write in self.writes:
            yield write.at
        for read in self.reads:
            if read.rewrites is not None:
                yield read.at

    @property
    def spare(self) -> int:
        """How many more current copies may be wrong in a sector that is right in all of them."""
        return len(self.copies) - len(self.stale | self.missing) - self.threshold

    # --- damage -----------------------------------------------------------------------------------------------------

    def bears_damage(self, sector: int, name: str) -> bool:
        """Whether damage to this copy leaves every vote on the sector its majority: nothing was ever wrong with it in
        another copy, so that no reading of all copies, one after the other, can meet both."""
        others = [other for other in self.copies if other != name]
        return (
            (self.spare > 0 or name in self.stale)
            and sector not in self.doomed
            and not any((sector, other) in self.faults for other in others)
            and self.fickle.get(sector, name) == name
            and self.is_known(range_of(sector, sector + 1))
            and set(self.wrong(sector)) <= {name}
        )

    def strike(self) -> None:
        """A fault that leaves the sector's majority alone, somewhere where nothing was ever wrong: what is damaged anew
        just after it was seen to be repaired would look like a repair that was none."""
        self.activity.faults -= 1
        sector = self.dice.choice(self.hot) if self.dice.random() < 0.4 else self.dice.randrange(self.sectors)
        name = self.dice.choice(sorted(self.copies))
        unspoilt = not self.struck[sector, name] and not self.wrong(sector)
        if unspoilt and self.bears_damage(sector, name):
            self.damage(sector, name, early=False)

    def damage(self, sector: int, name: str, *, early: bool, kind: str | None = None) -> None:
        """Damages one sector of one copy behind everybody's back."""
        copy, dice = self.copies[name], self.dice
        start, end = sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES
        kind = kind or dice.choice(KINDS)
        before = bytes(copy.data[start:end])
        fault = Fault(sector, name, kind, early)
        copy.keep(sector)
        match kind:
            case "zero":
                copy.data[start:end] = bytes(SECTOR_BYTES)
            case "fill":
                copy.data[start:end] = bytes([dice.randrange(1, 256)]) * SECTOR_BYTES
            case "torn":
                cut = dice.randrange(SECTOR_BYTES)
                copy.data[start + cut : end] = dice.randbytes(SECTOR_BYTES - cut)
            case "noise":
                copy.data[start:end] = dice.randbytes(SECTOR_BYTES)
            case "misplaced":
                other = dice.randrange(self.sectors) * SECTOR_BYTES
                copy.data[start:end] = copy.data[other : other + SECTOR_BYTES]
            case "stale":
                copy.data[start:end] = self.former.get(sector) or dice.randbytes(SECTOR_BYTES)
            case "unreadable":
                copy.unreadable.add(sector)
            case _:
                fault.bits = dice.randrange(1, 4)
                for bit in dice.sample(range(SECTOR_BYTES * 8), fault.bits):
                    copy.data[start + bit // 8] ^= 1 << bit % 8
                if kind in {"stuck", "brittle"}:
                    copy.unwritable.add(sector)
                    self.untouchable.add(sector)
                if kind == "brittle":
                    copy.brittle.add(sector)
        if kind != "unreadable" and copy.data[start:end] == before:
            return
        copy.holes.discard(sector)
        self.add_fault(fault)

    def add_fault(self, fault: Fault) -> None:
        self.faults[fault.sector, fault.copy] = fault
        self.struck[fault.sector, fault.copy] += 1
        self.tally[fault.kind] += 1
        self.note(f"{fault.kind} in sector {fault.sector} of {fault.copy}{', early' if fault.early else ''}")

    def misread(self, name: str, sectors: range) -> int | None:
        """A sector that this read, and only this one, gets wrong."""
        if not self.activity.transients or self.dice.random() > 0.02:
            return None
        sector = self.dice.choice(sectors)
        if sector in self.fickle or sector in self.untouchable or not self.bears_damage(sector, name):
            return None
        self.activity.transients -= 1
        self.fickle[sector] = name
        self.struck[sector, name] += 1
        self.tally["transient read"] += 1
        self.note(f"transient in sector {sector} of {name}")
        return sector

    def cut_power(self) -> None:
        """One copy's storage loses what is only in its cache: all of it, but for what it has written back by itself,
        and for what would take a sector its majority."""
        self.activity.power_cuts -= 1
        name = self.dice.choice(sorted(self.copies))
        copy = self.copies[name]
        self.tally["power cut"] += bool(copy.cached)
        self.note(f"power cut of {name}: {sorted(copy.cached)}")
        for sector in sorted(copy.cached):
            if self.dice.random() < 0.7 and self.bears_damage(sector, name):
                copy.lose(sector)
                self.tally["sector lost in a power cut"] += 1
                if name in self.wrong(sector):
                    kind = "unreadable" if sector in copy.unreadable else "lost in the cache"
                    self.add_fault(Fault(sector, name, kind, early=False))
            else:
                copy.keep(sector)

    # --- copies that miss writes, and majorities that are lost --------------------------------------------------------

    def doom(self, sector: int, *, late: bool) -> None:
        start, end = sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES
        self.doomed[sector] = {
            name: (sector in copy.unreadable, bytes(copy.data[start:end])) for name, copy in self.copies.items()
        }
        self.untouchable.add(sector)
        if late:
            self.doomed_late.add(sector)
        self.note(f"without a majority: {sector}{', late' if late else ''}")

    def spread_the_word(self) -> None:
        """The copies that missed a write are known to have, and count no longer. What was wrong in one of the others
        has lost its majority. At an instant when nothing is in flight, so that what is true is certain."""
        if not self.missing:
            return
        self.stale |= self.missing
        self.note(f"stale: {''.join(sorted(self.stale))}")
        self.tally["copy found to have missed a write"] += len(self.missing)
        self.missing.clear()
        for sector in range(self.sectors):
            right = set(self.copies) - set(self.wrong(sector)) - self.stale
            if len(right) < self.threshold and sector not in self.doomed:
                self.doom(sector, late=True)

    def lose_the_same_write(self) -> None:
        """What a copy that does not count any more has missed, a current one loses, too: together they would outvote
        the rest. At the beginning of a segment: between a vote and a heal nothing could be done about it."""
        if not self.heeded or not self.activity.faults or self.dice.random() > 0.3:
            return
        for sector in range(self.sectors):
            wrong = set(self.wrong(sector))
            current = sorted(set(self.copies) - self.stale)
            if sector in self.doomed or sector in self.fickle or not wrong or not wrong <= self.heeded:
                continue
            at = range_of(sector, sector + 1)
            busy = not self.is_known(at) or any(read.at.overlaps(at) for read in self.reads)
            if busy or any((sector, name) in self.faults for name in current) or self.missing:
                continue
            old = self.copies[sorted(wrong)[0]].peek(at)
            if old is None or len(current) > self.threshold:
                continue
            name = self.dice.choice(current)
            self.copies[name].keep(sector)
            self.copies[name].holes.discard(sector)
            self.copies[name].data[at.offset : at.end] = old
            self.add_fault(Fault(sector, name, "same write lost", early=False))
            self.doom(sector, late=True)
            self.activity.faults -= 1
            return

    def check_the_doomed(self) -> None:
        for sector, before in self.doomed.items():
            start, end = sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES
            for name, copy in self.copies.items():
                if (sector in copy.unreadable, copy.data[start:end]) != before[name]:
                    raise Violation(f"a sector without a majority was written: {sector} of {name}")
