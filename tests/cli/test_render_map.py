"""The map of a disk in characters: on terminals of any width, and where there are only ASCII's."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qorumctl.cli.render_map import DiskMapLines
from qorumctl.model.report import ScrubReport
from tests.cli.documents import GIB, finding, report
from tests.cli.screen import screen, text
from tests.cli.test_render_scrub import TIED


def ascii_screen(document: ScrubReport) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    console = Console(file=stream, width=80)
    console.print(DiskMapLines(document))
    stream.flush()
    stream.seek(0)
    return "\n".join(line.rstrip() for line in stream.read().splitlines())


DAMAGED = report(
    finding(1, 0),
    finding(2, 5 * GIB, action="left", copies=["a"]),
    finding(3, 6 * GIB, action="pending"),
    finding(4, 9 * GIB, **TIED),
    outcome="unfinished",
    scanned_bytes=10 * GIB,
)


def test_a_terminal_without_unicode() -> None:
    assert ascii_screen(DAMAGED) == text(
        """
  a ----------------!-----------X---................................
  b o------------------?--------X---................................
  c ----------------------------X---................................
    0                               10 GiB                    20 GiB
o repaired; ? being repaired; ! still damaged; X no majority; . not compared; a
character is 320 MiB
"""
    )


def test_a_narrow_window_has_fewer_cells() -> None:
    assert screen([DiskMapLines(DAMAGED)], width=38) == text(
        """
  a ────────▲──────✕─·················
  b ●─────────◆────✕─·················
  c ───────────────✕─·················
    0                10 GiB     20 GiB
● repaired; ◆ being repaired; ▲ still
damaged; ✕ no majority; · not
compared; a character is 602 MiB
"""
    )


@pytest.mark.parametrize("width", [16, 20, 40, 79, 80, 200])
def test_it_fits(width: int) -> None:
    assert max(map(len, screen([DiskMapLines(DAMAGED)], width=width).splitlines())) <= width


@pytest.mark.parametrize(("size", "cells"), [(512, 1), (5 * 512, 5), (1000 * 512, 64)])
def test_a_small_disk(size: int, cells: int) -> None:
    lines = screen([DiskMapLines(report(size=size, scanned_bytes=size))]).splitlines()
    assert lines[0] == f"  a {'─' * cells}"
    assert len(lines) == 5


def test_names_of_any_length() -> None:
    document = report(finding(copies=["a-name-of-twenty-four-ch"]), read_bytes={"a": 1})
    lines = screen([DiskMapLines(document)]).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].startswith("  a-name-of-twenty-four-ch ●")
