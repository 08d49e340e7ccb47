"""Signals while a scrub runs. None of them ends the process in the middle of something: each asks the run to stop or to
suspend, which it does once nothing of its own is outstanding in the daemon: a half-read reply would hold up a drain."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from qorumctl.cli import exit_codes
from qorumctl.controller.observer import StopReason

if TYPE_CHECKING:
    from qorumctl.cli.outlet import Outlet
    from qorumctl.cli.progress import Display
    from qorumctl.controller.observer import ScrubControl, ScrubPosition, ScrubStart

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT)
_ENOUGH = 3
"""Ctrl-C this often ends the process at once. State is crash-safe: the run still resumes."""


class Steering:
    """`interrupted`: Ctrl-C. `stopped`: that or SIGTERM; nothing more is to be begun."""

    def __init__(self, outlet: Outlet, control: ScrubControl, shown: Display) -> None:
        self.control = control
        self.interruptions = 0
        self.terminated = False
        self._outlet = outlet
        self._shown = shown

    @property
    def interrupted(self) -> bool:
        return self.interruptions > 0

    @property
    def stopped(self) -> bool:
        return self.interrupted or self.terminated

    def handle(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGINT:
                self._interrupt()
            case signal.SIGTERM:
                self.terminated = True
                self.control.stop(StopReason.INTERRUPTED)
            case signal.SIGTSTP:
                self._shown.hide()
                self.control.suspend()
            case signal.SIGCONT:
                self._shown.unhide()

    def _interrupt(self) -> None:
        self.interruptions += 1
        self.control.stop(StopReason.INTERRUPTED)
        if self.interruptions == 1:
            self._outlet.note("Stopping once what was begun is done ...")
        elif self.interruptions < _ENOUGH:
            self._outlet.note("Still at it; once more ends it at once, and the run can be resumed all the same.")
        else:
            self._shown.hide()
            self._outlet.note("qorumctl: Interrupted; the run can be resumed.")
            os._exit(exit_codes.INTERRUPTED)


@contextmanager
def steered(steering: Steering) -> Iterator[None]:
    """Within an event loop: signals go to `steering`."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, steering.handle, number)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


class SteerOnceStarted:
    """An Observer for commands that may scrub on the way (`start`). Until the scrub begins, Ctrl-C and SIGTERM cancel
    the command, which then undoes what it began; from then on signals are for the scrub."""

    def __init__(self, shown: Display, steering: Steering) -> None:
        self._shown = shown
        self._steering = steering
        self._scrubbing = False
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.cancelled_by: signal.Signals | None = None

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._handle, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)

    def started(self, start: ScrubStart) -> None:
        # In the engine's thread. Before anybody can see that the scrub has begun, and press Ctrl-C.
        self._scrubbing = True
        self._shown.started(start)

    def moved(self, position: ScrubPosition) -> None:
        self._shown.moved(position)

    def _handle(self, number: signal.Signals) -> None:
        if self._scrubbing:
            self._steering.handle(number)
        elif number is signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif number in {signal.SIGINT, signal.SIGTERM} and self._task is not None:
            self.cancelled_by = number
            self._task.cancel()
