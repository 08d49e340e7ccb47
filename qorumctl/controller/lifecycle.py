"""Start and stop. A start that fails leaves nothing behind; a stop that is not in order is remembered as unclean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from qorumctl import definitions, identity
from qorumctl.controller import absences, interrupted, record, suspects, watcher
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.options import ScrubOptions
from qorumctl.controller.scrubbing import ScrubJob, run
from qorumctl.controller.vetting import Presence, group_of, recheck, vet, vet_degraded
from qorumctl.controller.withdrawal import withdraw_and_flush
from qorumctl.core.findings import Cause
from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.exports import export_ids
from qorumctl.daemon.features import missing_features
from qorumctl.daemon.graph import VOLUME
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import (
    CopySilentError,
    CopyUnavailableError,
    DaemonError,
    DaemonStalledError,
    DaemonStartError,
    QorumError,
    RefusedError,
    StoreError,
)
from qorumctl.files import reason
from qorumctl.model.report import ScrubReport
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import Result, SetState
from qorumctl.paths import ensure_private, make_directories

_SETTLING_S = 3.0
"""A daemon listens within some 50 ms of its start."""
_POLL_S = 0.02
_KILLED_S = 5.0
"""How long a killed process may take to be gone: the kernel ends its I/O first."""


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
    if await is_up(context):
        lost = record.secure(context, spec_in_force(context), None)
        found = await already_up(context)
        return found.model_copy(update={"warnings": [*([lost] if lost else []), *found.warnings]})
    spec = context.spec()
    if silent is None:
        presence = Presence(vet(context, spec, takeover=takeover), {}, frozenset())
    else:
        presence = vet_degraded(context, spec, takeover=takeover, silent=silent)
    who, absent = presence.who, presence.absent
    group = group_of(spec)
    await end_leftover(context)
    interrupted.settle(context)
    prepare_directories(context, group)
    attempt = _Attempt(context, spec)
    lost = record.secure(context, spec, who)
    with context.store() as store:
        unclean = who.unclean or context.uncompared(store) or context.died(store)
        # On record before anything is begun: a failed start must not make a set look clean that was not.
        context.note_uncompared(store, unclean)
        context.note_served(store, False)
        attempt.was_clean = not unclean
        if unclean and now:
            # What an unfinished run has compared may differ since, and its end must not pass for a whole comparison.
            for run in store.unfinished_runs():
                store.abandon_run(run.id)
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
        host = identity.this_host()
        generation = identity.prepare_start(spec, who, host, without=absent.keys())
        identity.commit_start(spec, who, host, generation, without=absent.keys())
        if unclean and not now:
            recovery = await _recover(context, quorum, spec, frozenset(absent), observer, control)
            record.refuse_doubt(context, spec, recovery)
        _open_socket(context, spec, group)
        with context.store() as store:
            context.note_running(store, spec)
            if recovery is not None:
                context.note_uncompared(store, False)
            pid = context.pid()
        # Before guests are let in: a time in which nobody listens makes every copy suspect.
        unheard = None if pid is None else await watcher.ensure(context, pid)
        with context.store() as store:
            # On record before the export: what a killed stop has withdrawn was served all the same.
            context.note_served(store, True)
        attempt.guests_let_in = True
        await quorum.export_volume()
    warnings = _warnings(
        spec, recovery, skipped=unclean and now, left_host=who.foreign_host if takeover else None, unheard=unheard
    )
    return Result(
        set=spec.name,
        command="start",
        changed=True,
        warnings=[*absences.left_out_words(spec, absent), *([lost] if lost else []), *warnings],
        recovery=recovery.run if recovery else None,
    )


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


async def is_up(context: SetContext) -> bool:
    """Whether the volume is there for guests. Needs no usable definition, and no lock."""
    if context.pid() is None:
        return False
    async with context.control() as monitor:
        return VOLUME in await export_ids(monitor, timeout_s=context.timeouts.monitor_s)


async def end_leftover(context: SetContext) -> None:
    """Ends a daemon that serves no volume: an earlier command died half-way. No guest can be connected to it."""
    pid = await settled_pid(context)
    if pid is not None:
        process.terminate(context.runtime, pid)
        if not await process.wait_gone(context.runtime, pid, deadline_s=context.timeouts.stop_s):
            process.kill(context.runtime, pid)
            await process.wait_gone(context.runtime, pid, deadline_s=_KILLED_S)
    if context.runtime.directory.is_dir():
        process.clear_runtime(context.runtime)


async def settled_pid(context: SetContext) -> int | None:
    """As `context.pid()`, under the lock; a daemon whose starter was killed a moment ago is waited for.

    RefusedError for one that stays out of reach: its sockets are gone, and guests may still be connected.
    """
    ends_at_s = time.monotonic() + _SETTLING_S
    while (pid := context.pid()) is None and (strays := process.processes(context.runtime)):
        if time.monotonic() > ends_at_s:
            raise RefusedError(
                f"A daemon of {context.name} runs (pid {strays[0]}), but its sockets are gone: nobody can tell whether "
                "guests use it.",
                remedy=f"Shut the guests down, and then run 'kill {strays[0]}'. Nothing was changed.",
                set_name=context.name,
            )
        await asyncio.sleep(_POLL_S)
    return pid


def prepare_directories(context: SetContext, group: int | None = None) -> None:
    """The runtime directory: 0700, or 0710 where a group may reach `nbd.sock` in it."""
    root = context.directories.runtime
    try:
        if not root.is_dir():
            make_directories(root)
            # Whatever the umask: members of the volume's group have to pass.
            root.chmod(0o755)
    except OSError as error:
        raise RefusedError(
            f"The directory {root} cannot be made: {reason(error)}.",
            remedy="Make it, or choose another with QORUM_RUNTIME_DIR.",
            path=str(root),
        ) from None
    ensure_private(context.runtime.directory, 0o700 if group is None else 0o710, group=group)


@asynccontextmanager
async def rolled_back(context: SetContext, undo: Callable[[], None] | None = None) -> AsyncIterator[Monitor]:
    """A fresh daemon and a monitor on it; when the block fails, the daemon is ended, its sockets are removed, and
    then `undo` is called."""
    pid = await process.spawn(context.runtime)
    try:
        async with context.scrub_monitor() as monitor:
            yield monitor
    except BaseException:
        await asyncio.shield(_discard(context, pid, undo))
        raise


async def _discard(context: SetContext, pid: int, undo: Callable[[], None] | None) -> None:
    process.terminate(context.runtime, pid)
    if not await process.wait_gone(context.runtime, pid, deadline_s=_KILLED_S):
        process.kill(context.runtime, pid)
        await process.wait_gone(context.runtime, pid, deadline_s=_KILLED_S)
    process.clear_runtime(context.runtime)
    if undo is not None:
        await watcher.dismiss(context)
        undo()


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


def _open_socket(context: SetContext, spec: SetSpec, group: int | None) -> None:
    """QMP opens any file as the daemon's user, so its sockets are ours alone; guests get `nbd.sock`."""
    runtime = context.runtime
    try:
        for path in (runtime.control_sock, runtime.scrub_sock, runtime.watch_sock):
            path.chmod(0o600)
        if group is not None:
            os.chown(runtime.nbd_sock, -1, group)
        runtime.nbd_sock.chmod(spec.volume.mode_bits)
    except OSError as error:
        raise RefusedError(
            f"The rights of {runtime.nbd_sock} cannot be set: {reason(error)}.",
            remedy="Check [volume] in the definition, and the runtime directory.",
            set_name=spec.name,
        ) from None


async def stop(context: SetContext, *, force: bool) -> Result:
    """Withdraws the volume, drains, flushes, ends the daemon; under the set's lock. A stopped set is left as it is."""
    pid = await settled_pid(context)
    if pid is None:
        await watcher.dismiss(context)
        return _stopped_already(context)
    spec = spec_in_force(context)
    warnings: list[str] = []
    wait_s = context.timeouts.stop_s
    watched = watcher.listens(context, pid)
    try:
        flushed = await withdraw_and_flush(context, spec, force=force)
        if flushed is False:
            warnings.append("Not every copy confirmed its flush: the next start compares the copies.")
    except (DaemonStalledError, CopyUnavailableError) as error:
        if not force:
            forcing = "--force kills the daemon instead, and the next start compares the copies."
            error.remedy = f"{error.remedy} {forcing}"
            raise
        flushed, wait_s = False, _KILLED_S
        process.terminate(context.runtime, pid)
        warnings.append("The daemon did not answer and was ended: the next start compares the copies.")
    if not await process.wait_gone(context.runtime, pid, deadline_s=wait_s):
        if not force:
            raise DaemonStalledError(
                f"The daemon of {context.name} (pid {pid}) did not end within {context.timeouts.stop_s:g} s: "
                "a copy hangs.",
                remedy="Wait for its storage, or use --force, which kills it.",
                set_name=context.name,
            )
        if flushed:
            warnings.append("The daemon did not end and was killed: the next start compares the copies.")
        flushed = False
        process.kill(context.runtime, pid)
        if not await process.wait_gone(context.runtime, pid, deadline_s=_KILLED_S):
            raise DaemonError(
                f"The daemon of {context.name} (pid {pid}) is stuck in the kernel.",
                remedy="Its storage must come back, or the host be restarted.",
                set_name=context.name,
            )
    process.clear_runtime(context.runtime)
    heard = watched and await watcher.caught_up(context, pid)
    await watcher.dismiss(context)
    warnings += _note_stopped(context, spec, clean=flushed, heard=heard)
    return Result(set=context.name, command="stop", changed=True, state=SetState.STOPPED, warnings=warnings)


def _note_stopped(context: SetContext, spec: SetSpec, *, clean: bool | None, heard: bool) -> list[str]:
    """The set is down whatever happens here: what cannot be noted is a warning. `clean` None: it was never assembled,
    so what was on record of it before still holds. `heard`: whether all that the daemon told was listened to."""
    warnings = []
    try:
        with context.store() as store:
            if clean is not None and not heard and context.may_have_served(store):
                store.suspect(spec.copy_names, missed=False, why=watcher.UNHEARD)
            away = store.absences().keys()
            stale = suspects.missed(store, spec) - away
            if stale and clean:
                names = ", ".join(sorted(stale))
                warnings.append(f"Copy {names} has missed writes: the next start compares the copies.")
            lost = not record.is_there(store, spec)
            if lost:
                warnings.append(f"The record of {spec.name} was lost: the next start compares the copies.")
            uncompared = (
                context.uncompared(store)
                or clean is False
                or (clean is None and context.died(store))
                or bool(stale)
                or lost
            )
            context.note_uncompared(store, uncompared)
            context.note_running(store, None)
        if clean and not uncompared:
            identity.mark_clean(spec, without=away)
    except QorumError as error:
        return [f"The set is stopped, but that could not be noted: {error.message}"]
    return warnings


def _stopped_already(context: SetContext) -> Result:
    if context.runtime.directory.is_dir():
        process.clear_runtime(context.runtime)
    warnings = []
    with context.store() as store:
        if context.died(store):
            context.note_uncompared(store, True)
            context.note_running(store, None)
            warnings.append("The daemon had ended without being stopped: the next start compares the copies.")
    return Result(set=context.name, command="stop", changed=False, state=SetState.STOPPED, warnings=warnings)


def spec_in_force(context: SetContext) -> SetSpec:
    """What a running daemon was started from; the file, which may have been edited, where that is not on record."""
    running = None
    with contextlib.suppress(StoreError), context.store(read_only=True) as store:
        running = context.running_spec(store)
    return running or context.spec()


def definition_differs(running: SetSpec | None, spec: SetSpec) -> bool:
    return running is not None and definitions.digest(running) != definitions.digest(spec)
