"""What the store tells: documents, counts, and which damage is still open."""

import os
import resource
from dataclasses import replace

import pytest

from qorumctl.core.findings import Action, Cause, Checkpoint, Finding, is_lost
from qorumctl.core.ranges import Range
from qorumctl.store import Store
from qorumctl.store.records import now
from tests.live import wait_for
from tests.store.samples import SIZE, S, no_majority, outvoted, unreadable

SECTORS = SIZE // S


def scrub(store: Store, *findings: Finding, within: Range | None = None, busy: tuple[Range, ...] = (),
          cursor: int | None = None, end: str = "finish") -> int:  # fmt: skip
    run = store.begin_run("report", SIZE, within, False, None, os.getpid())
    reached = cursor if cursor is not None else within.end if within else SIZE
    store.journal(run.id).conclude([], findings, Checkpoint(reached, reached, 0, {"a": reached}, len(findings), busy))
    match end:
        case "finish":
            store.finish_run(run.id)
        case "suspend":
            store.suspend_run(run.id)
        case "abandon":
            store.abandon_run(run.id)
    return run.id


def test_a_report_says_everything_but_the_guest_s_data(store: Store) -> None:
    run = scrub(store, unreadable(9, Action.LEFT), outvoted(1, Action.REPAIRED, sectors=2), busy=(Range(0, S),))
    report = store.scrub_report(run)
    assert (report.set, report.run, report.outcome, report.size) == ("web01", run, "damaged", SIZE)
    assert (report.scanned_bytes, report.read_bytes, report.busy_bytes, report.suspects) == (SIZE, {"a": SIZE}, S, 2)
    assert [(f.offset, f.length, f.verdict, f.copies, f.action) for f in report.findings] == [
        (S, 2 * S, "outvoted", ["a"], "repaired"),
        (9 * S, S, "unreadable", ["b"], "left"),
    ]
    assert report.findings[0].votes == {"d" * 64: ["b", "c"], "e" * 64: ["a"]}
    assert report.findings[0].diagnosis.flipped_bits == 3
    assert "good" not in report.model_dump_json()


def test_what_no_fenced_read_mends_is_picked_by_the_database(store: Store) -> None:
    settled = (Action.REPAIRED, Action.LEFT, Action.FAILED)
    every = [*(outvoted(n, a) for n, a in enumerate(settled)), *(unreadable(n + 3, a) for n, a in enumerate(settled))]
    run = scrub(store, *every, no_majority(6), no_majority(7, Action.FAILED))
    picked = [found.id for found in store.lost_findings(run)]
    assert picked == [found.id for found in store.findings(run) if is_lost(found.verdict, found.action)]
    assert len(picked) == 3


def test_history_is_newest_first_with_counts(store: Store) -> None:
    scrub(store, outvoted(1, Action.REPAIRED), outvoted(2, Action.REPAIRED), no_majority(3))
    scrub(store, cursor=S, end="suspend")
    history = store.history()
    assert [(r.run, r.outcome, r.resumable, r.findings) for r in history.runs] == [
        (2, "unfinished", True, {}),
        (1, "no-majority", False, {Action.REPAIRED: 2, Action.LEFT: 1}),
    ]


def test_copies_are_counted_over_all_runs(store: Store) -> None:
    scrub(store, outvoted(1, Action.REPAIRED), outvoted(2, Action.LEFT, copies="ab"), unreadable(3, Action.REPAIRED))
    scrub(
        store, outvoted(4, Action.REPAIRED), no_majority(5), outvoted(6, Action.REPAIRED, cause=Cause.UNCLEAN_SHUTDOWN)
    )
    assert store.copy_counts() == {"a": (3, 0, 2), "b": (1, 1, 1), "c": (0, 0, 0)}


class TestOpenFindings:
    def sectors(self, store: Store) -> list[int]:
        return [f.offset // S for f in store.open_findings()]

    def test_what_was_repaired_is_not_open(self, store: Store) -> None:
        scrub(store, outvoted(1, Action.REPAIRED), outvoted(2, Action.LEFT), outvoted(3, Action.FAILED), no_majority(4))
        assert self.sectors(store) == [2, 3, 4]

    def test_a_later_complete_look_settles_the_matter(self, store: Store) -> None:
        scrub(store, outvoted(2, Action.LEFT), no_majority(4))
        scrub(store, no_majority(4))
        assert self.sectors(store) == [4]
        scrub(store)
        assert self.sectors(store) == []

    @pytest.mark.parametrize(
        ("later", "still_open"),
        [
            ({"within": Range(0, 3 * S)}, [4]),  # it looked at sectors 0 to 2
            ({"within": Range(4 * S, S)}, [2]),
            ({"cursor": 3 * S, "end": "suspend"}, [4]),
            ({"cursor": 3 * S, "end": "abandon"}, [4]),
            ({"cursor": 3 * S, "end": ""}, [4]),  # at work, or dead
            ({"cursor": 0, "end": "suspend"}, [2, 4]),
            ({"busy": (Range(2 * S, S),)}, [2]),  # guests kept writing it: nobody knows
            ({"within": Range(2 * S, SIZE - 2 * S), "cursor": 2 * S, "end": "suspend"}, [2, 4]),
        ],
    )
    def test_only_what_a_later_run_has_looked_at_is_settled(
        self, store: Store, later: dict[str, object], still_open: list[int]
    ) -> None:
        scrub(store, outvoted(2, Action.LEFT), no_majority(4))
        scrub(store, **later)  # type: ignore[arg-type]
        assert self.sectors(store) == still_open

    def test_half_a_look_is_none_and_two_halves_are_one(self, store: Store) -> None:
        scrub(store, outvoted(2, Action.LEFT, sectors=4))
        scrub(store, within=Range(0, 4 * S))
        assert self.sectors(store) == [2]
        scrub(store, within=Range(4 * S, 4 * S))
        assert self.sectors(store) == []

    @pytest.mark.parametrize("newer", [None, Range(4 * S, S)])
    def test_what_a_resumed_run_finds_is_not_settled_by_a_newer_one_that_ended_before(
        self, store: Store, newer: Range | None
    ) -> None:
        paused = scrub(store, within=Range(0, 8 * S), cursor=2 * S, end="suspend")
        scrub(store, within=newer)
        store.reopen_run(paused, os.getpid())
        found = replace(no_majority(4), confirmed_at=now())
        store.journal(paused).conclude([], [found], Checkpoint(8 * S))
        store.finish_run(paused)
        assert self.sectors(store) == [4]
        wait_for(lambda: now() > found.confirmed_at, "the next millisecond")
        scrub(store)
        assert self.sectors(store) == []

    @pytest.mark.parametrize("jump", ["back", "forward"])
    def test_a_clock_that_jumps_hides_nothing_and_keeps_nothing_open(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, jump: str
    ) -> None:
        """The paused run began under a wrong year: whatever it has looked at is older than the finding all the same."""
        years = iter(["1990", "2060"] if jump == "forward" else ["2060", "1990"])
        monkeypatch.setattr(store, "_now", lambda: f"{year}-01-01T00:00:00.000Z")
        year = next(years)
        paused = scrub(store, within=Range(0, 8 * S), end="suspend")
        year = next(years)
        scrub(store, replace(outvoted(2, Action.LEFT), confirmed_at=f"{year}-01-01T00:00:00.000Z"))
        store.reopen_run(paused, os.getpid())
        store.finish_run(paused)
        assert self.sectors(store) == [2]
        scrub(store)
        assert self.sectors(store) == []

    def test_a_repair_that_nobody_verified_is_open(self, store: Store) -> None:
        run = store.begin_run("repair", SIZE, None, False, None, os.getpid())
        store.journal(run.id).begin_repair([outvoted(7, Action.PENDING)])
        assert self.sectors(store) == [7]


def test_memory_stays_flat_however_many_findings_there_are(store: Store) -> None:
    run = store.begin_run("report", SIZE, None, False, None, os.getpid())
    journal = store.journal(run.id)
    journal.conclude([], [outvoted(n, Action.LEFT) for n in range(1000)], Checkpoint(S))
    assert sum(1 for _ in store.findings(run.id)) == 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for batch in range(1, 20):
        journal.conclude(
            [], [outvoted(n, Action.LEFT) for n in range(batch * 1000, batch * 1000 + 1000)], Checkpoint(S)
        )
    offsets = [0]
    for found in store.findings(run.id):
        assert found.offset >= offsets[-1]
        offsets[-1] = found.offset
    assert offsets == [19_999 * S]
    assert sum(1 for _ in store.open_findings()) == 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10, "KiB"
