"""Tells hooks of findings and of the ends of runs, in the transaction that writes them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from qorumctl.core.findings import Action, FindingVerdict
from qorumctl.model.hooks import HookEventKind
from qorumctl.model.report import FindingDocument, RunSummary
from qorumctl.store import outbox, reports
from qorumctl.store.database import Database
from qorumctl.store.records import run_from_row
from qorumctl.units import format_size

_VERDICTS = {
    FindingVerdict.OUTVOTED: "was outvoted",
    FindingVerdict.UNREADABLE: "could not be read",
    FindingVerdict.NO_MAJORITY: "no version has a majority",
}
_ACTIONS = {
    Action.REPAIRED: "repaired",
    Action.LEFT: "not repaired",
    Action.FAILED: "the repair failed",
    Action.PENDING: "not repaired yet",
    Action.RESOLVED: "resolved by an operator",
}


def findings(database: Database, connection: sqlite3.Connection, run_id: int, ids: Sequence[int], time: str) -> None:
    """The findings `ids` have got an action. The first of a run are told one by one, then once that there are more."""
    if not ids or not database.listener.wants():
        return
    told = int(connection.execute("SELECT told FROM runs WHERE id = ?", (run_id,)).fetchone()[0])
    if told > outbox.MOST_FINDINGS:
        return
    first = ids[: outbox.MOST_FINDINGS - told]
    for found in reports.findings(database, run_id, f"AND id IN ({', '.join(map(str, first))})") if first else ():
        document = found.model_dump(mode="json", by_alias=True)
        # A byte of what the disk holds. The report has it, for whoever may read that.
        document["diagnosis"]["fill_byte"] = None
        facts = {"run": run_id, "finding": document}
        outbox.tell(database, connection, HookEventKind.FINDING, time, _finding_words(found), **facts)
    if len(ids) > len(first):
        words = f"run {run_id} found more than {outbox.MOST_FINDINGS} ranges: the others are in its report alone."
        outbox.tell(database, connection, HookEventKind.MORE_FINDINGS, time, words, run=run_id)
    connection.execute(
        "UPDATE runs SET told = ? WHERE id = ?", (min(told + len(ids), outbox.MOST_FINDINGS + 1), run_id)
    )


def end_of_run(database: Database, connection: sqlite3.Connection, run_id: int, time: str) -> None:
    if not database.listener.wants():
        return
    row = connection.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
    summary = reports.run_summary(database, database.parse(lambda: run_from_row(row)))
    facts = {"run": run_id, "summary": summary.model_dump(mode="json", by_alias=True)}
    outbox.tell(database, connection, HookEventKind.RUN_FINISHED, time, _run_words(summary), **facts)


def _finding_words(found: FindingDocument) -> str:
    who = f"copy {', '.join(found.copies)} " if found.copies else ""
    verdict = _VERDICTS[found.verdict]
    what = verdict if found.verdict is FindingVerdict.NO_MAJORITY else f"{who or 'a copy '}{verdict}"
    return f"{what} at offset {found.offset} ({format_size(found.length)}): {_ACTIONS[found.action]}."


def _run_words(run: RunSummary) -> str:
    number = sum(run.findings.values())
    found = f"{number} {'finding' if number == 1 else 'findings'}"
    words = {
        "clean": "found nothing",
        "repaired": f"repaired all that it found: {found}",
        "damaged": f"left damage: {found}",
        "no-majority": f"found ranges without a majority: {found} in all",
        "unfinished": f"was broken off: {found} so far",
        "failed": f"failed: {run.message or 'it does not say why'}",
    }[run.outcome]
    return f"run {run.run} {words.removesuffix('.')}."
