"""One-letter findings for the tables of these tests."""

from __future__ import annotations

from dataclasses import replace

from qorumctl.core.diagnosis import Diagnosis, Kind
from qorumctl.core.findings import Action, Cause, Finding, FindingVerdict, Source, Version
from qorumctl.core.ranges import Range

S = 512
SIZE = 1 << 20


def outvoted(
    sector: int, action: Action, *, sectors: int = 1, copies: str = "a", cause: Cause | None = None
) -> Finding:
    return Finding(
        range=Range(sector * S, sectors * S),
        verdict=FindingVerdict.OUTVOTED,
        copies=() if cause else tuple(copies),
        versions=(Version("d" * 64, ("b", "c"), b"good"), Version("e" * 64, tuple(copies), b"bad")),
        action=action,
        diagnosis=Diagnosis(Kind.BIT_FLIPS, flipped_bits=3),
        confirmed_at="2000-01-01T00:00:00.000Z",
        source=Source.SCRUB,
        cause=cause,
    )


def unreadable(sector: int, action: Action, *, copies: str = "b") -> Finding:
    return replace(
        outvoted(sector, action, copies=copies),
        verdict=FindingVerdict.UNREADABLE,
        diagnosis=Diagnosis(Kind.UNREADABLE),
        versions=(Version("d" * 64, ("a", "c")),),
    )


def no_majority(sector: int, action: Action = Action.LEFT) -> Finding:
    return replace(
        outvoted(sector, action, copies="abc"),
        verdict=FindingVerdict.NO_MAJORITY,
        versions=tuple(Version(c * 64, (c,), c.encode()) for c in "abc"),
    )
