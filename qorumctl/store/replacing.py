"""Which copies are being replaced: a newcomer, another image, is to take the place of the copy's, and has not yet, or
the last steps of that are still to be done.

The note is made before anything of the newcomer is, and removed when everything else is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from pydantic import TypeAdapter

from qorumctl.core.chronicle import Entry
from qorumctl.model.spec import Source
from qorumctl.store import chronicle
from qorumctl.store.absent import Absence, from_text
from qorumctl.store.database import Database

_PREFIX = "replacing."
_SOURCE: TypeAdapter[Source] = TypeAdapter(Source)


@dataclass(frozen=True)
class Replacement:
    """`key`: the newcomer's, of its nodes and records. `created`: its image did not exist before. `checked`: nothing in
    it is needed by anybody. `mark`: what it lacks. `proven`: it holds everything, and is about to take the copy's
    place; it has, when the definition names it. `serials`: marks of the old image that the newcomer has no part in."""

    copy: str
    key: str
    source: Source
    old_source: str
    created: bool
    checked: bool
    mark: Absence
    proven: bool = False
    serials: Mapping[str, int] = field(default_factory=dict)


def all_of(database: Database) -> dict[str, Replacement]:
    rows = database.rows(
        "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ? ORDER BY key", (len(_PREFIX), _PREFIX)
    )
    found = [database.parse(lambda row=row: _read(str(row["value"]))) for row in rows]  # type: ignore[misc]
    return {note.copy: note for note in found}


def _read(value: str) -> Replacement:
    note = json.loads(value)
    mark = from_text(note["key"], json.dumps(note["mark"]))
    kinds = {"copy": str, "key": str, "old_source": str, "created": bool, "checked": bool, "proven": bool}
    if not all(type(note[key]) is kind for key, kind in kinds.items()) or not isinstance(note["serials"], dict):
        raise ValueError("no note of a replacement")
    return Replacement(
        **{key: note[key] for key in kinds},
        source=_SOURCE.validate_python(note["source"]),
        mark=mark,
        serials=note["serials"],
    )


def put(database: Database, note: Replacement) -> None:
    values = {**asdict(replace(note, source=None)), "source": note.source.model_dump(mode="json")}  # type: ignore[arg-type]
    with database.write() as connection:
        connection.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (f"{_PREFIX}{note.copy}", json.dumps(values)),
        )


def remove(database: Database, copy: str, *, detail: str = "", time: str | None = None) -> None:
    """`time`: when it came to its end; None: it was given up."""
    with database.write() as connection:
        removed = connection.execute("DELETE FROM meta WHERE key = ?", (f"{_PREFIX}{copy}",))
        if removed.rowcount and time is not None:
            chronicle.note(database, connection, copy, Entry.REPLACED, time, detail=detail)
