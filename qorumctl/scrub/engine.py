"""The engine: one scrub from its checkpoint to its end. Synchronous, single-threaded, and ignorant of who serves it.

The walk of a chunk: scan (all copies side by side, memcmp) -> where they differ, vote per sector: suspects ->
confirmation (both drains) -> findings -> on record as pending -> heal -> verification -> on record, checkpoint moved.
A crash at any point repeats at most one segment: what was on record is neither lost nor recorded twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from qorumctl.copies.base import CopyReader
from qorumctl.core.diagnosis import Diagnosis, Kind
from qorumctl.core.findings import Action, Checkpoint, Finding, FindingVerdict, Source
from qorumctl.core.ranges import Range, RangeSet, between, coalesce, split, subtract, total_bytes
from qorumctl.core.vote import Outvoted
from qorumctl.scrub.confirm import Confirmer, Round, Stopped
from qorumctl.scrub.evidence import ObservedRun, cut, findings_of
from qorumctl.scrub.pacing import Courtesy
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Clock, Fence, Journal, StopReason, Supervisor, Watch
from qorumctl.scrub.repair import Repairer
from qorumctl.scrub.scan import Scanner, Segment


class Scrub:
    """`run` scans what is left of the plan. Raises what readers and fence raise; the checkpoint then stands where the
    last finished segment ended. `courtesy`: holds the scan back while guests work; None: nothing does."""

    def __init__(
        self,
        readers: Sequence[CopyReader],
        fence: Fence,
        journal: Journal,
        supervisor: Supervisor,
        clock: Clock,
        plan: ScrubPlan,
        courtesy: Courtesy | None = None,
    ) -> None:
        self._readers = readers
        self._fence = fence
        self._journal = journal
        self._supervisor = supervisor
        self._plan = plan
        self._scanner = Scanner(readers, plan, supervisor, clock, courtesy)
        self._confirmer = Confirmer(readers, fence, plan, supervisor)
        self._repairer = Repairer(self._confirmer, fence, plan, supervisor)
        self._settled = list(plan.settled)
        self._unproven: dict[int, Finding] = {}
        self._stayed_busy = 0
        start = max(plan.within.offset, plan.checkpoint.cursor_bytes)
        self._checkpoint = replace(plan.checkpoint, cursor_bytes=start)

    def run(self) -> StopReason | None:
        """None: everything was looked at. Otherwise why it stopped early; the run can be resumed."""
        try:
            return self._run()
        except Stopped as stopped:
            return stopped.reason

    def _run(self) -> StopReason | None:
        self._settle_pending()
        while self._checkpoint.cursor_bytes < self._plan.within.end:
            if reason := self._pause():
                return reason
            self._scan_segment()
            if reason := self._catch_up():
                return reason
        if reason := self._look_at_busy_again():
            return reason
        return self._prove_the_rest()

    def _pause(self) -> StopReason | None:
        self._supervisor.suspend_if_requested()
        return self._supervisor.stop_requested()

    def _catch_up(self) -> StopReason | None:
        """What was put off to the end is come back to early where it would fill memory and the record: just as it is at
        the end, and from the same checkpoint."""
        most = self._plan.tuning.put_off_ranges
        if len(self._checkpoint.busy) >= self._stayed_busy + most:
            if reason := self._look_at_busy_again():
                return reason
            self._stayed_busy = len(self._checkpoint.busy)
        return self._prove_the_rest() if len(self._unproven) >= most else None

    def _settle_pending(self) -> None:
        """Findings whose repair a crash interrupted: look first, heal only what a fresh vote still outvotes."""
        if self._plan.pending:
            pending = dict(self._plan.pending)
            done = self._repairer.repair(pending, just_confirmed=False)
            self._journal.conclude(list(done.items()), [], self._checkpoint)
            self._unproven = {i: f for i, f in pending.items() if i not in done}
            # The segment is scanned again: what stays damaged is on record, what was repaired may be damaged anew.
            stays = [f for f in done.values() if f.action is not Action.REPAIRED]
            self._settled += [f.range for f in (*stays, *self._unproven.values())]

    def _scan_segment(self) -> None:
        """Scan, confirm, repair, and move the checkpoint.

        A watch is open from before the first read, without a drain: every write that is not on all copies by then has
        yet to complete, and so will be marked. It tells damage that a guest's read repaired from a write in flight.
        """
        watch = self._fence.open_watch(drain=False)
        try:
            segment = self._leave_open_end(self._scanner.scan(self._checkpoint.cursor_bytes))
            self._supervisor.moved(segment.end, 0, len(segment.suspects))
            if segment.suspects:
                self._confirm_segment(segment, segment.suspects, watch)
            else:
                self._conclude([], self._advance(segment))
        finally:
            self._fence.forget([watch])

    def _leave_open_end(self, segment: Segment) -> Segment:
        """Suspects that reach the segment's end may go on in the next one: they are left to it, so that one run of
        damage is one finding. Not when that would be the whole segment: then the next could not move either."""
        last = segment.suspects[-1] if segment.suspects else None
        if (
            last is None
            or last.end != segment.end
            or segment.end == self._plan.within.end
            or last.offset == segment.start
        ):
            return segment
        segment.end = last.offset
        segment.scanned_bytes -= last.length
        segment.suspects.pop()
        kept = RangeSet([between(segment.start, segment.end)])
        segment.runs = [part for run in segment.runs for part in cut(run, kept.parts_of(run.range))]
        return segment

    def _confirm_segment(self, segment: Segment, suspects: list[Range], watch: Watch) -> None:
        first = self._confirmer.confirm(suspects, earlier=watch)
        self._tell_what_passed(segment, first)
        findings = self._new_findings(first.damaged)
        findings += self._gone_unwritten(segment, first.damaged, first.busy, first.written_before)
        busy = first.busy
        for _ in range(self._plan.tuning.busy_rounds):
            if not busy:
                break
            again = self._confirmer.confirm(busy)
            findings += self._new_findings(again.damaged)
            busy = again.busy
        self._conclude(findings, self._advance(segment, suspects=len(suspects), busy=busy))

    def _tell_what_passed(self, segment: Segment, first: Round) -> None:
        """Reads that failed in the scan and succeeded now: no damage, but storage that may be about to fail."""
        if not segment.failed:
            return
        for name in dict.fromkeys(name for name, _ in segment.failed):
            unread = [run.range for run in first.damaged if name in run.verdict.unreadable]
            unknown = RangeSet([*unread, *first.busy, between(segment.end, self._plan.size_bytes + 1)])
            passed = sum(not unknown.touches(at) for failed, at in segment.failed if failed == name)
            if passed:
                self._supervisor.recovered(name, passed)

    def _new_findings(self, damaged: list[ObservedRun]) -> list[Finding]:
        """Findings but for those that an interrupted part of this run left on record. Only repairs go on record ahead
        of the checkpoint; whatever else ails their sectors (another copy that cannot read them) is not there yet."""
        on_record = RangeSet(self._settled)
        found = []
        for run in damaged:
            for part in cut(run, on_record.rest_of(run.range)):
                found += findings_of(part, self._plan)
            for part in cut(run, on_record.parts_of(run.range)):
                found += [f for f in findings_of(part, self._plan) if f.verdict is not FindingVerdict.OUTVOTED]
        return found

    def _gone_unwritten(
        self, segment: Segment, damaged: list[ObservedRun], busy: list[Range], written: list[Range]
    ) -> list[Finding]:
        """What differed in the scan, is equal now and was not written: a guest's read repaired it, or, where the daemon
        rewrites nothing, a copy returned something else for a moment."""
        explained = RangeSet([*(run.range for run in damaged), *busy, *written, *self._settled])
        found = []
        repaired_by_guests = False
        for run in segment.runs:
            if not isinstance(run.verdict, Outvoted):
                continue
            for part in cut(run, explained.rest_of(run.range)):
                if self._plan.rewriting:
                    found += findings_of(part, self._plan, source=Source.GUEST_READ)
                    repaired_by_guests = True
                else:
                    transient = Diagnosis(Kind.TRANSIENT)
                    found += [
                        replace(f, action=Action.LEFT, diagnosis=transient) for f in findings_of(part, self._plan)
                    ]
        if repaired_by_guests:
            self._confirmer.flush()
        return found

    def _conclude(self, findings: list[Finding], checkpoint: Checkpoint) -> None:
        """Repairs what is outvoted, on record as pending before that, and moves the checkpoint together with the rest:
        a crash in between leaves nothing on record that the resumed run would find a second time."""
        findings.sort(key=lambda f: f.range)
        pending = [f for f in findings if f.action is Action.PENDING]
        others = [f for f in findings if f.action is not Action.PENDING]
        done: dict[int, Finding] = {}
        if pending:
            recorded = dict(zip(self._journal.begin_repair(pending), pending, strict=True))
            done = self._repairer.repair(recorded, just_confirmed=True)
            self._unproven |= {i: f for i, f in recorded.items() if i not in done}
        self._journal.conclude(list(done.items()), others, checkpoint)
        self._checkpoint = checkpoint

    def _prove_the_rest(self) -> StopReason | None:
        """Repairs that guests' writes kept us from verifying. What is written throughout even now was overwritten, so
        the damage is gone; but nobody has seen the copies equal, and so it does not count as repaired."""
        if not self._unproven:
            return None
        done = self._repairer.repair(self._unproven, just_confirmed=False)
        reason = self._supervisor.stop_requested()
        if reason is None:
            done |= {i: f.settled(Action.LEFT) for i, f in self._unproven.items() if i not in done}
        self._journal.conclude(list(done.items()), [], self._checkpoint)
        self._unproven = {i: f for i, f in self._unproven.items() if i not in done}
        return reason if self._unproven else None

    def _look_at_busy_again(self) -> StopReason | None:
        """What guests wrote again and again: confirm, at last read it once through the fence and confirm once more.

        The fenced read waits its turn among the guest's writes, so it sees them whole. Where it could rewrite by the
        votes of a stale copy, or where nothing may be rewritten, it is not made.
        """
        for batch in list(self._batches(self._checkpoint.busy)):
            if reason := self._pause():
                return reason
            busy, findings = batch, list[Finding]()
            for attempt in range(self._plan.tuning.final_busy_rounds):
                if not busy:
                    break
                last = attempt == self._plan.tuning.final_busy_rounds - 1
                if last and self._plan.repair and not self._plan.stale:
                    for piece in split(busy, self._plan.tuning.heal_bytes[0]):
                        # The batch is still on record as busy: a resumed run begins it again.
                        if reason := self._pause():
                            return reason
                        self._fence.heal(piece)
                again = self._confirmer.confirm(busy)
                findings += self._new_findings(again.damaged)
                busy = again.busy
            left = [*subtract(self._checkpoint.busy, batch), *busy]
            self._conclude(findings, replace(self._checkpoint, busy=tuple(coalesce(left))))
        return None

    def _batches(self, ranges: Sequence[Range]) -> Iterator[list[Range]]:
        tuning = self._plan.tuning
        batch: list[Range] = []
        for piece in split(ranges, tuning.heal_bytes[0]):
            batch.append(piece)
            if len(batch) >= tuning.confirm_ranges or total_bytes(batch) >= tuning.confirm_bytes:
                yield batch
                batch = []
        if batch:
            yield batch

    def _advance(self, segment: Segment, *, suspects: int = 0, busy: Sequence[Range] = ()) -> Checkpoint:
        before = self._checkpoint
        return Checkpoint(
            cursor_bytes=segment.end,
            scanned_bytes=before.scanned_bytes + segment.scanned_bytes,
            skipped_bytes=before.skipped_bytes + segment.end - segment.start - segment.scanned_bytes,
            read_bytes={
                reader.name: before.read_bytes.get(reader.name, 0) + segment.scanned_bytes for reader in self._readers
            },
            suspects=before.suspects + suspects,
            busy=tuple(coalesce([*before.busy, *busy])),
        )
