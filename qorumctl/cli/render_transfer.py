"""After `export` -> what is shown. Pure."""

from __future__ import annotations

from rich.console import RenderableType

from qorumctl.cli.render import words
from qorumctl.cli.text import counted, printable
from qorumctl.model.export import ExportReport
from qorumctl.units import format_size

_MOST_RANGES = 20


def export(done: ExportReport) -> list[RenderableType]:
    lost = done.no_majority
    path = printable(done.path)
    if not lost:
        moment = ", as of one moment while it ran" if done.running else ""
        return [words(f"{done.set} is exported to {path} ({done.format}, {format_size(done.size)}){moment}.")]
    what = f"{counted(len(lost), 'range')}, {format_size(done.no_majority_bytes)}"
    lines = [f"  offset {r.offset}, {r.length} bytes" for r in lost[:_MOST_RANGES]]
    if len(lost) > _MOST_RANGES:
        lines.append(f"  ... and {len(lost) - _MOST_RANGES} more (--json lists all)")
    if done.exported:
        head = f"{done.set} is exported to {path} in part. What has no majority holds a marker instead of data: {what}."
    else:
        head = f"Nothing was exported: {done.set} has no majority in {what}."
    tail = [] if done.exported else ["--partial exports all the rest, with a marker in their place."]
    return [words(line) for line in (head, *lines, *tail)]
