"""How far a scrub is -> a bar, or lines for a log. Pure."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table

from qorumctl.cli.render import words
from qorumctl.cli.text import counted, percent
from qorumctl.controller.observer import ScrubPosition, ScrubStart
from qorumctl.units import format_duration, format_size


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
    if position.held_back:
        facts.append("held back for guests")
    return facts if position.findings is None else [*facts, counted(position.findings, "finding")]
