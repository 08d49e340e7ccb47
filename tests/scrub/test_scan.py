"""The scan: what it asks of the copies under a rate."""

from __future__ import annotations

import pytest

from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.ranges import Range
from qorumctl.scrub.scan import Scanner
from qorumctl.units import KIB, MIB
from tests.scrub.world import FakeClock, Steered, plan_of


@pytest.mark.parametrize("rate", [256 * KIB, MIB, 4 * MIB, 20 * MIB])
def test_a_rate_holds_for_what_is_read_not_only_for_what_is_compared(rate: int) -> None:
    """What is read ahead and thrown away at a segment's end was read all the same."""
    size, asked = 32 * MIB, 0

    def count(at: Range) -> None:
        nonlocal asked
        asked += at.length

    copies = [
        MemoryCopy("a", bytearray(size), read_ahead=6, before_read=count),
        *(MemoryCopy(name, bytearray(size), read_ahead=6) for name in "bc"),
    ]
    clock = FakeClock()
    scanner = Scanner(copies, plan_of(size, rate_bytes_per_s=rate), Steered(), clock)
    at = 0
    while at < size:
        at = scanner.scan(at).end
    assert asked == size
    assert clock.time_s == pytest.approx(size / rate, rel=0.05)


def test_slow_copies_are_not_read_twice_at_each_segments_end() -> None:
    size, asked = 32 * MIB, 0
    clock = FakeClock()

    def read_slowly(at: Range) -> None:
        nonlocal asked
        asked += at.length
        clock.sleep(0.5)

    copies = [
        MemoryCopy("a", bytearray(size), read_ahead=6, before_read=read_slowly),
        *(MemoryCopy(name, bytearray(size), read_ahead=6) for name in "bc"),
    ]
    scanner = Scanner(copies, plan_of(size), Steered(), clock)
    at = 0
    while at < size:
        at = scanner.scan(at).end
    # The first segment does not know yet how slow it goes.
    assert asked <= size + 6 * MIB
