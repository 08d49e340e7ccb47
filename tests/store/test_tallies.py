"""What SQL says of a run's findings is what going through them one by one would say."""

import os
import random

import pytest

from qorumctl.core.findings import Action, Cause, Checkpoint, Fate, Finding
from qorumctl.model import digest
from qorumctl.store import Store
from qorumctl.store.tallies import RunFindings
from tests.store.samples import SIZE, no_majority, outvoted, unreadable


def recorded(store: Store, *findings: Finding) -> RunFindings:
    run = store.begin_run("repair", SIZE, None, False, None, os.getpid())
    store.journal(run.id).conclude([], findings, Checkpoint(SIZE, SIZE, 0, {}, len(findings), ()))
    return store.of_run(run.id)


_OFTEN = 200


def of_every_kind() -> list[Finding]:
    """Every verdict with every action, copies alone and together, and nobody to blame; some of them often."""
    found = [make(0, action) for make in (outvoted, unreadable, no_majority) for action in Action]
    found += [outvoted(0, action, copies="bc", sectors=3) for action in Action]
    found += [outvoted(0, action, cause=Cause.UNCLEAN_SHUTDOWN) for action in Action]
    chosen = random.Random(7).choices(found, k=_OFTEN) + found
    return [
        Finding(**{name: getattr(f, name) for name in f.__slots__} | {"range": f.range.shifted(4 * 512 * i)})
        for i, f in enumerate(chosen)
    ]


def test_the_sums_are_those_of_the_findings(store: Store) -> None:
    recorded(store, *of_every_kind())
    again = recorded(store, *of_every_kind())
    added_up = digest.tally_of(again.all())
    assert again.tally() == added_up
    assert again.number() == added_up.number == _OFTEN + 5 * len(Action)
    assert added_up.again.number
    assert all(found.number for found in added_up.by_fate.values())


@pytest.mark.parametrize("most", [1, 20, 70, 1000])
def test_what_somebody_has_to_act_on_is_kept_before_the_rest(store: Store, most: int) -> None:
    run = recorded(store, *of_every_kind())
    by_hand = sorted(run.all(), key=lambda one: -max(digest.fate(one), Fate.PENDING))
    assert run.worst(most, run.tally()) == by_hand[:most]


def test_a_map_is_of_the_same_marks(store: Store) -> None:
    run = recorded(store, *of_every_kind())
    assert list(run.marks()) == [digest.mark(one) for one in run.all()]


def test_the_copies_in_which_something_was_left(store: Store) -> None:
    run = recorded(store, outvoted(1, Action.REPAIRED, copies="c"), outvoted(2, Action.LEFT), no_majority(3))
    assert run.left_in() == {("a",), ("a", "b", "c")}
    assert recorded(store, outvoted(1, Action.FAILED, cause=Cause.UNCLEAN_SHUTDOWN)).left_in() == {()}


def test_a_run_without_findings(store: Store) -> None:
    run = recorded(store)
    assert (run.number(), run.tally().number, run.worst(20, run.tally()), run.left_in()) == (0, 0, [], set())
