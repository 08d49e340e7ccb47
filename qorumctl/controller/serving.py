"""A set's daemon: whether it is up, what a killed command left of it, and its end where a command on it fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from qorumctl import definitions
from qorumctl.controller import watcher
from qorumctl.controller.context import SetContext
from qorumctl.daemon import process, reader
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.exports import export_ids
from qorumctl.daemon.graph import VOLUME
from qorumctl.daemon.reader import ReaderPaths
from qorumctl.daemon.runtime import DaemonPaths
from qorumctl.errors import (
    QorumError,
    RefusedError,
    StoreError,
)
from qorumctl.files import reason
from qorumctl.model.spec import SetSpec
from qorumctl.paths import check_ours, ensure_private, make_directories

_SETTLING_S = 3.0
"""A daemon listens within some 50 ms of its start."""
_POLL_S = 0.02
KILLED_S = 5.0
"""How long a killed process may take to be gone: the kernel ends its I/O first."""


async def is_up(context: SetContext) -> bool:
    """Whether the volume is there for guests. Needs no usable definition, and no lock."""
    if context.pid() is None:
        return False
    async with context.control() as monitor:
        return VOLUME in await export_ids(monitor, timeout_s=context.timeouts.monitor_s)


async def end_leftover(context: SetContext) -> None:
    """Ends a daemon that serves no volume: an earlier command died half-way. No guest can be connected to it. And the
    reader of a scrub that was killed: it keeps the images open, also when they are deleted."""
    with contextlib.suppress(QorumError):
        await reader.end(ReaderPaths(context.runtime.directory))
    pid = await settled_pid(context)
    if pid is not None:
        process.terminate(context.runtime, pid)
        if not await process.wait_gone(context.runtime, pid, deadline_s=context.timeouts.stop_s):
            process.kill(context.runtime, pid)
            await process.wait_gone(context.runtime, pid, deadline_s=KILLED_S)
    if context.runtime.directory.is_dir():
        process.clear_runtime(context.runtime)


async def settled_pid(context: SetContext, paths: DaemonPaths | None = None) -> int | None:
    """As `context.pid()`, under the lock; a daemon whose starter was killed a moment ago is waited for. `paths`: of
    another one than the set's own.

    RefusedError for one that stays out of reach: its sockets are gone, and guests may still be connected.
    """
    paths, ends_at_s = paths or context.runtime, time.monotonic() + _SETTLING_S
    check_ours(paths.directory)
    while (pid := process.find_pid(paths)) is None and (strays := process.processes(paths)):
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
    if not await process.wait_gone(context.runtime, pid, deadline_s=KILLED_S):
        process.kill(context.runtime, pid)
        await process.wait_gone(context.runtime, pid, deadline_s=KILLED_S)
    process.clear_runtime(context.runtime)
    if undo is not None:
        await watcher.dismiss(context)
        undo()


def open_to_guests(paths: DaemonPaths, spec: SetSpec, group: int | None) -> None:
    """QMP opens any file as the daemon's user, so its sockets are ours alone; guests get the one that serves them."""
    try:
        for path in paths.monitors.values():
            path.chmod(0o600)
        if group is not None:
            os.chown(paths.server, -1, group)
        paths.server.chmod(spec.volume.mode_bits)
    except OSError as error:
        raise RefusedError(
            f"The rights of {paths.server} cannot be set: {reason(error)}.",
            remedy="Check [volume] in the definition, and the runtime directory.",
            set_name=spec.name,
        ) from None


def spec_in_force(context: SetContext) -> SetSpec:
    """What a running daemon was started from; the file, which may have been edited, where that is not on record."""
    running = None
    with contextlib.suppress(StoreError), context.store(read_only=True) as store:
        running = context.running_spec(store)
    return running or context.spec()


def definition_differs(running: SetSpec | None, spec: SetSpec) -> bool:
    return running is not None and definitions.digest(running) != definitions.digest(spec)
