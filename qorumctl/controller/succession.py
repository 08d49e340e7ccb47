"""A newcomer that holds everything takes the place of a copy; or is taken out again.

    proven      on record
    prepare     the next generation is announced to the others' sidecars and the newcomer's, not to the old image's
    definition  names the newcomer, in one atomic step: from here on the new set stands, before it the old one does
    commit      the generation begins; an old image, of one before, is stale
    leave       the old image leaves the quorum and is closed; the copy's export is the newcomer's
    forget      the old image's marks, the records, the note

Killed before the definition: the newcomer is taken out by the next command, or gone with the daemon. Killed after it:
the next command does the rest. Everything here can be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from qorumctl import definitions, identity
from qorumctl.controller import absences, maintenance, newcomer, resolving, watcher
from qorumctl.controller.context import SetContext
from qorumctl.controller.detaching import flush
from qorumctl.core.chronicle import Entry
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import DaemonStalledError, QorumError, RefusedError
from qorumctl.model.spec import SetSpec
from qorumctl.store import Store
from qorumctl.store.replacing import Replacement


async def settle_leftovers(context: SetContext) -> list[Replacement]:
    """Of commands that were killed, before another one begins; under the set's lock. A newcomer that has not succeeded
    leaves the quorum and is closed; of one that has the rest is done. Returns the latter."""
    await maintenance.settle(context, resolving.complete)
    notes = context.replacements()
    if not notes or context.pid() is None:
        return []
    # A definition that cannot be read tells nothing: neither must be guessed.
    context.spec()
    finished = []
    with context.store() as store:
        async with context.scrub_monitor() as monitor:
            for note in notes.values():
                spec = context.running_spec(store) or context.spec()
                quorum = context.quorum(spec, monitor)
                if context.has_succeeded(note):
                    await finish(context, spec, quorum, store, note)
                    finished.append(note)
                else:
                    await withdraw(context, spec, quorum, store, note)
    return finished


def begin(context: SetContext, spec: SetSpec, store: Store, note: Replacement) -> Replacement:
    """Up to the definition. Raises RefusedError, DefinitionError; `has_succeeded` tells then, too, which set stands."""
    note = replace(note, proven=True)
    store.note_replacement(note)
    definition = context.spec()
    if spec.copy_named(note.copy).source not in [c.source for c in definition.copies if c.name == note.copy]:
        raise RefusedError(
            f"The definition of {spec.name} was changed meanwhile: its copy {note.copy} is another.",
            remedy="Nothing was changed. Undo that, then repeat the command.",
            set_name=spec.name,
            copy=note.copy,
        )
    _announce(newcomer.succeeded_spec(spec, note), store, note)
    definitions.save(context.definition_path, newcomer.succeeded_spec(definition, note))
    return note


async def finish(context: SetContext, spec: SetSpec, quorum: QuorumSet, store: Store, note: Replacement) -> None:
    """All that follows the definition. `spec`: what runs, as it is on record."""
    spec = newcomer.succeeded_spec(spec, note)
    context.note_running(store, spec)
    host = identity.this_host()
    who, generation = _announce(spec, store, note)
    identity.commit_start(spec, who, host, generation, without=_away(store, note))
    quorum.newcomers.discard(note.key)
    if await quorum.children.is_child(note.key):
        try:
            await quorum.children.succeed(note.copy, note.key)
        except DaemonStalledError as error:
            raise DaemonStalledError(
                f"Copy {note.copy} of {spec.name} is replaced by {note.source.label}, but the daemon waits for a copy "
                f"that hangs, and its old image, {note.old_source}, has not left yet.",
                remedy="Kill the server of what hangs, or force its file system off ('umount -f'): an error frees all. "
                "The next command does the rest.",
                set_name=spec.name,
                copy=note.copy,
            ) from error
        # What the daemon still holds back is about the image that has left.
        await watcher.outlast_throttle(context)
        store.forget_absence(note.copy, None)
    else:
        # Somebody has taken it out by hand.
        mark = absences.mark(spec, note.copy, "not in the quorum", left=True, lost="it left the quorum unrecorded")
        store.note_absence(mark, Entry.FOUND_OUTSIDE)
    _hand_over_suspicions(store, note)
    mine = {note.key, note.copy}
    await quorum.missed.drop([record.name for record in await quorum.missed.all() if record.copy in mine])
    store.conclude_replacement(note)


async def withdraw(context: SetContext, spec: SetSpec, quorum: QuorumSet, store: Store, note: Replacement) -> None:
    """A newcomer that has not succeeded: out of the quorum, with everything on record that it lacks, and closed."""
    children = quorum.children
    if await children.is_child(note.key):
        await quorum.missed.begin(note.key)
        await children.export(note.key)
        stored = await asyncio.to_thread(flush, context, copy_node(note.key))
        suspected = any(s.copy == note.key and s.missed for s in store.suspicions())
        mark = note.mark
        if not stored or suspected:
            mark = replace(mark, kept=False, lost="it missed a write", cursor_bytes=None)
        note = replace(note, mark=mark)
    # Before it lacks anything.
    if note.proven:
        with contextlib.suppress(QorumError):
            newcomer.say_whose(spec, note)
    store.note_replacement(replace(note, proven=False))
    await children.take_out(note.key)
    await children.close(note.key)


def after_restart(context: SetContext) -> None:
    """Of a set whose daemon is gone, before guests write again: a newcomer that has succeeded is the copy, and no old
    image has to be closed; any other is proven no more."""
    notes = [note for note in context.replacements().values() if note.proven]
    if not notes:
        return
    with context.store() as store:
        for note in notes:
            if not context.has_succeeded(note):
                store.note_replacement(replace(note, proven=False))
                continue
            mark = store.absences().get(note.copy)
            if mark is not None and mark.source == note.old_source:
                # Of the old image, which had left before; any other is of the new one.
                store.forget_absence(note.copy, None)
            _hand_over_suspicions(store, note)
            store.conclude_replacement(note)


def _announce(spec: SetSpec, store: Store, note: Replacement) -> tuple[identity.Identity, int]:
    """`spec`: with the newcomer."""
    host, away = identity.this_host(), _away(store, note)
    who = identity.judge(identity.read_all(spec, without=away), spec, host.id)
    who = identity.succeeding(who, note.copy)
    return who, identity.prepare_start(spec, who, host, without=away)


def _away(store: Store, note: Replacement) -> frozenset[str]:
    return frozenset(store.absences()) - {note.copy}


def _hand_over_suspicions(store: Store, note: Replacement) -> None:
    """The old image's writes are no matter any more, nor are the new one's from before it was compared. What may have
    failed since is."""
    settled = {**note.serials, **note.mark.serials}
    for s in store.suspicions():
        if s.copy == note.copy and s.missed:
            settled[s.key] = s.serial
        elif s.copy == note.key and settled.get(s.key) != s.serial:
            store.suspect([note.copy], missed=s.missed, why=s.why, known=s.missed)
            settled[s.key] = s.serial
    store.clear_suspicions(settled)
