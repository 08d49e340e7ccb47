"""Pacing: how fast the engine may read."""

from __future__ import annotations

from collections.abc import Callable

from qorumctl.scrub.ports import Clock

_STEP_S = 0.1
"""The longest sleep: Ctrl-C, pause and Ctrl-Z are answered within it."""


_BURST_S = 0.5
"""Time not used that may be caught up with: reading itself takes time, and would else be added to the pause. No more,
since a burst after a long confirmation would exceed the cap."""


class Pacer:
    """Keeps a long-term rate of at most `rate_bytes_per_s`, per copy. None: as fast as the copies answer."""

    def __init__(self, rate_bytes_per_s: int | None, clock: Clock, wants_quiet: Callable[[], bool]) -> None:
        self._rate = rate_bytes_per_s
        self._clock = clock
        self._wants_quiet = wants_quiet
        self._free_at_s = clock.now_s()

    def spend(self, count_bytes: int) -> None:
        """Accounts for bytes read, and sleeps until more may be read or someone wants quiet."""
        if self._rate is None:
            return
        self._free_at_s = max(self._free_at_s, self._clock.now_s() - _BURST_S) + count_bytes / self._rate
        while (left_s := self._free_at_s - self._clock.now_s()) > 0 and not self._wants_quiet():
            self._clock.sleep(min(left_s, _STEP_S))
