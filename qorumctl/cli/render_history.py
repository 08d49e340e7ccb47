"""The history of a set -> what people read at 80 columns: its scrubs, and what has happened to each copy. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qorumctl.cli.render import covered, table, words
from qorumctl.cli.render_scrub import OUTCOME_STYLES
from qorumctl.cli.text import moment, taken
from qorumctl.core.chronicle import Entry
from qorumctl.model.report import CopyHistory, History, RunSummary
from qorumctl.units import format_size

WORDS = {
    Entry.OUTVOTED: "outvoted",
    Entry.UNREADABLE: "unreadable",
    Entry.REPAIRED: "repaired",
    Entry.RECURRING: "damaged again",
    Entry.WRITE_ERROR: "write errors",
    Entry.MISSED_WRITE: "missed writes",
    Entry.MAY_HAVE_MISSED: "suspect",
    Entry.DETACHED: "detached",
    Entry.FORCED_OUT: "forced out",
    Entry.LEFT_OUT: "left out",
    Entry.FOUND_OUTSIDE: "found outside",
    Entry.REJOINED: "rejoined",
    Entry.CLEARED: "cleared",
    Entry.REPLACED: "replaced",
}
_BAD = frozenset(
    {Entry.OUTVOTED, Entry.UNREADABLE, Entry.RECURRING, Entry.WRITE_ERROR, Entry.MISSED_WRITE, Entry.FORCED_OUT}
)


def history(document: History) -> list[RenderableType]:
    shown: list[RenderableType] = []
    if document.runs:
        shown.append(_runs(document.runs))
    else:
        shown.append(words(f"{document.set} was never scrubbed. 'qorumctl scrub {document.set}' does it."))
    if document.copies:
        shown += [Text(""), _copies(document.copies)]
    return [*shown, Text(""), words("Times are UTC.")] if document.runs or document.copies else shown


def _runs(runs: Sequence[RunSummary]) -> Table:
    made = table(
        "RUN", "STARTED", "MODE", "OUTCOME", "TOOK", "COVERED", "FINDINGS", right=("RUN", "TOOK", "COVERED"),
        fold=("FINDINGS",),
    )  # fmt: skip
    for run in runs:
        made.add_row(
            str(run.run),
            moment(run.started).removesuffix(" UTC"),
            run.mode,
            Text(run.outcome, style=OUTCOME_STYLES[run.outcome]),
            taken(run.started, run.finished) or "-",
            f"{covered(run)} of {format_size(run.range.length)}" if run.range else covered(run),
            words(", ".join(f"{n:,} {kind}" for kind, n in run.findings.items() if n) or "-"),
        )
    return made


def _copies(copies: Sequence[CopyHistory]) -> Table:
    made = table("COPY", "WHAT", "TIMES", "FIRST", "LAST", "RUN", right=("TIMES", "RUN"))
    for copy in copies:
        for place, entry in enumerate(copy.entries):
            made.add_row(
                words("" if place else copy.name),
                Text(WORDS[entry.kind], style="yellow" if entry.kind in _BAD else ""),
                f"{entry.number:,}",
                moment(entry.first)[:10],
                moment(entry.last)[:16],
                "-" if entry.run is None else str(entry.run),
            )
    return made
