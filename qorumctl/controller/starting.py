"""`start`: one that fails leaves nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from qorumctl import identity
from qorumctl.controller import absences, interrupted, maintenance, record, resolving, succession, telling, watcher
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.options import ScrubOptions
from qorumctl.controller.scrubbing import ScrubJob, run
from qorumctl.controller.serving import (
    definition_differs,
    end_leftover,
    is_up,
    open_to_guests,
    prepare_directories,
    rolled_back,
    spec_in_force,
)
from qorumctl.controller.vetting import Presence, group_of, recheck, vet, vet_degraded
from qorumctl.core.findings import Cause
from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.features import missing_features
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import (
    CopySilentError,
    DaemonStartError,
    QorumError,
)
from qorumctl.identity import Identity
from qorumctl.model.report import ScrubReport
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import Result


async def start(
    context: SetContext,
    *,
    now: bool,
    takeover: bool,
    degraded: bool = False,
    observer: Observer,
    control: ScrubControl,
) -> Result:
    """Starts and assembles the set; under its lock. A set that runs already is left as it is. `degraded`: without the
    copies that cannot take part, as long as enough are left."""
    silent: dict[str, str] = {}
    while True:
        try:
            return await _start(
                context,
                now=now,
                takeover=takeover,
                silent=silent if degraded else None,
                observer=observer,
                control=control,
            )
        except CopySilentError as error:
            # The daemon waited for it to the end: another one is begun, without it.
            if not degraded or error.copy is None:
                raise
            silent[error.copy] = error.message


async def _start(
    context: SetContext,
    *,
    now: bool,
    takeover: bool,
    silent: Mapping[str, str] | None,
    observer: Observer,
    control: ScrubControl,
) -> Result:
    await maintenance.settle(context, resolving.complete)
    if await is_up(context):
        lost = record.secure(context, spec_in_force(context), None)
        found = await already_up(context)
        return found.model_copy(update={"warnings": [*([lost] if lost else []), *found.warnings]})
    spec = context.spec()
    if context.pid() is None:
        # The mark of an old image that had left must not keep the new one out.
        succession.after_restart(context)
    if silent is None:
        presence = Presence(vet(context, spec, takeover=takeover), {}, frozenset())
    else:
        presence = vet_degraded(context, spec, takeover=takeover, silent=silent)
    who, absent, group = presence.who, presence.absent, group_of(spec)
    await end_leftover(context)
    interrupted.settle(context)
    prepare_directories(context, group)
    attempt = _Attempt(context, spec)
    lost = record.secure(context, spec, who)
    succession.after_restart(context)
    unclean = _note_begun(context, who, now=now)
    attempt.was_clean = not unclean
    recovery: ScrubReport | None = None
    async with rolled_back(context, attempt.undo) as monitor:
        await _check_features(monitor)
        quorum = context.quorum(spec, monitor)
        if silent is None:
            await quorum.open_copies(read_only=False)
        else:
            await absences.open_present(context, quorum, spec, absent)
        # Only now do we hold the images: another host may have run the set since we looked.
        recheck(spec, who, without=presence.unread)
        await quorum.assemble(without=absent.keys())
        # Durable before the others go on without them.
        absences.note_left_out(context, spec, who, absent)
        identity.begin_generation(spec, who, without=absent.keys())
        if unclean and not now:
            recovery = await _recover(context, quorum, spec, frozenset(absent), observer, control)
            record.refuse_doubt(context, spec, recovery)
        open_to_guests(context.runtime, spec, group)
        with context.store() as store:
            context.note_running(store, spec)
            if recovery is not None:
                context.note_uncompared(store, False)
            pid = context.pid()
        # Before guests are let in: a time in which nobody listens makes every copy suspect.
        unheard = None if pid is None else await watcher.ensure(context, pid)
        cut_short = _note_served(context, spec)
        attempt.guests_let_in = True
        await quorum.export_volume()
    telling.started(spec.name)
    warnings = _warnings(
        spec, recovery, skipped=unclean and now, left_host=who.foreign_host if takeover else None, unheard=unheard
    )
    return Result(
        set=spec.name,
        command="start",
        changed=True,
        warnings=[*absences.left_out_words(spec, absent), *filter(None, [lost, cut_short]), *warnings],
        recovery=recovery.run if recovery else None,
    )


def _note_served(context: SetContext, spec: SetSpec) -> str | None:
    """On record before the export: what a killed stop has withdrawn was served all the same. Returns what is to be said
    of a decision that was cut short."""
    with context.store() as store:
        # First: a note beside a volume that was served is of a command on this very daemon.
        cut_short = maintenance.forget(context, store)
        context.note_served(store, True)
        context.note_written_through(store, spec)
    return cut_short


def _note_begun(context: SetContext, who: Identity, *, now: bool) -> bool:
    """On record before anything is begun: a failed start must not make a set look clean that was not. Returns whether
    its copies may differ after an unclean stop."""
    with context.store() as store:
        context.tell_if_died(store, None)
        unclean = who.unclean or context.uncompared(store) or context.died(store)
        context.note_uncompared(store, unclean)
        context.note_served(store, False)
        if unclean and now:
            # What an unfinished run has compared may differ since, and its end must not pass for a whole comparison.
            for run in store.unfinished_runs():
                store.abandon_run(run.id)
    return unclean


def _warnings(
    spec: SetSpec, recovery: ScrubReport | None, *, skipped: bool, left_host: str | None, unheard: str | None
) -> list[str]:
    warnings = [unheard] if unheard else []
    if skipped:
        warnings.append(
            "The set was not stopped in order and has not been compared: "
            f"run 'qorumctl scrub {spec.name}' soon. Until a whole one is through, the next start compares the copies."
        )
    if recovery is not None and recovery.outcome in {"damaged", "no-majority"}:
        words = "Ranges without a majority were" if recovery.outcome == "no-majority" else "Damage was"
        warnings.append(f"{words} found and left: see 'qorumctl report {spec.name} {recovery.run}'.")
    if left_host is not None:
        warnings.append(f"Taken over from {left_host}: make sure that it no longer runs the set there.")
    return warnings


async def already_up(context: SetContext) -> Result:
    warnings = []
    pid = context.pid()
    if pid is not None and (unheard := await watcher.ensure(context, pid)):
        warnings.append(unheard)
    with context.store(read_only=True) as store, contextlib.suppress(QorumError):
        if definition_differs(context.running_spec(store), context.spec()):
            warnings.append(f"Its definition was changed since: 'qorumctl restart {context.name}' applies that.")
    return Result(set=context.name, command="start", changed=False, warnings=warnings)


class _Attempt:
    """What a start that fails has to take back, beside the daemon."""

    def __init__(self, context: SetContext, spec: SetSpec) -> None:
        self._context = context
        self._spec = spec
        self.was_clean = False
        self.guests_let_in = False

    def undo(self) -> None:
        """While no guest was let in, copies that were in order still are. Best effort: at worst they are compared."""
        clean = self.was_clean and not self.guests_let_in
        with contextlib.suppress(QorumError), self._context.store() as store:
            self._context.note_uncompared(store, not clean)
            self._context.note_running(store, None)
        if clean:
            with contextlib.suppress(QorumError):
                identity.mark_clean(self._spec, without=self._context.absences().keys())


async def _check_features(monitor: Monitor) -> None:
    if missing := await missing_features(monitor):
        raise DaemonStartError(
            f"The storage daemon {process.find_binary()} lacks what a set needs: {', '.join(missing)}.",
            remedy="Install a QEMU that has it, or name another program in QORUM_QSD; see 'qorumctl doctor'.",
        )


async def _recover(
    context: SetContext,
    quorum: QuorumSet,
    spec: SetSpec,
    away: frozenset[str],
    observer: Observer,
    control: ScrubControl,
) -> ScrubReport:
    """After an unclean stop (invariant 12): compare and heal everything before a guest reads any of it."""
    options = ScrubOptions(mode=spec.policy, fresh=True)
    job = ScrubJob(spec, spec.policy, options, quorum, Cause.UNCLEAN_SHUTDOWN, recovery=True, away=away)
    report = await run(context, job, observer, control)
    if report.outcome == "unfinished":
        raise QorumError(
            f"The start of {spec.name} was interrupted while its copies were being compared; the set is stopped again.",
            remedy="Start it again, or use --now to skip the comparison.",
            set_name=spec.name,
        )
    return report
