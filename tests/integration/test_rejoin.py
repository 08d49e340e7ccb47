"""`copy detach` and `copy rejoin` while guests write: no write is lost, and it costs what was missed."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from qorumctl.core.ranges import Range
from tests.attack import Attack
from tests.integration.harness import NAME, LiveSet, Writers
from tests.integration.picture import status_of
from tests.live import MIB

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
SIZE = 8 * MIB


def done(live: LiveSet, command: str, copy: str, *options: str) -> dict[str, Any]:
    """As a process of its own: the writers share this one's interpreter."""
    running = live.cli("--json", "copy", command, NAME, copy, *options, stderr=subprocess.PIPE)
    said, complaints = running.communicate(timeout=120)
    assert running.returncode == 0, complaints.decode()
    document: dict[str, Any] = json.loads(said)
    return document


@pytest.mark.attack("detach and rejoin lose no write", "each copy in turn, under four writers", weight=2)
async def test_copies_come_and_go_under_writers(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    shadow = live.fill()
    for seed in attack.rounds(1):
        dice = random.Random(seed)
        with Writers(live, shadow, Range(0, SIZE), seed=seed) as writers:
            for turn in range(6):
                copy = "abc"[(seed + turn) % 3]
                await live.sets.detach(NAME, copy)
                before = writers.writes
                while writers.writes < before + dice.randrange(400):
                    await status_of(live.sets)
                result = done(live, "rejoin", copy)
                assert (result["changed"], result["full"]) == (True, False)
                print(result)
                attack.count(rejoins=1, copied_bytes=result["copied_bytes"], healed_bytes=result["healed_bytes"])
        attack.count(writes=writers.writes)
        assert live.leftovers() == {"watches": frozenset(), "exports": EXPORTS}
        assert (await status_of(live.sets)).state == "healthy"
    assert (await live.sets.stop(NAME)).warnings == []
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}
    await live.start()


EXPORTS = frozenset({"volume", "heal", "copy-a", "copy-b", "copy-c"})
