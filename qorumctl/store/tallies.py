"""The findings of one run as sums, and those that ended worst: by SQL, over indexes, never by loading them all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import partial
from itertools import islice

from qorumctl.core.disk_map import Mark
from qorumctl.core.findings import Action, Fate, FindingVerdict, fate_of
from qorumctl.core.ranges import Range
from qorumctl.core.tally import MOST_PLACES, Tally
from qorumctl.model.report import FindingDocument
from qorumctl.store import reports
from qorumctl.store.database import Database
from qorumctl.store.records import names_from_json

_TIED = f"verdict = '{FindingVerdict.NO_MAJORITY}'"
_UNREPAIRED = f"action IN ('{Action.LEFT}', '{Action.FAILED}')"
_OF_FATE = {
    Fate.REPAIRED: f"AND action = '{Action.REPAIRED}'",
    Fate.RESOLVED: f"AND action = '{Action.RESOLVED}'",
    Fate.PENDING: f"AND action = '{Action.PENDING}'",
    Fate.LEFT: f"AND {_UNREPAIRED} AND NOT {_TIED}",
    Fate.TIED: f"AND {_UNREPAIRED} AND {_TIED}",
}
"""As fate_of has it, to be said to the database (tests/store/test_tallies.py compares the two)."""
_NOTHING_TO_ACT_ON = f"AND action IN ('{Action.REPAIRED}', '{Action.RESOLVED}', '{Action.PENDING}')"
_RECURRING = "AND recurring > 0"


class RunFindings:
    """Of one run, finished or not. Every method raises StoreError."""

    def __init__(self, database: Database, run_id: int) -> None:
        self._database = database
        self._run_id = run_id

    def all(self) -> Iterator[FindingDocument]:
        """By offset, one after the other, without the guest's data."""
        return reports.findings(self._database, self._run_id)

    def number(self) -> int:
        row = self._database.row("SELECT count(*) AS n FROM findings WHERE run = ?", (self._run_id,))
        return 0 if row is None else int(row["n"])

    def tally(self) -> Tally:
        """What adding up the findings one by one would give."""
        groups = self._database.rows(
            "SELECT copies, verdict, action, recurring > 0 AS again, count(*) AS n, sum(length) AS size FROM findings"
            " WHERE run = ? GROUP BY 1, 2, 3, 4",
            (self._run_id,),
        )
        made = self._database.parse(partial(_added_up, groups))
        for fate, found in made.by_fate.items():
            found.places += self._places(_OF_FATE[fate], found.number)
        made.again.places += self._places(_RECURRING, made.again.number)
        return made

    def _places(self, where: str, number: int) -> list[Range]:
        """The first few by offset. `number`: how many there are; when so many were met the search is over."""
        rows = self._database.rows(
            f"SELECT start, length FROM findings WHERE run = ? {where} ORDER BY start, id LIMIT ?",  # noqa: S608 - ours
            (self._run_id, min(number, MOST_PLACES)),
        )
        return self._database.parse(lambda: [Range(row["start"], row["length"]) for row in rows])

    def worst(self, most: int, of: Tally) -> list[FindingDocument]:
        """The first `most`: what somebody has to act on before the rest, each kind by offset. `of`: the run's tally."""
        tied, left = of.by_fate[Fate.TIED].number, of.by_fate[Fate.LEFT].number
        kinds = (
            (_OF_FATE[Fate.TIED], tied),
            (_OF_FATE[Fate.LEFT], left),
            (_NOTHING_TO_ACT_ON, of.number - tied - left),
        )
        found: list[FindingDocument] = []
        for where, number in kinds:
            # Of what there is none nothing is searched for.
            if wanted := min(most - len(found), number):
                found += islice(reports.findings(self._database, self._run_id, where, most=wanted), wanted)
        return found

    def marks(self) -> Iterator[Mark]:
        """All by offset, as much of each as a map shows."""
        for rows in reports.pages(self._database, "id, start, length, copies, verdict, action", self._run_id):
            yield from self._database.parse(partial(_marks, rows))

    def left_in(self) -> set[tuple[str, ...]]:
        """The copies at fault in findings that were neither repaired nor resolved: each set of names;
        () where none is blamed."""
        rows = self._database.rows(
            "SELECT DISTINCT copies FROM findings WHERE run = ? AND action NOT IN (?, ?)",
            (self._run_id, Action.REPAIRED, Action.RESOLVED),
        )
        return self._database.parse(lambda: {tuple(names_from_json(row["copies"])) for row in rows})


def _added_up(groups: list[sqlite3.Row]) -> Tally:
    made = Tally()
    for row in groups:
        copies = names_from_json(row["copies"])
        made.by_fate[_fate(row)].add_many(row["n"], row["size"], copies)
        if row["again"]:
            made.again.add_many(row["n"], row["size"], copies)
    return made


def _marks(rows: list[sqlite3.Row]) -> list[Mark]:
    return [
        Mark(row["id"], Range(row["start"], row["length"]), names_from_json(row["copies"]), _fate(row)) for row in rows
    ]


def _fate(row: sqlite3.Row) -> Fate:
    return fate_of(FindingVerdict(row["verdict"]), Action(row["action"]))
