"""What the store tells: documents, counts, and what is still open. Findings are read in pages: memory stays flat."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

from qorumctl.core.findings import Action, FindingVerdict
from qorumctl.core.ranges import Range, RangeSet, coalesce, total_bytes
from qorumctl.model.report import (
    DiagnosisDocument,
    FindingDocument,
    History,
    Outcome,
    RangeDocument,
    RunSummary,
    ScrubReport,
)
from qorumctl.store.database import Database
from qorumctl.store.records import RunRecord, RunState, names_from_json, outcome_of_group, run_from_row, worst

_PAGE_ROWS = 500
_LARGEST_ID = (1 << 63) - 1
_OPEN = "('left', 'failed', 'pending')"


def findings_outcome(database: Database, run_id: int) -> Outcome:
    """The worst news among the findings of a run, finished or not."""
    rows = database.rows("SELECT DISTINCT verdict, action FROM findings WHERE run = ?", (run_id,))
    return database.parse(
        lambda: worst(outcome_of_group(FindingVerdict(row["verdict"]), Action(row["action"])) for row in rows)
    )


def outcome_of(run: RunRecord) -> Outcome:
    """What to tell people: only a run that was finished is `clean`, `repaired`, `damaged` or `no-majority`."""
    if run.state is RunState.FINISHED and run.outcome is not None:
        return run.outcome
    return "failed" if run.state is RunState.FAILED else "unfinished"


def findings(database: Database, run_id: int) -> Iterator[FindingDocument]:
    """The findings of a run by offset, without the guest's data."""
    return (document for document, _ in _dated(database, run_id))


def _dated(database: Database, run_id: int, *, only_open: bool = False) -> Iterator[tuple[FindingDocument, int]]:
    """(finding, the newest run that had begun when it was written)."""
    where = f"AND action IN {_OPEN}" if only_open else ""
    # A row with a place before the disk's beginning is damage of the database, to be told and not passed over.
    start, last_id = -_LARGEST_ID, -1
    while True:
        rows = database.rows(
            f"SELECT * FROM findings WHERE run = ? AND (start, id) > (?, ?) {where}"  # noqa: S608 - constants
            " ORDER BY start, id LIMIT ?",
            (run_id, start, last_id, _PAGE_ROWS),
        )
        marks = ", ".join("?" for _ in rows)
        votes: dict[int, dict[str, list[str]]] = defaultdict(dict)
        for vote in database.rows(
            f"SELECT finding, digest, copies FROM versions WHERE finding IN ({marks}) ORDER BY finding, rank",  # noqa: S608
            tuple(row["id"] for row in rows),
        ):
            votes[vote["finding"]][vote["digest"]] = database.parse(partial(json.loads, vote["copies"]))
        for row in rows:
            yield database.parse(partial(_document, row, votes[row["id"]])), row["newest_run"]
        if len(rows) < _PAGE_ROWS:
            return
        start, last_id = rows[-1]["start"], rows[-1]["id"]


def _document(row: sqlite3.Row, votes: dict[str, list[str]]) -> FindingDocument:
    # As the engine will: a place on a disk.
    Range(row["start"], row["length"])
    return FindingDocument(
        id=row["id"],
        offset=row["start"],
        length=row["length"],
        verdict=row["verdict"],
        copies=json.loads(row["copies"]),
        votes=votes,
        action=row["action"],
        cause=row["cause"],
        source=row["source"],
        diagnosis=DiagnosisDocument(**json.loads(row["diagnosis"])),
        confirmed=row["confirmed"],
    )


def scrub_report(database: Database, set_name: str, run: RunRecord) -> ScrubReport:
    documents = list(findings(database, run.id))
    return database.parse(partial(_scrub_report, set_name, run, documents))


def _scrub_report(set_name: str, run: RunRecord, documents: list[FindingDocument]) -> ScrubReport:
    return ScrubReport(
        set=set_name,
        run=run.id,
        mode=run.mode,
        started=run.started,
        finished=run.finished,
        outcome=outcome_of(run),
        size=run.size_bytes,
        scanned_bytes=run.checkpoint.scanned_bytes,
        skipped_bytes=run.checkpoint.skipped_bytes,
        read_bytes=dict(run.checkpoint.read_bytes),
        suspects=run.checkpoint.suspects,
        busy_bytes=total_bytes(coalesce(run.checkpoint.busy)),
        resumable=run.resumable,
        range=range_document(run),
        thorough=run.thorough,
        message=run.message,
        uncounted=run.parameters.get("uncounted", []),
        recovered_reads=run.parameters.get("recovered", {}),
        findings=documents,
    )


def range_document(run: RunRecord) -> RangeDocument | None:
    return None if run.within is None else RangeDocument(offset=run.within.offset, length=run.within.length)


def run_summary(database: Database, run: RunRecord) -> RunSummary:
    counts = database.rows("SELECT action, count(*) AS n FROM findings WHERE run = ? GROUP BY action", (run.id,))
    return database.parse(partial(_run_summary, run, counts))


def _run_summary(run: RunRecord, counts: list[sqlite3.Row]) -> RunSummary:
    return RunSummary(
        run=run.id,
        mode=run.mode,
        started=run.started,
        finished=run.finished,
        outcome=outcome_of(run),
        size=run.size_bytes,
        scanned_bytes=run.checkpoint.scanned_bytes,
        skipped_bytes=run.checkpoint.skipped_bytes,
        busy_bytes=total_bytes(coalesce(run.checkpoint.busy)),
        resumable=run.resumable,
        range=range_document(run),
        message=run.message,
        findings={Action(row["action"]): row["n"] for row in counts},
    )


def runs(database: Database, limit: int) -> list[RunRecord]:
    """Newest first."""
    rows = database.rows("SELECT * FROM runs ORDER BY id DESC LIMIT ?", (limit,))
    return database.parse(lambda: [run_from_row(row) for row in rows])


def history(database: Database, set_name: str, limit: int) -> History:
    return History(set=set_name, runs=[run_summary(database, run) for run in runs(database, limit)])


def copy_counts(database: Database) -> dict[str, tuple[int, int, int]]:
    """Copy -> findings of all runs in which it was outvoted, could not be read, and was repaired."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    # One group for each set of names: answered from an index, however many findings there are.
    for row in database.rows("SELECT copies, verdict, action, count(*) AS n FROM findings GROUP BY 1, 2, 3"):
        for copy in database.parse(partial(_copies, row)):
            counts[copy][0] += row["n"] if row["verdict"] == FindingVerdict.OUTVOTED else 0
            counts[copy][1] += row["n"] if row["verdict"] == FindingVerdict.UNREADABLE else 0
            counts[copy][2] += row["n"] if row["action"] == Action.REPAIRED else 0
    return {copy: (outvoted, unreadable, repaired) for copy, (outvoted, unreadable, repaired) in counts.items()}


def _copies(row: sqlite3.Row) -> list[str]:
    return names_from_json(row["copies"])


def open_findings(database: Database) -> Iterator[FindingDocument]:
    """Findings that nobody has repaired and no later run has looked at again, newest run first.

    A pending one counts: a repair that was begun and never verified proves nothing.
    """
    for run, later in _runs_not_outdated(database):
        for found, newest_run in _dated(database, run.id, only_open=True):
            if any(later.after(newest_run).rest_of(Range(found.offset, found.length))):
                yield found


class _Looks:
    """What runs have looked at. A paused run can be resumed after a newer one has ended, so their order says nothing;
    but whatever a run looked at, it looked at after it began. And nothing is asked of the clock, which jumps: a run
    that began under a wrong year would settle findings that were made after it."""

    def __init__(self) -> None:
        self._looks: list[tuple[int, list[Range]]] = []
        self._known: dict[int, RangeSet] = {}

    def add(self, run: RunRecord) -> None:
        """Newest first."""
        self._looks.append((run.id, run.looked_at()))
        self._known.clear()

    def after(self, newest_run: int) -> RangeSet:
        """What was certainly looked at by runs that had not begun when `newest_run` was the newest."""
        count = sum(run_id > newest_run for run_id, _ in self._looks)
        if count not in self._known:
            self._known[count] = RangeSet(part for _, parts in self._looks[:count] for part in parts)
        return self._known[count]

    def complete_from(self, size_bytes: int) -> int:
        """A run: with it and those after it everything was looked at again; 0 where something was not."""
        if not self._looks or any(self.after(0).rest_of(Range(0, size_bytes))):
            return 0
        return self._looks[-1][0]


def _runs_not_outdated(database: Database) -> Iterator[tuple[RunRecord, _Looks]]:
    """(run, what newer runs have looked at), newest first; without the runs all of whose damage was looked at again."""
    later = _Looks()
    last_id, complete_from = _LARGEST_ID, 0
    while row := database.row(
        "SELECT * FROM runs WHERE id < ? AND (? = 0 OR EXISTS (SELECT 1 FROM findings"  # noqa: S608 - a constant
        f" WHERE run = runs.id AND action IN {_OPEN} AND newest_run >= ?)) ORDER BY id DESC LIMIT 1",
        (last_id, complete_from, complete_from),
    ):
        run = database.parse(partial(run_from_row, row))
        yield run, later
        later.add(run)
        complete_from = later.complete_from(run.size_bytes)
        last_id = run.id
