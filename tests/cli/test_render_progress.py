"""How far a scrub is, at 80 columns and in a log."""

from __future__ import annotations

from qorumctl.cli import render_progress
from qorumctl.controller.observer import ScrubPosition, ScrubStart
from tests.cli.documents import GIB, MIB
from tests.cli.screen import screen, text

START = ScrubStart("web01", 12, "repair", 20 * GIB, None, recovery=False)
POSITION = ScrubPosition(9 * GIB, 20 * GIB, 9 * GIB, 512 * MIB, 22.5, 3)


def test_a_bar() -> None:
    assert screen([render_progress.progress_bar(START, POSITION)]) == text(
        """
web01: repair scrub, run 12  ━━━━━━━━━━━━━━━━━━━━                           45 %
  9 GiB of 20 GiB, 512 MiB/s, 22s left, 3 findings
"""
    )


def test_lines_of_a_log() -> None:
    resumed = ScrubStart("web01", 12, "repair", 20 * GIB, 9 * GIB, recovery=True)
    assert render_progress.opening_line(START) == "web01: repair scrub, run 12, 20 GiB."
    assert render_progress.opening_line(resumed) == (
        "web01: recovery scrub, run 12, 20 GiB, resumed at 45 %. The set was not stopped cleanly: it is compared before"
        " guests come in."
    )
    assert render_progress.progress_line(START, POSITION) == (
        "web01: at 45 %, 9 GiB of 20 GiB, 512 MiB/s, 22s left, 3 findings"
    )
    assert render_progress.closing_line(START, POSITION, 40.2) == "web01: ended after 40s, 3 findings"
