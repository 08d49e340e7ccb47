"""Findings that an operator settles, one at a time: looked up by id, whichever run they are of."""

from __future__ import annotations

from qorumctl.core.findings import Action, FindingVerdict
from qorumctl.core.ranges import Range
from qorumctl.model.report import FindingDocument
from qorumctl.store import announcing, reports
from qorumctl.store.database import Database
from qorumctl.store.records import now

_OF_VERDICT = FindingVerdict.NO_MAJORITY


def finding(database: Database, finding_id: int) -> tuple[int, FindingDocument] | None:
    """Its run, and what a report tells of it."""
    row = database.row("SELECT run FROM findings WHERE id = ?", (finding_id,))
    if row is None:
        return None
    found = next(reports.findings(database, row["run"], f"AND id = {int(finding_id)}"), None)
    return None if found is None else (int(row["run"]), found)


def settle(database: Database, finding_id: int, at: Range, action: Action) -> bool:
    """Whether there is such a finding, without a majority and of exactly this range; it has this action then. A record
    that was lost and begun anew counts from 1 again: another finding may have this id.

    Each scrub finds anew what is left, under another id: what lies within the range is resolved, or open, with it.
    """
    with database.write() as connection:
        row = connection.execute("SELECT run, action FROM findings WHERE id = ?", (finding_id,)).fetchone()
        changed = connection.execute(
            # What a scrub has seen before says nothing of it any more: an undo may come after a clean one.
            "UPDATE findings SET action = ?, newest_run = (SELECT max(id) FROM runs)"
            " WHERE id = ? AND start = ? AND length = ? AND verdict = ?",
            (action, finding_id, at.offset, at.length, _OF_VERDICT),
        ).rowcount
        if changed:
            was = "= 'resolved'" if action is Action.LEFT else "IN ('left', 'failed')"
            connection.execute(
                "UPDATE findings SET action = ?, newest_run = (SELECT max(id) FROM runs)"  # noqa: S608 - constants
                f" WHERE verdict = ? AND action {was} AND start >= ? AND start + length <= ?",
                (action, _OF_VERDICT, at.offset, at.end),
            )
        if changed and row["action"] != action:
            announcing.findings(database, connection, row["run"], [finding_id], now())
    return bool(changed)
