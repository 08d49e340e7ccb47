"""The engine's memory: each call whole or not at all, evidence included."""

import os
import threading

import pytest

from qorumctl.core.findings import Action, Cause, Checkpoint
from qorumctl.core.ranges import Range
from qorumctl.errors import StoreError
from qorumctl.scrub.ports import Journal
from qorumctl.store import RunJournal, Store
from tests.store.samples import SIZE, S, no_majority, outvoted, unreadable


@pytest.fixture
def journal(store: Store) -> RunJournal:
    return store.journal(store.begin_run("repair", SIZE, None, False, None, os.getpid()).id)


def test_it_is_what_the_engine_asks_for(journal: RunJournal) -> None:
    port: Journal = journal  # mypy is the test
    assert port is journal


def test_findings_come_back_with_all_their_evidence(store: Store, journal: RunJournal) -> None:
    given = [
        outvoted(1, Action.PENDING, sectors=3),
        outvoted(7, Action.PENDING, cause=Cause.UNCLEAN_SHUTDOWN),
        unreadable(9, Action.PENDING),
    ]
    ids = journal.begin_repair(given)
    assert store.pending_findings(journal.run_id) == list(zip(ids, given, strict=True))
    assert store.finding(ids[0]) == given[0]


def test_what_needs_no_repair_stands_as_it_is_in_the_same_batch(store: Store, journal: RunJournal) -> None:
    ids = journal.begin_repair([no_majority(1), outvoted(2, Action.PENDING)])
    assert [found_id for found_id, _ in store.pending_findings(journal.run_id)] == ids[1:]
    assert store.finding(ids[0]) == no_majority(1)


def test_settling_gives_the_last_action_and_moves_the_checkpoint(store: Store, journal: RunJournal) -> None:
    ids = journal.begin_repair([outvoted(1, Action.PENDING), outvoted(3, Action.PENDING)])
    journal.conclude([(ids[0], outvoted(1, Action.REPAIRED))], [], Checkpoint())
    run = store.run(journal.run_id)
    assert run is not None
    assert run.checkpoint.cursor_bytes == 0
    final = outvoted(3, Action.FAILED)
    journal.conclude([(ids[1], final)], [], Checkpoint(10 * S, 10 * S, 0, {"a": 1}, 2, (Range(0, S),)))
    run = store.run(journal.run_id)
    assert run is not None
    assert run.checkpoint == Checkpoint(10 * S, 10 * S, 0, {"a": 1}, 2, (Range(0, S),))
    assert store.finding(ids[1]) == final
    assert store.pending_findings(journal.run_id) == []


def test_a_finding_is_settled_once(store: Store, journal: RunJournal) -> None:
    ids = journal.begin_repair([outvoted(1, Action.PENDING)])
    journal.conclude([(ids[0], outvoted(1, Action.REPAIRED))], [], Checkpoint())
    with pytest.raises(StoreError, match="is not pending"):
        journal.conclude([(ids[0], outvoted(1, Action.FAILED))], [], Checkpoint(S))
    found, run = store.finding(ids[0]), store.run(journal.run_id)
    assert found == outvoted(1, Action.REPAIRED)
    assert run is not None
    assert run.checkpoint.cursor_bytes == 0, "the refused call moved the checkpoint"


def test_what_was_left_may_be_repaired_later_and_what_was_repaired_stays_so(store: Store, journal: RunJournal) -> None:
    journal.conclude(
        [], [unreadable(1, Action.LEFT), unreadable(3, Action.FAILED), unreadable(5, Action.LEFT)], Checkpoint()
    )
    ids = [found.id for found in store.findings(journal.run_id)]
    journal.amend({ids[0]: Action.REPAIRED, ids[1]: Action.REPAIRED, ids[2]: Action.FAILED})
    journal.amend({ids[0]: Action.FAILED})
    assert [found.action for found in store.findings(journal.run_id)] == ["repaired", "repaired", "failed"]
    store.finish_run(journal.run_id)
    with pytest.raises(StoreError, match="takes no more findings"):
        journal.amend({ids[2]: Action.REPAIRED})


def test_a_call_that_fails_half_way_has_not_happened(store: Store, journal: RunJournal) -> None:
    broken = outvoted(2, Action.LEFT)
    object.__setattr__(broken, "confirmed_at", None)
    with pytest.raises(StoreError):
        journal.conclude([], [outvoted(1, Action.LEFT), broken], Checkpoint(S))
    run = store.run(journal.run_id)
    assert list(store.findings(journal.run_id)) == []
    assert run is not None
    assert run.checkpoint == Checkpoint()


def test_a_resumed_run_knows_what_stays_damaged_ahead_of_it(store: Store, journal: RunJournal) -> None:
    journal.conclude([], [outvoted(1, Action.LEFT), outvoted(5, Action.LEFT, sectors=4)], Checkpoint(2 * S))
    journal.begin_repair([no_majority(10), outvoted(12, Action.PENDING), unreadable(14, Action.FAILED)])
    ids = [found_id for found_id, _ in store.pending_findings(journal.run_id)]
    assert store.settled_ranges(journal.run_id, 6 * S) == [Range(5 * S, 4 * S), Range(10 * S, S), Range(14 * S, S)]
    # What was repaired is scanned again: it may be damaged anew.
    journal.conclude([(ids[0], outvoted(12, Action.REPAIRED))], [], Checkpoint())
    assert store.settled_ranges(journal.run_id, 11 * S) == [Range(14 * S, S)]


def test_a_resumed_run_knows_what_stays_damaged_in_what_was_busy(store: Store, journal: RunJournal) -> None:
    """Behind the cursor only that is looked at again: all that was left there may be a million ranges."""
    left = [outvoted(sector, Action.LEFT) for sector in range(1, 1400, 2)]
    journal.conclude([], left, Checkpoint(1500 * S))
    busy = [Range(2 * S, 2 * S), Range(1201 * S, 8 * S)]
    assert store.settled_ranges(journal.run_id, 1390 * S, busy) == [
        Range(sector * S, S) for sector in (3, 1201, 1203, 1205, 1207, 1391, 1393, 1395, 1397, 1399)
    ]
    assert store.settled_ranges(journal.run_id, 1500 * S) == []


def test_threads_share_a_store(store: Store, journal: RunJournal) -> None:
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for n in range(20):
                journal.conclude([], [outvoted(first + n, Action.LEFT)], Checkpoint((first + n) * S))
                store.note_position(journal.run_id, n)
                store.pending_request(journal.run_id)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(list(store.findings(journal.run_id))) == 60
