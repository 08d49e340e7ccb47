"""Scrubs -> what people read at 80 columns: findings, what they mean, what to do next, and how far a run is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qorumctl.cli.render import fields, table, words
from qorumctl.cli.text import counted, listed, moment, percent, taken
from qorumctl.controller.failing import BOUND
from qorumctl.controller.observer import ScrubPosition, ScrubStart
from qorumctl.core.diagnosis import Kind
from qorumctl.core.findings import Action, Cause, FindingVerdict, Source
from qorumctl.model.report import DiagnosisDocument, FindingDocument, ScrubReport
from qorumctl.units import format_duration, format_size

MOST_ROWS = 20
"""More than a screen of findings hides the sentence below them that says what to do."""
_MOST_RANGES = 5

_ACTION_STYLES = {Action.REPAIRED: "green", Action.LEFT: "yellow", Action.FAILED: "bold red", Action.PENDING: "yellow"}
OUTCOME_STYLES = {
    "clean": "green",
    "repaired": "yellow",
    "damaged": "bold red",
    "no-majority": "bold red",
    "unfinished": "yellow",
    "failed": "bold red",
}


# findings


def scrub(report: ScrubReport, *, interrupted: bool = False) -> list[RenderableType]:
    """After a scrub: the first findings, then a paragraph for whoever has to act."""
    shown: list[RenderableType] = []
    if report.findings:
        # Stable: within a rank they stay in the order of their offsets.
        shown += [findings(sorted(report.findings, key=_rank)[:MOST_ROWS]), Text("")]
        if len(report.findings) > MOST_ROWS:
            rest = counted(len(report.findings) - MOST_ROWS, "more finding")
            shown += [words(f"... and {rest}: 'qorumctl report {report.set} {report.run}' shows all."), Text("")]
    return [*shown, *_paragraphs(report, interrupted=interrupted)]


def _rank(one: FindingDocument) -> int:
    """What somebody has to act on goes first: a screen must not hide it behind what is repaired."""
    if one.action in {Action.REPAIRED, Action.PENDING}:
        return 2
    return 0 if one.verdict is FindingVerdict.NO_MAJORITY else 1


def _paragraphs(report: ScrubReport, *, interrupted: bool = False) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for paragraph in summary(report, interrupted=interrupted):
        shown += [*([Text("")] if shown else []), words(paragraph)]
    return shown


def report(document: ScrubReport) -> list[RenderableType]:
    """`qorumctl report`: the whole run, every finding with who held which version."""
    duration = taken(document.started, document.finished)
    read = ", ".join(f"{name} {format_size(size)}" for name, size in sorted(document.read_bytes.items()))
    head = fields(
        [
            ("set", words(document.set, "bold")),
            ("run", f"{document.run} ({document.mode})"),
            ("started", moment(document.started)),
            ("finished", None if document.finished is None else f"{moment(document.finished)}, after {duration}"),
            ("outcome", words(document.outcome, OUTCOME_STYLES[document.outcome])),
            ("why", document.message),
            ("covered", _covered(document)),
            ("read", read or None),
            ("busy", format_size(document.busy_bytes) if document.busy_bytes else None),
        ]
    )
    found: list[RenderableType] = [findings(document.findings, evidence=True), Text("")] if document.findings else []
    return [head, Text(""), *found, *_paragraphs(document)]


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
    lines = [diagnosis_in_words(one)]
    if one.cause is Cause.UNCLEAN_SHUTDOWN:
        lines.append("after an unclean stop")
    if one.recurring and one.last_repaired:
        lines.append(f"again: repaired {moment(one.last_repaired)[:10]}")
    if one.source is Source.GUEST_READ:
        lines.append("healed by a guest's read")
    if evidence:
        lines += [f"{digest[:8]} {','.join(names)}" for digest, names in one.votes.items()]
    return words("\n".join(lines))


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


# what it means


def summary(report: ScrubReport, *, interrupted: bool = False) -> list[str]:
    """Paragraphs: what happened, and what to do about it now; what matters most comes first."""
    told = [_open_ended(report, interrupted)] if report.outcome in {"unfinished", "failed"} else []
    told += _told(report) if report.findings else [] if told else [_nothing_found(report)]
    if again := [one for one in report.findings if one.recurring]:
        told.append(_told_again(again))
    if report.busy_bytes:
        told.append(
            f"{format_size(report.busy_bytes)} were written again and again and could not be compared: the next scrub"
            " looks at them again."
        )
    for name, reads in sorted(report.recovered_reads.items()):
        told.append(
            f"{counted(reads, 'read')} of copy {name} failed, and succeeded when made again: nothing was lost, but look"
            " at its storage, which may be about to fail."
        )
    return [f"{report.set}: {told[0]}", *told[1:]]


def _nothing_found(report: ScrubReport) -> str:
    duration = taken(report.started, report.finished)
    return f"no damage found; {_covered(report)}{f', in {duration}' if duration else ''}."


def _covered(report: ScrubReport) -> str:
    """`20 GiB compared`; with holes `3.1 GiB compared, 16.9 GiB zero in every copy`."""
    compared = f"{format_size(report.scanned_bytes)} compared"
    if report.range is not None:
        compared += f" of the range {report.range.offset}:{report.range.length} alone"
    return (
        f"{compared}, {format_size(report.skipped_bytes)} are zero in every copy" if report.skipped_bytes else compared
    )


def _open_ended(report: ScrubReport, interrupted: bool) -> str:
    """A run that did not reach its end."""
    at = _reached(report)
    how = "failed" if report.outcome == "failed" else "was interrupted" if interrupted else "was stopped"
    if report.resumable:
        begun = f"run {report.run} {how} at {at}; '{_again(report)}' resumes it there."
    else:
        begun = f"run {report.run} was cancelled at {at}; the next scrub begins anew."
    return begun if report.findings else f"{begun} So far no damage was found."


def _reached(report: ScrubReport) -> str:
    """`42 %` of what the run was asked to look at."""
    return percent(report.scanned_bytes + report.skipped_bytes, report.range.length if report.range else report.size)


def _again(report: ScrubReport) -> str:
    """The command that resumes this very run: one that asks for something else begins another."""
    command = f"qorumctl scrub {report.set}"
    if report.mode == "report":
        command += " --report"
    if report.range is not None:
        command += f" --range {report.range.offset}:{report.range.length}"
    return f"{command} --thorough" if report.thorough else command


def _told(report: ScrubReport) -> list[str]:
    """The findings by how they ended, a paragraph each, the worst first."""
    repaired = [f for f in report.findings if f.action is Action.REPAIRED]
    pending = [f for f in report.findings if f.action is Action.PENDING]
    open_ones = [f for f in report.findings if f.action in {Action.LEFT, Action.FAILED}]
    hopeless = [f for f in open_ones if f.verdict is FindingVerdict.NO_MAJORITY]
    rest = [f for f in open_ones if f.verdict is not FindingVerdict.NO_MAJORITY]
    paragraphs = []
    if hopeless:
        paragraphs.append(_told_hopeless(report, hopeless))
    if rest:
        paragraphs.append(_told_left(report, rest))
    if pending:
        paragraphs.append(f"{_ranges(pending)} {_is(pending)} being repaired, not yet verified.")
    if repaired:
        paragraphs.append(_told_repaired(repaired, all_is_done=report.outcome == "repaired"))
    return paragraphs


def _told_repaired(repaired: Sequence[FindingDocument], *, all_is_done: bool) -> str:
    told = f"{_ranges(repaired)} {_was(repaired)} repaired and verified ({_blame(repaired)})."
    blamed = {name for one in repaired for name in one.copies}
    if not (all_is_done and blamed):
        return told
    return (
        f"{told} Nothing is to be done now; should {_copies(blamed)} come up again, look at the storage behind"
        f" {'it' if len(blamed) == 1 else 'them'}."
    )


def _told_left(report: ScrubReport, left: Sequence[FindingDocument]) -> str:
    told = f"{_ranges(left)} {_is(left)} left damaged ({_blame(left)})."
    if report.mode == "report":
        return (
            f"{told} Guests still read what the majority holds. This run only reported:"
            f" 'qorumctl scrub {report.set} --repair' repairs, where the set runs and its policy is repair."
        )
    blamed = {name for one in left for name in one.copies}
    if why := _told_unrewritten(report, blamed):
        return f"{told} Guests still read what the majority holds, but another failure there would lose data. {why}"
    whose = f"the storage of {_copies(blamed)}" if blamed else "the storage of the copies"
    return (
        f"{told} Guests still read what the majority holds, but another failure there would lose data. Check {whose},"
        f" then run 'qorumctl scrub {report.set}' again."
    )


def _told_unrewritten(report: ScrubReport, blamed: set[str]) -> str:
    """Of copies whose sectors no fenced read repairs: why they were not written anew, and what to do. Empty where
    nothing is to be said of one of them."""
    told = []
    for name in sorted(blamed):
        if name in report.failing_copies:
            told.append(
                f"Copy {name} is failing: it has lost more than a scrub writes anew ({BOUND}). Replace it:"
                f" 'qorumctl copy replace {report.set} {name} SOURCE'."
            )
        elif why := report.left_because.get(name):
            told.append(f"Copy {name}: {why.removesuffix('.')}.")
        else:
            return ""
    if told and not blamed <= set(report.failing_copies):
        told.append(f"Then run 'qorumctl scrub {report.set}' again.")
    return " ".join(told)


def _told_hopeless(report: ScrubReport, hopeless: Sequence[FindingDocument]) -> str:
    places = [f"{one.offset}:{one.length}" for one in hopeless[:_MOST_RANGES]]
    more = len(hopeless) - len(places)
    where = f"{', '.join(places)}{f' and {more:,} more' if more else ''}"
    why, reads = "", ", and a guest that reads there gets an I/O error"
    if report.uncounted:
        why, reads = f" ({_copies(report.uncounted)} missed writes and did not vote)", "; what guests read may be stale"
    return (
        f"{_ranges(hopeless)} {_has(hopeless)} no majority, at {where} (offset:length in bytes): no version is held by"
        f" enough copies to be trusted{why}. Nothing was written there{reads}."
        " Keep the images as they are until you have what you need of them; then write those ranges anew through the"
        f" volume, from a backup, and run 'qorumctl scrub {report.set}' again."
    )


def _told_again(again: Sequence[FindingDocument]) -> str:
    blamed = {name for one in again for name in one.copies}
    return (
        f"{_ranges(again)} {_was(again)} damaged again after a repair ({_blame(again)}): there the storage of"
        f" {_copies(blamed)} does not keep what is written to it, and another repair will not change that."
    )


def _ranges(found: Sequence[FindingDocument]) -> str:
    size = format_size(sum(one.length for one in found))
    return (
        f"{counted(len(found), 'range')} of {size}" if len(found) == 1 else f"{counted(len(found), 'range')}, {size},"
    )


def _blame(found: Iterable[FindingDocument]) -> str:
    """`copy b 3 times, copy c once`; nobody is blamed after an unclean stop."""
    counts: dict[str, int] = {}
    nobody = 0
    for one in found:
        nobody += not one.copies
        for name in one.copies:
            counts[name] = counts.get(name, 0) + 1
    parts = [f"copy {name} {_times(n)}" for name, n in sorted(counts.items())]
    if nobody:
        parts.append(f"{'all' if not counts else f'{nobody:,}'} from an unclean stop, which no copy is to blame for")
    return ", ".join(parts)


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")


def _copies(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return f"{'copy' if len(ordered) == 1 else 'copies'} {listed(ordered)}"


def _is(found: Sequence[object]) -> str:
    return "is" if len(found) == 1 else "are"


def _was(found: Sequence[object]) -> str:
    return "was" if len(found) == 1 else "were"


def _has(found: Sequence[object]) -> str:
    return "has" if len(found) == 1 else "have"


def asked_to_stop(report: ScrubReport, command: str) -> str:
    """After `pause` or `cancel`. The run may have reached its end before it was asked."""
    if report.outcome not in {"unfinished", "failed"}:
        return f"{report.set}: run {report.run} had ended before it could be stopped: {report.outcome}."
    at = _reached(report)
    if command == "cancel":
        return f"{report.set}: run {report.run} is cancelled at {at}; the next scrub begins anew."
    return f"{report.set}: run {report.run} is paused at {at}; '{_again(report)}' resumes it."


# how far a run is


def opening_line(start: ScrubStart) -> str:
    why = " The set was not stopped cleanly: it is compared before guests come in." if start.recovery else ""
    return f"{_title(start)}, {format_size(start.size_bytes)}{_from(start)}.{why}"


def progress_line(start: ScrubStart, position: ScrubPosition) -> str:
    at = percent(position.position_bytes, position.size_bytes)
    return f"{start.set_name}: at {at}, {', '.join(_facts(position))}"


def closing_line(start: ScrubStart, position: ScrubPosition | None, seconds: float) -> str:
    if start.work is not None:
        return f"{_title(start)}: ended after {format_duration(seconds)}"
    found = counted(position.findings or 0, "finding") if position is not None else "0 findings"
    return f"{start.set_name}: ended after {format_duration(seconds)}, {found}"


def progress_bar(start: ScrubStart, position: ScrubPosition | None) -> RenderableType:
    """Two lines: what runs and how far it is; where it is, how fast, how long still, what it found."""
    done = position.position_bytes if position else start.resumed_at_bytes or 0
    size = max(1, start.size_bytes)
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_row(words(_title(start)), ProgressBar(total=size, completed=done), percent(done, size))
    facts = _facts(position) if position else ["beginning"]
    # Not padded to the edge: the echo of ^C would wrap there, and the bar would be drawn a line too low.
    return Group(grid, Padding(words(", ".join(facts)), (0, 0, 0, 2), expand=False))


def _title(start: ScrubStart) -> str:
    if start.work is not None:
        return f"{start.set_name}: {start.work}"
    if start.run == 0:
        # `create` compares images that are in no set yet: that is on no record.
        return f"{start.set_name}: comparing its images"
    kind = "recovery scrub" if start.recovery else f"{start.mode} scrub"
    return f"{start.set_name}: {kind}, run {start.run}"


def _from(start: ScrubStart) -> str:
    if start.resumed_at_bytes is None:
        return ""
    return f", resumed at {percent(start.resumed_at_bytes, start.size_bytes)}"


def _facts(position: ScrubPosition) -> list[str]:
    facts = [f"{format_size(position.position_bytes)} of {format_size(position.size_bytes)}"]
    if position.rate_bytes_per_s is not None:
        facts.append(f"{format_size(round(position.rate_bytes_per_s))}/s")
    if position.eta_s is not None:
        facts.append(f"{format_duration(position.eta_s)} left")
    return facts if position.findings is None else [*facts, counted(position.findings, "finding")]
