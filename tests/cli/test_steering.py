"""What signals ask of a scrub, one by one; tests/cli/test_scrub.py sends them to a real one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from qorumctl.cli.outlet import Outlet
from qorumctl.cli.progress import line_is_due
from qorumctl.cli.steering import Steering
from qorumctl.controller.observer import ScrubControl, ScrubPosition, ScrubStart, StopReason


class Shown:
    """A display that tells what it was told."""

    def __init__(self) -> None:
        self.hidden = False

    def started(self, start: ScrubStart) -> None: ...

    def moved(self, position: ScrubPosition) -> None: ...

    def hide(self) -> None:
        self.hidden = True

    def unhide(self) -> None:
        self.hidden = False


@pytest.fixture
def steering() -> Steering:
    return Steering(Outlet(), ScrubControl(), Shown())


class Exited(Exception):
    pass


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Exited

    monkeypatch.setattr(os, "_exit", end)
    return lambda: codes


def test_ctrl_c_asks_it_to_stop_and_the_third_ends_the_process(
    steering: Steering, ends: Callable[[], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    steering.handle(signal.SIGINT)
    assert steering.control.reason is StopReason.INTERRUPTED
    steering.handle(signal.SIGINT)
    assert ends() == []
    with pytest.raises(Exited):
        steering.handle(signal.SIGINT)
    assert ends() == [130]
    assert capsys.readouterr().err.splitlines() == [
        "Stopping once what was begun is done ...",
        "Still at it; once more ends it at once, and the run can be resumed all the same.",
        "qorumctl: Interrupted; the run can be resumed.",
    ]


def test_sigterm_asks_it_to_stop_and_is_no_interruption(steering: Steering) -> None:
    steering.handle(signal.SIGTERM)
    assert steering.control.reason is StopReason.INTERRUPTED
    assert (steering.stopped, steering.interrupted) == (True, False)


def test_ctrl_z_clears_the_screen_and_asks_the_engine_to_suspend(steering: Steering) -> None:
    steering.handle(signal.SIGTSTP)
    assert steering.control.suspend_requested
    assert steering.control.reason is None


@pytest.mark.parametrize(
    ("since_s", "advanced", "due"),
    [
        (1.0, 0.5, False),
        (9.9, 0.9, False),
        (10.0, 0.1, True),
        (60.0, 0.09, False),
        (600.0, 0.0, True),
    ],
)
def test_a_log_gets_a_line_every_10_percent_but_not_more_than_one_in_10_s(
    since_s: float, advanced: float, due: bool
) -> None:
    assert line_is_due(since_s, advanced) is due
