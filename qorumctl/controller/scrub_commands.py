"""`scrub` of one set, on what runs or on the images of a stopped one; `pause` and `cancel`, which ask one to stop."""

from __future__ import annotations

import asyncio
import logging
import time

from qorumctl.controller import absences, record, rewriting, scrubbing, serving, succession, vetting
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.options import ScrubOptions
from qorumctl.core.findings import Cause
from qorumctl.core.ranges import SECTOR_BYTES
from qorumctl.errors import DaemonGoneError, QorumError, RefusedError, UsageError
from qorumctl.logbook import warn
from qorumctl.model.report import ScrubReport
from qorumctl.model.spec import SetSpec
from qorumctl.store import RunState, SetLock
from qorumctl.store.records import Request

_POLL_S = 0.05
_log = logging.getLogger("qorumctl.scrub")


async def scrub(context: SetContext, options: ScrubOptions, observer: Observer, control: ScrubControl) -> ScrubReport:
    """Under the set's lock. Resumes an unfinished run of the same kind, or begins a new one. The report comes without
    the findings."""
    running = context.pid() is not None
    await succession.settle_leftovers(context)
    spec = serving.spec_in_force(context) if running else context.spec()
    # What the daemon was built from stays in force until a restart; the rate is ours, and may be edited.
    spec = spec.model_copy(update={"scrub": context.spec().scrub})
    _check_options(spec, options, running=running)
    mode = options.mode or spec.policy
    if not running:
        return await _scrub_stopped(context, spec, options, observer, control)
    if mode == "repair":
        for problem in await rewriting.finish(context, spec, observer, control):
            warn(_log, problem, set_name=context.name)
    async with context.scrub_monitor() as monitor:
        quorum = context.quorum(spec, monitor)
        await quorum.sweep()
        state = await quorum.describe()
        away = frozenset(spec.copy_names).difference(state.copies)
        if not state.assembled:
            raise DaemonGoneError(
                f"The daemon of {spec.name} is not assembled: an earlier command did not finish.",
                remedy=f"Run 'qorumctl start {spec.name}'.",
                set_name=spec.name,
            )
        record.secure_aloud(context, spec, None)
        absences.note_unmarked(context, spec, away)
        with context.store() as store:
            await absences.drop_unneeded(store.absences(), quorum, state)
            cause = Cause.UNCLEAN_SHUTDOWN if context.uncompared(store) else None
        job = scrubbing.ScrubJob(spec, mode, options, quorum, cause, away=away)
        for copy in job.copies:
            await quorum.children.export(copy)
        report = await scrubbing.run(context, job, observer, control)
        if cause and _settles_an_unclean_stop(spec, report):
            with context.store() as store:
                context.note_uncompared(store, False)
        return report


async def _scrub_stopped(
    context: SetContext, spec: SetSpec, options: ScrubOptions, observer: Observer, control: ScrubControl
) -> ScrubReport:
    """Compares copies that nobody uses: opened read-only by a daemon of its own, which ends with the scrub."""
    who = vetting.vet(context, spec, takeover=False)
    record.secure_aloud(context, spec, who)
    with context.store() as store:
        unclean = who.unclean or context.uncompared(store) or context.died(store)
    serving.prepare_directories(context)
    async with serving.rolled_back(context) as monitor:
        quorum = context.quorum(spec, monitor)
        cause = Cause.UNCLEAN_SHUTDOWN if unclean else None
        job = scrubbing.ScrubJob(spec, "report", options, quorum, cause, at_rest=True)
        await quorum.open_copies(read_only=True)
        await quorum.check_lengths()
        report = await scrubbing.run(context, job, observer, control)
    await serving.end_leftover(context)
    return report


async def ask(context: SetContext, what: Request) -> ScrubReport:
    """`pause` and `cancel`: returns the run's report, without findings, when it has stopped, and the set is free."""
    with context.store() as store:
        holder = SetLock.held_by(context.state_dir)
        asked = store.request(what, holder[0]) if holder is not None else None
        if asked is None:
            if what == "cancel" and holder is None and (unfinished := store.unfinished_run()) is not None:
                # Under the lock: a scrub that begins meanwhile would find its run taken away.
                with context.lock("cancel"):
                    store.abandon_run(unfinished.id)
                return store.scrub_report(unfinished.id, with_findings=False)
            raise RefusedError(
                f"No scrub of {context.name} is running.",
                remedy=f"See 'qorumctl history {context.name}'.",
                set_name=context.name,
            )
        ends_at_s = time.monotonic() + context.timeouts.stop_s
        # Until it has let go of the lock: whoever pauses a scrub has something else to do with the set.
        while SetLock.held_by(context.state_dir) == holder:
            if time.monotonic() > ends_at_s:
                run = store.run(asked.id)
                if run is None or run.state is not RunState.RUNNING:
                    break
                raise QorumError(
                    f"The scrub of {context.name} (pid {asked.pid}) has not stopped within "
                    f"{context.timeouts.stop_s:g} s.",
                    remedy="It will when the copies answer again; see 'qorumctl status'.",
                    set_name=context.name,
                )
            await asyncio.sleep(_POLL_S)
        return store.scrub_report(asked.id, with_findings=False)


def _settles_an_unclean_stop(spec: SetSpec, report: ScrubReport) -> bool:
    """Whether this run has done what a start does after one: compared everything, and healed what the policy allows."""
    if report.range is not None or report.outcome in {"unfinished", "failed"}:
        return False
    return report.outcome == "clean" or report.mode == spec.policy


def _check_options(spec: SetSpec, options: ScrubOptions, *, running: bool) -> None:
    if options.mode == "repair" and spec.policy == "report":
        raise RefusedError(
            f'{spec.name} has policy "report": nothing of it is ever rewritten.',
            remedy='Use --report, or set policy = "repair" in its definition and restart it.',
            set_name=spec.name,
        )
    if not running and (options.mode or spec.policy) == "repair":
        raise RefusedError(
            f"{spec.name} is not running, so nothing can be repaired.",
            remedy=f"Run 'qorumctl start {spec.name}' first, or compare its copies as they are with --report.",
            set_name=spec.name,
        )
    within = options.within
    if within is not None and (within.offset % SECTOR_BYTES or within.length % SECTOR_BYTES or within.end > spec.size):
        raise UsageError(
            f"The range {within.offset}:{within.length} is not whole sectors within {spec.size} bytes.",
            remedy="Use multiples of 512 that lie within the disk.",
        )
