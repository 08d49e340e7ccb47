"""One finding as its copies hold it now -> what people read at 80 columns, with colours and without. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from qorumctl.cli.render import fields, table, words
from qorumctl.cli.render_scrub import diagnosis_in_words, notes
from qorumctl.cli.text import counted, listed, moment, printable
from qorumctl.core.bitwise import Likelihood
from qorumctl.core.diagnosis import Kind
from qorumctl.model.evidence import Bitwise, CopyEvidence, Evidence, ResolveReport, Row
from qorumctl.model.status import SetState
from qorumctl.units import format_size

_LIKELIHOOD_STYLES = {
    Likelihood.LIKELY: "green",
    Likelihood.DOUBTFUL: "yellow",
    Likelihood.UNLIKELY: "bold red",
    Likelihood.IMPOSSIBLE: "bold red",
}
_KINDS = {
    Kind.BIT_FLIPS: "bits flipped",
    Kind.ZEROED: "zeroed",
    Kind.FILLED: "filled",
    Kind.TORN: "torn",
    Kind.UNREADABLE: "unreadable",
    Kind.TRANSIENT: "read wrong once",
    Kind.UNKNOWN: "other data",
}
_GROUP_BYTES = 4
_LABEL = 8
_DIFFERS = "bold red"


def evidence(found: Evidence) -> list[RenderableType]:
    one = found.finding
    head = fields(
        [
            ("set", words(found.set, "bold")),
            ("finding", f"{one.id} of run {found.run}, {one.verdict}, {one.action}, {moment(one.confirmed)}"),
            ("range", f"{one.offset}:{one.length} ({format_size(one.length)})"),
            ("then", "; ".join([diagnosis_in_words(one), *notes(one)])),
            ("now", _now(found)),
            ("agree", "; ".join(" = ".join(names) for names in found.agree if len(names) > 1) or "nobody"),
            ("away", ", ".join(found.away) or None),
        ]
    )
    shown: list[RenderableType] = [head, Text(""), _copies(found), Text("")]
    if found.tied_sectors:
        shown += [_bitwise(found.bitwise), Text("")]
    for row in found.rows:
        shown += _row(row)
    if found.rows:
        shown.append(_legend(found))
    if found.next_offset is not None:
        shown += [words(f"... and {counted(found.more_rows, 'more row')}: --from {found.next_offset} goes on there.")]
    return shown


def _now(found: Evidence) -> str:
    parts = [
        f"{counted(found.tied_sectors, 'sector')} without a majority" if found.tied_sectors else "",
        f"{found.voted_sectors:,} with one, where a scrub repairs" if found.voted_sectors else "",
        counted(found.equal_sectors, "equal sector") if found.equal_sectors else "",
    ]
    changed = [copy.name for copy in found.copies if copy.changed]
    since = f"changed since in copy {listed(changed)}" if changed else "as it was found"
    live = "" if found.state is SetState.STOPPED else " (the set runs: guests may have written meanwhile)"
    return f"{', '.join(filter(None, parts))}; {since}{live}"


def _copies(found: Evidence) -> RenderableType:
    made = table("COPY", "SHA-256", "SINCE", "UNREADABLE", "TO BITWISE", "WHAT", fold=("WHAT",))
    for copy in found.copies:
        made.add_row(
            words(copy.name),
            copy.digest[:8],
            "changed" if copy.changed else "same",
            format_size(copy.unreadable_bytes) if copy.unreadable_bytes else "-",
            "-" if copy.bits is None else counted(copy.bits, "bit"),
            words(_what(copy)),
        )
    return made


def _what(copy: CopyEvidence) -> str:
    said = [f"{_KINDS[kind]} in {counted(number, 'sector')}" for kind, number in copy.kinds.items()]
    if not copy.counts:
        said.append("has missed writes: no vote")
    return ", ".join(said) or "-"


def _bitwise(found: Bitwise) -> RenderableType:
    text = Text("bitwise majority: ", style="bold")
    text.append(found.likelihood.value, style=_LIKELIHOOD_STYLES[found.likelihood])
    text.append(f". {printable(found.why)}", style="not bold")
    return text


def _row(row: Row) -> list[RenderableType]:
    """A line for each version of 16 bytes, and below it the bits in which it differs, where it does."""
    offset = f"{row.offset}"
    reference = row.bitwise or next((data for data in row.data.values() if data is not None), None)
    versions: dict[str | None, list[str]] = {}
    for name, data in row.data.items():
        versions.setdefault(data, []).append(name)
    lines: list[RenderableType] = []
    for data, names in versions.items():
        lines += _version(offset, ",".join(names), data, reference)
        offset = ""
    if row.bitwise is not None and row.bitwise not in versions:
        lines += _version("", "bitwise", row.bitwise, row.bitwise)
    return [*lines, Text("")]


def _version(offset: str, label: str, data: str | None, reference: str | None) -> list[RenderableType]:
    if len(label) > _LABEL:
        # Many copies, or long names: on a line of their own.
        return [words(f"{offset:>13} {label}"), *_version("", "", data, reference)]
    line = Text(f"{offset:>13} {label:<{_LABEL}} ", no_wrap=True, overflow="crop")
    if data is None or reference is None:
        return [line.append("unreadable", style=_DIFFERS)]
    held, wanted = bytes.fromhex(data), bytes.fromhex(reference)
    flips = [x ^ y for x, y in zip(held, wanted, strict=True)]
    _append(line, [f"{byte:02x}" for byte in held], flips)
    line.append(" ")
    for byte, flipped in zip(held, flips, strict=True):
        line.append(chr(byte) if 0x20 <= byte < 0x7F else ".", style=_DIFFERS if flipped else "")
    if not any(flips):
        return [line]
    below = Text(f"{'':13} {'  ^ bits':<{_LABEL}} ", no_wrap=True, overflow="crop")
    _append(below, [f"{flipped:02x}" if flipped else "  " for flipped in flips], flips)
    return [line, below]


def _append(line: Text, pairs: Sequence[str], flips: Sequence[int]) -> None:
    for i, (text, flipped) in enumerate(zip(pairs, flips, strict=True)):
        line.append(" " if i and i % _GROUP_BYTES == 0 else "")
        line.append(text, style=_DIFFERS if flipped else "")


def _legend(found: Evidence) -> RenderableType:
    beside = "the bitwise majority" if found.rows[0].bitwise is not None else "the first version"
    return words(f"'^ bits': the bits of a byte that differ from {beside}, as a hexadecimal mask.")


def resolved(report: ResolveReport) -> list[RenderableType]:
    """What was written, or, of a dry run, what would be."""
    made = table("COPY", "BEFORE", "AFTER", "CHANGES", fold=("COPY",))
    for copy in report.copies:
        same = copy.before == copy.after
        made.add_row(
            words(copy.name), copy.before[:8], copy.after[:8], "-" if same else counted(copy.changed_sectors, "sector")
        )
    shown: list[RenderableType] = [words(_headline(report)), Text(""), made]
    if not report.dry_run:
        shown += [Text(""), words(_aftermath(report))]
    return shown


def _headline(report: ResolveReport) -> str:
    places = ", ".join(f"{r.offset}:{r.length}" for r in report.written[:3])
    more = len(report.written) - 3
    where = f"{places}{f' and {more:,} more' if more > 0 else ''} ({format_size(report.written_bytes)})"
    would = "would be" if report.dry_run else "is"
    if report.command == "undo":
        return f"{report.set}: what each copy held before number {report.undone} {would} written again, at {where}."
    return f"{report.set}: finding {report.finding}: '{report.decision}' {would} written to every copy, at {where}."


def _aftermath(report: ResolveReport) -> str:
    return (
        f"Flushed, and read back from every copy. The set is {report.state}. What the copies held before is in "
        f"{report.saved}; 'qorumctl resolve {report.set} --undo {report.id}' restores it."
    )
