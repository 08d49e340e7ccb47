"""`copy replace` while guests write: no write is lost, the old image stays whole, and killed anywhere it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.core.ranges import Range
from tests.integration.absence import NEW, standing, write
from tests.integration.harness import NAME, LiveSet
from tests.integration.picture import status_of
from tests.live import MIB, NbdServer

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 8 * MIB


async def running(live: LiveSet, **options: str) -> bytearray:
    await live.create(**options)
    await live.start()
    return live.fill()


async def replaced(live: LiveSet, copy: str, source: Path | str) -> None:
    """As it should be after that: the definition names it, nothing is left over, and the set is healthy."""
    live.sources["abc".index(copy)] = str(source)
    assert live.sets.show(NAME).definition.copy_named(copy).source.label == str(source)
    state = await standing(live)
    assert (set(state.copies), state.further, state.missed, state.watches) == ({"a", "b", "c"}, (), (), frozenset())
    assert state.exports == {"volume", "heal", "copy-a", "copy-b", "copy-c"}
    assert len([node for node in state.nodes if node.startswith("copy-")]) == 6
    status = await status_of(live.sets)
    assert (status.state, status.definition_differs) == ("healthy", False), status.reason


async def holds(live: LiveSet, shadow: bytearray) -> None:
    """Every copy, read by itself."""
    for copy in "abc":
        link = live.link(f"copy-{copy}")
        assert link.read(Range(0, SIZE)) == shadow, copy
        link.close()


async def test_a_copy_is_replaced(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    old, new = live.contents("c"), live.images_dir / "c2.img"
    result = await live.sets.replace(NAME, "c", str(new))
    assert (result.changed, result.source, result.old_source) == (True, str(new), str(live.image("c")))
    assert (result.full, result.compared_bytes, result.copied_bytes, result.verified_bytes) == (False, SIZE, SIZE, SIZE)
    before = live.image("c")
    await replaced(live, "c", new)
    write(live, shadow, data=NEW)
    await holds(live, shadow)
    assert before.read_bytes() == old != bytes(shadow)
    assert (await live.scrub()).outcome == "clean"
    await live.sets.restart(NAME)
    assert "copy-c" in (await standing(live)).nodes
    await replaced(live, "c", new)
    await live.sets.stop(NAME)
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}
