"""What has happened to each copy: how often, first and last. One row for each copy and kind, so that it stays small
however often it happens. Written in the transaction of what it tells of: neither is there without the other."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from qorumctl.core.chronicle import FROM_FINDINGS, Entry
from qorumctl.core.findings import Action, FindingVerdict
from qorumctl.logbook import News, tell
from qorumctl.store import outbox
from qorumctl.store.database import Database
from qorumctl.store.records import names_from_json

_MOST_DETAIL = 200
_WORDS = {
    Entry.MISSED_WRITE: (logging.ERROR, "has missed a write, and has no vote"),
    Entry.MAY_HAVE_MISSED: (logging.WARNING, "may have missed a write"),
    Entry.DETACHED: (logging.WARNING, "was detached"),
    Entry.FORCED_OUT: (logging.WARNING, "was forced out"),
    Entry.LEFT_OUT: (logging.WARNING, "was left out of the start"),
    Entry.FOUND_OUTSIDE: (logging.WARNING, "was found outside the quorum"),
    Entry.REJOINED: (logging.INFO, "is back in its place"),
    Entry.CLEARED: (logging.INFO, "is current: a scrub found or made it equal to the others"),
    Entry.REPLACED: (logging.INFO, "has been replaced"),
}
"""What the log is told. Write errors are the daemon's words, which the watcher passes on; a scrub tells of findings."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """`first`, `last`: RFC 3339. `run`: the last run in which it happened, where it happens in runs. `detail`: of the
    last time."""

    copy: str
    kind: Entry
    number: int
    first: str
    last: str
    run: int | None = None
    detail: str = ""


def note(
    database: Database,
    connection: sqlite3.Connection,
    copy: str,
    kind: Entry,
    time: str,
    *,
    run: int | None = None,
    detail: str = "",
) -> None:
    """It has happened once more. Part of the caller's transaction, as is the word to the hooks; the log is told when
    that is on disk."""
    connection.execute(
        "INSERT INTO chronicle VALUES (?, ?, 1, ?, ?, ?, (SELECT coalesce(max(id), 0) FROM runs), ?)"
        " ON CONFLICT (copy, kind) DO UPDATE SET number = number + 1, last = excluded.last, run = excluded.run,"
        " newest_run = excluded.newest_run, detail = excluded.detail",
        (copy, kind, time, time, run, detail[:_MOST_DETAIL]),
    )
    outbox.tell_of_copy(database, connection, copy, kind, time, run=run, detail=detail[:_MOST_DETAIL])
    if kind in _WORDS:
        database.once_committed(partial(_tell, database.path.parent.name, copy, kind, run, detail[:_MOST_DETAIL]))


def _tell(set_name: str, copy: str, kind: Entry, run: int | None, detail: str) -> None:
    level, words = _WORDS[kind]
    why = f": {detail}" if detail else ""
    text = f"{set_name}: copy {copy} {words}{why}."
    tell(News.COPY_STANDING, level, text, set_name=set_name, event=kind, copy=copy, run=run)


def replaced(database: Database) -> dict[str, int]:
    """Copy -> the newest run that had begun when it got its present medium."""
    rows = database.rows("SELECT copy, newest_run FROM chronicle WHERE kind = 'replaced'")
    return database.parse(lambda: {row["copy"]: int(row["newest_run"]) for row in rows})


def all_of(database: Database) -> list[Chapter]:
    """By copy, and of one copy in the order of `Entry`."""
    order = list(Entry)
    chapters = [*database.parse(lambda: _from_findings(database)), *database.parse(lambda: _noted(database))]
    return sorted(chapters, key=lambda chapter: (chapter.copy, order.index(chapter.kind)))


def _noted(database: Database) -> list[Chapter]:
    rows = database.rows("SELECT copy, kind, number, first, last, run, detail FROM chronicle")
    chapters = [Chapter(**{**dict(row), "kind": Entry(row["kind"])}) for row in rows]
    if any(type(chapter.number) is not int or chapter.kind in FROM_FINDINGS for chapter in chapters):
        raise ValueError("no number")
    return chapters


def _from_findings(database: Database) -> Iterator[Chapter]:
    """One group for each set of names: memory stays flat."""
    told: dict[tuple[str, Entry], Chapter] = {}
    for row in database.rows(
        "SELECT copies, verdict, action, recurring > 0 AS again, count(*) AS n, min(confirmed) AS first,"
        " max(confirmed) AS last, max(run) AS run FROM findings GROUP BY 1, 2, 3, 4"
    ):
        for copy in names_from_json(row["copies"]):
            for kind in _kinds(row):
                one = Chapter(copy, kind, row["n"], row["first"], row["last"], row["run"])
                before = told.get((copy, kind))
                told[copy, kind] = one if before is None else _joined(before, one)
    return iter(told.values())


def _kinds(row: sqlite3.Row) -> Iterator[Entry]:
    match FindingVerdict(row["verdict"]):
        case FindingVerdict.OUTVOTED:
            yield Entry.OUTVOTED
        case FindingVerdict.UNREADABLE:
            yield Entry.UNREADABLE
    if Action(row["action"]) is Action.REPAIRED:
        yield Entry.REPAIRED
    if row["again"]:
        yield Entry.RECURRING


def _joined(a: Chapter, b: Chapter) -> Chapter:
    first, last = min(a.first, b.first), max(a.last, b.last)
    return Chapter(a.copy, a.kind, a.number + b.number, first, last, max(a.run or 0, b.run or 0))
