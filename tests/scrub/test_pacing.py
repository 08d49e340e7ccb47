"""How the scan gives way to guests: a state machine over a simulated daemon, in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.ranges import Range
from qorumctl.scrub.pacing import PIECE_BYTES, QUIET_S, Courtesy
from qorumctl.scrub.ports import StopReason
from qorumctl.scrub.scan import Scanner
from qorumctl.units import MIB
from tests.scrub.world import FakeClock, Steered, plan_of

REQUEST_S = 50e-6
"""What a guest's request costs a daemon."""


class Guests:
    """So many requests per second, from a moment to another; each costs the daemon's event loop some work."""

    def __init__(self, clock: FakeClock) -> None:
        self.iops: Callable[[float], float] = lambda at_s: 0.0
        self._clock = clock
        self._worked_s = self._until_s = 0.0

    def worked_s(self) -> float | None:
        while self._until_s < self._clock.time_s - 1e-9:
            self._worked_s += self.iops(self._until_s) * 0.001 * REQUEST_S
            self._until_s += 0.001
        return self._worked_s


class World:
    """Three copies in memory that answer a chunk in `chunk_s`, and a scan that gives way."""

    def __init__(self, size_bytes: int = 64 * MIB, *, chunk_s: float = 0.001) -> None:
        self.clock = FakeClock()
        self.guests = Guests(self.clock)
        self.supervisor = Steered()
        self.asked: list[tuple[float, Range, int]] = []
        self.chunk_s = chunk_s
        data = bytearray(size_bytes)
        self.copies = [
            MemoryCopy("a", data, read_ahead=6, before_read=self._read),
            *(MemoryCopy(name, data, read_ahead=6) for name in "bc"),
        ]
        self.courtesy = Courtesy(self.guests.worked_s, self.clock, lambda: self.supervisor.wants_quiet())
        self.plan = plan_of(size_bytes)
        self.scanner = Scanner(self.copies, self.plan, self.supervisor, self.clock, self.courtesy)

    def _read(self, at: Range) -> None:
        self.asked.append((self.clock.time_s, at, self.copies[0].outstanding + 1))
        self.clock.sleep(self.chunk_s * at.length / MIB)

    def scan(self, until: Callable[[], bool] = lambda: False) -> int:
        at = 0
        while at < self.plan.size_bytes and not until():
            at = self.scanner.scan(at).end
        return at


def test_an_idle_set_is_read_at_full_speed() -> None:
    world = World(256 * MIB, chunk_s=0.02)
    world.scan()
    assert not world.courtesy.holding
    # 2 % for listening; and what is read ahead of the first segment's end is read again.
    assert world.clock.time_s == pytest.approx((256 + 6) * world.chunk_s, rel=0.025)


def test_while_guests_work_one_small_read_is_under_way_at_a_time() -> None:
    world = World(16 * MIB)
    world.guests.iops = lambda at_s: 200.0
    world.scan()
    assert world.courtesy.holding
    assert {(at.length, flying) for _, at, flying in world.asked} == {(PIECE_BYTES, 1)}


def test_guests_that_begin_are_noticed_and_guests_that_end_too() -> None:
    world = World(256 * MIB, chunk_s=0.02)
    world.guests.iops = lambda at_s: 200.0 if 1.0 <= at_s < 5.0 else 0.0
    held = []
    world.scan(until=lambda: bool(held.append((world.clock.time_s, world.courtesy.holding))))
    began_s = next(at_s for at_s, holding in held if holding)
    ended_s = next(at_s for at_s, holding in held if at_s > began_s and not holding)
    # It listens between segments, of up to 2 s each; a rest is at least four fifths of what is spent.
    assert 1.0 <= began_s <= 1.0 + 2 * world.plan.tuning.segment_s + 0.1
    assert 5.0 <= ended_s <= 5.0 + 2 * QUIET_S
    in_flight = [flying for at_s, _, flying in world.asked]
    assert max(in_flight) == 6
    assert max(flying for at_s, _, flying in world.asked if began_s <= at_s < 5.0) == 1
    assert max(flying for at_s, _, flying in world.asked if at_s > ended_s) == 6


@pytest.mark.parametrize("chunk_s", [0.001, 0.1, 5.0])
def test_it_never_stops(chunk_s: float) -> None:
    """The slower the copies answer, the longer the rests, up to a tenth of a second."""
    world = World(2 * MIB, chunk_s=chunk_s)
    world.guests.iops = lambda at_s: 100000.0
    world.scan()
    pieces = 2 * MIB / PIECE_BYTES
    assert world.clock.time_s <= 0.05 + pieces * (0.102 + chunk_s * PIECE_BYTES / MIB)


def test_the_slower_the_storage_answers_the_less_of_it_is_used() -> None:
    rates = []
    for chunk_s in (0.01, 0.02, 0.04):
        world = World(4 * MIB, chunk_s=chunk_s)
        world.guests.iops = lambda at_s: 100.0
        world.scan()
        rates.append(world.clock.time_s)
    assert rates[0] < rates[1] < rates[2]


def test_a_lone_request_holds_it_back_for_a_moment_only() -> None:
    """`status` in another terminal, say."""
    world = World(64 * MIB, chunk_s=0.02)
    world.guests.iops = lambda at_s: 1000.0 if at_s < 0.02 else 0.0
    world.scan()
    assert not world.courtesy.holding
    assert world.clock.time_s <= (64 + 6) * world.chunk_s + 3 * QUIET_S


def test_what_is_held_back_ends_its_segment_when_it_may_go_on() -> None:
    """The rest of the segment would be read a piece at a time."""
    world = World(128 * MIB, chunk_s=0.01)
    world.guests.iops = lambda at_s: 500.0 if at_s < 1.0 else 0.0
    at = world.scanner.scan(0).end
    while world.courtesy.holding:
        at = world.scanner.scan(at).end
    assert world.clock.time_s <= 1.0 + 2 * QUIET_S
    world.asked.clear()
    world.scanner.scan(at)
    assert max(flying for _, _, flying in world.asked) == 6


def test_a_daemon_that_cannot_be_listened_to_is_taken_for_idle() -> None:
    world = World(64 * MIB)
    courtesy = Courtesy(lambda: None, world.clock, world.supervisor.wants_quiet)
    scanner = Scanner(world.copies, world.plan, world.supervisor, world.clock, courtesy)
    assert scanner.scan(0).end == 64 * MIB
    assert not courtesy.holding


def test_nobody_who_wants_quiet_waits_for_a_rest() -> None:
    world = World()
    world.guests.iops = lambda at_s: 500.0
    world.scanner.scan(0)
    world.supervisor.stop = StopReason.PAUSED
    before_s = world.clock.time_s
    segment = world.scanner.scan(16 * MIB)
    assert segment.end == 16 * MIB + PIECE_BYTES
    assert world.clock.time_s - before_s < 0.001
