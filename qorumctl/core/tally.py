"""The findings of a run as sums: what a paragraph needs to tell of them, however many they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qorumctl.core.findings import Fate
from qorumctl.core.ranges import Range

MOST_PLACES = 5


@dataclass(slots=True)
class Sum:
    """`by_copy`: findings by the copy at fault; one may blame several. `of_no_copy`: those that blame none. `places`:
    the first few."""

    number: int = 0
    size_bytes: int = 0
    by_copy: dict[str, int] = field(default_factory=dict)
    of_no_copy: int = 0
    places: list[Range] = field(default_factory=list)

    def add_many(self, number: int, size_bytes: int, copies: Sequence[str]) -> None:
        """Findings that blame the same copies, wherever they are."""
        self.number += number
        self.size_bytes += size_bytes
        self.of_no_copy += 0 if copies else number
        for name in copies:
            self.by_copy[name] = self.by_copy.get(name, 0) + number

    def add(self, at: Range, copies: Sequence[str]) -> None:
        self.add_many(1, at.length, copies)
        if len(self.places) < MOST_PLACES:
            self.places.append(at)


@dataclass(slots=True)
class Tally:
    """`again`: of all these, damage that came back after a repair."""

    by_fate: dict[Fate, Sum] = field(default_factory=lambda: {fate: Sum() for fate in Fate})
    again: Sum = field(default_factory=Sum)

    def add(self, at: Range, copies: Sequence[str], fate: Fate, *, recurring: bool) -> None:
        self.by_fate[fate].add(at, copies)
        if recurring:
            self.again.add(at, copies)

    @property
    def number(self) -> int:
        return sum(one.number for one in self.by_fate.values())

    @property
    def open(self) -> int:
        """Findings that are not known to be repaired."""
        return self.number - self.by_fate[Fate.REPAIRED].number - self.by_fate[Fate.RESOLVED].number
