"""Copies that a set is started without: who they are, that it is on record, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from qorumctl.controller import record, suspects
from qorumctl.controller.context import SetContext
from qorumctl.controller.vetting import enough
from qorumctl.core.chronicle import Entry
from qorumctl.daemon.quorum_set import GraphState, QuorumSet
from qorumctl.errors import CopyError, CopyInUseError, CopySilentError, RefusedError
from qorumctl.identity import Identity
from qorumctl.model.spec import SetSpec
from qorumctl.store.absent import Absence
from qorumctl.store.records import now

RECORD_LOST = "the record of what it missed was lost with the daemon"
_UNRECORDED = "nothing is on record of its leaving"
_LEFT_OUT = "the set was started without it"


async def open_present(context: SetContext, quorum: QuorumSet, spec: SetSpec, absent: dict[str, str]) -> None:
    """Opens the copies that are not in `absent`; one that cannot be opened, or has another length, is put there, with
    the reason. One that is in use is no absent one: CopyInUseError; neither is one that the daemon still waits for:
    CopySilentError. RefusedError where too few are left."""
    for copy in spec.copies:
        if copy.name in absent:
            continue
        try:
            await quorum.children.open(copy, read_only=False)
            await quorum.children.check_length(copy)
        except (CopyInUseError, CopySilentError):
            raise
        except (CopyError, RefusedError) as error:
            absent[copy.name] = error.message
            await quorum.children.close(copy.name)
    with context.store(read_only=True) as store:
        # After a record was lost nobody is counted anyway: the copies are compared before guests come in.
        enough(spec, absent, frozenset() if record.in_doubt(store) else suspects.missed(store, spec))


def mark(spec: SetSpec, name: str, why: str, *, left: bool, lost: str) -> Absence:
    """A new one, of a copy that no daemon has a record of."""
    source = spec.copy_named(name).source.label
    return Absence(name, now(), why, left, kept=False, lost=lost, source=source, peers=spec.copy_names)


def note_unmarked(context: SetContext, spec: SetSpec, names: Iterable[str]) -> None:
    """Copies that are not in the quorum though nothing is on record: the record was lost, or somebody took them out."""
    with context.store() as store:
        marks = store.absences()
        for name in names:
            if name not in marks:
                left = mark(spec, name, "not in the quorum", left=True, lost=_UNRECORDED)
                store.note_absence(left, Entry.FOUND_OUTSIDE)


async def drop_unneeded(marks: Mapping[str, Absence], quorum: QuorumSet, state: GraphState) -> None:
    """Records of copies that are not away: a command was killed right after it had taken the mark away."""
    known = marks.keys() | quorum.newcomers
    await quorum.missed.drop([record.name for record in state.missed if record.copy not in known])


def note_left_out(context: SetContext, spec: SetSpec, who: Identity, absent: Mapping[str, str]) -> None:
    """On record as away, before the others get a write without them. No daemon has a record of what they miss. A mark
    of a copy that the definition has no more goes: what could be that copy is in `absent` (vetting.strangers)."""
    with context.store() as store:
        marks = store.absences()
        for name in spec.copy_names:
            if name not in absent:
                continue
            sidecar = who.sidecars.get(name)
            generation = None if sidecar is None else sidecar.reached
            known = marks.get(name) or replace(mark(spec, name, _LEFT_OUT, left=True, lost=""), generation=generation)
            lost = RECORD_LOST if known.kept or known.cursor_bytes is not None else known.lost or _LEFT_OUT
            left = replace(known, left=True, kept=False, lost=lost, daemon=None, cursor_bytes=None)
            store.note_absence(left, Entry.LEFT_OUT)
        for name in marks.keys() - set(spec.copy_names):
            store.forget_absence(name, None)
        # All of it is compared before it is back: that settles whatever else was on record of it.
        store.clear_suspicions({s.key: s.serial for s in store.suspicions() if s.copy in absent})


def left_out_words(spec: SetSpec, absent: Mapping[str, str]) -> list[str]:
    """For each a warning: that it is not there, why, and what to do."""
    return [
        f"{absent[name]} {spec.name} runs without it; when it is back, run 'qorumctl copy rejoin {spec.name} {name}'."
        for name in spec.copy_names
        if name in absent
    ]
