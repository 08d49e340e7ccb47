"""Sums over all runs, for metrics: counters that only grow while the history lasts; and by run, for reports. Counted in
SQL."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from qorumctl.core.findings import Action, Fate, FindingVerdict, fate_of
from qorumctl.store.database import Database
from qorumctl.store.records import names_from_json


class Found(NamedTuple):
    number: int
    repaired: int


@dataclass(frozen=True, slots=True)
class ScrubTotals:
    """`last_completed_s`: when a run over the whole disk last came to its end, in seconds since 1970; None: never.
    `of_no_copy`: findings that speak against no copy: there was no majority, or an unclean stop explains them."""

    last_completed_s: float | None
    scanned_bytes: int
    skipped_bytes: int
    of_no_copy: Mapping[FindingVerdict, Found]


def scrub_totals(database: Database) -> ScrubTotals:
    sums = database.row("SELECT coalesce(sum(scanned), 0) AS scanned, coalesce(sum(skipped), 0) AS skipped FROM runs")
    last = database.row("SELECT max(finished) AS finished FROM runs WHERE state = 'finished' AND within_offset IS NULL")
    # As in `copy_counts`: one group for each set of names, from an index.
    groups = database.rows("SELECT copies, verdict, action, count(*) AS n FROM findings GROUP BY 1, 2, 3")
    return database.parse(lambda: _totals(sums, last, groups))


def _totals(sums: sqlite3.Row | None, last: sqlite3.Row | None, groups: list[sqlite3.Row]) -> ScrubTotals:
    found = dict.fromkeys(FindingVerdict, Found(0, 0))
    for row in groups:
        verdict, n = FindingVerdict(row["verdict"]), row["n"]
        if verdict is FindingVerdict.NO_MAJORITY or not names_from_json(row["copies"]):
            before = found[verdict]
            found[verdict] = Found(before.number + n, before.repaired + n * (row["action"] == Action.REPAIRED))
    finished = last["finished"] if last else None
    return ScrubTotals(
        last_completed_s=None if finished is None else datetime.fromisoformat(finished).timestamp(),
        scanned_bytes=sums["scanned"] if sums else 0,
        skipped_bytes=sums["skipped"] if sums else 0,
        of_no_copy=found,
    )


FatesByRun = dict[int, dict[str, dict[Fate, int]]]
"""Run -> copy at fault, or '' where no copy is -> findings, by what became of them."""


def fates_by_run(database: Database, limit: int) -> FatesByRun:
    rows = database.rows(
        "SELECT run, copies, verdict, action, count(*) AS n FROM findings"
        " WHERE run IN (SELECT id FROM runs ORDER BY id DESC LIMIT ?) GROUP BY 1, 2, 3, 4",
        (limit,),
    )
    return database.parse(lambda: _fates(rows))


def _fates(rows: list[sqlite3.Row]) -> FatesByRun:
    found: dict[int, dict[str, dict[Fate, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for row in rows:
        fate = fate_of(FindingVerdict(row["verdict"]), Action(row["action"]))
        for copy in names_from_json(row["copies"]) or [""]:
            found[row["run"]][copy][fate] += row["n"]
    return {run: {copy: dict(fates) for copy, fates in copies.items()} for run, copies in found.items()}
