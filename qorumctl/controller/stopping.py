"""`stop`: one that is not in order is remembered as unclean."""

from __future__ import annotations

import contextlib

from qorumctl import identity
from qorumctl.controller import record, succession, suspects, telling, watcher
from qorumctl.controller.context import SetContext
from qorumctl.controller.serving import KILLED_S, settled_pid, spec_in_force
from qorumctl.controller.withdrawal import withdraw_and_flush
from qorumctl.daemon import process, reader
from qorumctl.daemon.reader import ReaderPaths
from qorumctl.errors import (
    CopyUnavailableError,
    DaemonError,
    DaemonStalledError,
    QorumError,
    StoreError,
)
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import Result, SetState


async def stop(context: SetContext, *, force: bool) -> Result:
    """Withdraws the volume, drains, flushes, ends the daemon; under the set's lock. A stopped set is left as it is."""
    pid = await settled_pid(context)
    with contextlib.suppress(QorumError):
        # Of a scrub that was killed.
        await reader.end(ReaderPaths(context.runtime.directory))
    if pid is None:
        await watcher.dismiss(context)
        return _stopped_already(context)
    warnings: list[str] = []
    try:
        await succession.settle_leftovers(context)
    except QorumError as error:
        # A full disk, a definition that cannot be read, a copy that hangs: a newcomer ends with the daemon.
        if not force and not isinstance(error, StoreError):
            raise
    spec = spec_in_force(context)
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
        flushed, wait_s = False, KILLED_S
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
        if not await process.wait_gone(context.runtime, pid, deadline_s=KILLED_S):
            raise DaemonError(
                f"The daemon of {context.name} (pid {pid}) is stuck in the kernel.",
                remedy="Its storage must come back, or the host be restarted.",
                set_name=context.name,
            )
    process.clear_runtime(context.runtime)
    heard = watched and await watcher.caught_up(context, pid)
    await watcher.dismiss(context)
    warnings += _note_stopped(context, spec, clean=flushed, heard=heard)
    telling.stopped(context.name, in_order=not warnings)
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
            context.tell_if_died(store, None)
            context.note_uncompared(store, True)
            context.note_running(store, None)
            warnings.append("The daemon had ended without being stopped: the next start compares the copies.")
    return Result(set=context.name, command="stop", changed=False, state=SetState.STOPPED, warnings=warnings)
