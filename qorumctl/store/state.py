"""The store of one set: the life of its runs, its events and marks, and the way to everything that it tells."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from qorumctl.core.blame import Blame, blame
from qorumctl.core.chronicle import Entry
from qorumctl.core.findings import Action, Cause, Finding
from qorumctl.core.ranges import Range
from qorumctl.errors import RefusedError, StoreError
from qorumctl.files import reason, sync_directory
from qorumctl.model.report import FindingDocument, History, Mode, Outcome, RunSummary, ScrubReport
from qorumctl.store import (
    absent,
    announcing,
    chronicle,
    deciding,
    faults,
    journal,
    replacing,
    reports,
    suspicions,
    totals,
)
from qorumctl.store.absent import Absence
from qorumctl.store.chronicle import Chapter
from qorumctl.store.database import FILE_NAME, Database, Listener
from qorumctl.store.outbox import Outbox
from qorumctl.store.records import Request, RunRecord, RunState, now, run_from_row, worst
from qorumctl.store.replacing import Replacement
from qorumctl.store.reports import OpenDamage, OpenFinding
from qorumctl.store.suspicions import Suspicion
from qorumctl.store.tallies import RunFindings
from qorumctl.store.totals import FatesByRun, ScrubTotals

_MOST_EVENTS = 10_000
"""A copy that fails each write adds one event a second (QEMU's throttle): three hours of it, in 2 MB."""


@dataclass(frozen=True)
class Event:
    id: int
    time: str
    kind: str
    copy: str | None
    detail: str


class Store:
    """`state.db` of one set; its directory has the set's name. Safe to use from several threads and processes.

    Every method raises StoreError when the database cannot be read or written.
    """

    def __init__(self, database: Database, set_name: str, clock: Callable[[], str] = now) -> None:
        self._database = database
        self._set_name = set_name
        self._now = clock

    @classmethod
    def open(cls, state_directory: Path, *, read_only: bool = False, listener: Listener | None = None) -> Store:
        """With `read_only` nothing is made: a set without state reads as one that was never scrubbed. `listener`: who
        is told of events."""
        database = Database.open(state_directory, read_only=read_only)
        database.listener = listener or database.listener
        return cls(database, state_directory.name)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The life of a run.

    def begin_run(
        self,
        mode: Mode,
        size_bytes: int,
        within: Range | None,
        thorough: bool,
        cause: Cause | None,
        pid: int,
        parameters: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """A new run, at work. Older unfinished runs stay as they are: a scrub of a range must not throw away a paused
        scrub of the whole disk. Whoever begins anew in earnest abandons them."""
        first = within.offset if within else 0
        with self._database.write() as connection:
            cursor = connection.execute(
                "INSERT INTO runs (mode, state, started, size, within_offset, within_length, thorough, cause,"
                " parameters, cursor, scanned, skipped, read_bytes, suspects, busy, pid, position)"
                " VALUES (?, 'running', ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, '{}', 0, '[]', ?, ?)",
                (
                    mode,
                    self._now(),
                    size_bytes,
                    within.offset if within else None,
                    within.length if within else None,
                    int(thorough),
                    cause,
                    json.dumps(dict(parameters or {})),
                    first,
                    pid,
                    first,
                ),
            )
            run_id = cursor.lastrowid
        return self._existing(run_id)

    def run(self, run_id: int) -> RunRecord | None:
        row = self._database.row("SELECT * FROM runs WHERE id = ?", (run_id,))
        return None if row is None else self._database.parse(partial(run_from_row, row))

    def runs(self, limit: int) -> list[RunRecord]:
        """Newest first."""
        return reports.runs(self._database, limit)

    def unfinished_run(self) -> RunRecord | None:
        """The newest run that can be resumed. `running` without a live holder of the lock: its process died."""
        row = self._database.row(
            "SELECT * FROM runs WHERE state IN ('running', 'suspended', 'failed') ORDER BY id DESC LIMIT 1"
        )
        return None if row is None else self._database.parse(partial(run_from_row, row))

    def unfinished_runs(self) -> list[RunRecord]:
        """All that can be resumed, newest first."""
        rows = self._database.rows(
            "SELECT * FROM runs WHERE state IN ('running', 'suspended', 'failed') ORDER BY id DESC"
        )
        return self._database.parse(lambda: [run_from_row(row) for row in rows])

    def reopen_run(self, run_id: int, pid: int) -> RunRecord:
        """At work again, from its checkpoint. Raises RefusedError for a run that has ended."""
        with self._database.write() as connection:
            changed = connection.execute(
                "UPDATE runs SET state = 'running', pid = ?, request = NULL, finished = NULL, message = NULL,"
                " position = cursor WHERE id = ? AND state IN ('running', 'suspended', 'failed')",
                (pid, run_id),
            ).rowcount
        if not changed:
            raise RefusedError(
                f"Run {run_id} of '{self._set_name}' has ended and cannot be resumed.",
                remedy="Begin a new one.",
                set_name=self._set_name,
            )
        return self._existing(run_id)

    def finish_run(self, run_id: int, outcome: Outcome | None = None) -> RunRecord:
        """The run has looked at all that it was asked to. Its outcome is never better than its findings.

        Raises StoreError when it is not at work, or a finding is still pending: that would be no end.
        """
        found = reports.findings_outcome(self._database, run_id)
        final = worst([found, outcome]) if outcome in {"clean", "repaired", "damaged", "no-majority"} else found
        with self._database.write() as connection:
            pending = connection.execute(
                "SELECT count(*) AS n FROM findings WHERE run = ? AND action = 'pending'", (run_id,)
            ).fetchone()["n"]
            if pending:
                raise StoreError(
                    f"Run {run_id} of '{self._set_name}' still has {pending} repairs to verify.",
                    remedy="Scrub again to resume it.",
                    set_name=self._set_name,
                )
        self._end(run_id, RunState.FINISHED, outcome=final)
        return self._existing(run_id)

    def suspend_run(self, run_id: int, message: str | None = None) -> None:
        """Unfinished, to be resumed. `message`: why, where nobody asked for it."""
        self._end(run_id, RunState.SUSPENDED, message=message)

    def fail_run(self, run_id: int, message: str) -> None:
        """It could not go on; it can be resumed."""
        self._end(run_id, RunState.FAILED, message=message)

    def abandon_run(self, run_id: int) -> None:
        """Unfinished for good. Damage whose repair was not verified, or not come to, counts as left. Idempotent."""
        with self._database.write() as connection:
            left = connection.execute(
                "UPDATE findings SET action = 'left' WHERE run = ? AND action = 'pending'"
                " AND run IN (SELECT id FROM runs WHERE state <> 'finished') RETURNING id",
                (run_id,),
            ).fetchall()
            announcing.findings(self._database, connection, run_id, [row["id"] for row in left], self._now())
            abandoned = connection.execute(
                "UPDATE runs SET state = 'abandoned', finished = coalesce(finished, ?), request = NULL, pid = NULL"
                " WHERE id = ? AND state IN ('running', 'suspended', 'failed')",
                (self._now(), run_id),
            )
            if abandoned.rowcount:
                announcing.end_of_run(self._database, connection, run_id, self._now())

    def running_run(self, pid: int) -> RunRecord | None:
        """The run that process `pid`, the holder of the set's lock, is at work on. Others that say `running` belong to
        the dead."""
        row = self._database.row(
            "SELECT * FROM runs WHERE state = 'running' AND pid = ? ORDER BY id DESC LIMIT 1", (pid,)
        )
        return None if row is None else self._database.parse(partial(run_from_row, row))

    def request(self, kind: Request, pid: int) -> RunRecord | None:
        """Asks the run that process `pid` is at work on to stop; None when there is none. `cancel` outranks `pause`."""
        run = self.running_run(pid)
        if run is None:
            return None
        with self._database.write() as connection:
            connection.execute(
                "UPDATE runs SET request = ? WHERE id = ? AND state = 'running' AND request IS NOT 'cancel'",
                (kind, run.id),
            )
        return self._existing(run.id)

    def pending_request(self, run_id: int) -> Request | None:
        run = self.run(run_id)
        return None if run is None else run.request

    def note_position(self, run_id: int, position_bytes: int, held_back: bool = False) -> None:
        """Where the run is, and whether it gives way to guests, for whoever watches it. Not flushed: a power failure
        may lose it, and only it."""
        with self._database.write_lazily() as connection:
            connection.execute(
                "UPDATE runs SET position = ?, parameters = json_set(parameters, '$.held_back', json(?)) WHERE id = ?",
                (position_bytes, json.dumps(held_back), run_id),
            )

    def note_uncounted(self, run_id: int, copies: Iterable[str]) -> None:
        """Copies whose votes do not count in this run."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE runs SET parameters = json_set(parameters, '$.uncounted', json(?)) WHERE id = ?",
                (json.dumps(sorted(copies)), run_id),
            )

    def note_recovered(self, run_id: int, reads: Mapping[str, int]) -> None:
        """Copy -> reads of it that failed in this run and succeeded when they were made again."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE runs SET parameters = json_set(parameters, '$.recovered', json(?)) WHERE id = ?",
                (json.dumps(dict(reads)), run_id),
            )

    def note_unrewritten(self, run_id: int, failing: Iterable[str], left: Mapping[str, str]) -> None:
        """What a fenced read cannot repair and was not written anew: copies that have lost too much, and, by copy, why
        else."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE runs SET parameters = json_set(parameters, '$.failing', json(?), '$.left', json(?))"
                " WHERE id = ?",
                (json.dumps(sorted(failing)), json.dumps(dict(left)), run_id),
            )

    # Findings.

    def journal(self, run_id: int) -> journal.RunJournal:
        return journal.RunJournal(self._database, run_id)

    def pending_findings(self, run_id: int) -> list[tuple[int, Finding]]:
        """What a resumed run settles first."""
        return journal.pending_findings(self._database, run_id)

    def settled_ranges(self, run_id: int, from_offset: int, busy: Sequence[Range] = ()) -> list[Range]:
        """Damage beyond `from_offset`, or in `busy`, that is on record: what a resumed run must not record again."""
        return journal.settled_ranges(self._database, run_id, from_offset, busy)

    def finding(self, finding_id: int) -> Finding | None:
        """With its evidence: samples of guest data, which go into no document."""
        return journal.finding(self._database, finding_id)

    def finding_by_id(self, finding_id: int) -> tuple[int, FindingDocument] | None:
        """Its run, and what a report tells of it."""
        return deciding.finding(self._database, finding_id)

    def settle_by_decision(self, finding_id: int, at: Range, action: Action) -> bool:
        return deciding.settle(self._database, finding_id, at, action)

    # What it tells.

    def outcome_of(self, run: RunRecord) -> Outcome:
        return reports.outcome_of(run)

    def findings_outcome(self, run_id: int) -> Outcome:
        """The worst news so far, whether or not the run is finished."""
        return reports.findings_outcome(self._database, run_id)

    def findings(self, run_id: int) -> Iterator[FindingDocument]:
        """One after the other, by offset: for more findings than fit a document."""
        return reports.findings(self._database, run_id)

    def lost_findings(self, run_id: int) -> Iterator[FindingDocument]:
        """Those that no fenced read mends, by offset."""
        return reports.lost_findings(self._database, run_id)

    def scrub_report(self, run_id: int, *, with_findings: bool = True) -> ScrubReport:
        run = self._existing(run_id)
        return reports.scrub_report(self._database, self._set_name, run, with_findings=with_findings)

    def of_run(self, run_id: int) -> RunFindings:
        """The findings of a run: one after the other, as sums, and those that ended worst."""
        return RunFindings(self._database, run_id)

    def run_summary(self, run: RunRecord) -> RunSummary:
        return reports.run_summary(self._database, run)

    def history(self, limit: int = 1000) -> History:
        return reports.history(self._database, self._set_name, limit)

    def copy_counts(self) -> dict[str, tuple[int, int, int]]:
        """Copy -> (outvoted, unreadable, repaired): findings of all runs."""
        return reports.copy_counts(self._database)

    def open_damage(self) -> OpenDamage:
        """Damage that nobody has repaired and no later run has looked at again."""
        return reports.open_damage(self._database)

    def open_findings(self) -> Iterator[OpenFinding]:
        """The same, one after the other."""
        return reports.open_findings(self._database)

    def scrub_totals(self) -> ScrubTotals:
        """Sums over all runs, for metrics."""
        return totals.scrub_totals(self._database)

    def fates_by_run(self, limit: int) -> FatesByRun:
        """Of the newest runs: what became of their findings, by the copy at fault."""
        return totals.fates_by_run(self._database, limit)

    @property
    def outbox(self) -> Outbox:
        """What hooks are to be told."""
        return Outbox(self._database)

    # Events and marks.

    def add_event(self, kind: str, copy: str | None, detail: str) -> None:
        with self._database.write() as connection:
            cursor = connection.execute(
                "INSERT INTO events (time, kind, copy, detail) VALUES (?, ?, ?, ?)", (self._now(), kind, copy, detail)
            )
            connection.execute("DELETE FROM events WHERE id <= ?", ((cursor.lastrowid or 0) - _MOST_EVENTS,))

    def events(self, limit: int) -> list[Event]:
        """Newest first."""
        rows = self._database.rows("SELECT * FROM events ORDER BY id DESC LIMIT ?", (limit,))
        return [Event(row["id"], row["time"], row["kind"], row["copy"], row["detail"]) for row in rows]

    def events_after(self, event_id: int) -> list[Event]:
        """Oldest first, 1000 at the most."""
        rows = self._database.rows("SELECT * FROM events WHERE id > ? ORDER BY id LIMIT 1000", (event_id,))
        return [Event(row["id"], row["time"], row["kind"], row["copy"], row["detail"]) for row in rows]

    def suspect(
        self, copies: Iterable[str], *, missed: bool, why: str, failed: bool = False, known: bool = False
    ) -> None:
        """Marks copies that have missed a write (`missed`), or may have; `failed`: a write of them did just now;
        `known`: they lack it for certain. On disk when this returns."""
        suspicions.add(self._database, copies, missed=missed, why=why, time=self._now(), failed=failed, known=known)

    def suspicions(self) -> list[Suspicion]:
        return suspicions.all_of(self._database)

    def clear_suspicions(self, serials: Mapping[str, int], *, run: int | None = None) -> None:
        """`Suspicion.key` -> serial: what was set again since stays. `run`: the scrub that has settled it."""
        suspicions.clear(self._database, serials, time=self._now(), run=run)

    def check_whole(self) -> None:
        """Raises DamagedStateError where any page of the database is not what it should be. Reads all of it."""
        self._database.check_whole()
        self.history(limit=1)
        self.suspicions()
        self.replacements()

    def absences(self) -> dict[str, Absence]:
        """Copy -> the mark that it is away."""
        return absent.all_of(self._database)

    def note_absence(self, absence: Absence, how: Entry | None = None) -> None:
        """Sets or replaces the mark of one copy; `how` it leaves, where it does. On disk when this returns."""
        absent.put(self._database, absence, how=how, time=self._now())

    def forget_absence(self, copy: str, how: Entry | None = Entry.REJOINED, detail: str = "") -> None:
        absent.remove(self._database, copy, how=how, time=self._now(), detail=detail)

    # What has happened to the copies.

    def note_entry(self, copy: str, kind: Entry, *, run: int | None = None, detail: str = "") -> None:
        """It has happened (once more). After Entry.REPLACED nothing that was found before speaks against the copy."""
        with self._database.write() as connection:
            chronicle.note(self._database, connection, copy, kind, self._now(), run=run, detail=detail)

    def chronicle(self) -> list[Chapter]:
        """By copy and kind: how often it happened, first and last."""
        return chronicle.all_of(self._database)

    def blame(self) -> Blame | None:
        """The copy that was at fault in scrub after scrub, as no other was."""
        return blame(faults.looks(self._database), chronicle.replaced(self._database))

    def replacements(self) -> dict[str, Replacement]:
        """Copy -> the note that another image is to take its place."""
        return replacing.all_of(self._database)

    def note_replacement(self, note: Replacement) -> None:
        """Sets or replaces the note of one copy. On disk when this returns."""
        replacing.put(self._database, note)

    def conclude_replacement(self, note: Replacement) -> None:
        """It is the copy: what was found until now was found in an image that is none of the set's any more."""
        replacing.remove(
            self._database, note.copy, detail=f"{note.old_source} -> {note.source.label}", time=self._now()
        )

    def forget_replacement(self, copy: str) -> None:
        """Nothing has come of it."""
        replacing.remove(self._database, copy)

    def meta(self, key: str) -> str | None:
        row = self._database.row("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else str(row["value"])

    def set_meta(self, key: str, value: str | None) -> None:
        """None removes the key."""
        with self._database.write() as connection:
            if value is None:
                connection.execute("DELETE FROM meta WHERE key = ?", (key,))
            else:
                connection.execute(
                    "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    (key, value),
                )

    def _end(self, run_id: int, state: RunState, *, outcome: Outcome | None = None, message: str | None = None) -> None:
        with self._database.write() as connection:
            changed = connection.execute(
                "UPDATE runs SET state = ?, outcome = ?, message = ?, finished = ?, request = NULL, pid = NULL"
                " WHERE id = ? AND state = 'running'",
                (state, outcome, message, self._now(), run_id),
            ).rowcount
            if changed:
                announcing.end_of_run(self._database, connection, run_id, self._now())
        if not changed:
            raise StoreError(
                f"Run {run_id} of '{self._set_name}' is not at work.", remedy="Scrub again.", set_name=self._set_name
            )

    def _existing(self, run_id: int | None) -> RunRecord:
        run = None if run_id is None else self.run(run_id)
        if run is None:
            raise StoreError(
                f"'{self._set_name}' has no run {run_id}.",
                remedy=f"See 'qorumctl history {self._set_name}'.",
                set_name=self._set_name,
            )
        return run


def set_aside(state_directory: Path) -> Path:
    """Keeps a damaged database as `state.db.damaged-1` (-2, ...), with its -wal and -shm, so that a new one can begin.

    Marks are lost with it: whoever calls this sees to it that no copy is believed to be current. To be called under the
    set's lock. Returns where it is kept; raises StoreError.
    """
    source = state_directory / FILE_NAME
    # Numbered, not dated: a clock that jumps back would name one that is there.
    names = (state_directory / f"{FILE_NAME}.damaged-{number}" for number in itertools.count(1))
    kept = next(path for path in names if not os.path.lexists(path))
    try:
        # The database last: until it is gone, nobody makes a new one that would meet the old -wal.
        for suffix in ("-wal", "-shm"):
            if os.path.lexists(f"{source}{suffix}"):
                Path(f"{source}{suffix}").rename(f"{kept}{suffix}")
        source.rename(kept)
        sync_directory(state_directory)
    except OSError as error:
        raise StoreError(
            f"{source} cannot be moved aside: {reason(error)}.", remedy="Move it by hand.", path=str(source)
        ) from error
    return kept
