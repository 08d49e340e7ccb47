"""Runs the engine: on a running set through its fence, on a stopped one read-only, always in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from qorumctl import definitions
from qorumctl.controller import suspects, telling, watcher
from qorumctl.controller.bridge import LiveFence, QuietFence
from qorumctl.controller.context import SetContext
from qorumctl.controller.live import at_rest, in_a_thread, reached
from qorumctl.controller.observer import Observer, ScrubControl, ScrubPosition, ScrubStart
from qorumctl.controller.options import ScrubOptions, Transport
from qorumctl.controller.returning import WallClock
from qorumctl.controller.rewriting import Rewriting
from qorumctl.copies.base import CopyReader
from qorumctl.core.findings import Cause, Checkpoint, Finding
from qorumctl.core.progress import Progress
from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import CopySharingError, QorumError, StoreError
from qorumctl.logbook import warn
from qorumctl.model.report import Mode, ScrubReport
from qorumctl.model.spec import SetSpec
from qorumctl.scrub.engine import Scrub
from qorumctl.scrub.pacing import Courtesy
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import StopReason
from qorumctl.store import RunJournal, RunRecord, Store
from qorumctl.store.records import now

_log = logging.getLogger("qorumctl.scrub")
_TELL_EVERY_S = 0.1
_NOTE_EVERY_S = 1.0
_ASK_EVERY_S = 0.25
"""How often another terminal's `pause` or `cancel` is looked for."""


_OUT_OF_TIME = "Its time was used up."


@dataclass(frozen=True, slots=True)
class ScrubJob:
    """One run to carry out: on an assembled set, or on copies opened read-only (`at_rest`)."""

    spec: SetSpec
    mode: Mode
    options: ScrubOptions
    quorum: QuorumSet
    cause: Cause | None = None
    at_rest: bool = False
    recovery: bool = False
    """Before guests are let in."""
    away: frozenset[str] = frozenset()
    """Copies that are not in the quorum."""

    @property
    def copies(self) -> tuple[str, ...]:
        return tuple(name for name in self.spec.copy_names if name not in self.away)

    @property
    def rate(self) -> int | Literal["max"] | None:
        """The most bytes per second that are read from each copy; None: as guests leave room for."""
        if self.options.full_speed:
            return "max"
        return self.options.rate_bytes_per_s or self.spec.scrub.rate

    @property
    def gives_way(self) -> bool:
        """Whether there can be guests, and nobody has said how fast to read."""
        return self.rate is None and not self.at_rest and not self.recovery

    @property
    def rewrites(self) -> bool:
        """Whether a copy may be taken out to mend it: not before guests are let in, and not while nothing has compared
        the copies since an unclean stop."""
        return (
            not self.at_rest and self.mode == self.spec.policy == "repair" and not self.recovery and self.cause is None
        )

    def stale(self, store: Store) -> frozenset[str]:
        found = suspects.stale(store, self.spec, count_suspects=self.options.count_suspects)
        return found.intersection(self.copies)


async def run(context: SetContext, job: ScrubJob, observer: Observer, control: ScrubControl) -> ScrubReport:
    """Carries one run out, under the set's lock, which the caller holds. Returns its report, finished or not, without
    the findings: there may be a million.

    Raises what the daemon, a copy or the store raises; the run is then on record as failed, and can be resumed.
    """
    return await in_a_thread(control, _run, context, job, observer, control, asyncio.get_running_loop())


def _run(
    context: SetContext, job: ScrubJob, observer: Observer, control: ScrubControl, loop: asyncio.AbstractEventLoop
) -> ScrubReport:
    with context.store() as store:
        record = _record(store, job)
        within = record.within or Range(0, record.size_bytes)
        behind = record.checkpoint.cursor_bytes - within.offset
        observer.started(
            ScrubStart(
                job.spec.name,
                record.id,
                job.mode,
                within.length,
                behind if behind > 0 else None,
                job.recovery,
            )
        )
        telling.scrub_begun(job.spec.name, record.id, job.mode, behind if behind > 0 else None)
        supervisor = _Supervisor(store, job, record, observer, control)
        if job.gives_way:
            worked_s = partial(process.worked_s, context.pid())
            supervisor.courtesy = Courtesy(worked_s, WallClock(), supervisor.wants_quiet)
        watcher.note_scrubbing(store)
        try:
            reason = _engine(context, job, store, record, supervisor, loop)
            if reason is None and job.rewrites:
                reason = _rewrite(context, job, store, record.id, supervisor, control, loop)
        except QorumError as error:
            # Where that cannot be noted either, the run reads as cut off: it can be resumed all the same.
            with contextlib.suppress(StoreError):
                store.fail_run(record.id, str(error))
                _tell_ended(store, job, record.id, failed=True)
            raise
        finally:
            with contextlib.suppress(StoreError):
                watcher.note_scrubbed(store)
        supervisor.tell()
        if reason is None:
            store.finish_run(record.id)
            suspects.clear_compared(store, job.spec, record.id)
        elif reason is StopReason.CANCELLED:
            store.abandon_run(record.id)
        else:
            store.suspend_run(record.id, _OUT_OF_TIME if reason is StopReason.OUT_OF_TIME else None)
        return _tell_ended(store, job, record.id)


def _tell_ended(store: Store, job: ScrubJob, run_id: int, *, failed: bool = False) -> ScrubReport:
    report = store.scrub_report(run_id, with_findings=False)
    telling.scrub_ended(job.spec.name, report, store.of_run(run_id).number(), failed=failed)
    return report


def _rewrite(
    context: SetContext,
    job: ScrubJob,
    store: Store,
    run_id: int,
    supervisor: _Supervisor,
    control: ScrubControl,
    loop: asyncio.AbstractEventLoop,
) -> StopReason | None:
    """All was compared: what the engine could not repair. The run has not ended: interrupted, it is resumed here."""
    suspects.clear_compared(store, job.spec, run_id)
    stale = partial(job.stale, store)
    work = Rewriting(context, job.spec, job.quorum, loop, store, run_id, job.copies, stale, supervisor, control)
    return work.run()


def _engine(
    context: SetContext,
    job: ScrubJob,
    store: Store,
    record: RunRecord,
    supervisor: _Supervisor,
    loop: asyncio.AbstractEventLoop,
) -> StopReason | None:
    transport = job.options.transport
    while True:
        try:
            return _engine_over(transport, context, job, store, record, supervisor, loop)
        except CopySharingError as error:
            if transport == "shm":
                raise
            warn(_log, f"{error.message} The scrub goes on over NBD.", set_name=job.spec.name)
            transport, record = "nbd", store.run(record.id) or record


def _engine_over(
    transport: Transport,
    context: SetContext,
    job: ScrubJob,
    store: Store,
    record: RunRecord,
    supervisor: _Supervisor,
    loop: asyncio.AbstractEventLoop,
) -> StopReason | None:
    journal = _TellingJournal(store.journal(record.id), job.spec.name, supervisor)
    with _copies_and_fence(transport, context, job, loop) as (fence, readers):
        while True:
            plan = supervisor.follow(_plan(job, store, record))
            if plan.stale:
                store.note_uncounted(record.id, plan.stale.union(record.parameters.get("uncounted", ())))
            reason = Scrub(readers, fence, journal, supervisor, WallClock(), plan, supervisor.courtesy).run()
            if reason is not StopReason.REPLAN:
                return reason
            record = store.run(record.id) or record


def _copies_and_fence(
    transport: Transport, context: SetContext, job: ScrubJob, loop: asyncio.AbstractEventLoop
) -> AbstractContextManager[tuple[LiveFence | QuietFence, list[CopyReader]]]:
    if job.at_rest:
        return at_rest(context, job.spec, loop, job.copies, transport)
    return reached(context, job.spec, job.quorum, loop, job.copies, transport)


def _record(store: Store, job: ScrubJob) -> RunRecord:
    """The run to go on with: the newest unfinished one where it was asked for the same, else a new one."""
    # A run is not resumed over other images, or with another threshold, than it began with.
    options, digest = job.options, definitions.digest(job.spec)
    for unfinished in store.unfinished_runs():
        if unfinished.within != options.within:
            # A scrub of a range leaves a paused one of the whole disk alone.
            continue
        same = (
            unfinished.mode == job.mode
            and unfinished.size_bytes == job.spec.size
            and unfinished.thorough == options.thorough
            and unfinished.cause == job.cause
            and unfinished.parameters.get("definition") == digest
            and suspects.compares(unfinished, job.copies)
        )
        if same and not options.fresh:
            return store.reopen_run(unfinished.id, os.getpid())
        store.abandon_run(unfinished.id)
    parameters = {"definition": digest, **suspects.noted_at_begin(store, job.copies)}
    return store.begin_run(
        job.mode, job.spec.size, options.within, options.thorough, job.cause, os.getpid(), parameters
    )


def _plan(job: ScrubJob, store: Store, record: RunRecord) -> ScrubPlan:
    checkpoint = record.checkpoint
    return ScrubPlan(
        size_bytes=job.spec.size,
        threshold=job.spec.threshold,
        repair=job.mode == "repair",
        rewriting=not job.at_rest and job.spec.policy == "repair",
        within=job.options.within or Range(0, job.spec.size),
        now=now,
        thorough=job.options.thorough,
        rate_bytes_per_s=None if job.rate == "max" else job.rate,
        stale=job.stale(store),
        cause=job.cause,
        checkpoint=checkpoint,
        pending=store.pending_findings(record.id),
        settled=store.settled_ranges(record.id, checkpoint.cursor_bytes, checkpoint.busy),
    )


class _TellingJournal:
    """A journal that also counts, for the progress bar, and tells the log of what is on record."""

    def __init__(self, journal: RunJournal, set_name: str, supervisor: _Supervisor) -> None:
        self._journal = journal
        self._supervisor = supervisor
        self._findings = telling.Findings(set_name, journal.run_id)

    def begin_repair(self, findings: Sequence[Finding]) -> list[int]:
        self._supervisor.findings += len(findings)
        return self._journal.begin_repair(findings)

    def conclude(
        self, settled: Sequence[tuple[int, Finding]], findings: Sequence[Finding], checkpoint: Checkpoint
    ) -> None:
        self._supervisor.findings += len(findings)
        ids = self._journal.conclude(settled, findings, checkpoint)
        for finding_id, finding in (*settled, *zip(ids, findings, strict=True)):
            self._findings.settled(finding_id, finding)


class _Supervisor:
    """A scrub.ports.Supervisor: asks the caller's control and the store, tells the observer and the store."""

    def __init__(
        self, store: Store, job: ScrubJob, record: RunRecord, observer: Observer, control: ScrubControl
    ) -> None:
        self.findings = 0
        self.courtesy: Courtesy | None = None
        self._store = store
        self._job = job
        self._followed: ScrubPlan | None = None
        self._outdated = False
        self._run = record.id
        self._observer = observer
        self._control = control
        self._within = record.within or Range(0, record.size_bytes)
        self._progress = Progress(self._within.length, max(0, record.checkpoint.cursor_bytes - self._within.offset))
        self._read_bytes = 0
        self._recovered = dict(record.parameters.get("recovered", {}))
        budget_s = job.options.budget_s
        self._ends_at_s = None if budget_s is None else time.monotonic() + budget_s
        self._asked_at_s = self._told_at_s = self._noted_at_s = 0.0

    def stop_requested(self) -> StopReason | None:
        now_s = time.monotonic()
        if self._ends_at_s is not None and now_s >= self._ends_at_s:
            self._control.stop(StopReason.OUT_OF_TIME)
        if self._control.reason is None and now_s - self._asked_at_s >= _ASK_EVERY_S:
            self._asked_at_s = now_s
            match self._store.pending_request(self._run):
                case "pause":
                    self._control.stop(StopReason.PAUSED)
                case "cancel":
                    self._control.stop(StopReason.CANCELLED)
            self._outdated = self._outdated or self._missed_more()
        return self._control.reason or (StopReason.REPLAN if self._outdated else None)

    def follow(self, plan: ScrubPlan) -> ScrubPlan:
        """The plan that is being carried out: it has to give way when another copy turns out to have missed writes."""
        self._followed, self._outdated = plan, False
        return plan

    def _missed_more(self) -> bool:
        return self._followed is not None and bool(self._job.stale(self._store) - self._followed.stale)

    def suspend_if_requested(self) -> None:
        if self._control.suspend_requested:
            self._control.stop_here()

    def wants_quiet(self) -> bool:
        return self._control.suspend_requested or self.stop_requested() is not None

    def recovered(self, copy: str, reads: int) -> None:
        self._recovered[copy] = self._recovered.get(copy, 0) + reads
        self._store.note_recovered(self._run, self._recovered)

    def moved(self, position_bytes: int, read_bytes: int, suspects: int) -> None:
        now_s = time.monotonic()
        self._read_bytes += read_bytes
        self._progress.advance(max(position_bytes - self._within.offset, self._progress.position_bytes), now_s)
        if now_s - self._noted_at_s >= _NOTE_EVERY_S:
            self._noted_at_s = now_s
            held_back = self.courtesy is not None and self.courtesy.holding
            self._store.note_position(self._run, self._within.offset + self._progress.position_bytes, held_back)
        if now_s - self._told_at_s >= _TELL_EVERY_S or position_bytes == self._within.end:
            self._told_at_s = now_s
            self.tell()

    def tell(self) -> None:
        """Where the run is; also told once at its end, when the last findings are on record."""
        self._observer.moved(
            ScrubPosition(
                self._progress.position_bytes,
                self._progress.size_bytes,
                self._read_bytes,
                self._progress.rate_bytes_per_s,
                self._progress.eta_s,
                self.findings,
                held_back=self.courtesy is not None and self.courtesy.holding,
            )
        )
