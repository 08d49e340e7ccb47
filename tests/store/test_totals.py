"""Sums over all runs, as metrics tell them."""

import os

import pytest

from qorumctl.core.findings import Action, Cause, Checkpoint, Finding, FindingVerdict
from qorumctl.core.ranges import Range
from qorumctl.errors import DamagedStateError
from qorumctl.store import Store
from qorumctl.store.database import Database
from qorumctl.store.totals import Found
from tests.store.samples import SIZE, S, no_majority, outvoted, unreadable

TIMES = ("2026-01-01T00:00:00.000Z", "2026-01-02T00:00:00.000Z", "2026-01-03T00:00:00.000Z")
FIRST_S, SECOND_S = 1767225600.0, 1767312000.0


@pytest.fixture
def clock() -> list[str]:
    return [TIMES[0]]


@pytest.fixture
def store(directory: object, clock: list[str]) -> Store:
    return Store(Database.open(directory, read_only=False), "web01", lambda: clock[0])  # type: ignore[arg-type]


def scrub(store: Store, *findings: Finding, within: Range | None = None, finish: bool = True) -> None:
    run = store.begin_run("report", SIZE, within, False, None, os.getpid())
    reached = within.end if within else SIZE
    store.journal(run.id).conclude([], findings, Checkpoint(reached, reached - S, S, {}, len(findings), ()))
    (store.finish_run if finish else store.suspend_run)(run.id)


def test_of_a_set_that_was_never_scrubbed_nothing_is_counted(store: Store) -> None:
    totals = store.scrub_totals()
    assert (totals.last_completed_s, totals.scanned_bytes, totals.skipped_bytes) == (None, 0, 0)
    assert set(totals.of_no_copy.values()) == {Found(0, 0)}


def test_only_a_whole_scrub_that_came_to_its_end_is_a_completed_one(store: Store, clock: list[str]) -> None:
    scrub(store)
    assert store.scrub_totals().last_completed_s == FIRST_S
    clock[0] = TIMES[1]
    scrub(store)
    clock[0] = TIMES[2]
    scrub(store, within=Range(0, 8 * S))
    scrub(store, finish=False)
    totals = store.scrub_totals()
    assert totals.last_completed_s == SECOND_S
    assert (totals.scanned_bytes, totals.skipped_bytes) == (3 * SIZE + 8 * S - 4 * S, 4 * S)


def test_what_speaks_against_no_copy_is_counted_here(store: Store) -> None:
    unclean = outvoted(5, Action.REPAIRED, cause=Cause.UNCLEAN_SHUTDOWN)
    scrub(store, no_majority(1), no_majority(2), outvoted(3, Action.LEFT), unreadable(4, Action.REPAIRED), unclean)
    assert store.scrub_totals().of_no_copy == {
        FindingVerdict.OUTVOTED: Found(1, 1),
        FindingVerdict.UNREADABLE: Found(0, 0),
        FindingVerdict.NO_MAJORITY: Found(2, 0),
    }


def test_a_time_that_was_never_written_is_damage(store: Store, clock: list[str]) -> None:
    clock[0] = "yesterday"
    scrub(store)
    with pytest.raises(DamagedStateError):
        store.scrub_totals()
