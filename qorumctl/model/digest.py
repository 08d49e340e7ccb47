"""From the documents of a run to what is drawn and summed up of it."""

from __future__ import annotations

from collections.abc import Iterable

from qorumctl.core.disk_map import Mark
from qorumctl.core.findings import Fate, fate_of
from qorumctl.core.ranges import Range
from qorumctl.core.tally import Tally
from qorumctl.model.report import FindingDocument, ScrubReport


def fate(one: FindingDocument) -> Fate:
    return fate_of(one.verdict, one.action)


def mark(one: FindingDocument) -> Mark:
    return Mark(one.id, Range(one.offset, one.length), one.copies, fate(one))


def add(tally: Tally, one: FindingDocument) -> None:
    tally.add(Range(one.offset, one.length), one.copies, fate(one), recurring=bool(one.recurring))


def tally_of(findings: Iterable[FindingDocument]) -> Tally:
    tally = Tally()
    for one in findings:
        add(tally, one)
    return tally


def compared(report: ScrubReport, others: Iterable[str] = ()) -> dict[str, Range | None]:
    """Copy -> the part of it that the run has covered: from where the run began, without a gap. `others`: copies of the
    set, of which some may have been away, and nothing of them was compared."""
    first, length = report.range.offset if report.range else 0, report.scanned_bytes + report.skipped_bytes
    covered = Range(first, length) if length else None
    read = set(report.read_bytes)
    for one in report.findings:
        read.update(one.copies, *one.votes.values())
    return {name: covered if name in read else None for name in dict.fromkeys([*others, *sorted(read)])}
