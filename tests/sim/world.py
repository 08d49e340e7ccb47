"""The world beside the engine: copies, guests, and a storage daemon that does what QEMU does.

The rules are those of the facts this project stands on (docs/architecture.md), in particular:
* a write reaches the copies at any time, and marks every open watch when it has completed, not when it starts;
* writes that overlap in flight reach every copy in one order (native AIO), and complete in any;
* a write that a copy refuses is acknowledged as long as `threshold` copies took it;
* a fenced read excludes overlapping writes while it votes and rewrites, but writes overtake it while it waits;
* it votes on its whole range at once; a copy that cannot read all of it has no vote and is not rewritten;
* it fails, and rewrites nothing, when no version has `threshold` votes; stale copies vote like any other;
* a failed rewrite is ignored;
* a drain completes everything that has begun; what waits for a copy that hangs holds it up, until its deadline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from qorumctl.core.ranges import Range
from tests.sim.truth import Fault, FencedRead, GuestWrite, Truth, range_of, sectors_of

DEADLINE_S = 30.0
"""For a drain, and for each answer of a copy."""


class Stalled(Exception):
    """A drain did not come to its end."""


@dataclass(slots=True)
class WatchState:
    enabled: bool = True
    published: bool = False
    marked: set[int] = field(default_factory=set)


class World(Truth):
    """The truth, and what moves it."""

    def __init__(self, dice: Random, names: str, sectors: int, threshold: int, *, rewriting: bool) -> None:
        super().__init__(dice, names, sectors, threshold)
        self.rewriting = rewriting
        self.watches: dict[str, WatchState] = {}
        self.hung_until_s: dict[str, float] = {}
        self._serial = 0
        self._last_writer: dict[int, int] = {}

    # --- what moves by itself ---------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A little time passes: any number of things happen, most often none or one."""
        self.now_s += 0.01
        while self.dice.random() < 0.45:
            self.step()

    def step(self) -> None:
        roll, activity = self.dice.random, self.activity
        if (self.writes or self.reads) and roll() < 0.7:
            self._progress()
        elif activity.writes and roll() < 0.6:
            self._start_write()
        elif activity.reads and roll() < 0.7:
            self._start_read()
        elif activity.faults and roll() < 0.9:
            self.strike()
        elif activity.hangs and roll() < 0.1:
            self._hang()
        elif activity.power_cuts and roll() < 0.2:
            self.cut_power()
        elif roll() < 0.1:
            self._flush()

    def _progress(self) -> bool:
        """False when nothing that has begun can go on: a copy hangs."""
        requests: list[GuestWrite | FencedRead] = [*self.writes, *self.reads]
        if self.hung_until_s:
            requests = [request for request in requests if self._can_go_on(request)]
            if not requests:
                return False
        request = self.dice.choice(requests)
        if isinstance(request, GuestWrite):
            self._advance_write(request)
        else:
            self._advance_read(request)
        return True

    def _can_go_on(self, request: GuestWrite | FencedRead) -> bool:
        if isinstance(request, GuestWrite):
            return bool(self._willing(request))
        if request.rewrites is None:
            return self.may_begin(request) and not any(self.hangs(name) for name in self.copies)
        return not request.rewrites or not self.hangs(request.rewrites[-1][0])

    def drain(self) -> None:
        """Completes what has begun; nothing new begins. Waiting reads get their turn once the writes are done. Raises
        Stalled when a copy does not let it."""
        if self.activity.hangs and (self.writes or self.reads) and self.dice.random() < 0.1:
            self._hang()
        deadline_s = self.now_s + DEADLINE_S
        while self.writes or self.reads:
            if not self._progress():
                if self.now_s >= deadline_s:
                    raise Stalled
                self.now_s += 1.0

    # --- copies that hang -------------------------------------------------------------------------------------------

    def _hang(self) -> None:
        self.activity.hangs -= 1
        name = self.dice.choice(sorted(self.copies))
        self.hung_until_s[name] = self.now_s + self.dice.choice([2.0, 20.0, 45.0, 150.0])
        self.tally["hang"] += 1
        self.note(f"{name} hangs")

    def hangs(self, name: str) -> bool:
        if name not in self.hung_until_s:
            return False
        if self.now_s < self.hung_until_s[name]:
            return True
        del self.hung_until_s[name]
        return False

    def answers(self, name: str) -> bool:
        """Waits for a copy. False: not within its deadline."""
        deadline_s = self.now_s + DEADLINE_S
        while self.hangs(name):
            if self.now_s >= deadline_s:
                return False
            self.now_s += 1.0
            self.step()
        return True

    def recover(self) -> None:
        self.now_s = max([self.now_s, *self.hung_until_s.values()])
        self.hung_until_s.clear()

    # --- guests -----------------------------------------------------------------------------------------------------

    def _some_range(self) -> Range:
        start = self.dice.choice(self.hot)
        return range_of(start, min(self.sectors, start + self.dice.choice([1, 1, 2, 3, 6])))

    def _start_write(self) -> None:
        at = self._some_range()
        if any(read.rewrites is not None and read.at.overlaps(at) for read in self.reads):
            return
        if not self.untouchable.isdisjoint(sectors_of(at)):
            return
        overlapped = [write for write in self.writes if write.at.overlaps(at)]
        # Of overlapping writes that some copy refuses nothing can be said: who is right depends on which one it was.
        if overlapped and (any(write.refused for write in overlapped) or self.dice.random() < 0.5):
            return
        self.activity.writes -= 1
        data = bytes(at.length) if self.dice.random() < 0.1 else self.dice.randbytes(at.length)
        refusing = [] if overlapped else self._refusing(at)
        pieces = {name: self._pieces(at) for name in self.copies if name not in refusing}
        acknowledged = len(self.copies) - len(refusing) >= self.threshold
        self._serial += 1
        self.writes.append(GuestWrite(at, data, pieces, acknowledged, self._serial, tuple(refusing)))
        self.warm.update(sectors_of(at))
        self.tally["overlapping write"] += bool(overlapped)
        self.note(f"write {at.offset}:{at.length} refused by {''.join(refusing) or '-'}")

    def _refusing(self, at: Range) -> list[str]:
        """Copies that fail this write. Only where that leaves every sector a majority of current copies."""
        roll, names = self.dice.random(), sorted(self.copies)
        known = sorted(self.stale | self.missing)
        if known and roll < 0.2:
            return [self.dice.choice(known)]
        # A disk that cannot read a sector often cannot write it either.
        failing = [name for name in names if not self.copies[name].unreadable.isdisjoint(sectors_of(at))]
        if self.spare > 0 and (roll < 0.05 or (failing and roll < 0.5)):
            name = self.dice.choice(failing or names)
            if self.tells:
                self.missing.add(name)
            return [name]
        clean = all(not self.wrong(sector) for sector in sectors_of(at))
        if roll < 0.08 and self.spare > 0 and clean and not self.tells:
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
        willing = self._willing(write)
        if not willing:
            return
        name = self.dice.choice(willing)
        piece = write.pieces[name].pop()
        start = piece.offset - write.at.offset
        self.copies[name].store(piece, write.data[start : start + piece.length])
        if not write.pieces[name]:
            del write.pieces[name]
        if not write.pieces:
            self._complete(write)

    def _willing(self, write: GuestWrite) -> list[str]:
        """The copies that can take the next piece."""
        return [
            name
            for name, pieces in write.pieces.items()
            if not self.hangs(name) and self.is_next(write, name, pieces[-1])
        ]

    def is_next(self, write: GuestWrite, name: str, piece: Range) -> bool:
        """Storage takes overlapping writes in the order in which it was given them."""
        return not any(
            other.serial < write.serial and any(r.overlaps(piece) for r in other.pieces.get(name, ()))
            for other in self.writes
        )

    def _complete(self, write: GuestWrite) -> None:
        self.writes.remove(write)
        self.mark(write)
        for sector in sectors_of(write.at) if write.acknowledged else ():
            # One that was begun later, and reached all copies later, may have completed before.
            if write.serial > self._last_writer.get(sector, 0):
                self._last_writer[sector] = write.serial
                start, within = sector * 512, sector * 512 - write.at.offset
                self.former[sector] = bytes(self.shadow[start : start + 512])
                self.shadow[start : start + 512] = write.data[within : within + 512]
        for sector in sectors_of(write.at):
            if self.is_known(range_of(sector, sector + 1)):
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
        allowed = set(self.doomed) - self.doomed_late if not self.stale else set()
        if self.untouchable.isdisjoint(set(sectors_of(at)) - allowed):
            self.activity.reads -= 1
            self.reads.append(FencedRead(at, of_engine=False))

    def _flush(self) -> None:
        """A guest's."""
        if not self.hung_until_s:
            for copy in self.copies.values():
                copy.sync()

    # --- fenced reads -----------------------------------------------------------------------------------------------

    def may_begin(self, read: FencedRead) -> bool:
        executing = [other.at for other in self.reads if other is not read and other.rewrites is not None]
        return not any(at.overlaps(read.at) for at in [*executing, *(write.at for write in self.writes)])

    def _advance_read(self, read: FencedRead) -> None:
        if read.rewrites is None:
            if self.may_begin(read) and not (self.hung_until_s and any(self.hangs(name) for name in self.copies)):
                self._begin(read)
        elif read.rewrites:
            name, data = read.rewrites[-1]
            if self.hangs(name):
                return
            read.rewrites.pop()
            self._rewrite(name, read.at, data)
            if not read.of_engine:
                self.warm.update(sectors_of(read.at))
        else:
            self.reads.remove(read)
            self.note(f"fenced read {read.at.offset}:{read.at.length} {'engine' if read.of_engine else 'guest'}")

    def _rewrite(self, name: str, at: Range, data: bytes) -> None:
        copy = self.copies[name]
        whole = [sector for sector in sectors_of(at) if sector in copy.brittle and sector not in copy.unreadable]
        if not copy.store(at, data, by_read=True):
            self.struck.update((sector, name) for sector in whole)

    def _begin(self, read: FencedRead) -> None:
        said = {name: data for name, copy in self.copies.items() if (data := self._say(copy.name, read.at)) is not None}
        votes: dict[bytes, list[str]] = {}
        for name, data in said.items():
            votes.setdefault(data, []).append(name)
        winner = max(votes, key=lambda data: len(votes[data]), default=b"")
        read.succeeded = self.wins(len(votes.get(winner, [])))
        losers = [name for name, data in said.items() if data != winner]
        read.rewrites = [(name, winner) for name in losers] if read.succeeded and self.rewriting else []
        self.dice.shuffle(read.rewrites)

    def _say(self, name: str, at: Range) -> bytes | None:
        """What a copy tells the daemon."""
        data = self.copies[name].peek(at)
        bad = self.misread(name, sectors_of(at)) if self.activity.transients else None
        if data is None or bad is None:
            return data
        return None if self.dice.random() < 0.5 else spoiled(data, bad * 512 - at.offset)

    def wins(self, votes: int) -> bool:
        return votes >= self.threshold


def spoiled(data: bytes, at: int) -> bytes:
    """`data`, with one bit of the sector at `at` the other way round."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
