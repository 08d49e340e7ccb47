"""The engine's durable memory of one run. Each call is one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial

from qorumctl.core.findings import Action, Checkpoint, Finding
from qorumctl.core.ranges import Range, RangeSet
from qorumctl.errors import StoreError
from qorumctl.store import announcing, reports
from qorumctl.store.database import Database
from qorumctl.store.faults import FAULT_COLUMNS, Judge
from qorumctl.store.records import (
    CHECKPOINT_COLUMNS,
    FINDING_COLUMNS,
    checkpoint_values,
    finding_from_rows,
    finding_values,
    now,
)

_NEWEST = "(SELECT max(id) FROM runs)"
_NONE_YET = (1 << 63) - 1
"""In place of the id of a finding that is about to be written."""
_COLUMNS = (*FINDING_COLUMNS, *FAULT_COLUMNS)
_JUDGED = ", ".join(f"{column} = ?" for column in FAULT_COLUMNS[:-1])
"""All but the width: that does not change, and stands in an index."""


class RunJournal:
    """What `scrub.ports.Journal` asks for."""

    def __init__(self, database: Database, run_id: int) -> None:
        self._database = database
        self.run_id = run_id

    def begin_repair(self, findings: Sequence[Finding]) -> list[int]:
        """Records confirmed findings, pending, before anything is healed; returns their ids, in order."""
        with self._database.write() as connection:
            self._check_running(connection)
            judge = Judge(self._database, self.run_id)
            return [_insert(connection, self.run_id, finding, judge) for finding in findings]

    def conclude(
        self, settled: Sequence[tuple[int, Finding]], findings: Sequence[Finding], checkpoint: Checkpoint
    ) -> list[int]:
        """Gives pending findings their last action, records those that need no repair, and moves the checkpoint;
        returns the ids of `findings`, in order."""
        with self._database.write() as connection:
            self._check_running(connection)
            judge = Judge(self._database, self.run_id)
            for finding_id, finding in settled:
                self._settle(connection, finding_id, finding, judge)
            ids = [_insert(connection, self.run_id, finding, judge) for finding in findings]
            self._move(connection, checkpoint)
            self._tell(connection, [*(finding_id for finding_id, _ in settled), *ids])
        return ids

    def amend(self, actions: Mapping[int, Action]) -> None:
        """What became of findings that had been left, or whose repair had failed, by id."""
        with self._database.write() as connection:
            self._check_running(connection)
            changed = []
            for finding_id, action in actions.items():
                before = connection.execute("SELECT action FROM findings WHERE id = ?", (finding_id,)).fetchone()
                amended = connection.execute(
                    f"UPDATE findings SET action = ?, newest_run = {_NEWEST}"  # noqa: S608 - constants
                    " WHERE id = ? AND run = ? AND action IN ('left', 'failed')",
                    (action, finding_id, self.run_id),
                )
                if amended.rowcount and before["action"] != action:
                    changed.append(finding_id)
            self._tell(connection, changed)

    def _tell(self, connection: sqlite3.Connection, ids: Sequence[int]) -> None:
        announcing.findings(self._database, connection, self.run_id, ids, now())

    def _check_running(self, connection: sqlite3.Connection) -> None:
        """A run that was abandoned or finished by somebody else must not grow."""
        row = connection.execute("SELECT state FROM runs WHERE id = ?", (self.run_id,)).fetchone()
        if row is None or row["state"] != "running":
            raise StoreError(
                f"Run {self.run_id} is {'unknown' if row is None else row['state']} and takes no more findings.",
                remedy="Start the scrub again.",
                path=str(self._database.path),
            )

    def _move(self, connection: sqlite3.Connection, checkpoint: Checkpoint) -> None:
        connection.execute(
            f"UPDATE runs SET {CHECKPOINT_COLUMNS} WHERE id = ?",  # noqa: S608 - constant columns
            (*checkpoint_values(checkpoint), self.run_id),
        )

    def _settle(self, connection: sqlite3.Connection, finding_id: int, finding: Finding, judge: Judge) -> None:
        # What was found is on record: only what became of it, and what it says of the copies then. To write all of it
        # again, evidence and indexes, took half of the time that a scrub with many findings spent here.
        changed = connection.execute(
            f"UPDATE findings SET action = ?, {_JUDGED}, newest_run = {_NEWEST}"  # noqa: S608 - constants
            " WHERE id = ? AND run = ? AND action = 'pending'",
            (finding.action, *judge.values(finding, finding_id)[:-1], finding_id, self.run_id),
        )
        if changed.rowcount != 1:
            raise StoreError(
                f"Finding {finding_id} of run {self.run_id} is not pending and cannot be settled again.",
                remedy="Start the scrub again.",
                path=str(self._database.path),
            )


def _insert(connection: sqlite3.Connection, run_id: int, finding: Finding, judge: Judge) -> int:
    marks = ", ".join("?" for _ in _COLUMNS)
    cursor = connection.execute(
        f"INSERT INTO findings (newest_run, run, {', '.join(_COLUMNS)}) VALUES ({_NEWEST}, ?, {marks})",  # noqa: S608
        (run_id, *finding_values(finding), *judge.values(finding, _NONE_YET)),
    )
    if cursor.lastrowid is None:
        raise sqlite3.InternalError("an inserted row has no id")
    _insert_versions(connection, cursor.lastrowid, finding)
    return cursor.lastrowid


def _insert_versions(connection: sqlite3.Connection, finding_id: int, finding: Finding) -> None:
    connection.executemany(
        "INSERT INTO versions (finding, rank, digest, copies, sample) VALUES (?, ?, ?, ?, ?)",
        [
            (finding_id, rank, version.digest, json.dumps(version.copies), bytes(version.sample))
            for rank, version in enumerate(finding.versions)
        ],
    )


def pending_findings(database: Database, run_id: int) -> list[tuple[int, Finding]]:
    """Findings whose repair was begun and not settled, by id: a batch at the most."""
    rows = database.rows("SELECT * FROM findings WHERE run = ? AND action = 'pending' ORDER BY id", (run_id,))
    return [(row["id"], _finding(database, row)) for row in rows]


def finding(database: Database, finding_id: int) -> Finding | None:
    row = database.row("SELECT * FROM findings WHERE id = ?", (finding_id,))
    return None if row is None else _finding(database, row)


def _finding(database: Database, row: sqlite3.Row) -> Finding:
    versions = database.rows("SELECT * FROM versions WHERE finding = ? ORDER BY rank", (row["id"],))
    return database.parse(partial(finding_from_rows, row, versions))


def settled_ranges(database: Database, run_id: int, from_offset: int, busy: Sequence[Range] = ()) -> list[Range]:
    """Damage that is on record for good and is going to be met again: beyond `from_offset`, ahead of the checkpoint, a
    batch at the most; and behind it in what was `busy`.

    Not what was repaired: it is scanned again, and if it is damaged anew that is a new finding.
    """
    again = RangeSet(busy)
    first = min([from_offset, *(r.offset for r in again.ranges)])
    where = f"AND action IN ('left', 'failed') AND start + length > {first}"
    found: list[Range] = []
    # In pages: one busy range at the disk's beginning, and all that was left is looked through.
    for rows in reports.pages(database, "id, start, length", run_id, where):
        ranges = database.parse(partial(_ranges, rows))
        found += [r for r in ranges if r.end > from_offset or again.touches(r)]
    return found


def _ranges(rows: list[sqlite3.Row]) -> list[Range]:
    return [Range(row["start"], row["length"]) for row in rows]
