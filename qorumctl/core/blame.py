"""Which copy's storage to replace: the one that is at fault in scrub after scrub, on several days, as no other is.

A single bad day (a cable, a controller's reset), damage that was found before and left, and damage that nobody is to
blame for (an unclean stop, writes that the copy is known to have missed) say nothing about a medium. Where several
copies rot alike, it is rather what they share: the host, its memory, its network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WINDOW_RUNS = 10
LEAST_RUNS = 3
LEAST_DAYS = 3
LEAST_SHARE = 0.5
"""Of the scrubs looked at, those in which the copy is at fault."""
MOST_OTHERS = 1 / 3
"""As often as this, compared with it, another copy may be at fault."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Ranges that were found in one copy and had not been found before. `recurring`: those of them that had been
    repaired in it."""

    outvoted: int = 0
    unreadable: int = 0
    recurring: int = 0

    @property
    def any(self) -> bool:
        return bool(self.outvoted or self.unreadable)


@dataclass(frozen=True, slots=True)
class Look:
    """A scrub that came to its end. `day`: the date it began, UTC. `compared`: the copies it read; None: all."""

    run: int
    day: str
    faults: Mapping[str, Faults] = field(default_factory=dict)
    compared: frozenset[str] | None = None

    def at_fault(self, copy: str) -> bool:
        return copy in self.faults and self.faults[copy].any


@dataclass(frozen=True, slots=True)
class Blame:
    """`copy` was at fault in `scrubs` of the last `of_scrubs` that read it, on `days` days; the others in `others`."""

    copy: str
    scrubs: int
    of_scrubs: int
    days: int
    faults: Faults
    others: int


def blame(looks: Sequence[Look], replaced: Mapping[str, int]) -> Blame | None:
    """`looks`: newest first. `replaced`: copy -> the newest run when it got its present medium."""
    since = [_since(looks, replaced, copy) for copy in sorted({name for look in looks for name in look.faults})]
    # At most one can be at fault three times as often as every other.
    return next((found for found in since if found is not None), None)


def _since(looks: Sequence[Look], replaced: Mapping[str, int], copy: str) -> Blame | None:
    """Judged over as many of the last scrubs as speak against the copy."""
    its_own = [
        look for look in looks if look.run > replaced.get(copy, 0) and (look.compared is None or copy in look.compared)
    ][:WINDOW_RUNS]
    for count in range(len(its_own), LEAST_RUNS - 1, -1):
        found = _over(its_own[:count], replaced, copy)
        if found is not None:
            return found
    return None


def _over(looks: Sequence[Look], replaced: Mapping[str, int], copy: str) -> Blame | None:
    bad = [look for look in looks if look.at_fault(copy)]
    days = len({look.day for look in bad})
    often: dict[str, int] = {}
    for look in looks:
        for other in look.faults:
            if other != copy and look.run > replaced.get(other, 0) and look.at_fault(other):
                often[other] = often.get(other, 0) + 1
    most = max(often.values(), default=0)
    if len(bad) < max(LEAST_RUNS, LEAST_SHARE * len(looks)) or days < LEAST_DAYS or most > MOST_OTHERS * len(bad):
        return None
    ranges = [look.faults[copy] for look in bad]
    total = Faults(
        sum(one.outvoted for one in ranges),
        sum(one.unreadable for one in ranges),
        sum(one.recurring for one in ranges),
    )
    others = sum(any(look.run > replaced.get(o, 0) and look.at_fault(o) for o in often) for look in looks)
    return Blame(copy, len(bad), len(looks), days, total, others)
