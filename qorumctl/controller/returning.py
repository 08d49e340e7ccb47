"""How far the return of a copy is: told to whoever follows it; and whether it is to go on."""

from __future__ import annotations

import os
import signal
import time

from qorumctl.controller.observer import Observer, ScrubControl, ScrubPosition, ScrubStart
from qorumctl.core.progress import Progress
from qorumctl.errors import QorumError
from qorumctl.model.spec import SetSpec

_TELL_EVERY_S = 0.1


class Interrupted(QorumError):
    code = "interrupted"


class Teller:
    """Tells the observer how far it is, and asks the control whether to go on."""

    def __init__(self, spec: SetSpec, name: str, observer: Observer, control: ScrubControl) -> None:
        self._spec = spec
        self._name = name
        self._observer = observer
        self._control = control
        self._progress = Progress(1)
        self._told_at_s = 0.0
        self._stoppable = True

    def begin(self, work: str, size_bytes: int, at_bytes: int, *, stoppable: bool = True) -> None:
        self._stoppable = stoppable
        self._progress = Progress(size_bytes, at_bytes)
        words = f"copy {self._name}, {work}"
        start = ScrubStart(self._spec.name, 0, "rejoin", size_bytes, at_bytes or None, recovery=False, work=words)
        self._observer.started(start)

    def moved(self, position_bytes: int, after_bytes: int = 0) -> None:
        """`after_bytes`: what came before that. Gaps that are copied along count, too."""
        now_s = time.monotonic()
        progress = self._progress
        position_bytes = min(progress.size_bytes, after_bytes + position_bytes)
        progress.advance(position_bytes, now_s)
        if now_s - self._told_at_s >= _TELL_EVERY_S or position_bytes == progress.size_bytes:
            self._told_at_s = now_s
            self._observer.moved(
                ScrubPosition(
                    position_bytes,
                    progress.size_bytes,
                    position_bytes,
                    progress.rate_bytes_per_s,
                    progress.eta_s,
                    None,
                )
            )

    def pause(self) -> None:
        """With nothing of ours outstanding. Raises Interrupted."""
        if self._control.suspend_requested:
            self._control.resumed()
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._stoppable and self._control.reason is not None:
            raise Interrupted(
                f"Interrupted: copy {self._name} of {self._spec.name} is still away.",
                remedy="The same command goes on where it was.",
                set_name=self._spec.name,
                copy=self._name,
            )
