"""A scrub of a real set gives way while guests are at work, and goes on when they rest."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from qorumctl.controller.observer import ScrubControl, ScrubPosition, ScrubStart
from qorumctl.core.ranges import Range
from qorumctl.scrub.ports import StopReason
from tests.integration.harness import NAME, LiveSet, Writers
from tests.live import MIB, wait_for

pytestmark = pytest.mark.live
SIZE = 256 * MIB


class Follower:
    """Notes, in order, whether the scrub was held back; each change once."""

    def __init__(self) -> None:
        self.held: list[bool] = []
        self.held_back = threading.Event()

    def started(self, start: ScrubStart) -> None:
        return

    def moved(self, position: ScrubPosition) -> None:
        if self.held[-1:] != [position.held_back]:
            self.held.append(position.held_back)
        if position.held_back:
            self.held_back.set()


async def test_it_is_held_back_while_guests_work(live_set: Callable[..., LiveSet]) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    shadow = bytearray(SIZE)
    follower, control = Follower(), ScrubControl()

    async def scrub_until_it_is_held_back() -> None:
        # On a machine that is busy with something else guests may not come to work while it listens.
        while not follower.held_back.is_set():
            report = await live.scrub(full_speed=False, thorough=True, fresh=True, observer=follower, control=control)
        assert report.outcome == "clean"

    with Writers(live, shadow, Range(0, MIB)):
        scrubbing = asyncio.create_task(scrub_until_it_is_held_back())
        await asyncio.to_thread(wait_for, follower.held_back.is_set, "a scrub that gives way")
        told: list[bool] = []

        def status_tells() -> bool:
            running = asyncio.run(live.sets.status([NAME])).sets[0].scrub
            told.append(running is not None and running.held_back)
            return told[-1] or scrubbing.done()

        await asyncio.to_thread(wait_for, status_tells, "status to tell of it")
    assert told[-1]
    await scrubbing
    # The guests have gone: it went on, and ended, at full speed.
    assert follower.held[-2:] == [True, False]


async def test_a_pause_is_answered_while_it_is_held_back(live_set: Callable[..., LiveSet]) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    follower, control = Follower(), ScrubControl()
    with Writers(live, bytearray(SIZE), Range(0, MIB)):
        scrubbing = asyncio.create_task(
            live.scrub(full_speed=False, thorough=True, fresh=True, observer=follower, control=control)
        )
        await asyncio.to_thread(wait_for, lambda: follower.held_back.is_set() or scrubbing.done(), "a scrub")
        control.stop(StopReason.PAUSED)
        report = await scrubbing
    assert report.outcome == "unfinished"


@pytest.mark.parametrize("options", [{"full_speed": True}, {"rate_bytes_per_s": 1024 * MIB}])
async def test_whoever_names_a_rate_gets_it(live_set: Callable[..., LiveSet], options: dict[str, int]) -> None:
    live = live_set(size_bytes=32 * MIB)
    await live.create()
    await live.start()
    follower = Follower()
    with Writers(live, bytearray(SIZE), Range(0, MIB)):
        await live.scrub(thorough=True, observer=follower, **options)
    assert follower.held == [False]
