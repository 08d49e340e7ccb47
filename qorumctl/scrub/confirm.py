"""Confirmation (invariant 5): which suspects are damage, and which were only writes in flight.

    open a watch on guest writes     the daemon drains: every earlier write has reached all copies
    read the suspects from each copy
    freeze the watch                 it drains again: what was in flight during the reads has completed and is marked
    ask which ranges were written
    a range that differs and was not written is damage

Every step runs with nothing of ours outstanding: a drain waits for each request that the daemon has begun to receive
or answer, so one of ours, unread, would hold up every guest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qorumctl.copies.base import CopyReader
from qorumctl.core.ranges import SECTOR_BYTES, Range, RangeSet, between, intersect, split, total_bytes
from qorumctl.errors import CopyError
from qorumctl.scrub.dead import give_up_if_dead
from qorumctl.scrub.evidence import ObservedRun, cut, examine
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Fence, StopReason, Supervisor, Watch
from qorumctl.units import MIB

_GROUP_RANGES = 16
"""Reads under way at once: as many requests as QEMU's server takes of a client. One at a time cost 95 us each, these 42
us (a sector over NBD): of a million scattered findings each is read six times."""
_GROUP_BYTES = MIB
"""... unless it is one read."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one confirmation proved of the suspects: `damaged` differ and were not written; `busy` differ and were
    written while we looked; all else is equal. `written_before`: of the suspects, what the earlier watch had seen."""

    damaged: list[ObservedRun]
    busy: list[Range]
    written_before: list[Range]


def _groups(windows: Sequence[Range]) -> Iterator[list[Range]]:
    """Windows to be read at once, in order."""
    group: list[Range] = []
    for window in windows:
        if group and (len(group) == _GROUP_RANGES or total_bytes(group) + window.length > _GROUP_BYTES):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


class Stopped(Exception):
    """Somebody asked to stop while a copy was being searched for what it can read. Never leaves the engine."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Confirmer:
    def __init__(self, readers: Sequence[CopyReader], fence: Fence, plan: ScrubPlan, supervisor: Supervisor) -> None:
        self._readers = readers
        self._fence = fence
        self._plan = plan
        self._supervisor = supervisor

    def confirm(self, suspects: Sequence[Range], *, earlier: Watch | None = None, flush: bool = False) -> Round:
        """One round over all suspects at once. `earlier`: an open watch, frozen at the same instant as this round's and
        then forgotten. `flush`: what heals have written, those too that were given up and went through in the drain, is
        on stable storage before it is read. Raises Stopped, CopyError."""
        self._supervisor.suspend_if_requested()
        self._ask_for_a_sign_of_life()
        asked = RangeSet(suspects)
        watch = self._fence.open_watch(drain=True)
        try:
            if flush:
                self.flush()
            windows = self._windows(asked.ranges)
            runs = [run for group in _groups(windows) for run in self._observe(group)]
            self._give_up_on_the_dead(runs, windows)
            self._fence.freeze([watch] if earlier is None else [earlier, watch])
            differing = [part for run in runs for part in cut(run, asked.parts_of(run.range))]
            # Nothing differs: there is nothing to excuse, so nobody needs to know what was written.
            written = self._fence.written(watch, [run.range for run in differing]) if differing else []
            written_before = self._fence.written(earlier, suspects) if earlier is not None else []
        finally:
            # Both: taking the export of a watch away changes the graph, and so it drains. After a heal that waits for a
            # copy that hangs, that would block every monitor.
            self._fence.forget([watch] if earlier is None else [earlier, watch])
        excused = RangeSet(written)
        damaged = [part for run in differing for part in cut(run, excused.rest_of(run.range))]
        busy = intersect((run.range for run in differing), written)
        return Round(damaged, busy, written_before)

    def flush(self) -> None:
        """What was rewritten is to survive a power failure before it is called repaired. Each copy is asked itself: a
        flush through the quorum succeeds when only the threshold does. Raises CopyError."""
        for reader in self._readers:
            if not reader.flush():
                raise CopyError(
                    f"Copy {reader.name} did not confirm that it has stored what was repaired.",
                    remedy="Look at its storage, then scrub again: the run resumes and verifies the repair.",
                    copy=reader.name,
                )

    def _ask_for_a_sign_of_life(self) -> None:
        """A copy that hangs would block the drain, and with it every guest; a read has a deadline."""
        for reader in self._readers:
            reader.observe(Range(0, SECTOR_BYTES))

    def _give_up_on_the_dead(self, runs: Sequence[ObservedRun], windows: Sequence[Range]) -> None:
        """Its storage may have gone since the scan. What differs in the others would then be on record as without a
        majority, and stay so though the copy comes back."""
        for reader in self._readers:
            unread = [run.range for run in runs if reader.name in run.verdict.unreadable]
            if unread and total_bytes(unread) == total_bytes(windows):
                give_up_if_dead(reader, self._plan, unread[0].offset)

    def _windows(self, suspects: Sequence[Range]) -> list[Range]:
        """Few requests: suspects that lie close together are read together."""
        windows: list[Range] = []
        for r in suspects:
            if windows and r.offset - windows[-1].end <= self._plan.tuning.gap_bytes:
                windows[-1] = between(windows[-1].offset, r.end)
            else:
                windows.append(r)
        return [piece for window in windows for piece in split([window], self._plan.tuning.confirm_bytes)]

    def _observe(self, group: Sequence[Range]) -> Iterator[ObservedRun]:
        """Several windows of each copy with one round trip; one by one only where a copy cannot read all of it."""
        self._supervisor.suspend_if_requested()
        answers = [reader.observe_many(group) for reader in self._readers]
        for window, *seen in zip(group, *answers, strict=True):
            read = {reader.name: one for reader, one in zip(self._readers, seen, strict=True) if one is not None}
            for reader in self._readers:
                if reader.name not in read:
                    read[reader.name] = reader.observe(window, between_reads=self._heed)
            yield from examine(window, {reader.name: read[reader.name] for reader in self._readers}, self._plan)

    def _heed(self) -> None:
        """Between reads that fail, each of which may take seconds. Raises Stopped: what this round was for is on record
        as pending, or is scanned again. A round whose reads succeed is brought to its end, and its findings kept."""
        self._supervisor.suspend_if_requested()
        if (reason := self._supervisor.stop_requested()) is not None:
            raise Stopped(reason)
