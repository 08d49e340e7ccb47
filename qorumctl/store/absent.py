"""Which copies are away: out of the quorum, or about to leave it, or come back and not yet proven current.

The mark is set, on disk, before anything else is done to a copy, and removed when everything else is done. A set of
devices and NBD exports has no sidecars: there the mark alone keeps a copy that missed writes from being taken as one
that has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from qorumctl.core.chronicle import Entry
from qorumctl.core.ranges import Range
from qorumctl.store import chronicle
from qorumctl.store.database import Database

_PREFIX = "away."


@dataclass(frozen=True)
class Absence:
    """`since`: RFC 3339. `why`: words that fit behind "copy b: ".

    `left`: it may have left the quorum; False: it was about to, and has every write still. `kept`: the daemon `daemon`
    (its pid) has a record of all that the copy misses; if not, `lost` says why. `generation`: that of its sidecar when
    it left; None: it had none, or nobody looked. `cursor_bytes`: how far a full comparison has come, whose record of
    guests' writes the daemon has; None: none was begun. `serials`: marks that the comparison will settle, by key.
    `source`, `peers`: where it lay, and which copies the set had: a definition may name them otherwise later.
    `rewrite`: (offset, length) of what is to be written anew before it comes back: a scrub took it out for that.
    """

    copy: str
    since: str
    why: str
    left: bool
    kept: bool
    lost: str = ""
    daemon: int | None = None
    generation: int | None = None
    cursor_bytes: int | None = None
    serials: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    peers: tuple[str, ...] = ()
    rewrite: tuple[tuple[int, int], ...] = ()

    @property
    def rewritten(self) -> list[Range]:
        return [Range(offset, length) for offset, length in self.rewrite]


_KNOWN = frozenset(f.name for f in fields(Absence))


def all_of(database: Database) -> dict[str, Absence]:
    rows = database.rows(
        "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ? ORDER BY key", (len(_PREFIX), _PREFIX)
    )
    found = (from_text(str(row["key"]).removeprefix(_PREFIX), str(row["value"])) for row in rows)
    return {absence.copy: absence for absence in found}


def from_text(copy: str, value: str) -> Absence:
    """What another version has added is left out. A mark that makes no sense is one all the same: without it a stale
    copy would vote."""
    try:
        mark = {key: value for key, value in json.loads(value).items() if key in _KNOWN} | {"copy": copy}
        places = tuple((r.offset, r.length) for r in (Range(*pair) for pair in mark.get("rewrite", ())))
        found = mark | {"peers": tuple(mark.get("peers", ())), "rewrite": places}
        return Absence(**found) if _makes_sense(mark) else _damaged(copy)
    except (ValueError, TypeError, AttributeError):
        return _damaged(copy)


def _damaged(copy: str) -> Absence:
    return Absence(copy, "", "away", left=True, kept=False, lost="the mark of it is damaged")


def _makes_sense(mark: Mapping[str, object]) -> bool:
    words = [mark.get(key, "") for key in ("since", "why", "lost", "source")]
    numbers = [mark.get(key) for key in ("daemon", "generation", "cursor_bytes")]
    peers, serials = mark.get("peers", []), mark.get("serials", {})
    return (
        all(isinstance(word, str) for word in words)
        and all(type(mark.get(key)) is bool for key in ("left", "kept"))
        and all(number is None or (type(number) is int and number >= 0) for number in numbers)
        and isinstance(peers, list)
        and all(isinstance(name, str) for name in peers)
        and isinstance(serials, dict)
        and all(type(serial) is int for serial in serials.values())
    )


def put(database: Database, absence: Absence, *, how: Entry | None, time: str) -> None:
    """`how`: under what it goes on record where the copy leaves with this mark; None: it has left before."""
    key = f"{_PREFIX}{absence.copy}"
    with database.write() as connection:
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        before = None if row is None else from_text(absence.copy, str(row["value"]))
        # A scrub takes a copy out for a moment, which is told of nobody; who then detaches it means it.
        had_left = before is not None and before.left and not (before.rewrite and not absence.rewrite)
        connection.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, json.dumps(asdict(absence))),
        )
        if how is not None and absence.left and not had_left:
            chronicle.note(database, connection, absence.copy, how, time, detail=absence.lost)


def remove(database: Database, copy: str, *, how: Entry | None, time: str, detail: str) -> None:
    """`how`: under what it goes on record where a copy that had left comes back; None: it does not."""
    key = f"{_PREFIX}{copy}"
    with database.write() as connection:
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        connection.execute("DELETE FROM meta WHERE key = ?", (key,))
        if how is not None and row is not None and from_text(copy, str(row["value"])).left:
            chronicle.note(database, connection, copy, how, time, detail=detail)
