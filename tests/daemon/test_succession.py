"""An image takes the place of a copy while the set runs: its nodes keep a name of their own, the copy its export."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qorumctl.daemon import graph
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.model.spec import CopySpec, FileSource
from tests.live import SIZE, Daemons, make_spec

Image = Callable[..., Path]


@pytest.mark.parametrize(
    ("taken", "key"),
    [((), "c.2"), (("a", "b", "c"), "c.2"), (("c.2",), "c.3"), (("c", "c.9", "c.10"), "c.11"), (("c-1.7",), "c.2")],
)
def test_a_newcomer_gets_a_key_that_nobody_has(taken: tuple[str, ...], key: str) -> None:
    assert graph.next_key("c", taken) == key
    assert graph.copy_of_key(key) == "c"
    assert len(graph.file_node(f"{'x' * 12}.9999999")) <= 31


@pytest.mark.live
async def test_a_copy_is_found_wherever_its_node_is(daemons: Daemons, image: Image) -> None:
    spec = make_spec({name: image(name) for name in "abc"})
    newcomer = CopySpec.model_construct(
        name="c.2", source=spec.copy_named("c").source.model_copy(update={"path": str(image("new"))}), cache="writeback"
    )
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        quorum = QuorumSet(spec, monitor, newcomers=["c.2"])
        children = quorum.children
        await quorum.open_copies(read_only=False)
        await quorum.assemble()
        await children.open(newcomer, read_only=False, exported=False)
        await children.bring_in(newcomer)
        state = await quorum.describe()
        assert (state.copies, state.further) == (("a", "b", "c"), ("c.2",))
        assert await children.key("c") == "c"

        quorum.newcomers.clear()
        for _ in range(2):
            await children.succeed("c", "c.2")
            state = await quorum.describe()
            assert (state.copies, state.further) == (("a", "b", "c"), ())
            assert {node for node in state.nodes if node.startswith("copy-c")} == {"copy-c.2", "copy-c.2-file"}
            assert "copy-c" in state.exports
        assert await QuorumSet(spec, monitor).children.key("c") == "c.2"

        await children.take_out("c")
        assert (await quorum.describe()).copies == ("a", "b")
        assert await children.close("c") is True
        assert await children.close("c") is False
        await children.open(spec.copy_named("c"), read_only=False, exported=False)
        await children.bring_in(spec.copy_named("c"))
        await children.export("c")
        assert await children.key("c") == "c"
        await quorum.dissolve()
        assert (await quorum.describe()).empty


@pytest.mark.live
async def test_what_belongs_to_a_newcomer_is_not_taken_for_the_copys(daemons: Daemons, image: Image) -> None:
    spec = make_spec({name: image(name) for name in "abc"})
    newcomer = spec.copy_named("c").model_copy(update={"name": "c.2"})
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        quorum = QuorumSet(spec, monitor, newcomers=["c.2"])
        await quorum.open_copies(read_only=False, without={"c"})
        await quorum.assemble(without={"c"})
        await quorum.children.open(newcomer, read_only=False, exported=False)
        await quorum.children.bring_in(newcomer)
        await quorum.children.take_out("c")
        assert await quorum.children.close("c") is False
        state = await quorum.describe()
        assert (state.copies, state.further) == (("a", "b"), ("c.2",))
        await quorum.children.take_out("c.2")
        assert await quorum.children.close("c.2") is True


@pytest.mark.live
async def test_two_of_four_can_win_and_are_written_over_the_two_others(
    daemons: Daemons, image: Image, connect: Callable[..., Any]
) -> None:
    """Why an old image that has missed writes leaves before the new one comes in, and why what a further child lacks is
    not healed without a strict majority of all."""
    spec = make_spec({name: image(name, content=b"\x11" * 4096) for name in "ab"} | {"c": image("c")})
    newcomer = spec.copy_named("c").model_copy(
        update={"name": "c.2", "source": FileSource(path=str(image("new")), format="raw")}
    )
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        quorum = QuorumSet(spec, monitor, newcomers=["c.2"])
        await quorum.open_copies(read_only=False)
        await quorum.assemble()
        assert await asyncio.to_thread(connect(paths, "heal").pread, 4096, 0) == b"\x11" * 4096
        Path(spec.copy_named("c").source.label).write_bytes(bytes(SIZE))
        await quorum.children.open(newcomer, read_only=False, exported=False)
        await quorum.children.bring_in(newcomer)
        assert await asyncio.to_thread(connect(paths, "heal").pread, 4096, 0) == bytes(4096)
        await quorum.dissolve()
    assert Path(spec.copy_named("a").source.label).read_bytes() == bytes(SIZE)
