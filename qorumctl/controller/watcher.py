"""The watcher as a process: start it detached, know whether it listens, let it catch up, end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from qorumctl.controller import detached
from qorumctl.controller.context import SetContext
from qorumctl.daemon import process
from qorumctl.daemon.events import THROTTLE_S
from qorumctl.errors import QorumError
from qorumctl.files import open_private
from qorumctl.store import SetLock, Store

LOCK_NAME = "watch.lock"
LOG_NAME = "watch.log"
DETACHED = "watch --detached"
"""What a watcher that `start` began writes into its lock: `stop` ends it. One that somebody began by hand stays."""
UNHEARD = "nobody listened for write errors for a time"
_LISTENING = "watch.listening"
_HEARD = "watch.heard"
_SCRUBBED = "scrub.ended"
_NOT_ENDED = "not yet"
_POLL_S = 0.02
_ENDS_S = 5.0
_LATE_S = 5.0
"""After a scrub: its last reports are told a second later, and heard later still on a busy machine."""


def note_listening(store: Store, daemon_pid: int | None) -> None:
    """By the watcher: it hears everything that this daemon tells; None: it hears nobody."""
    store.set_meta(_LISTENING, None if daemon_pid is None else f"{os.getpid()} {daemon_pid}")


def keep_noted(store: Store, daemon_pid: int) -> None:
    """By the watcher, now and then: a record that was lost and begun anew does not know of it."""
    if store.meta(_LISTENING) != (noted := f"{os.getpid()} {daemon_pid}"):
        store.set_meta(_LISTENING, noted)


def note_heard(store: Store) -> None:
    """By the watcher: the daemon has told something now. The clock that all processes share: the other one jumps."""
    store.set_meta(_HEARD, f"{time.monotonic():.3f}")


def note_scrubbing(store: Store) -> None:
    """By whoever holds the set's lock: a scrub begins to repair. If it is killed, nobody notes its end."""
    store.set_meta(_SCRUBBED, _NOT_ENDED)


def settle_scrubbed(context: SetContext, store: Store) -> None:
    """By the watcher, now and then: the end of a scrub that was killed is when that was noticed."""
    if store.meta(_SCRUBBED) == _NOT_ENDED and SetLock.held_by(context.state_dir) is None:
        note_scrubbed(store)


def note_scrubbed(store: Store) -> None:
    """By whoever holds the set's lock: a scrub has ended now, whose repairs the daemon may tell of a second later."""
    store.set_meta(_SCRUBBED, f"{time.monotonic():.3f}")


def scrubbed_lately(store: Store) -> bool:
    ended = store.meta(_SCRUBBED)
    return ended == _NOT_ENDED or _ago_s(ended) < _LATE_S


def _ago_s(moment: str | None) -> float:
    """Also the other way round: one that lies ahead is of another boot."""
    return abs(time.monotonic() - float(moment or "-inf"))


def note_done(store: Store, daemon_pid: int) -> None:
    """By the watcher: this daemon is gone, and all that it told is written down."""
    store.set_meta(_LISTENING, f"{os.getpid()} {daemon_pid} done")


def is_watched(context: SetContext, daemon_pid: int) -> bool:
    """Whether a living watcher hears this daemon."""
    holder = SetLock.held_by(context.state_dir, file_name=LOCK_NAME)
    if holder is None:
        return False
    with context.store(read_only=True) as store:
        return store.meta(_LISTENING) == f"{holder[0]} {daemon_pid}"


def listens(context: SetContext, daemon_pid: int) -> bool:
    """As `is_watched`; a state that cannot be read must not keep a set from being stopped."""
    with contextlib.suppress(QorumError):
        return is_watched(context, daemon_pid)
    return False


def suspect_all(context: SetContext, store: Store, why: str) -> None:
    """After a time unwatched any copy may have missed a write."""
    spec = context.running_spec(store) or context.spec()
    store.suspect(spec.copy_names, missed=False, why=why)


async def ensure(context: SetContext, daemon_pid: int) -> str | None:
    """Sees to it that somebody listens to the daemon. Returns a warning when that did not work: guests are served all
    the same."""
    ends_at_s = time.monotonic() + context.timeouts.watcher_s
    launched: subprocess.Popen[bytes] | None = None
    try:
        while not is_watched(context, daemon_pid):
            held = SetLock.held_by(context.state_dir, file_name=LOCK_NAME) is not None
            if launched is None and not held:
                launched = _launch(context)
            elif launched is not None and launched.poll() not in {None, 0}:
                return _warning(context, "it ended at once")
            elif launched is not None and launched.poll() == 0 and not held:
                # It met another watcher, which has ended since.
                launched = None
            if time.monotonic() > ends_at_s:
                return _warning(context, f"it did not listen within {context.timeouts.watcher_s:g} s")
            await asyncio.sleep(_POLL_S)
    except (QorumError, OSError) as error:
        return _warning(context, str(error).removesuffix("."))
    return None


def _warning(context: SetContext, why: str) -> str:
    return (
        f"The watcher could not be started: {why} (see {context.runtime.directory / LOG_NAME}). Until it runs, write "
        f"errors of a copy go unnoticed: 'qorumctl start {context.name}' tries again."
    )


def _launch(context: SetContext) -> subprocess.Popen[bytes]:
    path = context.runtime.directory / LOG_NAME
    log = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return detached.launch(context.directories, ["watch", context.name, "--detached"], output=log)
    finally:
        os.close(log)


async def outlast_throttle(context: SetContext) -> None:
    """Before the daemon is told to end: what it holds back because it has just told something of the same copy would be
    lost with it."""
    with contextlib.suppress(QorumError, ValueError, TypeError), context.store(read_only=True) as store:
        if _ago_s(store.meta(_HEARD)) < 2 * THROTTLE_S:
            await asyncio.sleep(1.2 * THROTTLE_S)


async def caught_up(context: SetContext, daemon_pid: int) -> bool:
    """After the end of a daemon that was watched: whether everything it told is on record now. Never raises."""
    ends_at_s = time.monotonic() + context.timeouts.watcher_s
    with contextlib.suppress(QorumError):
        while time.monotonic() < ends_at_s:
            alive = SetLock.held_by(context.state_dir, file_name=LOCK_NAME) is not None
            with context.store(read_only=True) as store:
                noted = (store.meta(_LISTENING) or "").split()
            if noted[1:] == [str(daemon_pid), "done"]:
                return True
            if not alive or not noted:
                return False
            await asyncio.sleep(_POLL_S)
    return False


async def dismiss(context: SetContext) -> None:
    """Ends the watcher that `start` began. Best effort: one that stays hears nothing, and ends by itself."""
    with contextlib.suppress(QorumError):
        await end(context)


async def end(context: SetContext, *, by_hand_too: bool = False) -> None:
    """Ends the watcher that `start` began, and with `by_hand_too` any. Raises StoreError where the lock cannot be
    looked at."""
    ends_at_s = time.monotonic() + _ENDS_S
    number, told = signal.SIGTERM, 0
    while (holder := SetLock.held_by(context.state_dir, file_name=LOCK_NAME)) is not None:
        pid, purpose = holder
        if pid and purpose != DETACHED and not by_hand_too:
            return
        if pid and pid != told:
            _signal(context, pid, number)
            told = pid
        if time.monotonic() > ends_at_s:
            if number is signal.SIGKILL:
                return
            number, told, ends_at_s = signal.SIGKILL, 0, time.monotonic() + _ENDS_S
        await asyncio.sleep(_POLL_S)


def _signal(context: SetContext, pid: int, number: signal.Signals) -> None:
    def is_the_watcher() -> bool:
        # The name in the lock can be that of an earlier holder, for as long as a new one takes to sign.
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        holder = SetLock.held_by(context.state_dir, file_name=LOCK_NAME)
        return holder is not None and holder[0] == pid and b"watch" in arguments

    with contextlib.suppress(OSError), process.handle_on(pid, is_the_watcher) as handle:
        if handle is not None:
            signal.pidfd_send_signal(handle, number)
