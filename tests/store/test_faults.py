"""What a finding says about a copy: whether it is new, whether it was repaired there before, and against whom."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest

from qorumctl.core.chronicle import Entry
from qorumctl.core.findings import Action, Cause, Checkpoint, Finding
from qorumctl.core.ranges import Range
from qorumctl.store import Store, faults
from tests.store.samples import SIZE, S, no_majority, outvoted, unreadable

LEFT, REPAIRED, FAILED = Action.LEFT, Action.REPAIRED, Action.FAILED


def scrub(store: Store, *findings: Finding, parameters: Mapping[str, Any] | None = None, end: bool = True) -> int:
    run = store.begin_run("repair", SIZE, None, False, None, os.getpid(), parameters)
    store.journal(run.id).conclude([], findings, Checkpoint(SIZE))
    if end:
        store.finish_run(run.id)
    return run.id


def recurring(store: Store, run: int) -> list[int]:
    return [found.recurring for found in store.findings(run)]


def new(store: Store) -> list[dict[str, int]]:
    """Of each scrub, oldest first: copy -> ranges that count against it."""
    return [
        {copy: found.outvoted + found.unreadable for copy, found in look.faults.items()}
        for look in reversed(faults.looks(store._database))
    ]


class TestRecurring:
    def test_a_range_that_was_repaired_and_is_damaged_again(self, store: Store) -> None:
        scrub(store, outvoted(4, REPAIRED))
        scrub(store, outvoted(4, REPAIRED))
        run = scrub(store, outvoted(4, LEFT), outvoted(5, LEFT))
        assert [(f.recurring, f.last_repaired) for f in store.findings(run)] == [
            (2, "2000-01-01T00:00:00.000Z"),
            (0, None),
        ]
        assert recurring(store, 1) == [0], "what is on record already is not written anew"

    @pytest.mark.parametrize(
        ("sector", "sectors", "times"),
        [(9, 1, 0), (10, 1, 1), (14, 1, 1), (15, 1, 0), (0, 10, 0), (0, 11, 1), (0, 2048, 3), (12, 100, 2)],
    )
    def test_whatever_overlaps_counts_and_what_is_beside_it_does_not(
        self, store: Store, sector: int, sectors: int, times: int
    ) -> None:
        scrub(store, outvoted(10, REPAIRED, sectors=5), outvoted(100, REPAIRED), outvoted(1000, REPAIRED, sectors=1000))
        assert recurring(store, scrub(store, outvoted(sector, LEFT, sectors=sectors))) == [times]

    def test_only_of_the_same_copy(self, store: Store) -> None:
        scrub(store, outvoted(4, REPAIRED, copies="ab"))
        run = scrub(store, outvoted(4, LEFT, copies="c"), outvoted(4, LEFT, copies="bd"), unreadable(4, LEFT))
        assert recurring(store, run) == [0, 1, 1]

    def test_only_what_was_repaired(self, store: Store) -> None:
        scrub(store, outvoted(4, LEFT), outvoted(6, FAILED))
        assert recurring(store, scrub(store, outvoted(4, LEFT), outvoted(6, LEFT))) == [0, 0]

    def test_not_what_nobody_is_to_blame_for(self, store: Store) -> None:
        scrub(store, outvoted(4, REPAIRED, cause=Cause.UNCLEAN_SHUTDOWN), outvoted(6, REPAIRED))
        run = scrub(store, outvoted(4, LEFT), outvoted(6, LEFT, cause=Cause.UNCLEAN_SHUTDOWN), no_majority(6))
        assert recurring(store, run) == [0, 0, 0]

    @pytest.mark.parametrize("parameters", [{"uncounted": ["a"]}, {"suspicions": {"suspect.a.missed": 3}}])
    def test_not_where_the_copy_had_missed_writes(self, store: Store, parameters: dict[str, Any]) -> None:
        scrub(store, outvoted(4, REPAIRED), parameters=parameters)
        scrub(store, outvoted(4, REPAIRED))
        assert recurring(store, scrub(store, outvoted(4, REPAIRED), parameters=parameters)) == [0]
        assert new(store) == [{}, {"a": 1}, {}]

    def test_not_on_the_medium_that_was_replaced(self, store: Store) -> None:
        scrub(store, outvoted(4, REPAIRED, copies="ab"))
        store.note_entry("a", Entry.REPLACED)
        run = scrub(store, outvoted(4, REPAIRED, copies="a"), outvoted(4, REPAIRED, copies="b"))
        assert recurring(store, run) == [0, 1]
        assert recurring(store, scrub(store, outvoted(4, REPAIRED, copies="a"))) == [1]

    def test_a_repair_that_was_begun_is_judged_again_when_it_ends(self, store: Store) -> None:
        scrub(store, outvoted(4, REPAIRED, copies="b"))
        run = store.begin_run("repair", SIZE, None, False, None, os.getpid()).id
        (pending,) = store.journal(run).begin_repair([outvoted(4, Action.PENDING)])
        assert recurring(store, run) == [0]
        store.journal(run).conclude([(pending, outvoted(4, REPAIRED, copies="ab"))], [], Checkpoint(SIZE))
        assert recurring(store, run) == [1]

    def test_a_great_many_are_not_all_counted(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(faults, "_MOST_EARLIER", 10)
        scrub(store, *[outvoted(4, REPAIRED) for _ in range(12)])
        assert recurring(store, scrub(store, outvoted(4, REPAIRED))) == [10]


class TestNew:
    def test_damage_that_was_left_is_not_counted_each_time_it_is_seen(self, store: Store) -> None:
        for _ in range(3):
            scrub(store, outvoted(4, LEFT), unreadable(9, FAILED))
        assert new(store) == [{"a": 1, "b": 1}, {}, {}]

    def test_not_even_when_it_is_repaired_at_last_and_anew_after_that(self, store: Store) -> None:
        for action in (LEFT, REPAIRED, REPAIRED):
            scrub(store, outvoted(4, action))
        assert new(store) == [{"a": 1}, {}, {"a": 1}]

    def test_only_scrubs_that_came_to_their_end_count(self, store: Store) -> None:
        scrub(store, outvoted(4, REPAIRED), end=False)
        assert new(store) == []

    def test_scrubs_know_which_copies_they_compared(self, store: Store) -> None:
        scrub(store, parameters={"copies": ["a", "c"]})
        scrub(store)
        assert [look.compared for look in faults.looks(store._database)] == [None, frozenset("ac")]


def test_the_copy_that_is_at_fault_day_after_day_is_blamed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(1, 7):
        monkeypatch.setattr(store, "_now", lambda day=day: f"2026-11-{day:02}T03:00:00.000Z")
        found = [] if day == 2 else [outvoted(4, REPAIRED, copies="b"), outvoted(20 + day, REPAIRED, copies="b")]
        scrub(store, *found, outvoted(60, LEFT, copies="c"))
    blamed = store.blame()
    assert blamed is not None
    assert (blamed.copy, blamed.scrubs, blamed.of_scrubs, blamed.days, blamed.others) == ("b", 5, 6, 5, 1)
    assert (blamed.faults.outvoted, blamed.faults.recurring) == (10, 4)
    store.note_entry("b", Entry.REPLACED)
    assert store.blame() is None


def test_what_overlaps_is_found_by_an_index_and_open_damage_is_counted_by_one(store: Store) -> None:
    scrub(store, outvoted(4, REPAIRED))
    place = {"start": 0, "end": S, "id": 9, "most": 1}
    plans = [
        (faults._OVERLAPPING, place, "SEARCH f USING INDEX findings_by_place (width=? AND start>? AND start<?)"),
        (
            "SELECT newest_run, copies, verdict, count(*) FROM findings WHERE run = :id"
            " AND action IN ('left', 'failed', 'pending') GROUP BY 1, 2, 3",
            place,
            "SEARCH findings USING COVERING INDEX findings_open (run=?)",
        ),
        (
            "SELECT run, blamed, verdict, recurring, count(*) FROM findings WHERE run = :id AND known = 0"
            " GROUP BY blamed, verdict, recurring",
            place,
            "SEARCH findings USING COVERING INDEX findings_by_blame (run=? AND known=?)",
        ),
    ]
    for query, values, expected in plans:
        plan = [row["detail"] for row in store._database.rows(f"EXPLAIN QUERY PLAN {query}", values)]
        assert expected in plan, plan


@pytest.mark.parametrize("later", [None, Range(0, 3 * S), Range(S, 4 * S)])
def test_open_damage_is_what_is_open_one_by_one(store: Store, later: Range | None) -> None:
    scrub(store, outvoted(0, LEFT, sectors=2), outvoted(2, REPAIRED), outvoted(3, FAILED, copies="ab"), no_majority(7))
    scrub(store, no_majority(9), unreadable(20, LEFT)) if later is None else None
    if later is not None:
        run = store.begin_run("report", SIZE, later, False, None, os.getpid())
        store.journal(run.id).conclude([], [unreadable(1, LEFT)], Checkpoint(later.end))
        store.finish_run(run.id)
    one_by_one = list(store.open_findings())
    damage = store.open_damage()
    assert damage.number == len(one_by_one) > 1
    assert damage.without_majority == next(f for f in one_by_one if f.verdict == "no-majority")
    by_copy = {None: {"b": 1}, Range(0, 3 * S): {"a": 1, "b": 2}, Range(S, 4 * S): {"a": 1, "b": 1}}[later]
    assert {copy: n for copy, n in damage.by_copy.items() if n} == by_copy
