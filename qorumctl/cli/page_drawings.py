"""Where the shapes of a report's drawings go: the map of the disk, and the findings of each copy over time. Pure.

Numbers are units of the drawing's own coordinates. Each drawing comes in two widths: for a screen or a sheet of paper,
and for a narrow window, in which shapes scaled down could not be told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from qorumctl.cli.render import covered
from qorumctl.cli.render_map import MEANINGS
from qorumctl.cli.text import counted, moment
from qorumctl.core.disk_map import NO_COPY, Cell, DiskMap
from qorumctl.core.findings import Fate
from qorumctl.model.report import RunSummary
from qorumctl.store.totals import FatesByRun
from qorumctl.units import format_size


@dataclass(frozen=True, slots=True)
class Frame:
    """How wide a drawing is, how wide a letter of a copy's name in it, and how much goes into it."""

    name: str
    width: float
    letter: float
    letters: int
    """Of a copy's name; the rest is in its title."""
    cells: int
    runs: int

    def label(self, names: Iterable[str]) -> float:
        """The room on the left for the names of the copies."""
        longest = max((len(name or _NOBODY) for name in names), default=0)
        return _GAP + self.letter * min(self.letters, longest)


_NOBODY = "no copy"
_GAP = 16
WIDE = Frame("wide", 1000, letter=8.2, letters=14, cells=64, runs=24)
NARROW = Frame("narrow", 360, letter=7, letters=7, cells=24, runs=8)
_HEIGHTS = {Fate.REPAIRED: 18, Fate.RESOLVED: 18, Fate.PENDING: 18, Fate.LEFT: 26, Fate.TIED: 30}
"""The worse, the higher: told apart without colours, too."""
_LANE, _BAND, _COUNT = 52, 8, 14
_EDGE = 1
_CHART_LANE, _CHART_BAR, _LEAST_BAR = 66, 42, 4
_SLOT_AT_MOST = 76


@dataclass(frozen=True, slots=True)
class Shape:
    """A rectangle with a sign in it. `kind`: a fate's name, `equal` or `unseen`. `finding`: that it leads to. `count`:
    stands above it."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str
    finding: int | None = None
    count: str = ""
    tight: bool = False
    """Its neighbours have counts, too: a long one is set smaller."""

    @property
    def middle_x(self) -> float:
        return self.x + self.width / 2

    @property
    def middle_y(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Lane:
    """`name`: the whole one, of a copy."""

    name: str
    label: str
    y: float
    shapes: list[Shape]


@dataclass(frozen=True, slots=True)
class Label:
    x: float
    text: str
    anchor: str
    below: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    frame: Frame
    left: float
    """Where the lanes begin."""
    height: float
    lanes: list[Lane]
    labels: list[Label] = field(default_factory=list)


def copy_called(name: str) -> str:
    return f"copy {name}" if name != NO_COPY else _NOBODY


def fates_in_words(counts: Mapping[Fate, int]) -> str:
    """`3 findings: 1 still damaged, 2 repaired`."""
    return f"{counted(sum(counts.values()), 'finding')}: {fates_only(counts)}"


def fates_only(counts: Mapping[Fate, int]) -> str:
    """`1 still damaged, 2 repaired`."""
    return ", ".join(f"{counts[fate]:,} {MEANINGS[fate]}" for fate in reversed(Fate) if counts.get(fate))


def compact(number: int) -> str:
    """At most three or four characters: `7`, `999`, `12k`, `3M`. Never more than there are."""
    for factor, unit in ((10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number // factor}{unit}"
    return str(number)


def _lane(frame: Frame, name: str, y: float, shapes: list[Shape]) -> Lane:
    label = name or _NOBODY
    return Lane(name, label if len(label) <= frame.letters else f"{label[: frame.letters - 1]}…", y, shapes)


# -- the map


def map_drawing(made: DiskMap, frame: Frame, listed: frozenset[int]) -> Drawing:
    """`listed`: findings that the page has a line for, so that a cell can lead to it."""
    left = frame.label(made.lanes)
    unit = (frame.width - left - _EDGE) / made.size_bytes
    lanes = []
    for number, (name, cells) in enumerate(made.lanes.items()):
        y = number * _LANE + _LANE / 2 + _COUNT / 2
        shapes = [*_bands(name, cells, left, unit, y), *_damage(name, cells, left, unit, y, listed)]
        lanes.append(_lane(frame, name, y, shapes))
    bottom = len(lanes) * _LANE + _COUNT / 2
    quarters = [made.size_bytes * i // 4 for i in range(5)]
    if frame is NARROW:
        quarters = quarters[::2]
    labels = [
        Label(
            left + at * unit,
            format_size(at) if at else "0",
            "start" if at == 0 else "end" if at == made.size_bytes else "middle",
        )
        for at in quarters
    ]
    return Drawing(frame, left, bottom + 30, lanes, labels)


def _bands(name: str, cells: Sequence[Cell], left: float, unit: float, y: float) -> Iterator[Shape]:
    """What lies between the damage: compared and equal, or not looked at."""
    for compared, some in groupby(cells, key=lambda cell: cell.compared):
        run = list(some)
        start, end = run[0].range.offset, run[-1].range.end
        kind, what = ("equal", "compared") if compared else ("unseen", "not compared, or not all of it")
        title = f"{copy_called(name)}, {_place(start, end)}: {what}"
        yield Shape(left + start * unit, y - _BAND / 2, (end - start) * unit, _BAND, kind, title)


def _damage(
    name: str, cells: Sequence[Cell], left: float, unit: float, y: float, listed: frozenset[int]
) -> Iterator[Shape]:
    for cell in cells:
        if cell.worst is None:
            continue
        fate, finding = cell.worst
        height = _HEIGHTS[fate]
        title = f"{copy_called(name)}, {_place(cell.range.offset, cell.range.end)}: {fates_in_words(cell.counts)}"
        yield Shape(
            left + cell.range.offset * unit + 0.75,
            y - height / 2,
            cell.range.length * unit - 1.5,
            height,
            fate.name.lower(),
            title,
            finding if finding in listed else None,
            compact(cell.number) if cell.number > 1 else "",
            tight=True,
        )


def _place(start: int, end: int) -> str:
    return f"{format_size(start) if start else '0'} to {format_size(end)} (bytes {start} to {end - 1})"


# -- over time


def chart_drawing(
    runs: Sequence[RunSummary], fates: FatesByRun, copies: Sequence[str], frame: Frame, this_run: int
) -> Drawing:
    """`runs`: newest first; drawn from the left, the oldest of the last few first. All lanes have one scale."""
    shown = list(reversed(runs[: frame.runs]))
    names = [*copies, *sorted({name for run in shown for name in fates.get(run.run, {})} - set(copies))]
    left = frame.label(names)
    slot = min(_SLOT_AT_MOST, (frame.width - left - _EDGE) / max(1, len(shown)))
    most = max((sum(of.values()) for run in shown for of in fates.get(run.run, {}).values()), default=0)
    lanes = []
    for number, name in enumerate(names):
        base = (number + 1) * _CHART_LANE
        shapes = [
            shape
            for place, run in enumerate(shown)
            for shape in _column(name, run, fates.get(run.run, {}).get(name, {}), left + place * slot, slot, base, most)
        ]
        lanes.append(_lane(frame, name, base, shapes))
    labels = [
        Label(
            left + (place + 0.5) * slot,
            f"{run.run}" + ("*" if run.run == this_run else ""),
            "middle",
            run.started[5:10],
        )
        for place, run in enumerate(shown)
    ]
    return Drawing(frame, left, len(names) * _CHART_LANE + 40, lanes, labels)


def _column(
    name: str, run: RunSummary, counts: Mapping[Fate, int], x: float, slot: float, base: float, most: int
) -> Iterator[Shape]:
    """Stacked, the repaired lowest. The least finding has a height that can be seen: the number above is the truth."""
    width = min(22.0, slot * 0.66)
    left = x + (slot - width) / 2
    about = f"run {run.run}, {moment(run.started)}, {run.outcome}, {covered(run)} covered: {copy_called(name)}"
    total, y = sum(counts.values()), base
    if not total:
        yield Shape(left, base - 2, width, 2, "equal", f"{about}: no finding")
        return
    for fate in Fate:
        if number := counts.get(fate, 0):
            height = max(_LEAST_BAR, _CHART_BAR * number / most)
            y -= height
            top = fate == max(counts)
            yield Shape(
                left, y, width, height, fate.name.lower(), f"{about}: {fates_in_words(counts)}",
                count=compact(total) if top else "",
            )  # fmt: skip
