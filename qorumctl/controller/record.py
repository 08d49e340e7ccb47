"""The record of a set, `state.db`: whose it is, whether it is whole, and what is to be believed where it was lost.

With it goes the knowledge of which copies have missed writes. Where every identity file says that the last stop was in
order no copy had: `stop` leaves them unclean while one has, and while the record is in doubt. Anywhere else each copy
may be the one: none is counted until a scrub has found all of them equal, or an operator lets them vote.
"""

from __future__ import annotations

import contextlib
import logging

from qorumctl.controller.context import SetContext
from qorumctl.errors import DamagedStateError, RefusedError
from qorumctl.identity import Identity
from qorumctl.logbook import warn
from qorumctl.model.report import ScrubReport
from qorumctl.model.spec import FileSource, SetSpec
from qorumctl.store import Store, set_aside

FORGOTTEN = "the record of it was lost"
_SET = "set"
_log = logging.getLogger("qorumctl.sets")


def begin(context: SetContext, spec: SetSpec) -> None:
    """By `create`: a set that has no record later has lost it."""
    with context.store() as store:
        store.set_meta(_SET, str(spec.uuid))


def is_there(store: Store, spec: SetSpec) -> bool:
    """Whether what was noted is of this set. One that was written before sets were noted counts as its own."""
    return is_of(owner(store), spec)


def owner(store: Store) -> str | None:
    return store.meta(_SET)


def is_of(owner_uuid: str | None, spec: SetSpec) -> bool:
    return owner_uuid in {str(spec.uuid), ""}


def in_doubt(store: Store) -> bool:
    """Whether a record was lost, and nothing has settled since which copies are current."""
    return any(s.missed and s.why == FORGOTTEN for s in store.suspicions())


def secure(context: SetContext, spec: SetSpec, who: Identity | None) -> str | None:
    """Before `start` or `scrub` believe the record; under the set's lock. One that is damaged is kept aside, and a new
    one is begun. `who`: what the identity files say; None while a daemon runs. Returns what was wrong, in words.

    Killed half-way it is done again by the next command: only the last step makes the record this set's.
    """
    kept = None
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(context.store())
            store.check_whole()
            if is_there(store, spec):
                return None
        except DamagedStateError as error:
            stack.close()
            kept, words = set_aside(context.state_dir), error.message
        else:
            words = f"There is no record of {context.name} in {context.state_dir}."
            if store.meta(_SET) is not None:
                # A definition was replaced by that of another set with this name.
                stack.close()
                kept = set_aside(context.state_dir)
    in_order = who is not None and _stopped_in_order(spec, who)
    with context.store() as store:
        store.suspect(spec.copy_names, missed=not in_order, why=FORGOTTEN)
        if not in_order:
            context.note_uncompared(store, True)
        if who is None:
            context.note_running(store, spec)
        store.set_meta(_SET, str(spec.uuid))
    aside = f" It is kept as {kept}." if kept else ""
    believed = (
        "The identity files say that the set was stopped in order, so its copies are taken as current."
        if in_order
        else "Which copies have missed writes is not known: none votes until all were found equal."
    )
    return f"{words}{aside} A new one was begun. {believed}"


def secure_aloud(context: SetContext, spec: SetSpec, who: Identity | None) -> None:
    """As `secure`; what it says goes to the log."""
    if (lost := secure(context, spec, who)) is not None:
        warn(_log, lost, set_name=context.name)


def _stopped_in_order(spec: SetSpec, who: Identity) -> bool:
    has_identity = all(isinstance(copy.source, FileSource) for copy in spec.copies)
    return has_identity and not (who.missing or who.stale or who.unclean)


def refuse_doubt(context: SetContext, spec: SetSpec, recovery: ScrubReport) -> None:
    """Before guests are let in: their reads would count every copy. RefusedError where the copies differ and nobody
    knows which of them are current."""
    with context.store(read_only=True) as store:
        if not in_doubt(store):
            return
        count = store.of_run(recovery.run).number()
    raise RefusedError(
        f"The record of which copies of {spec.name} have missed writes was lost, and they differ in {count} range"
        f"{'' if count == 1 else 's'}, where the majority may be out of date; no guest was let in.",
        remedy=f"See 'qorumctl report {spec.name} {recovery.run}'. If the majority is right, run 'qorumctl start "
        f"{spec.name} --now' and 'qorumctl scrub {spec.name} --count-suspects'.",
        set_name=spec.name,
    )
