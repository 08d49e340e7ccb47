"""The volume of a running set withdrawn from guests, and given back: also by the next command, where one was killed.

    noted      `maintenance` in state.db: before anything else
    withdrawn  no guest is connected, none can connect, and what they had sent is on the copies
    writing    noted, with the id of what was saved: from here on copies are written (resolving.py)
    leaving    noted: nothing more is written
    back       every copy in its place, the volume exported; the note is removed last

Whoever finds a note knows from it how far the command came. What is finished for it is written only over what the
copies held before, or what they were to hold: a note that is out of date does no harm (`resolving.complete`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qorumctl.controller.context import SetContext
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import QorumError, RefusedError, StoreError
from qorumctl.logbook import warn
from qorumctl.model.spec import SetSpec
from qorumctl.store import Store

_KEY = "maintenance"
_log = logging.getLogger("qorumctl.sets")
Phase = Literal["withdrawing", "writing", "leaving"]


@dataclass(frozen=True, slots=True)
class Note:
    """`saved`: the id of what was saved aside, while copies are written."""

    phase: Phase
    saved: int | None = None


def note_of(store: Store) -> Note | None:
    """One that makes no sense is of a command that wrote nothing that we could finish."""
    text = store.meta(_KEY)
    if text is None:
        return None
    try:
        told = json.loads(text)
        if told["phase"] == "writing" and type(told["saved"]) is int:
            return Note("writing", told["saved"])
    except (ValueError, TypeError, KeyError):
        pass
    return Note("leaving")


def put(store: Store, note: Note | None) -> None:
    store.set_meta(_KEY, None if note is None else json.dumps(asdict(note)))


def forget(context: SetContext, store: Store) -> str | None:
    """By `start`, before guests come in, of a set whose daemon died meanwhile. Returns what is to be said of it."""
    note = note_of(store)
    if note is None:
        return None
    put(store, None)
    if note.saved is None:
        return None
    return (
        "A 'resolve' was interrupted by the end of the daemon: the copies hold what it wrote, or what they held "
        f"before. Scrub, and repeat it, or run 'qorumctl resolve {context.name} --undo {note.saved}'."
    )


async def withdraw(context: SetContext, quorum: QuorumSet, store: Store, *, force: bool) -> None:
    """RefusedError while a guest is connected, unless `force`. Whatever it raises, the volume is as it was then, or
    comes back with the next command: one that is still shutting down cannot be exported anew."""
    put(store, Note("withdrawing"))
    try:
        await quorum.withdraw_volume(force=force)
        # What was in flight when it went is on all copies.
        await quorum.kick()
    except RefusedError:
        put(store, None)
        raise
    except BaseException:
        with contextlib.suppress(QorumError):
            await quorum.export_volume()
        raise


async def come_back(context: SetContext, spec: SetSpec, quorum: QuorumSet, store: Store) -> None:
    """Idempotent. A state that cannot be written to keeps no guest waiting."""
    with contextlib.suppress(StoreError):
        put(store, Note("leaving"))
    await bring_all_in(spec, quorum, store)
    await quorum.export_volume()
    with contextlib.suppress(StoreError):
        put(store, None)


async def bring_all_in(spec: SetSpec, quorum: QuorumSet, store: Store) -> None:
    """Copies that an undo has left outside, interrupted or not: no guest has written meanwhile."""
    await quorum.children.end_exports()
    absent, state = store.absences(), await quorum.describe()
    for copy in spec.copies:
        if copy.name not in state.copies and copy.name not in absent:
            await quorum.children.bring_in(copy)
            await quorum.children.export(copy.name)


Complete = Callable[[SetContext, SetSpec, QuorumSet, Store, int], Coroutine[Any, Any, str]]


async def settle(context: SetContext, complete: Complete) -> None:
    """Before a command begins, under the set's lock: what one that was killed has left. `complete` finishes what it was
    writing; what hinders that is said, and the volume comes back all the same."""
    if context.pid() is None or not context.state_dir.is_dir():
        return
    try:
        with context.store(read_only=True) as reading:
            note = note_of(reading)
    except StoreError:
        # Who needs the record says what is wrong with it.
        return
    if note is None:
        return
    with context.store() as store:
        if not context.may_have_served(store):
            # Of a daemon that has died. The one that runs has not let guests in yet: that is for `start`.
            return
        spec = context.running_spec(store) or context.spec()
        async with context.scrub_monitor() as monitor:
            quorum = context.quorum(spec, monitor)
            state = await quorum.describe()
            if state.volume_exported:
                put(store, None)
            elif state.assembled:
                await quorum.sweep()
                told = "a command that was killed had withdrawn the volume; it is back."
                if note.phase == "writing" and note.saved is not None:
                    told = await complete(context, spec, quorum, store, note.saved)
                await come_back(context, spec, quorum, store)
                warn(_log, f"{context.name}: {told}", set_name=context.name)
