"""How far the work on a copy is: told to whoever follows it; whether it is to go on, and how fast."""

from __future__ import annotations

import time

from qorumctl.controller.observer import Observer, ScrubControl, ScrubPosition, ScrubStart
from qorumctl.core.progress import Progress
from qorumctl.errors import QorumError
from qorumctl.model.spec import SetSpec
from qorumctl.scrub.pacing import Pacer

_TELL_EVERY_S = 0.1


class WallClock:
    def now_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Interrupted(QorumError):
    code = "interrupted"


class Teller:
    """Tells the observer how far it is, and asks the control whether to go on. `who`: what is worked on; `standing`:
    where things are when it is interrupted, as words behind a colon. `rate_bytes_per_s`: the most that is read.
    `brief`: what takes a moment is brought to its end all the same."""

    def __init__(
        self,
        spec: SetSpec,
        who: str,
        command: str,
        standing: str,
        observer: Observer,
        control: ScrubControl,
        rate_bytes_per_s: int | None = None,
        *,
        brief: bool = False,
    ) -> None:
        self._spec = spec
        self._who = who
        self._command = command
        self._standing = standing
        self._observer = observer
        self._control = control
        self._progress = Progress(1)
        self._told_at_s = 0.0
        self._brief = brief
        self._stoppable = True
        self._pacer = Pacer(rate_bytes_per_s, WallClock(), self._wants_quiet)

    def begin(
        self, work: str, size_bytes: int, at_bytes: int, *, stoppable: bool = True, takes_long: bool = False
    ) -> None:
        self._stoppable = stoppable and (takes_long or not self._brief)
        self._progress = Progress(size_bytes, at_bytes)
        words = f"{self._who}, {work}"
        start = ScrubStart(self._spec.name, 0, self._command, size_bytes, at_bytes or None, recovery=False, work=words)
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

    def spend(self, count_bytes: int) -> None:
        """Accounts for what was read of each copy, and waits until more may be."""
        self._pacer.spend(count_bytes)

    def _wants_quiet(self) -> bool:
        return self._control.suspend_requested or self._control.reason is not None

    def pause(self) -> None:
        """With nothing of ours outstanding. Raises Interrupted."""
        if self._control.suspend_requested:
            self._control.stop_here()
        if self._stoppable and self._control.reason is not None:
            raise Interrupted(
                f"Interrupted: {self._standing}.",
                remedy="The same command goes on where it was.",
                set_name=self._spec.name,
            )
