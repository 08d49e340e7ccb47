"""Whether the demo went as it was told: each check is one sentence that is true or false. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qorumctl.controller.demo_damage import ALL, HOPELESS, LOST, REPAIRABLE, SHARED, Damage
from qorumctl.core.findings import Action, FindingVerdict
from qorumctl.core.ranges import Range
from qorumctl.model.demo import DemoRead
from qorumctl.model.report import FindingDocument, ScrubReport
from qorumctl.model.status import CheckItem

REMEDY = "This should not be: report it to the project, with what 'qorumctl demo --json' prints."


def written(expected: str, found: Mapping[str, str]) -> CheckItem:
    """`found`: copy -> SHA-256 of its image."""
    return _check("write", set(found.values()) == {expected}, "each image holds exactly what was written")


def requests() -> list[tuple[Range, list[Damage]]]:
    """The damage by the requests of a guest that meet it, in the order of their offsets."""
    found: dict[Range, list[Damage]] = {}
    for one in ALL:
        found.setdefault(one.request, []).append(one)
    return sorted(found.items())


def voted(reads: Sequence[DemoRead]) -> list[CheckItem]:
    one_error = {one.offset for one in reads if one.sectors_failed}
    return [
        _check(
            "vote",
            {one.offset for one in reads if one.whole == "error"} == {SHARED.offset, HOPELESS[0].request.offset},
            "a whole request fails where two copies are damaged in it, be it in different sectors",
        ),
        _check(
            "vote",
            one_error == {HOPELESS[0].request.offset} and sum(one.sectors_failed for one in reads) == 1,
            "sector by sector, only the one that is damaged in every copy fails",
        ),
        _check(
            "vote",
            all(one.whole != "wrong" and not one.sectors_wrong for one in reads),
            "no read returned wrong data",
        ),
    ]


def scrubbed(report: ScrubReport) -> list[CheckItem]:
    expected = {(one.at.offset, one.at.length, (one.copy,), one.kind) for one in REPAIRABLE}
    outvoted = [one for one in report.findings if one.verdict is FindingVerdict.OUTVOTED]
    found = {(one.offset, one.length, tuple(one.copies), one.diagnosis.kind) for one in outvoted}
    return [
        _check("scrub", found == expected, f"all {len(expected)} sectors with a majority were found, and nothing else"),
        _check("scrub", all(one.action is Action.REPAIRED for one in outvoted), "each of them was repaired"),
        _check("scrub", _only_lost(report, outvoted), "the sector without a majority was found, and left as it was"),
    ]


def repaired(expected: str, found: Mapping[str, str]) -> CheckItem:
    """`found`: copy -> SHA-256 of its image without the lost sector; `expected`: of what was written, without it."""
    return _check("proof", set(found.values()) == {expected}, "all else is, in each image, what was written")


def untouched(found: Mapping[str, bytes]) -> CheckItem:
    """`found`: copy -> what it holds in the lost sector."""
    same = all(found[one.copy] == one.content for one in HOPELESS)
    return _check("proof", same, "the sector without a majority holds in each image what it held before")


def scrubbed_again(report: ScrubReport) -> CheckItem:
    return _check("second scrub", _only_lost(report, []), "it finds the sector without a majority, and nothing else")


def _only_lost(report: ScrubReport, others: Sequence[FindingDocument]) -> bool:
    rest = [one for one in report.findings if one not in others]
    return [(one.offset, one.length, one.verdict, one.action) for one in rest] == [
        (LOST.offset, LOST.length, FindingVerdict.NO_MAJORITY, Action.LEFT)
    ]


def _check(subject: str, ok: bool, detail: str) -> CheckItem:
    return CheckItem(subject=subject, ok=ok, detail=detail, remedy=None if ok else REMEDY)
