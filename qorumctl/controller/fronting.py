"""`front`: a second daemon for guests that speak vhost-user-blk (daemon/front.py says why a second one).

A front is a guest of its set, and lives as guests do: it outlasts a restart of the set's daemon, and `stop` and
`delete` are refused while it is there. Nothing of it is on record: its pidfile and sockets say that there was one, its
command line what it is.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qorumctl.controller import serving
from qorumctl.controller.attach import vhost_user_arguments
from qorumctl.controller.context import SetContext
from qorumctl.controller.vetting import group_of
from qorumctl.daemon import front, process, sockets
from qorumctl.daemon.front import FrontOptions
from qorumctl.errors import DaemonError, DaemonGoneError, DaemonStalledError, RefusedError, UsageError
from qorumctl.model.status import FrontReport, FrontStatus

_FORCED_S = 10.0
"""How long a front that is ended by force may take to complete what it has begun."""


async def begin(context: SetContext, options: FrontOptions) -> FrontReport:
    """Starts a front; under its lock. One that runs with the same options is left as it is."""
    _check(options)
    if (pid := await _settled_pid(context)) is not None:
        _refuse_other_options(context, front.options_of(pid), options)
        serving.open_to_guests(context.front, spec := serving.spec_in_force(context), group_of(spec))
        return _report(context, options, changed=False)
    if not await serving.is_up(context):
        raise _not_up(context)
    spec = serving.spec_in_force(context)
    _refuse_dead(context)
    paths = context.front
    pid = await process.spawn(paths, front.arguments(paths, context.runtime.nbd_sock, options))
    try:
        serving.open_to_guests(paths, spec, group_of(spec))
    except BaseException:
        await _end(context, pid, wait_s=_FORCED_S, force=True)
        raise
    return _report(context, options, changed=True)


async def stop(context: SetContext, *, force: bool) -> FrontReport:
    """Ends the front; under its lock. RefusedError while a guest is connected, unless `force`."""
    pid = await _settled_pid(context, force=force)
    if pid is None:
        was_there = has_died(context)
        _clear(context)
        return FrontReport(set=context.name, changed=was_there, front=None, qemu=[])
    if not force:
        _refuse_guest(context, pid)
    await _end(context, pid, wait_s=_FORCED_S if force else context.timeouts.stop_s, force=force)
    return FrontReport(set=context.name, changed=True, front=None, qemu=[])


def look(context: SetContext) -> FrontStatus | None:
    """For `status`: reads /proc and asks the kernel, no daemon."""
    pid = context.front_pid()
    if pid is None:
        return _status(context, None, None) if has_died(context) else None
    return _status(context, pid, front.options_of(pid))


def guest_arguments(context: SetContext, memory_bytes: int) -> list[str]:
    """For a guest of the front that runs; where none does, of one with the default options."""
    pid = context.front_pid()
    options = (None if pid is None else front.options_of(pid)) or FrontOptions()
    return vhost_user_arguments(context.name, context.front.server, options, memory_bytes=memory_bytes)


def has_died(context: SetContext) -> bool:
    """Whether there is none, and the last one was not stopped: as it ends it removes all of these. Of one that died
    systemd removes the pidfile."""
    left = (context.front.pidfile, *context.front.sockets)
    return any(map(os.path.lexists, left)) and context.front_pid() is None


@asynccontextmanager
async def absent(context: SetContext, command: str, *, force: bool = False) -> AsyncIterator[None]:
    """For a command after which there may be no front, under the set's lock: none is there, and none is started
    meanwhile. RefusedError where one is, unless `force`, which ends it."""
    with context.front_lock(command):
        pid = await _settled_pid(context, force=force)
        if pid is not None and force:
            await _end(context, pid, wait_s=_FORCED_S, force=True)
        elif pid is not None:
            remedy = f"Run 'qorumctl front {context.name} --stop' first."
            remedy += _FORCED.get(command, "")
            raise RefusedError(
                f"A vhost-user-blk front of {context.name} runs (pid {pid}).", remedy=remedy, set_name=context.name
            )
        # What one that died has left stays: it says that a guest of it may still be up.
        yield


_FORCED = {
    "resolve": " With --force its guest waits.",
    "stop": " --force ends it, too, and cuts its guest off.",
    "restart": " With --force its guest waits.",
}


async def _settled_pid(context: SetContext, *, force: bool = False) -> int | None:
    """As `serving.settled_pid`; one that is out of reach can still be ended by `force`."""
    try:
        return await serving.settled_pid(context, context.front)
    except RefusedError:
        strays = process.processes(context.front)
        if not force or not strays:
            raise
        return strays[0]


def _check(options: FrontOptions) -> None:
    if not 1 <= options.num_queues <= front.MOST_QUEUES:
        raise UsageError(
            f"A front has from 1 to {front.MOST_QUEUES} queues, not {options.num_queues}.",
            remedy="One for each processor of the guest is the most that it can use.",
        )


def _refuse_other_options(context: SetContext, running: FrontOptions | None, wanted: FrontOptions) -> None:
    if running is None or running == wanted:
        return
    wce = " and for a guest with config-wce=off" if running.config_wce_off else ""
    queues = f"{running.num_queues} queue{'' if running.num_queues == 1 else 's'}"
    raise RefusedError(
        f"A front of {context.name} runs already, with {queues}{wce}.",
        remedy=f"Run 'qorumctl front {context.name} --stop' first, or ask for the same. Nothing was changed.",
        set_name=context.name,
    )


def _refuse_dead(context: SetContext) -> None:
    """A guest that connects again, because somebody gave it `reconnect`, would do so by itself: see daemon/front.py."""
    if has_died(context):
        raise RefusedError(
            f"The last front of {context.name} ended without being stopped, and a guest that goes on with a new one "
            "loses requests, or repeats them.",
            remedy=f"Power off the guest that used it, then run 'qorumctl front {context.name} --stop', and this "
            "again. Nothing was changed.",
            set_name=context.name,
        )


def _not_up(context: SetContext) -> DaemonGoneError | RefusedError:
    if context.pid() is None:
        return DaemonGoneError(
            f"{context.name} is not running.", remedy=f"Run 'qorumctl start {context.name}'.", set_name=context.name
        )
    return RefusedError(
        f"{context.name} has no volume yet: it is being started.",
        remedy="Try again when 'qorumctl status' names its volume.",
        set_name=context.name,
    )


def _refuse_guest(context: SetContext, pid: int) -> None:
    guest = _has_guest(context, pid)
    if guest is False:
        return
    told = (
        f"A guest is connected to the front of {context.name}."
        if guest
        else f"Whether a guest is connected to the front of {context.name} cannot be told: the kernel does not say."
    )
    raise RefusedError(
        told,
        remedy="Shut it down or detach the disk first; --force cuts it off.",
        set_name=context.name,
    )


async def _end(context: SetContext, pid: int, *, wait_s: float, force: bool) -> None:
    """SIGTERM: what the front has taken from a guest is completed first."""
    paths = context.front
    process.terminate(paths, pid)
    if not await process.wait_gone(paths, pid, deadline_s=wait_s):
        if not force:
            raise DaemonStalledError(
                f"The front of {context.name} (pid {pid}) did not end within {wait_s:g} s: it waits for the set.",
                remedy="Look at the storage of the set's copies, or use --force, which kills it.",
                set_name=context.name,
            )
        process.kill(paths, pid)
        if not await process.wait_gone(paths, pid, deadline_s=serving.KILLED_S):
            raise DaemonError(
                f"The front of {context.name} (pid {pid}) is stuck in the kernel.",
                remedy="Find out with 'dmesg' why; the host may have to be restarted.",
                set_name=context.name,
            )
    _clear(context)


def _clear(context: SetContext) -> None:
    if context.front.directory.is_dir():
        process.clear_runtime(context.front)


def _report(context: SetContext, options: FrontOptions, *, changed: bool) -> FrontReport:
    arguments = vhost_user_arguments(context.name, context.front.server, options)
    return FrontReport(set=context.name, changed=changed, front=look(context), qemu=arguments)


def _status(context: SetContext, pid: int | None, options: FrontOptions | None) -> FrontStatus:
    return FrontStatus(
        pid=pid,
        socket=str(context.front.server),
        guest=False if pid is None else _has_guest(context, pid),
        connected=False if pid is None else _has_volume(context, pid),
        write_through=None if options is None else not options.config_wce_off,
        num_queues=None if options is None else options.num_queues,
    )


def _has_guest(context: SetContext, pid: int) -> bool | None:
    found = sockets.connections(context.front.server)
    if found is None or any(one.peer for one in found):
        return None if found is None else True
    return sockets.elsewhere(pid)


def _has_volume(context: SetContext, pid: int) -> bool | None:
    found, ours = sockets.connections(context.runtime.nbd_sock), sockets.inodes_of(pid)
    return None if found is None or ours is None else any(one.peer in ours for one in found)
