"""What the store tells: documents, counts, and what is still open. Findings are read in pages: memory stays flat."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

from qorumctl.core.findings import Action, FindingVerdict, is_lost
from qorumctl.core.ranges import Range, RangeSet, coalesce, total_bytes
from qorumctl.model.report import (
    CopyEntry,
    CopyHistory,
    DiagnosisDocument,
    FindingDocument,
    History,
    Outcome,
    RangeDocument,
    RunSummary,
    ScrubReport,
)
from qorumctl.store import chronicle
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


def findings(database: Database, run_id: int, where: str = "", *, most: int | None = None) -> Iterator[FindingDocument]:
    """The findings of a run by offset, without the guest's data. `where`: ours, more conditions. `most`: of which no
    more are asked for."""
    for rows in pages(database, "*", run_id, where, page_rows=min(most or _PAGE_ROWS, _PAGE_ROWS)):
        marks = ", ".join("?" for _ in rows)
        votes: dict[int, dict[str, list[str]]] = defaultdict(dict)
        for vote in database.rows(
            f"SELECT finding, digest, copies FROM versions WHERE finding IN ({marks}) ORDER BY finding, rank",  # noqa: S608
            tuple(row["id"] for row in rows),
        ):
            votes[vote["finding"]][vote["digest"]] = database.parse(partial(json.loads, vote["copies"]))
        for row in rows:
            yield database.parse(partial(_document, row, votes[row["id"]]))


def lost_findings(database: Database, run_id: int) -> Iterator[FindingDocument]:
    """Those that no fenced read mends, picked by the database: of very many findings they are few."""
    some = "AND (verdict = 'unreadable' AND action IN ('left', 'failed') OR verdict = 'outvoted' AND action = 'failed')"
    return (found for found in findings(database, run_id, some) if is_lost(found.verdict, found.action))


def pages(
    database: Database, columns: str, run_id: int, where: str = "", *, page_rows: int = _PAGE_ROWS
) -> Iterator[list[sqlite3.Row]]:
    """Rows of the findings of a run, by offset. `columns` have `start` and `id` among them."""
    # A row with a place before the disk's beginning is damage of the database, to be told and not passed over.
    start, last_id = -_LARGEST_ID, -1
    while True:
        rows = database.rows(
            f"SELECT {columns} FROM findings WHERE run = ? AND (start, id) > (?, ?) {where}"  # noqa: S608 - constants
            " ORDER BY start, id LIMIT ?",
            (run_id, start, last_id, page_rows),
        )
        yield rows
        if len(rows) < page_rows:
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
        recurring=row["recurring"],
        last_repaired=row["last_repaired"],
    )


def scrub_report(database: Database, set_name: str, run: RunRecord, *, with_findings: bool = True) -> ScrubReport:
    documents = list(findings(database, run.id)) if with_findings else []
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
        failing_copies=run.parameters.get("failing", []),
        left_because=run.parameters.get("left", {}),
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
    summaries = [run_summary(database, run) for run in runs(database, limit)]
    chapters = chronicle.all_of(database)
    return database.parse(partial(_history, set_name, summaries, chapters))


def _history(set_name: str, summaries: list[RunSummary], chapters: list[chronicle.Chapter]) -> History:
    copies = [
        CopyHistory(
            name=name,
            entries=[
                CopyEntry(kind=c.kind, number=c.number, first=c.first, last=c.last, run=c.run, detail=c.detail or None)
                for c in of_copy
            ],
        )
        for name, of_copy in groupby(chapters, key=lambda chapter: chapter.copy)
    ]
    return History(set=set_name, runs=summaries, copies=copies)


def copy_counts(database: Database) -> dict[str, tuple[int, int, int]]:
    """Copy -> findings of all runs in which it was outvoted, could not be read, and was repaired; of one that was
    replaced, since then."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    # One group for each set of names: answered from an index, however many findings there are.
    groups = "SELECT copies, verdict, action, count(*) AS n FROM findings {} GROUP BY 1, 2, 3"
    for row in database.rows(groups.format("")):
        for copy in database.parse(partial(_copies, row)):
            _count(counts[copy], row, row["n"])
    for replaced, newest_run in chronicle.replaced(database).items():
        for row in database.rows(groups.format("WHERE newest_run <= ?"), (newest_run,)):
            if replaced in database.parse(partial(_copies, row)):
                _count(counts[replaced], row, -row["n"])
    return {copy: (outvoted, unreadable, repaired) for copy, (outvoted, unreadable, repaired) in counts.items()}


def _count(counts: list[int], row: sqlite3.Row, n: int) -> None:
    counts[0] += n if row["verdict"] == FindingVerdict.OUTVOTED else 0
    counts[1] += n if row["verdict"] == FindingVerdict.UNREADABLE else 0
    counts[2] += n if row["action"] == Action.REPAIRED else 0


def _copies(row: sqlite3.Row) -> list[str]:
    return names_from_json(row["copies"])


class OpenFinding(NamedTuple):
    offset: int
    length: int
    verdict: FindingVerdict


@dataclass(frozen=True, slots=True)
class OpenDamage:
    """Findings that nobody has repaired and no later run has looked at again. `by_copy`: those in which a majority
    spoke against it. `lost_by_copy`: of those that no fenced read mends, number and bytes. `without_majority`: the
    first where there was none.

    A pending one counts: a repair that was begun and never verified proves nothing.
    """

    number: int
    by_copy: dict[str, int]
    lost_by_copy: dict[str, tuple[int, int]]
    without_majority: OpenFinding | None


class _Group(NamedTuple):
    newest_run: int
    copies: tuple[str, ...]
    verdict: FindingVerdict
    action: Action


_Groups = dict[_Group, tuple[int, int]]
"""To the number of findings and their bytes."""


def open_damage(database: Database) -> OpenDamage:
    """Counted in SQL: there can be very many, and a status must not wait for that."""
    number, tied = 0, 0
    by_copy, ranges, sizes = Counter[str](), Counter[str](), Counter[str]()
    replaced = chronicle.replaced(database)
    for run, later in _runs_not_outdated(database):
        for group, (count, size) in _open_groups(database, run.id, later).items():
            if _is_of_old_images(replaced, group.copies, group.verdict, group.newest_run):
                continue
            number += count
            if group.verdict is FindingVerdict.NO_MAJORITY:
                tied += count
                continue
            by_copy.update(dict.fromkeys(group.copies, count))
            if is_lost(group.verdict, group.action):
                ranges.update(dict.fromkeys(group.copies, count))
                sizes.update(dict.fromkeys(group.copies, size))
    first = next(open_findings(database, FindingVerdict.NO_MAJORITY), None) if tied else None
    return OpenDamage(number, dict(by_copy), {name: (ranges[name], sizes[name]) for name in ranges}, first)


def _open_groups(database: Database, run_id: int, later: _Looks) -> _Groups:
    rows = database.rows(
        "SELECT newest_run, copies, verdict, action, count(*) AS n, sum(length) AS size FROM findings"  # noqa: S608
        f" WHERE run = ? AND action IN {_OPEN} GROUP BY 1, 2, 3, 4",
        (run_id,),
    )
    groups = database.parse(lambda: _grouped(rows))
    for newest_run in {group.newest_run for group in groups}:
        for part in later.after(newest_run).ranges:
            for group, (count, size) in _looked_at_again(database, run_id, newest_run, part).items():
                groups[group] = groups[group][0] - count, groups[group][1] - size
    return groups


def _looked_at_again(database: Database, run_id: int, newest_run: int, part: Range) -> _Groups:
    """To be taken away. Not the parts of a finding: what lies in the set of all that was looked at again lies in one
    of its ranges."""
    rows = database.rows(
        "SELECT newest_run, copies, verdict, action, count(*) AS n, sum(length) AS size"  # noqa: S608
        " FROM findings INDEXED BY findings_by_offset"
        f" WHERE run = ? AND start >= ? AND start < ? AND start + length <= ? AND newest_run = ? AND action IN {_OPEN}"
        " GROUP BY 1, 2, 3, 4",
        (run_id, part.offset, part.end, part.end, newest_run),
    )
    return database.parse(lambda: _grouped(rows))


def _grouped(rows: list[sqlite3.Row]) -> _Groups:
    return {
        _Group(
            row["newest_run"],
            tuple(names_from_json(row["copies"])),
            FindingVerdict(row["verdict"]),
            Action(row["action"]),
        ): (row["n"], row["size"])
        for row in rows
    }


def open_findings(database: Database, verdict: FindingVerdict | None = None) -> Iterator[OpenFinding]:
    """One after the other, newest run first."""
    where = f"AND action IN {_OPEN}" + (f" AND verdict = '{verdict}'" if verdict else "")
    replaced = chronicle.replaced(database)
    for run, later in _runs_not_outdated(database):
        for rows in pages(database, "id, start, length, verdict, newest_run, copies", run.id, where):
            yield from database.parse(partial(_still_open, rows, later, replaced))


def _still_open(rows: list[sqlite3.Row], later: _Looks, replaced: Mapping[str, int]) -> list[OpenFinding]:
    return [
        OpenFinding(row["start"], row["length"], FindingVerdict(row["verdict"]))
        for row in rows
        if not _is_of_old_images(
            replaced, names_from_json(row["copies"]), FindingVerdict(row["verdict"]), row["newest_run"]
        )
        and any(later.after(row["newest_run"]).rest_of(Range(row["start"], row["length"])))
    ]


def _is_of_old_images(
    replaced: Mapping[str, int], copies: Sequence[str], verdict: FindingVerdict, newest_run: int
) -> bool:
    """Found in images that are none of the set's any more. Without a majority it may lie in the others, too."""
    alone = bool(copies) and verdict is not FindingVerdict.NO_MAJORITY
    return alone and all(newest_run <= replaced.get(copy, 0) for copy in copies)


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
