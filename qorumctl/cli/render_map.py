"""The map of a disk as lines of characters, one for each copy: for terminals, and for logs without one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qorumctl.cli.render import words
from qorumctl.core.disk_map import Cell, DiskMap, Mark, disk_map
from qorumctl.core.findings import Fate
from qorumctl.model import digest
from qorumctl.model.report import ScrubReport
from qorumctl.units import format_size

MEANINGS: Mapping[Fate, str] = {
    Fate.REPAIRED: "repaired",
    Fate.RESOLVED: "resolved by decision",
    Fate.PENDING: "being repaired",
    Fate.LEFT: "still damaged",
    Fate.TIED: "no majority",
}
_UNICODE: Mapping[Fate, str] = {
    Fate.REPAIRED: "●",
    Fate.RESOLVED: "■",
    Fate.PENDING: "◆",
    Fate.LEFT: "▲",
    Fate.TIED: "✕",
}
_ASCII: Mapping[Fate, str] = {Fate.REPAIRED: "o", Fate.RESOLVED: "#", Fate.PENDING: "?", Fate.LEFT: "!", Fate.TIED: "X"}
_STYLES = {
    Fate.REPAIRED: "green",
    Fate.RESOLVED: "green",
    Fate.PENDING: "yellow",
    Fate.LEFT: "bold yellow",
    Fate.TIED: "bold red",
}
_MOST_CELLS = 64
"""A power of two, as sizes of disks are multiples of one: the cells of 64 GiB are of 1 GiB."""
_FEWEST_CELLS = 8
_EDGE = 2
_NOBODY = "-"
"""For findings that blame no copy, as in the table of findings."""


class DiskMapLines:
    """Draws itself as wide as there is room. Each cell shows the worst of what was found in it. `marks`: of all
    findings, where the report comes without them; gone through once."""

    def __init__(self, report: ScrubReport, marks: Iterable[Mark] | None = None) -> None:
        self._report = report
        self._marks = map(digest.mark, report.findings) if marks is None else marks
        self._compared = digest.compared(report)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        signs = _ASCII if options.ascii_only else _UNICODE
        equal, unknown = ("-", ".") if options.ascii_only else ("─", "·")
        label = max(len(name) for name in [*self._compared, _NOBODY]) + _EDGE
        room = max(_FEWEST_CELLS, options.max_width - label - 1)
        made = disk_map(
            self._report.size,
            self._compared,
            self._marks,
            most_cells=min(_MOST_CELLS, room),
        )
        for name, cells in made.lanes.items():
            line = Text(f"{name or _NOBODY:>{label}} ", no_wrap=True)
            for cell in cells:
                line.append_text(_sign(cell, signs, equal, unknown))
            yield line
        number = len(made.ranges)
        yield Text(" " * (label + 1) + _axis(made.size_bytes, number), style="dim", no_wrap=True)
        yield words("; ".join(_legend(made, signs, unknown)))


def _sign(cell: Cell, signs: Mapping[Fate, str], equal: str, unknown: str) -> Text:
    if cell.fate is not None:
        return Text(signs[cell.fate], style=_STYLES[cell.fate])
    return Text(equal if cell.compared else unknown, style="dim")


def _axis(size_bytes: int, cells: int) -> str:
    """`0`, the middle where there is room, and the disk's size, which ends where the lane does."""
    end = format_size(size_bytes)
    if cells < len(end) + _EDGE:
        return f"0 .. {end}"
    middle = format_size(size_bytes // 2)
    free = cells - 1 - len(end)
    if size_bytes % 2 or free < len(middle) + 2 * _EDGE or len(middle) > cells // 4:
        return f"0{' ' * free}{end}"
    before = cells // 2 - 1
    return f"0{' ' * before}{middle}{' ' * (free - before - len(middle))}{end}"


def _legend(made: DiskMap, signs: Mapping[Fate, str], unknown: str) -> Iterator[str]:
    """Of what is drawn."""
    drawn = {cell.fate for cells in made.lanes.values() for cell in cells}
    yield from (f"{signs[fate]} {MEANINGS[fate]}" for fate in Fate if fate in drawn)
    if not made.all_compared:
        yield f"{unknown} not compared"
    yield f"a character is {format_size(made.ranges[0].length)}"
