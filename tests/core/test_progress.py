"""Where a scrub stands, from positions and times alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorumctl.core.progress import Progress


def test_nothing_is_known_before_two_marks() -> None:
    progress = Progress(1000)
    assert (progress.fraction, progress.rate_bytes_per_s, progress.eta_s) == (0.0, None, None)
    progress.advance(100, now_s=5.0)
    assert (progress.fraction, progress.rate_bytes_per_s, progress.eta_s) == (0.1, None, None)


def test_rate_and_eta() -> None:
    progress = Progress(1000)
    progress.advance(0, now_s=10.0)
    progress.advance(250, now_s=15.0)
    assert progress.rate_bytes_per_s == 50.0
    assert progress.eta_s == 15.0


def test_a_resumed_scrub_is_not_credited_with_what_an_earlier_run_read() -> None:
    progress = Progress(1000, position_bytes=600)
    assert progress.fraction == 0.6
    progress.advance(600, now_s=0.0)
    progress.advance(610, now_s=1.0)
    assert progress.rate_bytes_per_s == 10.0
    assert progress.eta_s == 39.0


def test_two_marks_at_one_time_have_no_rate() -> None:
    progress = Progress(1000)
    progress.advance(0, now_s=1.0)
    progress.advance(500, now_s=1.0)
    assert progress.rate_bytes_per_s is None
    assert progress.eta_s is None


def test_a_scrub_that_stands_still_has_no_eta() -> None:
    progress = Progress(1000)
    progress.advance(500, now_s=1.0)
    progress.advance(500, now_s=2.0)
    assert progress.rate_bytes_per_s == 0.0
    assert progress.eta_s is None


def test_the_rate_follows_the_last_twenty_seconds() -> None:
    progress = Progress(10_000_000)
    position = 0
    for second in range(60):
        position += 1000 if second < 30 else 10
        progress.advance(position, now_s=float(second))
    assert progress.rate_bytes_per_s == pytest.approx(10.0)


def test_an_empty_disk_is_done() -> None:
    assert Progress(0).fraction == 1.0


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 100)), min_size=2, max_size=50))
def test_memory_is_bounded_by_the_window_and_the_rate_is_never_negative(steps: list[tuple[float, int]]) -> None:
    progress, now, position = Progress(100_000), 0.0, 0
    for elapsed, read in steps:
        now, position = now + elapsed, position + read
        progress.advance(position, now)
    rate = progress.rate_bytes_per_s
    assert rate is None or rate >= 0
    assert 0 <= progress.fraction <= 1
    assert len(progress._marks) <= len(steps)
    assert progress._marks[-1][0] - progress._marks[1][0] <= 20.0 or len(progress._marks) == 2
