"""What a finding says about the copies that are at fault: judged when it is written, by an index, and kept with it.

blamed          the copies that the damage speaks against: not one whose vote did not count because it had missed
                writes, and nobody where there is no majority or an unclean stop explains the difference
known           an earlier finding in the same place of the same copy was left: the damage is not new
recurring       how many earlier findings there were repaired, 1000 at the most; last_repaired: when, the last time
width           hexadecimal digits of the length: in the index, so that what overlaps is found without a scan
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from qorumctl.core.blame import WINDOW_RUNS, Faults, Look
from qorumctl.core.findings import Action, Finding, FindingVerdict
from qorumctl.store import chronicle
from qorumctl.store.database import Database
from qorumctl.store.records import names_from_json

FAULT_COLUMNS = ("blamed", "known", "recurring", "last_repaired", "width")
_MOST_EARLIER = 1000
_MOST_RUNS = 2 * WINDOW_RUNS
"""Of which a copy that was away, or is new, may have been in some only."""

_OVERLAPPING = """
WITH RECURSIVE widths (n) AS (
    SELECT min(width) FROM findings
    UNION ALL SELECT (SELECT min(width) FROM findings WHERE width > n) FROM widths WHERE n IS NOT NULL
)
SELECT f.id, f.run, f.action, f.blamed, f.confirmed
FROM widths CROSS JOIN findings f ON f.width = n AND f.start > :start - (1 << 4 * n) AND f.start < :end
WHERE f.start + f.length > :start AND f.id < :id AND f.blamed <> '[]'
ORDER BY f.id DESC LIMIT :most
"""
"""A finding of n digits begins less than 16^n bytes before whatever it reaches into: a look at the index for each n."""


@dataclass(frozen=True, slots=True)
class _Known:
    known: bool = False
    recurring: int = 0
    last_repaired: str | None = None


class Judge:
    """Of one run, for one transaction."""

    def __init__(self, database: Database, run_id: int) -> None:
        self._database = database
        row = database.row("SELECT parameters FROM runs WHERE id = ?", (run_id,))
        self._excused = frozenset[str]() if row is None else database.parse(partial(_excused, row["parameters"]))
        self._replaced = chronicle.replaced(database)

    def values(self, finding: Finding, finding_id: int) -> tuple[Any, ...]:
        """Of FAULT_COLUMNS. `finding_id`: only what was found before it counts."""
        return self._database.parse(partial(self._values, finding, finding_id))

    def _values(self, finding: Finding, finding_id: int) -> tuple[Any, ...]:
        blamed = [] if finding.verdict is FindingVerdict.NO_MAJORITY else sorted(set(finding.copies) - self._excused)
        known = self._known(finding, finding_id, frozenset(blamed)) if blamed else _Known()
        width = len(f"{finding.range.length:x}")
        return json.dumps(blamed), int(known.known), known.recurring, known.last_repaired, width

    def _known(self, finding: Finding, finding_id: int, blamed: frozenset[str]) -> _Known:
        place = {"start": finding.range.offset, "end": finding.range.end, "id": finding_id, "most": _MOST_EARLIER}
        earlier = [
            row
            for row in self._database.rows(_OVERLAPPING, place)
            if any(
                name in blamed and row["run"] > self._replaced.get(name, 0) for name in names_from_json(row["blamed"])
            )
        ]
        repaired = [row for row in earlier if row["action"] == Action.REPAIRED]
        return _Known(
            known=bool(earlier) and earlier[0]["action"] not in {Action.REPAIRED, Action.RESOLVED},
            recurring=len(repaired),
            last_repaired=repaired[0]["confirmed"] if repaired else None,
        )


def _excused(text: str) -> frozenset[str]:
    """By a run's parameters: copies that were known to have missed writes. Damage in them is no wonder."""
    parameters: Mapping[str, Any] = json.loads(text)
    marked = (key.removeprefix("suspect.").rpartition(".") for key in parameters.get("suspicions", {}))
    return frozenset(parameters.get("uncounted", ())) | {copy for copy, _, kind in marked if kind == "missed"}


def looks(database: Database) -> list[Look]:
    """The last scrubs that came to their end, newest first, with what was new in them."""
    rows = database.rows(
        "SELECT id, started, json_extract(parameters, '$.copies') AS copies FROM runs WHERE state = 'finished'"
        " ORDER BY id DESC LIMIT ?",
        (_MOST_RUNS,),
    )
    counts = [
        count
        for row in rows
        for count in database.rows(
            "SELECT run, blamed, verdict, recurring, count(*) AS n FROM findings"
            " WHERE run = ? AND known = 0 GROUP BY blamed, verdict, recurring",
            (row["id"],),
        )
    ]
    return database.parse(partial(_looks, rows, counts))


def _looks(rows: list[sqlite3.Row], counts: list[sqlite3.Row]) -> list[Look]:
    faults: dict[int, dict[str, Faults]] = {}
    for row in counts:
        of_run = faults.setdefault(row["run"], {})
        number, verdict = row["n"], FindingVerdict(row["verdict"])
        for copy in names_from_json(row["blamed"]):
            before = of_run.get(copy, Faults())
            of_run[copy] = Faults(
                before.outvoted + (number if verdict is FindingVerdict.OUTVOTED else 0),
                before.unreadable + (number if verdict is FindingVerdict.UNREADABLE else 0),
                before.recurring + (number if row["recurring"] else 0),
            )
    return [
        Look(
            run=row["id"],
            day=row["started"][:10],
            faults=faults.get(row["id"], {}),
            compared=None if row["copies"] is None else frozenset(names_from_json(row["copies"])),
        )
        for row in rows
    ]
