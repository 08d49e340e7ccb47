"""Pacing: how fast the engine may read. Pure but for its ports: a clock, and a count of what the daemon has worked."""

from __future__ import annotations

from collections.abc import Callable

from qorumctl.scrub.ports import Clock
from qorumctl.units import KIB

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


PIECE_BYTES = 128 * KIB
"""Read at once of each copy while guests work, one request at a time: a guest's request waits behind it."""
LISTEN_S = 0.02
LISTEN_EVERY_S = 1.0
"""2 % of the time, and so of an idle set's speed, are spent listening."""
QUIET_S = 1.0
"""Of rest in which the daemon did nothing, before the scrub takes guests to be at rest."""
_NOTHING = 0.002
"""The part of a rest that a daemon works which nobody uses, at most: 40 us in 20 ms, less than a few requests cost."""
_SETTLE_S = 0.001
"""After a read, before the daemon is listened to: it has still to finish with the reply that has already arrived."""
_REST_TIMES = 49
"""A rest is so much longer than the read before it: the slower storage answers, the less of it is used."""
_REST_LEAST_S = 0.05
"""Of a guest that asks for as much as two processors can do, the 99th percentile beside a scrub that is held back was
1.5 times that without one with 10 ms and 9 times, 1.2 with 25 ms and 24 times, 1.1 with these (docs/performance.md)."""
_REST_MOST_S = 0.1
"""So that a scrub never stops: 128 KiB of each copy in this time and what the read takes, 1.2 MiB/s at worst unless
the copies themselves are slower."""


class Courtesy:
    """Holds the scan back while guests work. Two states, as ZFS's scan has: at full speed, and held back.

    `worked_s` counts what the set's daemon has worked since it began, in seconds, whoever for (None: it cannot be
    told). While nothing of ours is outstanding, all of that is guests'. So nothing needs to be learnt: at full speed
    the scan falls silent for a moment now and then, between segments, and listens; held back, each rest between two
    reads is such a moment.

    What was tried and given up: to go by the latency of our own reads, against the least of a window. It cannot tell a
    guest from our own reads or a busy processor, and a guest that asks for little does not slow them, but feels them.
    """

    def __init__(self, worked_s: Callable[[], float | None], clock: Clock, wants_quiet: Callable[[], bool]) -> None:
        self._worked_s = worked_s
        self._clock = clock
        self._wants_quiet = wants_quiet
        self._listened_at_s: float | None = None
        self._quiet_s = self._heard_s = 0.0
        self.holding = False
        """Guests work, and the scan gives way."""

    def listen(self) -> None:
        """Between segments, with nothing outstanding."""
        if self.holding:
            return
        now_s = self._clock.now_s()
        if self._listened_at_s is None or now_s - self._listened_at_s >= LISTEN_EVERY_S:
            slept_s, heard_s = self._silence(LISTEN_S)
            self._listened_at_s = self._clock.now_s()
            self._hold(heard_s > slept_s * _NOTHING)

    def rest(self, took_s: float) -> None:
        """Held back, after a read that took so long, with nothing outstanding."""
        slept_s, heard_s = self._silence(min(_REST_MOST_S, max(_REST_LEAST_S, took_s * _REST_TIMES)))
        self._quiet_s += slept_s
        self._heard_s += heard_s
        if self._heard_s > QUIET_S * _NOTHING:
            self._quiet_s = self._heard_s = 0.0
        elif self._quiet_s >= QUIET_S:
            self._hold(False)
            self._listened_at_s = self._clock.now_s()

    def _hold(self, holding: bool) -> None:
        self.holding = holding
        self._quiet_s = self._heard_s = 0.0

    def _silence(self, seconds: float) -> tuple[float, float]:
        """Sleeps, unless someone wants quiet: how long that was, and what the daemon worked meanwhile."""
        if self._wants_quiet():
            return 0.0, 0.0
        self._clock.sleep(_SETTLE_S)
        before_s, began_s = self._worked_s(), self._clock.now_s()
        self._clock.sleep(seconds)
        after_s, slept_s = self._worked_s(), self._clock.now_s() - began_s
        return slept_s, 0.0 if before_s is None or after_s is None else after_s - before_s
