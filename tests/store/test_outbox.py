"""Events for hooks: written with what they tell of, bounded, and dropped when every hook has taken them."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qorumctl.core.chronicle import Entry
from qorumctl.core.findings import Action, Checkpoint
from qorumctl.errors import StoreError
from qorumctl.model.hooks import HookEvent
from qorumctl.store import Store, outbox
from qorumctl.store.database import MIGRATIONS, Database, Listener
from qorumctl.store.outbox import MOST_FINDINGS
from tests.store.samples import SIZE, outvoted

NOW = "2026-11-23T17:00:00.000Z"


class Hooks:
    def __init__(self) -> None:
        self.there = True
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()


@pytest.fixture
def told(directory: Path, hooks: Hooks) -> Iterator[Store]:
    with Store.open(directory, listener=Listener(lambda: hooks.there, hooks.wake)) as store:
        yield store


def events(store: Store) -> list[dict[str, Any]]:
    found, last = [], 0
    while (event := store.outbox.next_after(last)) is not None:
        found.append(event.document)
        last = event.id
    for document in found:
        HookEvent.model_validate({"set": "web01", **document})
    return found


def kinds(store: Store) -> list[str]:
    return [event["event"] for event in events(store)]


def begin(store: Store) -> int:
    return store.begin_run("repair", SIZE, None, False, None, os.getpid()).id


def test_a_transaction_that_is_on_disk_has_not_failed_whoever_was_to_be_told(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that may begin no thread more raises what is no OSError."""
    heard: list[str] = []

    def fails() -> None:
        raise RuntimeError("can't start new thread")

    with closing(Database.open(directory, read_only=False)) as database:
        with database.write() as connection:
            connection.execute("INSERT INTO meta VALUES ('x', '1')")
            database.once_committed(fails)
            database.once_committed(lambda: heard.append("the log"))
        assert database.row("SELECT value FROM meta WHERE key = 'x'") is not None
    assert heard == ["the log"]
    assert "can't start new thread" in caplog.text


def test_a_run_is_told_with_its_findings_and_its_end(told: Store, hooks: Hooks) -> None:
    run = begin(told)
    journal = told.journal(run)
    ids = journal.begin_repair([outvoted(0, Action.PENDING)])
    assert (kinds(told), hooks.woken) == ([], 0)
    journal.conclude(
        list(zip(ids, [outvoted(0, Action.REPAIRED)], strict=True)), [outvoted(8, Action.LEFT)], Checkpoint(SIZE)
    )
    assert hooks.woken == 1
    told.finish_run(run)
    assert (kinds(told), hooks.woken) == (["finding", "finding", "run-finished"], 2)
    report = told.scrub_report(run)
    found = [json.loads(finding.model_dump_json(by_alias=True)) for finding in report.findings]
    for finding in found:
        finding["diagnosis"]["fill_byte"] = None
    assert [event["finding"] for event in events(told)[:2]] == found
    assert events(told)[2]["summary"] == json.loads(told.history().runs[0].model_dump_json(by_alias=True))
    assert len({event["id"] for event in events(told)}) == 3


def test_a_finding_whose_action_changes_is_told_again(told: Store) -> None:
    run = begin(told)
    told.journal(run).conclude([], [outvoted(0, Action.LEFT)], Checkpoint(SIZE))
    (first,) = events(told)
    told.journal(run).amend({first["finding"]["id"]: Action.LEFT})
    assert len(events(told)) == 1, "nothing has changed"
    told.journal(run).amend({first["finding"]["id"]: Action.REPAIRED})
    again = events(told)[1]
    assert (again["finding"]["id"], again["finding"]["action"]) == (first["finding"]["id"], "repaired")
    assert again["id"] != first["id"]


def test_a_storm_of_findings_is_told_in_few_words(told: Store) -> None:
    run = begin(told)
    for at in range(0, 3 * MOST_FINDINGS, MOST_FINDINGS // 2 + 7):
        found = [outvoted(at + n, Action.REPAIRED) for n in range(MOST_FINDINGS // 2 + 7)]
        told.journal(run).conclude([], found, Checkpoint(0))
    told.suspend_run(run)
    assert kinds(told) == ["finding"] * MOST_FINDINGS + ["more-findings", "run-finished"]
    told.reopen_run(run, os.getpid())
    told.journal(run).conclude([], [outvoted(0, Action.REPAIRED)], Checkpoint(SIZE))
    told.finish_run(run)
    assert kinds(told)[MOST_FINDINGS:] == ["more-findings", "run-finished", "run-finished"]


@pytest.mark.parametrize("end", ["suspend", "fail", "abandon"])
def test_a_run_that_is_broken_off_is_told(told: Store, end: str) -> None:
    run = begin(told)
    told.journal(run).begin_repair([outvoted(0, Action.PENDING)])
    if end == "fail":
        told.fail_run(run, "Copy a is gone.")
    elif end == "suspend":
        told.suspend_run(run)
    else:
        told.abandon_run(run)
        told.abandon_run(run)
    last = events(told)[-1]
    assert (last["event"], last["summary"]["outcome"]) == ("run-finished", "failed" if end == "fail" else "unfinished")
    assert ("Copy a is gone." in last["text"]) == (end == "fail")
    # What was under repair counts as left from now on.
    assert kinds(told)[:-1] == (["finding"] if end == "abandon" else [])


def test_what_happens_to_copies_is_told_once(told: Store) -> None:
    for _ in range(3):
        told.suspect(["c"], missed=True, why="a write failed (EIO)", failed=True)
    told.suspect(["a", "b"], missed=False, why="nobody listened")
    told.clear_suspicions({mark.key: mark.serial for mark in told.suspicions()}, run=begin(told))
    told.note_entry("b", Entry.REPLACED)
    assert [(e["event"], e["copy"], e["entry"]) for e in events(told)] == [
        ("copy-stale", "c", "missed-write"),
        ("copy-stale", "a", "may-have-missed"),
        ("copy-stale", "b", "may-have-missed"),
        ("copy-current", "a", "cleared"),
        ("copy-current", "b", "cleared"),
        ("copy-current", "c", "cleared"),
        ("copy-replaced", "b", "replaced"),
    ]
    assert events(told)[0]["text"] == "copy c has missed a write and has no vote: a write failed (EIO)."


def test_a_daemon_that_is_gone_is_told_once(told: Store) -> None:
    told.outbox.tell_daemon_gone(NOW, 17)
    told.outbox.tell_daemon_gone(NOW, None)
    assert [event["pid"] for event in events(told)] == [17]
    told.outbox.forget_daemon_gone()
    told.outbox.tell_daemon_gone(NOW, None)
    assert [event["pid"] for event in events(told)] == [17, None]


def test_where_there_is_no_hook_nothing_is_kept(told: Store, hooks: Hooks, directory: Path) -> None:
    hooks.there = False
    told.suspect(["c"], missed=True, why="x")
    told.finish_run(begin(told))
    with Store.open(directory) as nobody:
        nobody.suspect(["a"], missed=True, why="x")
    assert (events(told), hooks.woken) == ([], 0)


def test_a_transaction_that_is_undone_tells_nothing(told: Store, hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(told)

    tell = outbox.tell

    def fail(*arguments: Any, **facts: Any) -> None:
        tell(*arguments, **facts)
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(outbox, "tell", fail)
    with pytest.raises(StoreError):
        told.journal(run).conclude([], [outvoted(0, Action.REPAIRED)], Checkpoint(SIZE))
    monkeypatch.undo()
    assert (list(told.findings(run)), events(told), hooks.woken) == ([], [], 0)
    told.set_meta("x", "y")
    assert hooks.woken == 0


def test_what_waits_is_bounded_and_what_was_lost_is_counted(told: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MOST_EVENTS", 20)
    box = told.outbox
    told.note_entry("a", Entry.DETACHED)
    box.took("10-log", 1)
    for _ in range(25):
        told.note_entry("a", Entry.DETACHED)
    assert box.waiting() == 20
    course = box.courses(["10-log"])["10-log"]
    event = box.next_after(course.upto)
    assert event is not None
    box.begin("10-log", event.id)
    box.failed("10-log", NOW, "why", "output", give_up=None)
    (failure,) = box.failures()
    assert (failure.given_up, failure.failures) == (5, 1)


def test_an_event_goes_when_every_hook_has_taken_it(told: Store) -> None:
    box = told.outbox
    for _ in range(3):
        told.note_entry("a", Entry.DETACHED)
    box.took("10-log", 3)
    box.tidy(["10-log", "20-mail"])
    assert box.waiting() == 3
    box.failed("20-mail", NOW, "why", "", give_up=2)
    box.tidy(["10-log", "20-mail"])
    assert box.waiting() == 1
    box.tidy(["10-log"])
    assert (box.waiting(), box.failures()) == (0, [])


def test_clearing_forgets_failures_and_drops_what_waits(told: Store) -> None:
    box = told.outbox
    assert not box.clear()
    told.note_entry("a", Entry.DETACHED)
    box.took("10-log", 1)
    told.note_entry("a", Entry.DETACHED)
    box.failed("10-log", NOW, "why", "", give_up=None)
    assert box.clear()
    assert (box.waiting(), box.failures()) == (0, [])
    told.note_entry("a", Entry.DETACHED)
    box.begin("10-log", 3)
    box.failed("10-log", NOW, "why", "", give_up=None)
    assert box.failures()[0].given_up == 0


def test_a_store_of_the_version_before_is_migrated(directory: Path, hooks: Hooks) -> None:
    Database.open(directory, read_only=False, migrations=MIGRATIONS[:3]).close()
    with sqlite3.connect(directory / "state.db") as connection:
        connection.execute(
            "INSERT INTO runs VALUES (1, 'repair', 'running', NULL, NULL, ?, NULL, ?, NULL, NULL, 0, NULL, '{}', 0, 0,"
            " 0, '{}', 0, '[]', NULL, 1, 0)",
            (NOW, SIZE),
        )
    connection.close()
    with Store.open(directory, listener=Listener(lambda: True, hooks.wake)) as store:
        store.journal(1).conclude([], [outvoted(0, Action.REPAIRED)], Checkpoint(SIZE))
        store.finish_run(1)
        assert kinds(store) == ["finding", "run-finished"]
