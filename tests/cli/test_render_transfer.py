"""What is shown after an export."""

from __future__ import annotations

from typing import Any

from qorumctl.cli import render_transfer
from qorumctl.model.export import ExportReport
from qorumctl.model.report import RangeDocument
from tests.cli.screen import screen


def shown(**keys: Any) -> str:
    values: dict[str, Any] = {
        "set": "web01",
        "path": "/x.raw",
        "format": "raw",
        "size": 1 << 20,
        "running": False,
        "exported": True,
    }
    return screen(render_transfer.export(ExportReport(**values | keys)))


def lost(count: int) -> dict[str, Any]:
    ranges = [RangeDocument(offset=1024 * n, length=512) for n in range(count)]
    return {"no_majority": ranges, "no_majority_bytes": 512 * count}


def test_all_of_it() -> None:
    assert shown() == "web01 is exported to /x.raw (raw, 1 MiB)."
    assert shown(running=True) == "web01 is exported to /x.raw (raw, 1 MiB), as of one moment while it ran."


def test_nothing() -> None:
    said = shown(exported=False, **lost(1))
    assert said.startswith("Nothing was exported: web01 has no majority in 1 range, 512 B.\n  offset 0, 512 bytes")
    assert "--partial" in said


def test_a_part_and_many_ranges() -> None:
    said = shown(**lost(30))
    assert "instead of data: 30 ranges, 15 KiB." in " ".join(said.split())
    assert "  ... and 10 more (--json lists all)" in said
    assert "offset 20480" not in said


def test_names_of_files_cannot_play_with_the_terminal() -> None:
    assert "\x1b" not in shown(path="/x\x1b[31m")
