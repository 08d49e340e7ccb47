"""What a scrub repairs beyond the fence: sectors that a copy cannot read, and those whose rewrite failed.

QEMU never rewrites what a child cannot read. So, when all was compared, one copy after the other:

    look        what does it still lack, and do the others agree there? Transient errors need no more
    take out    of the quorum, with a record of what it misses (detaching.py); its mark says what is to be written anew
    write       the voted content, straight to it, by whole blocks, so that its storage can remap; flush, read back
    bring back  re-synced, proven, admitted (rejoining.py)
    judge       read directly from every copy, confirmed: equal is repaired; anything else is failed

What is written, and what the copy holds afterwards, is proven outside the quorum; what goes on record is proven once it
is back. Killed anywhere, the mark tells the next scrub (`finish`), or `copy rejoin`, what to finish; the findings stand
on record as left until they are judged.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qorumctl.controller import detaching, failing, rejoining, telling, watcher
from qorumctl.controller.context import SetContext
from qorumctl.controller.live import reached
from qorumctl.controller.observer import Observer, ScrubControl, Silent, StopReason
from qorumctl.controller.returning import Interrupted
from qorumctl.copies.base import CopyReader
from qorumctl.core.findings import Action, FindingVerdict
from qorumctl.core.ranges import Range, RangeSet, coalesce, intersect, total_bytes
from qorumctl.core.vote import NoMajority, Outvoted, Verdict
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import CopyError, RefusedError
from qorumctl.model.report import FindingDocument
from qorumctl.model.spec import SetSpec
from qorumctl.scrub.confirm import Confirmer, Stopped
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Fence, Supervisor
from qorumctl.store import Store
from qorumctl.store.records import now

_ROUNDS = 8
"""Looks at a range that guests keep writing."""


async def finish(context: SetContext, spec: SetSpec, observer: Observer, control: ScrubControl) -> list[str]:
    """Brings back the copies that an interrupted scrub had taken out. Returns why that did not work: the others are
    scrubbed all the same. Raises Interrupted, DaemonError."""
    problems = []
    for name, mark in context.absences().items():
        if mark.rewrite and name in spec.copy_names:
            try:
                await rejoining.rejoin(context, spec, name, full=False, observer=observer, control=control)
            except (CopyError, RefusedError) as error:
                problems.append(f"Copy {name} is still away: {error}")
    return problems


@dataclass(frozen=True, slots=True)
class _Loss:
    """A finding that the fence could not repair, and the copies at fault."""

    id: int
    range: Range
    copies: frozenset[str]


class Rewriting:
    """In the engine's thread, with nothing of the engine's open any more. Raises what the engine raises.

    `compared`: the copies of the run. `stale`: those that count for nobody, asked anew for each vote.
    """

    def __init__(
        self,
        context: SetContext,
        spec: SetSpec,
        quorum: QuorumSet,
        loop: asyncio.AbstractEventLoop,
        store: Store,
        run: int,
        compared: Sequence[str],
        stale: Callable[[], frozenset[str]],
        supervisor: Supervisor,
        control: ScrubControl,
    ) -> None:
        self._context = context
        self._spec = spec
        self._quorum = quorum
        self._loop = loop
        self._store = store
        self._run = run
        self._compared = compared
        self._stale = stale
        self._supervisor = _Steady(supervisor)
        self._control = control
        self._findings = telling.Findings(spec.name, run)
        self._failing: set[str] = set()
        self._left: dict[str, str] = {}
        self._away: str | None = None

    def run(self) -> StopReason | None:
        """None: what could be repaired is. Otherwise why it stopped early; a resumed run goes on with what is left."""
        losses = self._losses()
        if not losses and not self._failing:
            return None
        if losses:
            # What the daemon holds back of writes that failed just now is a reason not to take a copy out.
            asyncio.run_coroutine_threadsafe(watcher.outlast_throttle(self._context), self._loop).result()
        try:
            for name in self._compared:
                mine = [loss for loss in losses if name in loss.copies]
                if not mine or name in self._failing:
                    continue
                if self._away is not None:
                    self._left[name] = f"copy {self._away} is away"
                    continue
                self._supervisor.suspend_if_requested()
                if (reason := self._supervisor.stop_requested()) is not None:
                    return reason
                self._treat(name, mine)
        except Stopped as stopped:
            return stopped.reason
        except Interrupted:
            return self._supervisor.stop_requested() or StopReason.INTERRUPTED
        finally:
            self._store.note_unrewritten(self._run, self._failing, self._left)
        return None

    def _losses(self) -> list[_Loss]:
        """What is to be repaired, but for copies that have lost too much."""
        kept: list[_Loss] = []
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for finding in self._store.lost_findings(self._run):
            loss = _Loss(finding.id, Range(finding.offset, finding.length), self._at_fault(finding))
            for name in loss.copies:
                counts[name][0] += 1
                counts[name][1] += finding.length
            if not all(failing.is_failing(*counts[name]) for name in loss.copies):
                kept.append(loss)
        self._failing = {name for name, count in counts.items() if failing.is_failing(*count)}
        return kept

    def _at_fault(self, finding: FindingDocument) -> frozenset[str]:
        """Not `copies`, which blames nobody after an unclean stop. Versions are sorted by votes: the first has won."""
        versions = list(finding.votes.values())
        if finding.verdict is FindingVerdict.OUTVOTED:
            return frozenset(name for names in versions[1:] for name in names)
        return frozenset(self._compared).difference(*versions)

    # -- one copy

    def _treat(self, name: str, mine: list[_Loss]) -> None:
        try:
            wanted = self._look(name, mine)
            if not wanted:
                self._judge(name, mine, tried=False)
            elif (why := self._why_not(name, wanted)) is not None:
                self._left[name] = why
            elif self._rewrite(name, wanted):
                self._judge(name, mine, tried=True)
        except CopyError as error:
            if error.copy != name:
                raise
            self._left[name] = str(error)

    def _look(self, name: str, mine: list[_Loss]) -> list[Range]:
        """What the copy lacks now, of what the others agree on."""
        ranges = [loss.range for loss in mine]
        with reached(self._context, self._spec, self._quorum, self._loop, self._compared) as (fence, readers):
            seen = self._confirmer(fence, readers).confirm(coalesce(ranges))
            wrong = [run.range for run in seen.damaged if name in _culprits(run.verdict)]
            hopeless = RangeSet(run.range for run in seen.damaged if isinstance(run.verdict, NoMajority))
            if any(hopeless.touches(r) for r in ranges):
                self._left[name] = "the other copies do not agree there any more"
            # Guests write there: what can be read is up to date.
            reader = next(reader for reader in readers if reader.name == name)
            for part in intersect(ranges, seen.busy):
                observed = reader.observe(part, between_reads=self._heed)
                wrong += [r.shifted(part.offset) for r in observed.unreadable]
        return [part for r in coalesce(wrong) for part in hopeless.rest_of(r)]

    def _why_not(self, name: str, wanted: list[Range]) -> str | None:
        """Why a copy is better left in the quorum, or cannot leave it."""
        spec = self._spec
        if failing.is_failing(0, total_bytes(wanted)):
            self._failing.add(name)
            return f"it has lost more than {failing.BOUND}"
        stale = self._stale()
        if name in stale:
            return (
                f"it has missed writes; 'qorumctl copy detach {spec.name} {name}' and then 'qorumctl copy rejoin "
                f"{spec.name} {name}' bring all of it up to date; where that does not work, it is to be replaced"
            )
        fit = set(self._compared) - {name} - stale - self._failing
        if len(fit) < spec.threshold and self._failing:
            bad = min(self._failing)
            return (
                f"while it is out, guests could not read what copy {bad} has lost; replace that one first, with "
                f"{failing.replacement(spec.name, bad)}"
            )
        if not detaching.flush(self._context, copy_node(name)):
            return "it does not confirm a flush: look at its storage"
        return None

    def _rewrite(self, name: str, wanted: list[Range]) -> bool:
        """Whether the copy is back in the quorum."""
        with reached(self._context, self._spec, self._quorum, self._loop) as (fence, _):
            try:
                fence.run(detaching.take_out(self._context, self._spec, self._quorum, name, rewrite=wanted))
            except RefusedError as error:
                self._left[name] = str(error)
                return False
        # Whoever asks to stop. Not so a comparison of the whole copy: that goes on with the next scrub.
        teller = rejoining.teller_of(self._spec, name, Silent(), self._control, brief=True)
        try:
            rejoining.bring_back(self._context, self._spec, self._quorum, name, teller, self._loop)
        except (CopyError, RefusedError) as error:
            self._away = name
            self._left[name] = f"it is away. {error} 'qorumctl copy rejoin {self._spec.name} {name}' brings it back"
            return False
        return True

    def _judge(self, name: str, mine: list[_Loss], *, tried: bool) -> None:
        """Equal, as read from each copy and confirmed: repaired. Written anew, and not equal: failed."""
        unproven = {loss: [loss.range] for loss in mine}
        failed: set[_Loss] = set()
        repaired: list[_Loss] = []
        with reached(self._context, self._spec, self._quorum, self._loop, self._compared) as (fence, readers):
            confirmer = self._confirmer(fence, readers)
            for _ in range(_ROUNDS):
                if not unproven:
                    break
                seen = confirmer.confirm(coalesce(r for ranges in unproven.values() for r in ranges), flush=True)
                for loss in list(unproven):
                    runs = [run for run in seen.damaged if run.range.overlaps(loss.range)]
                    guilty = loss.copies.intersection(culprit for run in runs for culprit in _culprits(run.verdict))
                    if guilty or any(isinstance(run.verdict, NoMajority) for run in runs):
                        failed |= {loss} if name in guilty else set()
                        del unproven[loss]
                    elif not (busy := intersect(unproven[loss], seen.busy)):
                        repaired.append(loss)
                        del unproven[loss]
                    else:
                        unproven[loss] = busy
            if repaired:
                # A guest's read may have made it equal after the flush that the look began with.
                confirmer.flush()
        actions = {loss.id: Action.REPAIRED for loss in repaired}
        if tried:
            actions |= {loss.id: Action.FAILED for loss in failed}
        self._store.journal(self._run).amend(actions)
        for finding_id in actions:
            if (amended := self._store.finding(finding_id)) is not None:
                self._findings.settled(finding_id, amended)
        if tried and failed:
            self._left[name] = "it does not hold what is written there, either: its storage has lost these sectors"

    # -- details

    def _confirmer(self, fence: Fence, readers: Sequence[CopyReader]) -> Confirmer:
        plan = ScrubPlan(
            size_bytes=self._spec.size,
            threshold=self._spec.threshold,
            repair=True,
            rewriting=True,
            within=Range(0, self._spec.size),
            now=now,
            stale=self._stale(),
        )
        return Confirmer(readers, fence, plan, self._supervisor)

    def _heed(self) -> None:
        self._supervisor.suspend_if_requested()
        if (reason := self._supervisor.stop_requested()) is not None:
            raise Stopped(reason)


def _culprits(verdict: Verdict) -> frozenset[str]:
    return verdict.losers | verdict.unreadable if isinstance(verdict, Outvoted) else frozenset()


class _Steady:
    """The run's supervisor. Each vote here asks anew which copies are stale: no plan goes out of date."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def stop_requested(self) -> StopReason | None:
        reason = self._supervisor.stop_requested()
        return None if reason is StopReason.REPLAN else reason

    def suspend_if_requested(self) -> None:
        self._supervisor.suspend_if_requested()

    def wants_quiet(self) -> bool:
        return self._supervisor.wants_quiet()

    def moved(self, position_bytes: int, read_bytes: int, suspects: int) -> None:
        self._supervisor.moved(position_bytes, read_bytes, suspects)

    def recovered(self, copy: str, reads: int) -> None:
        self._supervisor.recovered(copy, reads)
