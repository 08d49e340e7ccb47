"""Which copies may have missed a write: durable marks in `meta`, set by whoever learns of it, cleared by a scrub.

A mark has a serial number that rises whenever it is set again. A scrub notes the serials when it begins and clears only
what still has them: what happened while it ran stays.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from qorumctl.core.chronicle import Entry
from qorumctl.store import chronicle
from qorumctl.store.database import Database

_PREFIX = "suspect."
_SERIAL = "suspect-serial"
_KINDS = ("missed", "unwatched")
_NEWCOMER = "."
"""Stands in the key of an image that is to take a copy's place, such as `c.2`, and in no copy's name."""


@dataclass(frozen=True)
class Suspicion:
    """`missed`: a write or a flush of this copy is known to have failed; else it may have, unseen. `since`, `last`:
    when it was set first and last, RFC 3339. `why`: words that fit behind "copy c: "."""

    copy: str
    missed: bool
    serial: int
    since: str
    last: str
    count: int
    why: str

    @property
    def key(self) -> str:
        return key_of(self.copy, missed=self.missed)


def key_of(copy: str, *, missed: bool) -> str:
    return f"{_PREFIX}{copy}.{'missed' if missed else 'unwatched'}"


def add(
    database: Database,
    copies: Iterable[str],
    *,
    missed: bool,
    why: str,
    time: str,
    failed: bool = False,
    known: bool = False,
) -> None:
    """Marks each of `copies`. A mark that is there already keeps its `since`. `failed`: the daemon has told of a write
    that failed, once more. `known`: that it lacks something is certain all the same."""
    with database.write() as connection:
        noted = _value(connection, _SERIAL)
        serial = database.parse(lambda: int(noted or 0))
        for copy in copies:
            serial += 1
            key = key_of(copy, missed=missed)
            text = _value(connection, key)
            before = None if text is None else database.parse(partial(_from_text, key, text))
            mark = {
                "serial": serial,
                "since": before.since if before else time,
                "last": time,
                "count": (before.count if before else 0) + 1,
                "why": why,
            }
            _set(connection, key, json.dumps(mark))
            if _NEWCOMER in copy:
                # No copy yet. What of it is still so when it has become one is set anew.
                continue
            if failed:
                chronicle.note(database, connection, copy, Entry.WRITE_ERROR, time, detail=why)
            if before is None:
                kind = Entry.MISSED_WRITE if failed or known else Entry.MAY_HAVE_MISSED
                chronicle.note(database, connection, copy, kind, time, detail=why)
        _set(connection, _SERIAL, str(serial))


def all_of(database: Database) -> list[Suspicion]:
    """By copy; of one copy, what is known before what is only possible."""
    rows = database.rows(
        "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ? ORDER BY key", (len(_PREFIX), _PREFIX)
    )
    return database.parse(lambda: [_from_text(row["key"], row["value"]) for row in rows])


def _from_text(key: str, text: str) -> Suspicion:
    copy, _, kind = key.removeprefix(_PREFIX).rpartition(".")
    mark = Suspicion(copy=copy, missed=kind == "missed", **json.loads(text))
    words, numbers = (mark.since, mark.last, mark.why), (mark.serial, mark.count)
    if kind not in _KINDS or not all(isinstance(w, str) for w in words) or not all(type(n) is int for n in numbers):
        raise ValueError(f"no mark: {key}")
    return mark


def clear(database: Database, serials: Mapping[str, int], *, time: str, run: int | None) -> None:
    """Key -> serial. A mark that was set again since stays. `run`: the scrub that has proven the copies current; None:
    something else has, which tells of it itself."""
    with database.write() as connection:
        cleared = set()
        for key, serial in serials.items():
            gone = connection.execute(
                "DELETE FROM meta WHERE key = ? AND json_extract(value, '$.serial') = ?", (key, serial)
            )
            if gone.rowcount and _NEWCOMER not in _copy_of(key):
                cleared.add(_copy_of(key))
        for copy in sorted(cleared if run is not None else ()):
            if all(_value(connection, key_of(copy, missed=missed)) is None for missed in (True, False)):
                chronicle.note(database, connection, copy, Entry.CLEARED, time, run=run)


def _copy_of(key: str) -> str:
    return key.removeprefix(_PREFIX).rpartition(".")[0]


def _value(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row["value"])


def _set(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
    )
