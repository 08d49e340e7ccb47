"""A damaged state database: every command tells, or says what is damaged. It never makes a run look better than it is
because a row was garbage, and it never writes to an image."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from qorumctl import definitions, identity
from qorumctl.controller.sets import QuorumSets
from qorumctl.core.findings import Action, Checkpoint
from qorumctl.core.ranges import Range
from qorumctl.errors import StoreError
from qorumctl.model.spec import CopySpec, FileSource, SetSpec
from qorumctl.paths import Directories
from qorumctl.store import Store
from tests.attack import Attack
from tests.hostile.common import fingerprint, run_cli, settle
from tests.store.samples import SIZE, no_majority, outvoted, unreadable

NAME = "web01"


class Stopped:
    """A set that does not run, with a past: two runs, findings of all kinds, events, marks."""

    def __init__(self, root: Path) -> None:
        self.directories = Directories(root / "c", root / "s", root / "r")
        self.directories.config.mkdir(parents=True)
        images = [root / f"{letter}.raw" for letter in "abc"]
        for image in images:
            image.write_bytes(bytes(SIZE))
        copies = tuple(CopySpec(name=i.stem, source=FileSource(path=str(i)), cache="writeback") for i in images)
        self.spec = SetSpec(name=NAME, uuid=UUID(int=7), size=SIZE, copies=copies)
        definitions.save(self.directories.definition_path(NAME), self.spec)
        identity.found(self.spec, identity.this_host())
        self.sets = QuorumSets(self.directories)
        self.state = self.directories.state_dir(NAME)
        self.images = images
        with Store.open(self.state) as store:
            self._live(store)

    def _live(self, store: Store) -> None:
        run = store.begin_run("report", SIZE, None, False, None, 1, {"definition": "d", "uncounted": ["c"]})
        found = [outvoted(1, Action.LEFT), unreadable(9, Action.LEFT), no_majority(20)]
        store.journal(run.id).conclude([], found, Checkpoint(SIZE, SIZE, 0, {"a": SIZE}, 3, (Range(512, 512),)))
        store.finish_run(run.id)
        run = store.begin_run("repair", SIZE, Range(0, SIZE // 2), True, None, 1, {"suspicions": {"x": 1}})
        store.journal(run.id).begin_repair([outvoted(3, Action.PENDING)])
        store.suspend_run(run.id)
        store.suspect(["c"], missed=True, why="a write failed")
        store.suspect("ab", missed=False, why="nobody listened")
        store.add_event("QUORUM_REPORT_BAD", "c", json.dumps({"time": "2000-01-01T00:00:00.000Z", "text": "x"}))
        store.set_meta("running.definition", self.spec.model_dump_json())
        store.set_meta("watch.listening", "1 2 done")

    def looks(self) -> list[Callable[[], Any]]:
        """Every command that only looks."""
        sets = self.sets
        return [
            lambda: sets.status([NAME]),
            lambda: sets.status(),
            lambda: sets.list(),
            lambda: sets.history(NAME),
            lambda: sets.report(NAME),
            lambda: sets.report(NAME, 1),
            lambda: sets.report(NAME, 2),
            lambda: sets.check(NAME),
        ]

    def works(self) -> list[Callable[[], Any]]:
        """What a scrub, a watcher and a stop do with the store: on one that is damaged they may write."""

        def with_store(work: Callable[[Store], Any]) -> Callable[[], None]:
            def run() -> None:
                with Store.open(self.state) as store:
                    work(store)

            return run

        def scrub(store: Store) -> None:
            run = store.reopen_run(2, 1)
            store.journal(run.id).conclude(store.pending_findings(run.id), [], Checkpoint())

        return [
            with_store(lambda store: [store.settled_ranges(run, 0) for run in (1, 2)]),
            with_store(lambda store: list(store.open_findings())),
            with_store(lambda store: [store.finding(n) for n in range(1, 6)]),
            with_store(lambda store: [store.unfinished_run(), store.unfinished_runs(), store.events_after(0)]),
            with_store(lambda store: store.suspect("abc", missed=True, why="again")),
            with_store(lambda store: store.clear_suspicions({s.key: s.serial for s in store.suspicions()})),
            with_store(lambda store: store.add_event("X", None, "{}")),
            with_store(scrub),
            with_store(lambda store: store.finish_run(2)),
            lambda: self.sets.cancel(NAME),
            lambda: self.sets.stop(NAME),
        ]


@pytest.fixture
def stopped(memory_dir: Path) -> Stopped:
    return Stopped(memory_dir)


@pytest.mark.attack("a damaged state ends in a clear error", "random bytes in every page of state.db and its -wal")
def test_flipped_bytes(stopped: Stopped, memory_dir: Path, attack: Attack) -> None:
    good = memory_dir / "good"
    _keep_with_its_wal(stopped.state, good)
    untouched = fingerprint([*stopped.images, stopped.directories.definition_path(NAME)])
    errors = calls = 0
    for seed in attack.rounds(24):
        dice = random.Random(seed)
        shutil.rmtree(stopped.state)
        shutil.copytree(good, stopped.state)
        _damage(dice.choice([stopped.state / "state.db", *sorted(stopped.state.glob("state.db-*"))]), dice)
        for call in (*stopped.looks(), *stopped.works()):
            calls += 1
            errors += settle(call) is not None
    assert fingerprint([*stopped.images, stopped.directories.definition_path(NAME)]) == untouched
    attack.count(commands=calls, clear_errors=errors)


def _keep_with_its_wal(state: Path, kept: Path) -> None:
    """As a crash leaves it: half of what it holds in the -wal."""
    with Store.open(state) as store:
        store.suspect(["b"], missed=True, why="a flush failed")
        shutil.copytree(state, kept)
    assert (kept / "state.db-wal").stat().st_size > 0


def _damage(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    page = dice.randrange(max(1, len(content) // 4096)) * 4096
    match dice.randrange(5):
        case 0:  # one bit
            content[page + dice.randrange(min(4096, len(content) - page))] ^= 1 << dice.randrange(8)
        case 1:  # a few bytes
            for _ in range(dice.randint(1, 40)):
                content[page + dice.randrange(min(4096, len(content) - page))] = dice.randrange(256)
        case 2:  # the head of a page
            content[page : page + 100] = dice.randbytes(100)
        case 3:  # a page that belongs elsewhere
            other = dice.randrange(max(1, len(content) // 4096)) * 4096
            content[page : page + 4096] = content[other : other + 4096]
        case _:  # cut short
            del content[dice.randrange(len(content)) :]
    path.write_bytes(content)


TEXTS = ["", "x", "{}", "[]", "null", "1", '"a"', '{"a": null}', "[[1]]", "[[0, 0]]", "[[-1, 5]]", "[1, 2]", "[" * 5000,
         '{"kind": 1}', '{"kind": "zeroed", "more": 1}', '{"serial": "x"}', '{"uncounted": 3}', '{"suspicions": []}',
         "9" * 5000, "nan", "1e999", '"\\ud800"', "2000-01-01T00:00:00", "\x1b[2J"]  # fmt: skip
NUMBERS = [-1, 0, 1, 513, (1 << 63) - 1, -(1 << 63)]


def test_rows_that_nobody_wrote(stopped: Stopped) -> None:
    """Every column of every table, with whatever its type takes."""
    database = stopped.state / "state.db"
    errors = 0
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        kept = database.read_bytes()
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = [
            (table, row[1], row[2])
            for table in tables
            if not table.startswith("sqlite_")
            for row in connection.execute(f"PRAGMA table_info({table})")
        ]
    dice = random.Random(1)
    for table, column, kind in columns:
        values: list[Any] = NUMBERS if kind == "INTEGER" else TEXTS
        for value in dice.sample(values, 3) if (table, column) != ("meta", "value") else values:
            with closing(sqlite3.connect(database)) as connection:
                try:
                    connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
                    connection.commit()
                except sqlite3.Error:
                    continue
            for call in (*stopped.looks()[:5], *dice.sample(stopped.works(), 3)):
                errors += settle(call) is not None
            for beside in stopped.state.glob("state.db-*"):
                beside.unlink()
            database.write_bytes(kept)
    assert errors > 100


@pytest.mark.parametrize("statement", [
    "UPDATE runs SET cursor = 1 << 40 WHERE id = 2",
    "UPDATE runs SET parameters = '[]'",
    "UPDATE runs SET busy = '[[5]]'",
    "UPDATE findings SET start = -512, length = 0",
    "UPDATE findings SET copies = '{}'",
    "UPDATE meta SET value = '{' WHERE key LIKE 'suspect.%'",
    "UPDATE runs SET mode = CAST(x'ff' AS TEXT)",
])  # fmt: skip
def test_what_a_person_is_told(stopped: Stopped, capsys: pytest.CaptureFixture[str], statement: str,
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with closing(sqlite3.connect(stopped.state / "state.db")) as connection:
        connection.execute(statement)
        connection.commit()
    for variable, path in (("CONFIG", "config"), ("STATE", "state"), ("RUNTIME", "runtime")):
        monkeypatch.setenv(f"QORUM_{variable}_DIR", str(getattr(stopped.directories, path)))
    said = [run_cli(capsys, *command.split()) for command in
            ("status", f"status {NAME}", f"--json report {NAME} 2", f"history {NAME}", f"report {NAME} 1")]  # fmt: skip
    assert any(code == 1 and "state.db" in " ".join(text.split()) for code, text in said), said


def test_a_schema_whose_name_is_no_text(stopped: Stopped) -> None:
    """SQLite quotes it in its message, which Python then cannot decode."""
    database = stopped.state / "state.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    content = database.read_bytes()
    for old, new in ((b"eventsevents", b"ev\xeantsev\xeants"), (b"CREATE TABLE events", b"CREATX TABLE events")):
        assert old in content
        content = content.replace(old, new)
    database.write_bytes(content)
    with pytest.raises(UnicodeDecodeError), closing(sqlite3.connect(database)) as connection:
        connection.execute("SELECT * FROM runs")
    for call in stopped.looks()[:4]:
        settle(call)
    with pytest.raises(StoreError, match=r"state\.db is damaged"):
        Store.open(stopped.state)


def test_a_cursor_beyond_the_run_does_not_end_it(stopped: Stopped) -> None:
    """A resumed run would look at nothing more, and end as clean."""
    with closing(sqlite3.connect(stopped.state / "state.db")) as connection:
        connection.execute("UPDATE runs SET cursor = ? WHERE id = 2", (SIZE // 2 + 512,))
        connection.commit()
    with Store.open(stopped.state) as store, pytest.raises(StoreError, match="a row holds what was never written"):
        store.unfinished_runs()
