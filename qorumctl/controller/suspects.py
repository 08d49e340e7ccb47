"""Copies that have missed a write, or may have (invariant 8): who counts in a vote, and which scrub settles it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qorumctl.core.findings import Action
from qorumctl.model.spec import SetSpec
from qorumctl.store import Store

_NOTED = "suspicions"


def stale(store: Store, spec: SetSpec) -> frozenset[str]:
    """Copies that are known to have missed a write: compared, never counted. One that only may have still counts:
    after a time unwatched that is every copy, and then no vote could be won."""
    return frozenset(s.copy for s in store.suspicions() if s.missed and s.copy in spec.copy_names)


def noted_at_begin(store: Store) -> Mapping[str, Any]:
    """For a run's parameters: what it is going to settle, if it gets that far."""
    return {_NOTED: {s.key: s.serial for s in store.suspicions()}}


def clear_compared(store: Store, spec: SetSpec, run_id: int) -> None:
    """After a run has come to its end: clears what was on record when it began, of each copy that it has compared from
    end to end and found equal or made equal. What was set since, or again, stays."""
    run = store.run(run_id)
    noted: Mapping[str, int] = run.parameters.get(_NOTED, {}) if run is not None else {}
    if run is None or not noted or run.within is not None or run.checkpoint.busy:
        return
    left: set[str] = set()
    for finding in store.findings(run_id):
        if finding.action is not Action.REPAIRED:
            # Where an unclean stop explains the difference, nobody is named: it may be in any copy.
            left.update(finding.copies or spec.copy_names)
    settled = {s.key: noted[s.key] for s in store.suspicions() if s.key in noted and s.copy not in left}
    store.clear_suspicions(settled)
