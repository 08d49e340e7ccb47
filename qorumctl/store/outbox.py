"""Events for hooks, kept until every hook has taken them, and how far each hook has come.

An event is written in the transaction of what it tells of, and only while there is a hook: neither is there without the
other. It is delivered by another process (controller/delivery.py), at least once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from qorumctl.core.chronicle import Entry
from qorumctl.model.hooks import HookEventKind, HookFailure
from qorumctl.store.database import Database

MOST_EVENTS = 1000
"""More than these wait for no hook: the oldest are given up. A megabyte."""
MOST_FINDINGS = 100
"""Of one run are told one by one: storage that rots all over must not start a process for each of its sectors."""
_MOST_REASON, _MOST_OUTPUT = 500, 2000
_GONE = "daemon.gone"
_KINDS = {
    Entry.MISSED_WRITE: HookEventKind.COPY_STALE,
    Entry.MAY_HAVE_MISSED: HookEventKind.COPY_STALE,
    Entry.CLEARED: HookEventKind.COPY_CURRENT,
    Entry.DETACHED: HookEventKind.COPY_DETACHED,
    Entry.FORCED_OUT: HookEventKind.COPY_DETACHED,
    Entry.LEFT_OUT: HookEventKind.COPY_DETACHED,
    Entry.FOUND_OUTSIDE: HookEventKind.COPY_DETACHED,
    Entry.REJOINED: HookEventKind.COPY_REJOINED,
    Entry.REPLACED: HookEventKind.COPY_REPLACED,
}
_WORDS = {
    Entry.MISSED_WRITE: "has missed a write and has no vote",
    Entry.MAY_HAVE_MISSED: "may have missed a write",
    Entry.CLEARED: "was compared and is current again",
    Entry.DETACHED: "was detached",
    Entry.FORCED_OUT: "was detached with --force",
    Entry.LEFT_OUT: "was left out at the start",
    Entry.FOUND_OUTSIDE: "was found outside of the quorum",
    Entry.REJOINED: "is back",
    Entry.REPLACED: "was replaced",
}


@dataclass(frozen=True)
class Waiting:
    """An event. `document`: without `schema` and `set`, which whoever delivers it knows."""

    id: int
    document: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Course:
    """How far a hook has come: it is done with all events up to `upto`. `tries`: of the next one. `failures`: since it
    last worked, if that is not 0."""

    hook: str
    upto: int
    tries: int
    failures: int


def tell(
    database: Database, connection: sqlite3.Connection, event: HookEventKind, time: str, text: str, **facts: Any
) -> None:
    """Part of the caller's transaction."""
    if not database.listener.wants():
        return
    document = {"id": str(uuid4()), "time": time, "event": event, "text": text, **facts}
    cursor = connection.execute(
        "INSERT INTO outbox (time, event, document) VALUES (?, ?, ?)", (time, event, json.dumps(document))
    )
    connection.execute("DELETE FROM outbox WHERE id <= ?", ((cursor.lastrowid or 0) - MOST_EVENTS,))
    database.once_committed(database.listener.wake)


def tell_of_copy(
    database: Database,
    connection: sqlite3.Connection,
    copy: str,
    kind: Entry,
    time: str,
    *,
    run: int | None,
    detail: str,
) -> None:
    if (event := _KINDS.get(kind)) is not None:
        text = f"copy {copy} {_WORDS[kind]}{f': {detail}' if detail else ''}."
        facts = {"copy": copy, "entry": kind, "detail": detail or None, "run": run}
        tell(database, connection, event, time, text, **facts)


class Outbox:
    """Of one store. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def tell_daemon_gone(self, time: str, pid: int | None) -> None:
        """Once for each daemon: whoever notices first tells."""
        with self._database.write() as connection:
            noted = connection.execute("INSERT OR IGNORE INTO meta VALUES (?, '1')", (_GONE,))
            if noted.rowcount:
                who = "the daemon" if pid is None else f"the daemon (pid {pid})"
                text = f"{who} is gone without having been stopped: the disk is not served."
                tell(self._database, connection, HookEventKind.DAEMON_GONE, time, text, pid=pid)

    def forget_daemon_gone(self) -> None:
        """There is another."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM meta WHERE key = ?", (_GONE,))

    def waiting(self) -> int:
        row = self._database.row("SELECT count(*) AS n FROM outbox")
        return 0 if row is None else int(row["n"])

    def courses(self, hooks: Iterable[str]) -> dict[str, Course]:
        """Of each of `hooks`; one that is new has all that waits before it."""
        rows = self._database.rows("SELECT name, upto, tries, failures FROM hooks")
        known = self._database.parse(lambda: {row["name"]: Course(*row) for row in rows})
        return {name: known.get(name, Course(name, 0, 0, 0)) for name in hooks}

    def next_after(self, event_id: int) -> Waiting | None:
        row = self._database.row("SELECT id, document FROM outbox WHERE id > ? ORDER BY id LIMIT 1", (event_id,))
        if row is None:
            return None
        return self._database.parse(lambda: Waiting(int(row["id"]), dict(json.loads(row["document"]))))

    def begin(self, hook: str, event_id: int) -> None:
        """Before it is run: a run in which we are killed counts as well, else a hook that kills us is run for ever."""
        with self._database.write() as connection:
            _ensure(connection, hook)
            # What lies between was given up before it came to this hook.
            connection.execute(
                "UPDATE hooks SET given_up = given_up + max(0, ? - 1 - upto), upto = max(upto, ? - 1)"
                " WHERE name = ? AND upto > 0",
                (event_id, event_id, hook),
            )
            connection.execute("UPDATE hooks SET tries = tries + 1 WHERE name = ?", (hook,))

    def interrupted(self, hook: str) -> None:
        """We were asked to end, which says nothing of the hook."""
        with self._database.write() as connection:
            connection.execute("UPDATE hooks SET tries = max(0, tries - 1) WHERE name = ?", (hook,))

    def took(self, hook: str, event_id: int) -> None:
        with self._database.write() as connection:
            _ensure(connection, hook)
            connection.execute(
                f"UPDATE hooks SET upto = ?, {_CLEARED} WHERE name = ?",  # noqa: S608 - constants
                (event_id, hook),
            )

    def failed(self, hook: str, time: str, reason: str, output: str, *, give_up: int | None) -> None:
        """`give_up`: this event is not tried again."""
        with self._database.write() as connection:
            _ensure(connection, hook)
            connection.execute(
                "UPDATE hooks SET failures = failures + 1, since = coalesce(since, ?), last = ?, reason = ?, output = ?"
                " WHERE name = ?",
                (time, time, reason[:_MOST_REASON], output[-_MOST_OUTPUT:], hook),
            )
            if give_up is not None:
                connection.execute(
                    "UPDATE hooks SET upto = ?, tries = 0, given_up = given_up + 1 WHERE name = ?", (give_up, hook)
                )

    def tidy(self, hooks: Collection[str]) -> None:
        """Drops what every one of `hooks` is done with, and what is on record of hooks that are none any more."""
        with self._database.write() as connection:
            names = json.dumps(sorted(hooks))
            connection.execute("DELETE FROM hooks WHERE name NOT IN (SELECT value FROM json_each(?))", (names,))
            upto = [
                connection.execute("SELECT coalesce(max(upto), 0) FROM hooks WHERE name = ?", (name,)).fetchone()[0]
                for name in hooks
            ]
            if upto:
                connection.execute("DELETE FROM outbox WHERE id <= ?", (min(upto),))
            else:
                connection.execute("DELETE FROM outbox")

    def failures(self) -> list[HookFailure]:
        rows = self._database.rows(
            "SELECT name AS hook, since, last, failures, given_up, reason, output FROM hooks"
            " WHERE failures > 0 ORDER BY name"
        )
        return self._database.parse(lambda: [HookFailure(**dict(row)) for row in rows])

    def worked(self, hook: str) -> None:
        """In a test: what it failed at is of yesterday."""
        with self._database.write() as connection:
            connection.execute(f"UPDATE hooks SET {_CLEARED} WHERE name = ?", (hook,))  # noqa: S608 - constants

    def clear(self) -> bool:
        """Drops what waits, and all failures. Returns whether there was anything."""
        with self._database.write() as connection:
            waiting = connection.execute("DELETE FROM outbox").rowcount
            # Nobody is to count as lost what was dropped on purpose.
            connection.execute(
                "UPDATE hooks SET upto = max(upto, (SELECT coalesce(max(seq), 0) FROM sqlite_sequence"
                " WHERE name = 'outbox'))"
            )
            failing = connection.execute(f"UPDATE hooks SET {_CLEARED} WHERE failures > 0").rowcount  # noqa: S608
        return bool(waiting or failing)


_CLEARED = "tries = 0, failures = 0, given_up = 0, since = NULL, last = NULL, reason = '', output = ''"


def _ensure(connection: sqlite3.Connection, hook: str) -> None:
    connection.execute("INSERT OR IGNORE INTO hooks VALUES (?, 0, 0, 0, 0, NULL, NULL, '', '')", (hook,))
