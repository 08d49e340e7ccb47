"""Start and stop. A start that fails leaves nothing behind; a stop that is not in order is remembered as unclean."""

from __future__ import annotations

import asyncio
import grp
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qorumctl import definitions, identity, images
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.options import ScrubOptions
from qorumctl.controller.scrubbing import ScrubJob, run
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.findings import Cause
from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.graph import HEAL
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import CopyUnavailableError, DaemonError, DaemonStalledError, QorumError, RefusedError
from qorumctl.identity import Identity
from qorumctl.model.report import ScrubReport
from qorumctl.model.spec import FileSource, SetSpec
from qorumctl.model.status import Result, SetState
from qorumctl.paths import ensure_private

_KILLED_S = 5.0
"""How long a killed process may take to be gone: the kernel ends its I/O first."""


async def start(context: SetContext, *, now: bool, takeover: bool, observer: Observer, control: ScrubControl) -> Result:
    """Starts and assembles the set; under its lock. A set that runs already is left as it is."""
    spec = context.spec()
    group = _group(spec)
    if await _is_up(context):
        return Result(set=spec.name, command="start", changed=False)
    await end_leftover(context)
    who = vet(context, spec, takeover=takeover)
    prepare_directories(context, group)
    recovery: ScrubReport | None = None
    async with rolled_back(context, spec if not who.unclean else None) as monitor:
        quorum = context.quorum(spec, monitor)
        await quorum.open_copies(read_only=False)
        await quorum.assemble()
        host = identity.this_host()
        generation = identity.prepare_start(spec, who, host)
        identity.commit_start(spec, who, host, generation)
        if who.unclean and not now:
            recovery = await _recover(context, spec, observer, control)
        _open_socket(context, spec, group)
        with context.store() as store:
            context.note_running(store, spec)
        await quorum.export_volume()
    warnings = []
    if who.unclean and now:
        warnings.append("The set was not stopped in order and has not been compared: run 'qorumctl scrub' soon.")
    if takeover and who.foreign_host:
        warnings.append(f"Taken over from {who.foreign_host}: make sure that it no longer runs the set there.")
    return Result(
        set=spec.name,
        command="start",
        changed=True,
        warnings=warnings,
        recovery=recovery.run if recovery else None,
    )


def vet(context: SetContext, spec: SetSpec, *, takeover: bool) -> Identity:
    """Every refusal that needs no daemon, before anything is changed. Raises RefusedError."""
    context.runtime.check()
    images.distinct(spec.copies, own_socket=context.runtime.nbd_sock)
    for copy in spec.copies:
        if isinstance(copy.source, FileSource):
            info = images.inspect(copy.source)
            if not info.exists:
                raise RefusedError(
                    f"The image of copy {copy.name}, {copy.source.path}, does not exist.",
                    remedy="Mount what it lives on, or bring it back. Nothing was changed.",
                    set_name=spec.name,
                    copy=copy.name,
                    path=copy.source.path,
                )
        unit = images.alignment(copy.source) if copy.cache == "none" else 512
        if spec.size % unit:
            raise RefusedError(
                f"The size of {spec.name}, {spec.size} bytes, is not a multiple of {unit}, the block size under copy "
                f"{copy.name} ({copy.source.label}).",
                remedy='Use a size that is, or set cache = "writeback" for this copy.',
                set_name=spec.name,
                copy=copy.name,
                path=copy.source.label,
            )
    who = identity.judge(identity.read_all(spec), spec, identity.this_host().id)
    if who.foreign_host and not takeover:
        raise RefusedError(
            f"{spec.name} was started on host {who.foreign_host} and never stopped there in order.",
            remedy="Stop it there. If that host is certainly down, use --takeover: two daemons on one set destroy it.",
            set_name=spec.name,
        )
    refuse_stale(spec, who)
    return who


def refuse_stale(spec: SetSpec, who: Identity) -> None:
    """A copy that missed writes votes as if it were current (invariant 8): RefusedError naming it and the way out."""
    if who.stale:
        raise RefusedError(_stale_words(spec, who), remedy=_stale_remedy(spec, who), set_name=spec.name)


def _stale_words(spec: SetSpec, who: Identity) -> str:
    if missing := sorted(who.missing):
        return (
            f"Copy {missing[0]} ({spec.copy_named(missing[0]).source.label}) has lost its identity file: "
            "nobody can tell whether it has every write."
        )
    name = sorted(who.stale)[0]
    sidecar = who.sidecars.get(name)
    behind = "" if sidecar is None else f" (generation {sidecar.generation}, the others {who.generation})"
    return f"Copy {name} ({spec.copy_named(name).source.label}) has missed writes{behind}; its votes would be wrong."


def _stale_remedy(spec: SetSpec, who: Identity) -> str:
    name = sorted(who.missing or who.stale)[0]
    current = next((copy for copy in spec.copies if copy.name not in who.stale), None)
    if current is None:
        return "No copy is known to be current: restore the identity files from a backup."
    return (
        f"Put the image and the .qorum file that belong together back in place; or copy {current.source.label} over "
        f'copy {name}\'s image and its .qorum file, and change "copy" in the latter to "{name}".'
    )


async def _is_up(context: SetContext) -> bool:
    if context.pid() is None:
        return False
    async with context.control() as monitor:
        state = await context.quorum(context.spec(), monitor).describe()
    return state.assembled and state.volume_exported


async def end_leftover(context: SetContext) -> None:
    """Ends a daemon that serves no volume: an earlier command died half-way. No guest can be connected to it."""
    pid = context.pid()
    if pid is not None:
        process.terminate(context.runtime, pid)
        if not await process.wait_gone(context.runtime, pid, deadline_s=context.timeouts.stop_s):
            process.kill(context.runtime, pid)
            await process.wait_gone(context.runtime, pid, deadline_s=_KILLED_S)
    if context.runtime.directory.is_dir():
        process.clear_runtime(context.runtime)


def prepare_directories(context: SetContext, group: int | None = None) -> None:
    """The runtime directory: 0700, or 0710 where a group may reach `nbd.sock` in it."""
    context.directories.runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
    ensure_private(context.runtime.directory, 0o700 if group is None else 0o710, group=group)


@asynccontextmanager
async def rolled_back(context: SetContext, clean: SetSpec | None) -> AsyncIterator[Monitor]:
    """A fresh daemon and a monitor on it; when the block fails, the daemon is ended and its sockets are removed.

    `clean`: a set whose copies were in order before. No guest has been let in, so they still are.
    """
    pid = await process.spawn(context.runtime)
    try:
        async with context.scrub_monitor() as monitor:
            yield monitor
    except BaseException:
        await asyncio.shield(_discard(context, pid, clean))
        raise


async def _discard(context: SetContext, pid: int, clean: SetSpec | None) -> None:
    process.terminate(context.runtime, pid)
    if not await process.wait_gone(context.runtime, pid, deadline_s=_KILLED_S):
        process.kill(context.runtime, pid)
        await process.wait_gone(context.runtime, pid, deadline_s=_KILLED_S)
    process.clear_runtime(context.runtime)
    if clean is not None:
        identity.mark_clean(clean)


async def _recover(context: SetContext, spec: SetSpec, observer: Observer, control: ScrubControl) -> ScrubReport:
    """After an unclean stop (invariant 12): compare and heal everything before a guest reads any of it."""
    # The control monitor: the scrub's is held by the start that waits for us. Nobody else needs it yet.
    async with context.control() as monitor:
        quorum = context.quorum(spec, monitor)
        job = ScrubJob(spec, spec.policy, ScrubOptions(mode=spec.policy), quorum, Cause.UNCLEAN_SHUTDOWN)
        report = await run(context, job, observer, control)
    if report.outcome == "unfinished":
        raise QorumError(
            f"The start of {spec.name} was interrupted while its copies were being compared; the set is stopped again.",
            remedy="Start it again, or use --now to skip the comparison.",
            set_name=spec.name,
        )
    return report


def _group(spec: SetSpec) -> int | None:
    if not spec.volume.group:
        return None
    try:
        return grp.getgrnam(spec.volume.group).gr_gid
    except KeyError:
        raise RefusedError(
            f"There is no group '{spec.volume.group}', which [volume] of {spec.name} names.",
            remedy="Create it, or correct the definition.",
            set_name=spec.name,
        ) from None


def _open_socket(context: SetContext, spec: SetSpec, group: int | None) -> None:
    """QMP opens any file as the daemon's user, so its sockets are ours alone; guests get `nbd.sock`."""
    runtime = context.runtime
    try:
        for path in (runtime.control_sock, runtime.scrub_sock, runtime.watch_sock):
            path.chmod(0o600)
        if group is not None:
            os.chown(runtime.nbd_sock, -1, group)
        runtime.nbd_sock.chmod(spec.volume.mode_bits)
    except PermissionError as error:
        raise RefusedError(
            f"{runtime.nbd_sock} cannot be given to group '{spec.volume.group}': {error.strerror}.",
            remedy="Be a member of that group, or name another in the definition.",
            set_name=spec.name,
        ) from None


async def stop(context: SetContext, *, force: bool) -> Result:
    """Withdraws the volume, drains, flushes, ends the daemon; under the set's lock. A stopped set is left as it is."""
    pid = context.pid()
    if pid is None:
        if context.runtime.directory.is_dir():
            process.clear_runtime(context.runtime)
        return Result(set=context.name, command="stop", changed=False, state=SetState.STOPPED)
    with context.store() as store:
        spec = context.running_spec(store) or context.spec()
    warnings: list[str] = []
    try:
        flushed = await _withdraw_and_flush(context, spec, force=force)
        if not flushed:
            warnings.append("A copy did not confirm its flush: the next start compares the copies.")
    except DaemonStalledError:
        if not force:
            raise
        flushed = False
        process.terminate(context.runtime, pid)
        warnings.append("The daemon did not answer and was ended: the next start compares the copies.")
    if not await process.wait_gone(context.runtime, pid, deadline_s=context.timeouts.stop_s):
        if not force:
            raise DaemonStalledError(
                f"The daemon of {context.name} (pid {pid}) did not end within {context.timeouts.stop_s:g} s: "
                "a copy hangs.",
                remedy="Wait for its storage, or use --force, which kills it.",
                set_name=context.name,
            )
        flushed = False
        process.kill(context.runtime, pid)
        if not await process.wait_gone(context.runtime, pid, deadline_s=_KILLED_S):
            raise DaemonError(
                f"The daemon of {context.name} (pid {pid}) is stuck in the kernel.",
                remedy="Its storage must come back, or the host be restarted.",
                set_name=context.name,
            )
    process.clear_runtime(context.runtime)
    if flushed:
        identity.mark_clean(spec)
    with context.store() as store:
        context.note_running(store, None)
    return Result(set=context.name, command="stop", changed=True, state=SetState.STOPPED, warnings=warnings)


async def _withdraw_and_flush(context: SetContext, spec: SetSpec, *, force: bool) -> bool:
    """Whether all copies have confirmed a flush after the last guest was gone. Asks the daemon to end, in any case."""
    async with context.control() as monitor:
        quorum: QuorumSet = context.quorum(spec, monitor)
        state = await quorum.describe()
        await quorum.sweep()
        await quorum.withdraw_volume(force=force)
        flushed = await asyncio.to_thread(_flush, context) if state.assembled else False
        await quorum.quit()
        return flushed


def _flush(context: SetContext) -> bool:
    try:
        link = NbdLink(context.runtime.nbd_sock, HEAL, who="The set", timeout_s=context.timeouts.stop_s)
    except CopyUnavailableError:
        return False
    try:
        return link.flush()
    except CopyUnavailableError:
        return False
    finally:
        link.close()


def definition_differs(running: SetSpec | None, spec: SetSpec) -> bool:
    return running is not None and definitions.digest(running) != definitions.digest(spec)
