"""Scrubs -> what people read at 80 columns: a map of the disk, findings, what they mean, what to do next. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qorumctl.cli.render import fields, table, words
from qorumctl.cli.render_map import DiskMapLines
from qorumctl.cli.scrub_words import covered, summary
from qorumctl.cli.text import counted, moment, taken
from qorumctl.core.diagnosis import Kind
from qorumctl.core.findings import Action, Cause, Fate, FindingVerdict, Source
from qorumctl.core.tally import Tally
from qorumctl.model.digest import fate, tally_of
from qorumctl.model.report import DiagnosisDocument, FindingDocument, ScrubReport
from qorumctl.units import format_size

MOST_ROWS = 20
"""More than a screen of findings hides the sentence below them that says what to do."""

_ACTION_STYLES = {
    Action.REPAIRED: "green",
    Action.RESOLVED: "green",
    Action.LEFT: "yellow",
    Action.FAILED: "bold red",
    Action.PENDING: "yellow",
}
OUTCOME_STYLES = {
    "clean": "green",
    "repaired": "yellow",
    "damaged": "bold red",
    "no-majority": "bold red",
    "unfinished": "yellow",
    "failed": "bold red",
}


def scrub(
    report: ScrubReport,
    *,
    tally: Tally | None = None,
    worst: Sequence[FindingDocument] = (),
    interrupted: bool = False,
) -> list[RenderableType]:
    """After a scrub: the first findings, then a paragraph for whoever has to act. `tally`: of a report that comes
    without its findings; `worst` are then as many of them as there is room for."""
    if tally is None:
        # Stable: within a rank they stay in the order of their offsets.
        tally, worst = tally_of(report.findings), sorted(report.findings, key=_rank)
    shown: list[RenderableType] = []
    if tally.number:
        shown += [findings(worst[:MOST_ROWS]), Text("")]
        if tally.number > MOST_ROWS:
            rest = counted(tally.number - MOST_ROWS, "more finding")
            shown += [words(f"... and {rest}: 'qorumctl report {report.set} {report.run}' shows all."), Text("")]
    return [*shown, *paragraphs(report, tally, interrupted=interrupted)]


def _rank(one: FindingDocument) -> int:
    """What somebody has to act on goes first: a screen must not hide it behind what is repaired."""
    return -max(fate(one), Fate.PENDING)


def paragraphs(report: ScrubReport, tally: Tally, *, interrupted: bool = False) -> list[RenderableType]:
    """What it means, and what to do."""
    shown: list[RenderableType] = []
    for paragraph in summary(report, tally=tally, interrupted=interrupted):
        shown += [*([Text("")] if shown else []), words(paragraph)]
    return shown


def report(document: ScrubReport) -> list[RenderableType]:
    """`qorumctl report`: the whole run, every finding with who held which version."""
    found: list[RenderableType] = [findings(document.findings, evidence=True), Text("")] if document.findings else []
    picture: list[RenderableType] = (
        [DiskMapLines(document), Text("")] if document.read_bytes or document.findings else []
    )
    return [*head(document), *picture, *found, *paragraphs(document, tally_of(document.findings))]


def head(document: ScrubReport) -> list[RenderableType]:
    """What was asked, and how it went."""
    duration = taken(document.started, document.finished)
    read = ", ".join(f"{name} {format_size(size)}" for name, size in sorted(document.read_bytes.items()))
    facts = fields(
        [
            ("set", words(document.set, "bold")),
            ("run", f"{document.run} ({document.mode})"),
            ("started", moment(document.started)),
            ("finished", None if document.finished is None else f"{moment(document.finished)}, after {duration}"),
            ("outcome", words(document.outcome, OUTCOME_STYLES[document.outcome])),
            ("why", document.message),
            ("covered", covered(document)),
            ("read", read or None),
            ("busy", format_size(document.busy_bytes) if document.busy_bytes else None),
        ]
    )
    return [facts, Text("")]


def findings(found: Sequence[FindingDocument], *, evidence: bool = False) -> Table:
    """Offsets and lengths in bytes, as `--range` takes them."""
    made = table(
        "ID", "OFFSET", "LENGTH", "COPIES", "VERDICT", "ACTION", "WHAT", right=("ID", "OFFSET", "LENGTH"),
        fold=("COPIES", "WHAT"),
    )  # fmt: skip
    for one in found:
        made.add_row(
            str(one.id),
            str(one.offset),
            str(one.length),
            words(" ".join(one.copies) or "-"),
            one.verdict,
            Text(one.action, style=_ACTION_STYLES[one.action]),
            _what(one, evidence),
        )
    return made


def _what(one: FindingDocument, evidence: bool) -> Text:
    """The diagnosis, what is said about it, and who held what."""
    lines = [diagnosis_in_words(one), *notes(one)]
    if evidence:
        lines += [f"{digest[:8]} {','.join(names)}" for digest, names in one.votes.items()]
    return words("\n".join(lines))


def notes(one: FindingDocument) -> list[str]:
    """What else is to be said of it."""
    said = []
    if one.cause is Cause.UNCLEAN_SHUTDOWN:
        said.append("after an unclean stop")
    if one.recurring and one.last_repaired:
        said.append(f"again: repaired {moment(one.last_repaired)[:10]}")
    if one.source is Source.GUEST_READ:
        said.append("healed by a guest's read")
    return said


def diagnosis_in_words(one: FindingDocument) -> str:
    if one.verdict is FindingVerdict.NO_MAJORITY:
        return _versions(one)
    diagnosis: DiagnosisDocument = one.diagnosis
    match diagnosis.kind:
        case Kind.BIT_FLIPS if diagnosis.flipped_bits is not None:
            return f"{counted(diagnosis.flipped_bits, 'bit')} flipped"
        case Kind.BIT_FLIPS:
            return "bits flipped"
        case Kind.ZEROED:
            return "zeroed"
        case Kind.FILLED if diagnosis.fill_byte is not None:
            return f"filled with 0x{diagnosis.fill_byte:02x}"
        case Kind.FILLED:
            return "filled"
        case Kind.TORN if diagnosis.torn_at_bytes is not None:
            return f"torn at byte {diagnosis.torn_at_bytes}"
        case Kind.TORN:
            return "torn"
        case Kind.UNREADABLE:
            return "unreadable"
        case Kind.TRANSIENT:
            return "read wrong once"
        case Kind.UNKNOWN:
            return "other data"


def _versions(one: FindingDocument) -> str:
    """Of a range without a majority: into how many versions it fell, and how many copies could not be read."""
    deaf = len(one.copies) - sum(len(names) for names in one.votes.values())
    found = counted(len(one.votes), "version")
    return f"{found}, {deaf} unreadable" if deaf > 0 else found
