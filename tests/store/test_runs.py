"""The life of a run: what can become of it, what is told about it, and who may ask it to stop."""

import os

import pytest

from qorumctl.core.findings import Action, Cause, Checkpoint
from qorumctl.core.ranges import Range
from qorumctl.errors import RefusedError, StoreError
from qorumctl.store import RunRecord, RunState, Store
from tests.store.samples import SIZE, S, no_majority, outvoted, unreadable

PID = os.getpid()


def begin(store: Store, within: Range | None = None, *, cause: Cause | None = None) -> RunRecord:
    return store.begin_run("repair", SIZE, within, False, cause, PID)


def test_a_new_run_is_at_work_from_the_start_of_its_range(store: Store) -> None:
    run = store.begin_run("report", SIZE, Range(4096, 8192), True, Cause.UNCLEAN_SHUTDOWN, 17, {"rate": 5})
    assert (run.state, run.mode, run.size_bytes, run.within) == (RunState.RUNNING, "report", SIZE, Range(4096, 8192))
    assert (run.thorough, run.cause, run.pid, run.parameters) == (True, Cause.UNCLEAN_SHUTDOWN, 17, {"rate": 5})
    assert (run.checkpoint, run.position_bytes) == (Checkpoint(cursor_bytes=4096), 4096)
    assert run.started.endswith("Z")
    assert run.finished is None
    assert store.run(run.id) == run
    assert store.run(99) is None


class TestResuming:
    def test_a_run_whose_process_died_can_be_resumed(self, store: Store) -> None:
        run = begin(store)
        assert store.unfinished_run() == run
        assert run.resumable
        assert store.outcome_of(run) == "unfinished"

    def test_a_resumed_run_goes_on_from_its_checkpoint(self, store: Store) -> None:
        run = begin(store)
        there = Checkpoint(8192, 4096, 4096, {"a": 4096, "b": 4096}, 3, (Range(0, 512), Range(1024, 512)))
        store.journal(run.id).conclude([], [], there)
        store.note_position(run.id, 9000)
        store.request("pause", PID)
        store.suspend_run(run.id)
        assert store.unfinished_run() is not None
        again = store.reopen_run(run.id, 4711)
        assert (again.checkpoint, again.position_bytes, again.pid, again.request) == (there, 8192, 4711, None)
        assert (again.state, again.finished) == (RunState.RUNNING, None)

    def test_a_failed_run_says_why_and_can_be_resumed(self, store: Store) -> None:
        run = begin(store)
        store.fail_run(run.id, "Copy 'b' is gone.")
        failed = store.run(run.id)
        assert failed is not None
        assert (failed.message, store.outcome_of(failed), failed.resumable) == ("Copy 'b' is gone.", "failed", True)
        assert store.reopen_run(run.id, 1).message is None

    def test_a_run_that_has_ended_cannot(self, store: Store) -> None:
        finished, abandoned = begin(store), begin(store)
        store.finish_run(finished.id)
        store.abandon_run(abandoned.id)
        assert store.unfinished_run() is None
        for run in (finished, abandoned):
            with pytest.raises(RefusedError, match="has ended and cannot be resumed"):
                store.reopen_run(run.id, 1)
            with pytest.raises(StoreError, match="takes no more findings"):
                store.journal(run.id).conclude([], [], Checkpoint())
            with pytest.raises(StoreError, match="is not at work"):
                store.suspend_run(run.id)

    def test_the_newest_is_resumed_and_a_range_does_not_end_the_whole(self, store: Store) -> None:
        whole, part = begin(store), begin(store, Range(0, 4096))
        found = store.unfinished_run()
        assert found is not None
        assert found.id == part.id
        store.finish_run(part.id)
        found = store.unfinished_run()
        assert found is not None
        assert found.id == whole.id


class TestOutcome:
    @pytest.mark.parametrize(
        ("findings", "outcome"),
        [
            ([], "clean"),
            ([outvoted(1, Action.REPAIRED)], "repaired"),
            ([outvoted(1, Action.REPAIRED), unreadable(2, Action.LEFT)], "damaged"),
            ([outvoted(1, Action.FAILED)], "damaged"),
            ([no_majority(1, Action.REPAIRED)], "repaired"),
            ([outvoted(1, Action.FAILED), no_majority(2), outvoted(3, Action.REPAIRED)], "no-majority"),
        ],
    )
    def test_the_worst_news_wins(self, store: Store, findings: list, outcome: str) -> None:  # type: ignore[type-arg]
        run = begin(store)
        store.journal(run.id).conclude([], findings, Checkpoint(SIZE))
        assert store.findings_outcome(run.id) == outcome
        assert store.outcome_of(begin_again := store.finish_run(run.id)) == outcome
        assert begin_again.finished is not None

    def test_no_caller_can_make_it_better_than_its_findings(self, store: Store) -> None:
        run = begin(store)
        store.journal(run.id).conclude([], [no_majority(1)], Checkpoint(SIZE))
        assert store.finish_run(run.id, "clean").outcome == "no-majority"

    def test_a_caller_can_make_it_worse(self, store: Store) -> None:
        assert store.finish_run(begin(store).id, "damaged").outcome == "damaged"

    def test_a_run_with_a_repair_that_nobody_verified_is_not_finished(self, store: Store) -> None:
        run = begin(store)
        store.journal(run.id).begin_repair([outvoted(1, Action.PENDING)])
        with pytest.raises(StoreError, match="still has 1 repairs to verify"):
            store.finish_run(run.id)
        assert store.unfinished_run() is not None

    def test_an_abandoned_run_never_reads_as_clean_and_its_open_repairs_are_left(self, store: Store) -> None:
        run = begin(store)
        store.journal(run.id).begin_repair([outvoted(1, Action.PENDING)])
        store.abandon_run(run.id)
        store.abandon_run(run.id)
        abandoned = store.run(run.id)
        assert abandoned is not None
        assert (store.outcome_of(abandoned), abandoned.resumable) == ("unfinished", False)
        assert [f.action for f in store.findings(run.id)] == [Action.LEFT]

    def test_abandoning_a_finished_run_changes_nothing(self, store: Store) -> None:
        run = store.finish_run(begin(store).id)
        store.abandon_run(run.id)
        assert store.run(run.id) == run


class TestRequests:
    def test_reach_the_run_that_is_at_work(self, store: Store) -> None:
        assert store.request("pause", PID) is None
        run = begin(store)
        assert store.pending_request(run.id) is None
        asked = store.request("pause", PID)
        assert asked is not None
        assert (asked.id, asked.request, store.pending_request(run.id)) == (run.id, "pause", "pause")

    def test_reach_the_run_of_the_living_and_not_a_later_one_of_the_dead(self, store: Store) -> None:
        first = begin(store)
        store.suspend_run(first.id)
        store.begin_run("report", SIZE, Range(0, S), False, None, PID + 1)
        store.reopen_run(first.id, PID)
        asked = store.request("pause", PID)
        assert asked is not None
        assert asked.id == first.id

    def test_cancel_outranks_pause(self, store: Store) -> None:
        run = begin(store)
        store.request("cancel", PID)
        store.request("pause", PID)
        assert store.pending_request(run.id) == "cancel"

    def test_do_not_outlive_the_run(self, store: Store) -> None:
        run = begin(store)
        store.request("pause", PID)
        store.suspend_run(run.id)
        assert store.pending_request(run.id) is None
        assert store.request("pause", PID) is None


def test_the_position_is_seen_by_others_at_once(store: Store, directory: object) -> None:
    run = begin(store)
    store.note_position(run.id, 5 * S)
    with Store.open(directory, read_only=True) as other:  # type: ignore[arg-type]
        seen = other.run(run.id)
    assert seen is not None
    assert (seen.position_bytes, seen.checkpoint.cursor_bytes) == (5 * S, 0)


class TestEventsAndMarks:
    def test_events_come_newest_first(self, store: Store) -> None:
        store.add_event("write-error", "b", "No space left on device")
        store.add_event("started", None, "")
        assert [(e.kind, e.copy, e.detail) for e in store.events(5)] == [
            ("started", None, ""),
            ("write-error", "b", "No space left on device"),
        ]
        assert len(store.events(1)) == 1

    def test_marks_are_set_and_removed(self, store: Store) -> None:
        store.set_meta("copy.a", "stale")
        store.set_meta("copy.b", "suspect")
        store.set_meta("copy.b", "stale")
        store.set_meta("copy.a", None)
        assert (store.meta("copy.a"), store.meta("copy.b")) == (None, "stale")
