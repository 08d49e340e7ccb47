"""What has happened to each copy: counted with its dates, in as much room for a million times as for one."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from qorumctl.core.chronicle import Entry
from qorumctl.core.findings import Action, Cause, Checkpoint, Finding
from qorumctl.errors import DamagedStateError
from qorumctl.store import Store, faults
from qorumctl.store.absent import Absence
from qorumctl.store.chronicle import Chapter
from qorumctl.store.database import MIGRATIONS, Database
from tests.store.samples import SIZE, no_majority, outvoted, unreadable

AWAY = Absence("b", since="2026-11-23T10:00:00.000Z", why="detached", left=False, kept=False)


@pytest.fixture
def day(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The date, which a test changes."""
    today = [1]
    monkeypatch.setattr(store, "_now", lambda: f"2026-11-{today[0]:02}T03:00:00.000Z")
    return today


def told(store: Store) -> list[str]:
    """`b detached 2, 1-5`: copy, kind, number, day of the first and of the last time."""
    return [f"{c.copy} {c.kind} {c.number}, {int(c.first[8:10])}-{int(c.last[8:10])}" for c in store.chronicle()]


def scrub(store: Store, *findings: Finding) -> int:
    run = store.begin_run("report", SIZE, None, False, None, os.getpid())
    store.journal(run.id).conclude([], findings, Checkpoint(SIZE))
    store.finish_run(run.id)
    return run.id


def test_findings_are_told_with_their_dates_and_the_last_run(store: Store) -> None:
    first = replace(outvoted(1, Action.REPAIRED), confirmed_at="2026-11-01T00:00:00.000Z")
    scrub(
        store, first, unreadable(3, Action.LEFT), no_majority(9), outvoted(7, Action.LEFT, cause=Cause.UNCLEAN_SHUTDOWN)
    )
    last = scrub(store, replace(outvoted(1, Action.LEFT, copies="ab"), confirmed_at="2026-11-09T00:00:00.000Z"))
    at = {"first": "2026-11-01T00:00:00.000Z", "last": "2026-11-09T00:00:00.000Z"}
    chapters = {(c.copy, c.kind): c for c in store.chronicle()}
    assert chapters["a", Entry.OUTVOTED] == Chapter("a", Entry.OUTVOTED, 2, **at, run=last)
    assert chapters["a", Entry.REPAIRED].number == chapters["a", Entry.RECURRING].number == 1
    assert chapters["b", Entry.UNREADABLE].number == 1
    assert ("c", Entry.OUTVOTED) not in chapters, "without a majority, and after an unclean stop, nobody is told of"


def test_a_write_error_is_counted_each_time_and_what_it_makes_of_the_copy_once(store: Store, day: list[int]) -> None:
    for day[0] in (1, 2, 3):
        store.suspect(["c"], missed=True, why="a write failed (EIO)", failed=True)
    assert told(store) == ["c write-error 3, 1-3", "c missed-write 1, 1-1"]
    day[0] = 4
    store.clear_suspicions({s.key: s.serial for s in store.suspicions()}, run=7)
    day[0] = 5
    store.suspect(["c"], missed=True, why="a flush failed", failed=True)
    assert told(store) == ["c write-error 4, 1-5", "c missed-write 2, 1-5", "c cleared 1, 4-4"]
    assert [(c.run, c.detail) for c in store.chronicle()] == [(None, "a flush failed")] * 2 + [(7, "")]


def test_suspects_without_a_known_error_are_told_apart(store: Store, day: list[int]) -> None:
    for _ in range(3):
        store.suspect("ab", missed=False, why="nobody listened")
    store.suspect(["b"], missed=True, why="the record of it was lost")
    assert told(store) == ["a may-have-missed 1, 1-1", "b may-have-missed 2, 1-1"]


def test_one_that_is_known_to_lack_something_is_no_mere_suspect(store: Store, day: list[int]) -> None:
    store.suspect(["b"], missed=True, why="it does not store what is written to it", known=True)
    assert told(store) == ["b missed-write 1, 1-1"]


def test_an_image_that_is_to_take_a_copys_place_has_no_history_of_its_own(store: Store) -> None:
    store.suspect(["c.2"], missed=True, why="a write failed", failed=True)
    store.clear_suspicions({s.key: s.serial for s in store.suspicions()}, run=1)
    assert told(store) == []


def test_a_copy_is_cleared_when_nothing_is_left_against_it_and_by_a_scrub(store: Store) -> None:
    for copy in "abc":
        store.suspect([copy], missed=False, why="nobody listened")
    store.suspect("b", missed=True, why="a write failed")
    serials = {s.key: s.serial for s in store.suspicions()}
    store.suspect("c", missed=False, why="nobody listened")
    store.clear_suspicions({key: serials[key] for key in serials if key != "suspect.b.missed"}, run=1)
    assert [c.copy for c in store.chronicle() if c.kind is Entry.CLEARED] == ["a"]
    store.clear_suspicions(serials)
    store.clear_suspicions(serials, run=1)
    assert [c.copy for c in store.chronicle() if c.kind is Entry.CLEARED] == ["a"], "something else had settled it"


def test_a_copy_leaves_once_however_often_its_mark_is_written(store: Store, day: list[int]) -> None:
    store.note_absence(AWAY)
    assert told(store) == []
    left = replace(AWAY, left=True, lost="it was forced")
    store.note_absence(left, Entry.FORCED_OUT)
    # The command was killed, and repeated; then a rejoin was begun, which did not come to its end.
    store.note_absence(left, Entry.DETACHED)
    store.note_absence(replace(left, cursor_bytes=0))
    day[0] = 2
    store.forget_absence("b", detail="it was asked for")
    store.forget_absence("b")
    assert told(store) == ["b forced-out 1, 1-1", "b rejoined 1, 2-2"]
    assert [c.detail for c in store.chronicle()] == ["it was forced", "it was asked for"]


def test_a_detach_that_came_to_nothing_is_no_absence(store: Store) -> None:
    store.note_absence(AWAY)
    store.forget_absence("b")
    assert told(store) == []


def test_who_detaches_what_a_scrub_has_taken_out_is_told_of(store: Store, day: list[int]) -> None:
    taken_out = replace(AWAY, left=True, rewrite=((512, 512),))
    store.note_absence(taken_out)
    day[0] = 2
    for _ in range(2):
        store.note_absence(replace(taken_out, rewrite=()), Entry.DETACHED)
    store.forget_absence("b")
    assert told(store) == ["b detached 1, 2-2", "b rejoined 1, 2-2"]


def test_a_replaced_copy_has_one_line_to_record_it(store: Store, day: list[int]) -> None:
    store.note_absence(replace(AWAY, left=True), Entry.DETACHED)
    store.forget_absence("b", Entry.REPLACED, "/old.img -> /new.img")
    store.note_entry("c", Entry.REPLACED, detail="x" * 10_000)
    assert told(store) == ["b detached 1, 1-1", "b replaced 1, 1-1", "c replaced 1, 1-1"]
    assert [len(c.detail) for c in store.chronicle()] == [0, 20, 200]


def test_it_takes_no_more_room_however_often_it_happens(store: Store, directory: Path) -> None:
    def rows() -> int:
        return int(store._database.rows("SELECT count(*) AS n FROM chronicle")[0]["n"])

    for n in range(30):
        store.suspect("abc", missed=True, why=f"a write failed ({n})", failed=True)
        store.note_absence(replace(AWAY, left=True), Entry.DETACHED)
        store.forget_absence("b")
    assert rows() == 8
    assert {c.number for c in store.chronicle() if c.kind is Entry.WRITE_ERROR} == {30}


def test_it_is_there_with_what_it_tells_of_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("qorumctl.store.chronicle.note", fail)
    with pytest.raises(Exception, match="disk I/O error"):
        store.suspect("b", missed=True, why="a write failed", failed=True)
    assert store.suspicions() == []


def test_a_row_that_was_never_written_so_is_damage(store: Store) -> None:
    with store._database.write() as connection:
        connection.execute("INSERT INTO chronicle VALUES ('b', 'exploded', 1, '', '', NULL, 0, '')")
    with pytest.raises(DamagedStateError):
        store.history()


def test_what_version_2_has_written_is_all_there(directory: Path) -> None:
    Database.open(directory, read_only=False, migrations=MIGRATIONS[:2]).close()
    with sqlite3.connect(directory / "state.db") as old:
        for parameters in ("{}", '{"uncounted": ["a"]}', '{"suspicions": {"suspect.a.missed": 4}}'):
            old.execute(
                "INSERT INTO runs (mode, state, started, finished, size, thorough, parameters, cursor, scanned,"
                " skipped, read_bytes, suspects, busy, position)"
                " VALUES ('repair', 'finished', '2026-11-01', '2026-11-01', 1048576, 0, ?, 1048576, 0, 0, '{}', 0,"
                " '[]', 0)",
                (parameters,),
            )
        for run, start, verdict, action in (
            (1, 0, "outvoted", "repaired"),
            (1, 512, "outvoted", "left"),
            (1, 1024, "no-majority", "left"),
            (2, 2048, "outvoted", "repaired"),
            (3, 4096, "outvoted", "repaired"),
        ):
            old.execute(
                "INSERT INTO findings (run, start, length, verdict, copies, action, diagnosis, confirmed, source)"
                " VALUES (?, ?, 512, ?, '[\"a\"]', ?, '{\"kind\": \"zeroed\"}', '2026-11-01T00:00:00Z', 'scrub')",
                (run, start, verdict, action),
            )
        for day, missed in ((1, "true"), (2, "true"), (3, "false")):
            old.execute(
                "INSERT INTO events (time, kind, copy, detail) VALUES (?, 'QUORUM_REPORT_BAD', 'c', ?)",
                (f"2026-11-0{day}T00:00:00.000Z", f'{{"missed_write": {missed}}}'),
            )
        old.execute("INSERT INTO events (time, kind, copy, detail) VALUES ('', 'UNWATCHED', NULL, 'no json')")
        old.execute(
            "INSERT INTO meta VALUES ('suspect.c.missed', ?)",
            ('{"serial": 1, "since": "s", "last": "l", "count": 2, "why": "w"}',),
        )
    old.close()
    with Store.open(directory) as store:
        assert [found.offset for found in store.findings(1)] == [0, 512, 1024]
        assert [s.copy for s in store.suspicions()] == ["c"]
        assert [(c.copy, c.kind, c.number) for c in store.chronicle()] == [
            ("a", "outvoted", 4), ("a", "repaired", 3), ("c", "write-error", 2),
        ]  # fmt: skip
        # Of what was left nobody knows whether it was new; in runs 2 and 3 the copy had missed writes.
        looks = {look.run: look.faults for look in reversed(faults.looks(store._database))}
        assert {run: {copy: f.outvoted for copy, f in faults.items()} for run, faults in looks.items()} == {
            1: {"a": 1}, 2: {}, 3: {},
        }  # fmt: skip
        run = scrub(store, outvoted(0, Action.LEFT), outvoted(4, Action.LEFT))
        assert [found.recurring for found in store.findings(run)] == [1, 0]
