"""Copies that have missed a write, or may have (invariant 8): who counts in a vote, and which scrub settles it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qorumctl.daemon.graph import copy_of_key
from qorumctl.model.spec import SetSpec
from qorumctl.store import RunRecord, Store

_NOTED = "suspicions"
_COPIES = "copies"


def missed(store: Store, spec: SetSpec) -> frozenset[str]:
    """Copies that are known to have missed a write. One that only may have is not among them: after a time unwatched
    that is every copy, and then no vote could be won."""
    return frozenset(s.copy for s in store.suspicions() if s.missed and s.copy in spec.copy_names)


def bearer(store: Store, key: str) -> str:
    """Whose mark it is when a write of the image `key` fails: that of a newcomer is its own until it has taken a copy's
    place for good."""
    return key if any(note.key == key for note in store.replacements().values()) else copy_of_key(key)


def stale(store: Store, spec: SetSpec, *, count_suspects: bool = False) -> frozenset[str]:
    """Copies that are compared, and never counted: those that have missed a write, unless `count_suspects`, and those
    that are in the quorum while they are being brought back into it."""
    half_back = frozenset(store.absences()).intersection(spec.copy_names)
    return half_back if count_suspects else half_back | missed(store, spec)


def noted_at_begin(store: Store, copies: Iterable[str]) -> Mapping[str, Any]:
    """For a run's parameters: which copies it compares, and what it is going to settle, if it gets that far."""
    return {_COPIES: list(copies), _NOTED: {s.key: s.serial for s in store.suspicions()}}


def compares(run: RunRecord, copies: Sequence[str]) -> bool:
    """Whether a run compares these copies: an unfinished one of others is not resumed."""
    return list(run.parameters.get(_COPIES, copies)) == list(copies)


def clear_compared(store: Store, spec: SetSpec, run_id: int) -> None:
    """After a run has come to its end: clears what was on record when it began, of each copy that it has compared from
    end to end and found equal or made equal. What was set since, or again, stays."""
    run = store.run(run_id)
    noted: Mapping[str, int] = run.parameters.get(_NOTED, {}) if run is not None else {}
    if run is None or not noted or run.within is not None or run.checkpoint.busy:
        return
    # What was away was not looked at; nor was the image that is to take a copy's place, which has marks of its own.
    compared, left = set(run.parameters.get(_COPIES, spec.copy_names)), set[str]()
    for names in store.of_run(run_id).left_in():
        # Where an unclean stop explains the difference, nobody is named: it may be in any copy.
        left.update(names or spec.copy_names)
    proven = compared - left
    settled = {s.key: noted[s.key] for s in store.suspicions() if s.key in noted and s.copy in proven}
    store.clear_suspicions(settled, run=run_id)
