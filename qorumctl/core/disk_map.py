"""A disk as a row of cells for each copy: which parts of it were damaged, and what became of that. Pure.

However many findings a cell stands for, each is counted in every cell that it reaches into, in the lane of every copy
that it blames; one that blames no copy is in a lane of its own. So a single sector of a disk of 64 TiB is on the map.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from qorumctl.core.findings import Fate
from qorumctl.core.ranges import SECTOR_BYTES, Range, between

NO_COPY = ""
"""The lane of findings that blame nobody: after an unclean stop."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A finding as the map sees it."""

    id: int
    range: Range
    copies: Sequence[str]
    fate: Fate


@dataclass(slots=True)
class Cell:
    """A part of the disk, in one lane. `counts`: findings that reach into it, by what became of them. `worst`: one of
    those that ended worst, the first that was met. `compared`: the run has looked at all of it."""

    range: Range
    compared: bool
    counts: dict[Fate, int] = field(default_factory=dict)
    worst: tuple[Fate, int] | None = None

    @property
    def fate(self) -> Fate | None:
        return self.worst[0] if self.worst else None

    @property
    def number(self) -> int:
        return sum(self.counts.values())

    def add(self, mark: Mark) -> None:
        self.counts[mark.fate] = self.counts.get(mark.fate, 0) + 1
        if self.worst is None or mark.fate > self.worst[0]:
            self.worst = (mark.fate, mark.id)


class DiskMap:
    """Made of marks one after the other: it does not grow with them."""

    def __init__(self, size_bytes: int, compared: Mapping[str, Range | None], most_cells: int) -> None:
        """`compared`: copy -> what the run has looked at of it so far; None is nothing. `most_cells`: a lane of a small
        disk has fewer, since none is shorter than a sector."""
        if size_bytes <= 0 or most_cells <= 0:
            raise ValueError(f"no map: {size_bytes} bytes in {most_cells} cells")
        self.size_bytes = size_bytes
        self._starts = _starts(size_bytes, most_cells)
        self.lanes: dict[str, list[Cell]] = {name: self._lane(within) for name, within in compared.items()}
        # Of what a finding tells, the run has compared as much as of any copy.
        self._most = max((within for within in compared.values() if within), key=lambda at: at.length, default=None)

    @property
    def ranges(self) -> list[Range]:
        """Those of the cells of each lane: whole sectors, one after the other, all of the disk."""
        return [between(*ends) for ends in zip(self._starts, [*self._starts[1:], self.size_bytes], strict=True)]

    @property
    def fates(self) -> set[Fate]:
        return {fate for cells in self.lanes.values() for cell in cells for fate in cell.counts}

    @property
    def all_compared(self) -> bool:
        return all(cell.compared for cells in self.lanes.values() for cell in cells)

    def add(self, mark: Mark) -> None:
        # A place beyond the disk's end can only be a mistake in a record, and is shown rather than dropped.
        first, last = self._cell_at(mark.range.offset), self._cell_at(mark.range.end - 1)
        for name in mark.copies or (NO_COPY,):
            if name not in self.lanes:
                self.lanes[name] = self._lane(self._most)
            for cell in self.lanes[name][first : last + 1]:
                cell.add(mark)

    def _cell_at(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1

    def _lane(self, within: Range | None) -> list[Cell]:
        return [Cell(at, within is not None and within.contains(at)) for at in self.ranges]


def _starts(size_bytes: int, most_cells: int) -> list[int]:
    sectors = -(-size_bytes // SECTOR_BYTES)
    number = min(most_cells, sectors)
    return [sectors * i // number * SECTOR_BYTES for i in range(number)]


def disk_map(
    size_bytes: int, compared: Mapping[str, Range | None], marks: Iterable[Mark], *, most_cells: int
) -> DiskMap:
    made = DiskMap(size_bytes, compared, most_cells)
    for mark in marks:
        made.add(mark)
    return made
