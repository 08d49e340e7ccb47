"""`report --finding`, `resolve` and `resolve --undo`: what an operator sees, decides, and gets back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.controller.options import ResolveRequest
from qorumctl.errors import RefusedError
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.live import MIB

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
AT = 256 * SECTOR


async def tied(live: LiveSet, **options: object) -> tuple[bytearray, int]:
    """A started set in which one sector has lost one bit in each copy, another each; what it held; the finding."""
    await live.create(**options)
    await live.start()
    shadow = live.fill()
    for number, copy in enumerate("abc"):
        live.flip(copy, AT + 100 * number, bit=number)
    report = await live.scrub()
    assert report.outcome == "no-majority"
    return shadow, report.findings[0].id


def images(live: LiveSet) -> dict[str, bytes]:
    return {copy: live.contents(copy) for copy in "abc"}


async def state_of(live: LiveSet) -> str:
    return (await live.sets.status([NAME])).sets[0].state


async def test_a_sector_that_every_copy_has_lost_differently_is_resolved_bitwise_and_undone(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    shadow, finding = await tied(live)
    damaged = images(live)
    done = await live.sets.resolve(NAME, ResolveRequest(finding, "bitwise"))
    assert all(live.equal_to(shadow).values())
    assert (done.state, done.warnings, done.written_bytes) == ("healthy", [], SECTOR)
    assert live.sets.report(NAME).findings[0].action == "resolved"
    undone = await live.sets.resolve(NAME, ResolveRequest(undo=done.id))
    assert images(live) == damaged
    assert (undone.state, undone.undone, undone.finding) == ("damaged", done.id, finding)
    assert live.sets.report(NAME).findings[0].action == "left"
    again = await live.sets.resolve(NAME, ResolveRequest(undo=undone.id))
    assert all(live.equal_to(shadow).values())
    assert again.state == "healthy"
