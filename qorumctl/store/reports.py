"""What the store tells: documents, counts, and what is still open. Findings are read in pages: memory stays flat."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

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
from qorumctl.store.records import RunRecord, RunState, outcome_of_group, run_from_row, worst

_PAGE_ROWS = 500
_LARGEST_ID = (1 << 63) - 1
_OPEN = "('left', 'failed', 'pending')"


def findings_outcome(database: Database, run_id: int) -> Outcome:
    """The worst news among the findings of a run, finished or not."""
    rows = database.rows("SELECT DISTINCT verdict, action FROM findings WHERE run = ?", (run_id,))
    return worst(outcome_of_group(row["verdict"], row["action"]) for row in rows)


def outcome_of(run: RunRecord) -> Outcome:
    """What to tell people: only a run that was finished is `clean`, `repaired`, `damaged` or `no-majority`."""
    if run.state is RunState.FINISHED and run.outcome is not None:
        return run.outcome
    return "failed" if run.state is RunState.FAILED else "unfinished"


def findings(database: Database, run_id: int, *, only_open: bool = False) -> Iterator[FindingDocument]:
    """The findings of a run by offset, without the guest's data."""
    where = f"AND action IN {_OPEN}" if only_open else ""
    start, last_id = -1, -1
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
            votes[vote["finding"]][vote["digest"]] = json.loads(vote["copies"])
        for row in rows:
            yield FindingDocument(
                id=row["id"],
                offset=row["start"],
                length=row["length"],
                verdict=row["verdict"],
                copies=json.loads(row["copies"]),
                votes=votes[row["id"]],
                action=row["action"],
                cause=row["cause"],
                source=row["source"],
                diagnosis=DiagnosisDocument(**json.loads(row["diagnosis"])),
                confirmed=row["confirmed"],
            )
        if len(rows) < _PAGE_ROWS:
            return
        start, last_id = rows[-1]["start"], rows[-1]["id"]


def scrub_report(database: Database, set_name: str, run: RunRecord) -> ScrubReport:
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
        findings=list(findings(database, run.id)),
    )


def range_document(run: RunRecord) -> RangeDocument | None:
    return None if run.within is None else RangeDocument(offset=run.within.offset, length=run.within.length)


def run_summary(database: Database, run: RunRecord) -> RunSummary:
    counts = database.rows("SELECT action, count(*) AS n FROM findings WHERE run = ? GROUP BY action", (run.id,))
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
    return [run_from_row(row) for row in database.rows("SELECT * FROM runs ORDER BY id DESC LIMIT ?", (limit,))]


def history(database: Database, set_name: str, limit: int) -> History:
    return History(set=set_name, runs=[run_summary(database, run) for run in runs(database, limit)])


def copy_counts(database: Database) -> dict[str, tuple[int, int, int]]:
    """Copy -> findings of all runs in which it was outvoted, could not be read, and was repaired."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    # One group for each set of names: answered from an index, however many findings there are.
    for row in database.rows("SELECT copies, verdict, action, count(*) AS n FROM findings GROUP BY 1, 2, 3"):
        for copy in json.loads(row["copies"]):
            counts[copy][0] += row["n"] if row["verdict"] == FindingVerdict.OUTVOTED else 0
            counts[copy][1] += row["n"] if row["verdict"] == FindingVerdict.UNREADABLE else 0
            counts[copy][2] += row["n"] if row["action"] == Action.REPAIRED else 0
    return {copy: (outvoted, unreadable, repaired) for copy, (outvoted, unreadable, repaired) in counts.items()}


def open_findings(database: Database) -> Iterator[FindingDocument]:
    """Findings that nobody has repaired and no later run has looked at again, newest run first.

    A pending one counts: a repair that was begun and never verified proves nothing.
    """
    for run, later in _runs_not_outdated(database):
        for found in findings(database, run.id, only_open=True):
            if any(later.since(found.confirmed).rest_of(Range(found.offset, found.length))):
                yield found


class _Looks:
    """What runs have looked at. A paused run can be resumed after a newer one has ended, so their order says nothing;
    but whatever a run looked at, it looked at after it began."""

    def __init__(self) -> None:
        self._looks: list[tuple[str, list[Range]]] = []
        self._known: dict[int, RangeSet] = {}

    def add(self, run: RunRecord) -> None:
        self._looks.append((run.started, run.looked_at()))
        self._looks.sort(key=lambda look: look[0], reverse=True)
        self._known.clear()

    def since(self, time: str) -> RangeSet:
        """What was certainly looked at after `time`."""
        count = sum(started > time for started, _ in self._looks)
        if count not in self._known:
            self._known[count] = RangeSet(part for _, parts in self._looks[:count] for part in parts)
        return self._known[count]

    def complete_since(self, size_bytes: int) -> str | None:
        """A time after which everything was looked at again; None where something was not."""
        if not self._looks or any(self.since("").rest_of(Range(0, size_bytes))):
            return None
        return self._looks[-1][0]


def _runs_not_outdated(database: Database) -> Iterator[tuple[RunRecord, _Looks]]:
    """(run, what newer runs have looked at), newest first; without the runs that had ended before a time after which
    everything was looked at again."""
    later = _Looks()
    last_id, not_before = _LARGEST_ID, ""
    while row := database.row(
        "SELECT * FROM runs WHERE id < ? AND (finished IS NULL OR finished >= ?) ORDER BY id DESC LIMIT 1",
        (last_id, not_before),
    ):
        run = run_from_row(row)
        yield run, later
        later.add(run)
        not_before = later.complete_since(run.size_bytes) or ""
        last_id = run.id
