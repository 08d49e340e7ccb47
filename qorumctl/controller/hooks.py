"""Hooks of sets: which there are, waking who delivers, and what an operator asks of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

from qorumctl import hook_files
from qorumctl.controller import delivery
from qorumctl.controller.context import SetContext
from qorumctl.controller.waking import LOCK_NAME, wake
from qorumctl.errors import QorumError, RefusedError
from qorumctl.hook_files import HookFile
from qorumctl.model.hooks import (
    HookedSet,
    HookEntry,
    HookEvent,
    HookEventKind,
    HookOutcome,
    HooksReport,
    HookTest,
)
from qorumctl.model.status import Result
from qorumctl.paths import Directories
from qorumctl.store import SetLock
from qorumctl.store.records import now

_ENDS_S = 5.0
_POLL_S = 0.02


def wake_for_leftovers(context: SetContext) -> None:
    """By the watcher, now and then. Never raises."""
    with contextlib.suppress(QorumError):
        if not hook_files.any_there(context.directories.hooks) or not context.state_dir.is_dir():
            return
        with context.store(read_only=True) as store:
            waiting = store.outbox.waiting()
        if waiting:
            wake(context.directories, context.name)


async def end_delivery(context: SetContext) -> None:
    """Before a set is deleted. Best effort: one that stays finds nothing to deliver."""
    ends_at_s = time.monotonic() + _ENDS_S
    while time.monotonic() < ends_at_s:
        holder = SetLock.held_by(context.state_dir, file_name=LOCK_NAME)
        if holder is None:
            return
        if holder[0]:
            _terminate(context, holder[0])
        await asyncio.sleep(_POLL_S)


def _terminate(context: SetContext, pid: int) -> None:
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            holder = SetLock.held_by(context.state_dir, file_name=LOCK_NAME)
            if holder is not None and holder[0] == pid and b"deliver" in arguments:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
        finally:
            os.close(handle)


class Hooks:
    """What `qorumctl hooks` does: `QuorumSets().hooks`. Each method raises QorumError alone."""

    def __init__(self, directories: Directories, defined: Callable[[str], SetContext]) -> None:
        self._directories = directories
        self._defined = defined

    def list(self, names: Sequence[str]) -> HooksReport:
        """Which programs are run, why another is not, and which fail. `ok`: none is refused, none fails."""
        found = hook_files.look(self._directories.hooks)
        sets = [_hooked(self._defined(name)) for name in names]
        refused = [hook for hook in found.meant if hook.problem is not None]
        return HooksReport(
            ok=found.problem is None and not refused and not any(one.failures for one in sets),
            directory=None if found.path is None else str(found.path),
            problem=found.problem,
            remedy=found.remedy,
            hooks=[_entry(hook) for hook in found.hooks],
            sets=sets,
        )

    def test(self, name: str) -> HookTest:
        """Runs each hook once with an event `test`, in this process; in the main thread. RefusedError where there is
        none."""
        context = self._defined(name)
        found = hook_files.look(self._directories.hooks)
        if found.problem is not None:
            raise RefusedError(found.problem, remedy=found.remedy or "", path=str(found.path))
        if not found.meant:
            raise RefusedError(
                f"There is no hook in {found.path}.", remedy="Put an executable there.", path=str(found.path)
            )
        outcomes = [_try(context, hook) for hook in found.meant]
        if context.state_dir.is_dir():
            with context.store() as store:
                for outcome in outcomes:
                    if outcome.ok:
                        store.outbox.worked(outcome.hook)
        return HookTest(set=name, ok=all(outcome.ok for outcome in outcomes), hooks=outcomes)

    def clear(self, name: str) -> Result:
        """Drops what waits and what is on record of failures."""
        context, changed = self._defined(name), False
        if context.state_dir.is_dir():
            with context.store() as store:
                changed = store.outbox.clear()
        return Result(set=name, command="hooks clear", changed=changed)

    def deliver(self, name: str) -> Result:
        """Delivers what waits, in this process and its main thread: with the retries of a hook that fails, minutes."""
        changed = delivery.deliver(self._defined(name))
        return Result(set=name, command="hooks deliver", changed=changed)


def _hooked(context: SetContext) -> HookedSet:
    if not context.state_dir.is_dir():
        return HookedSet(set=context.name, waiting=0, failures=[])
    with context.store(read_only=True) as store:
        return HookedSet(set=context.name, waiting=store.outbox.waiting(), failures=store.outbox.failures())


def _entry(hook: HookFile) -> HookEntry:
    state = "runs" if hook.problem is None else "passed-over" if hook.off else "refused"
    return HookEntry(name=hook.name, state=state, reason=hook.problem, remedy=hook.remedy)


def _try(context: SetContext, hook: HookFile) -> HookOutcome:
    if hook.problem is not None:
        return HookOutcome(hook=hook.name, ok=False, reason=hook.problem, output="", took_s=0)
    text = "this is a test of the hooks; nothing has happened."
    event = HookEvent(id=str(uuid4()), set=context.name, time=now(), event=HookEventKind.TEST, text=text)
    done = delivery.run_hook(context, hook.path, event)
    reason = "it is gone" if done.gone else done.reason
    return HookOutcome(hook=hook.name, ok=reason is None, reason=reason, output=done.output, took_s=done.took_s)
