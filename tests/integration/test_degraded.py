"""`start --degraded`: a set whose copy is gone serves on, and the copy never counts until it was rejoined."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl import identity
from qorumctl.controller import serving
from qorumctl.controller.options import ScrubOptions, Timeouts
from qorumctl.errors import QorumError, RefusedError
from tests.integration.absence import AT, NEW, as_if_nothing_had_been, cut, lose_the_daemon, standing, write
from tests.integration.harness import NAME, LiveSet
from tests.integration.picture import nothing_changes, status_of
from tests.live import MIB, NbdServer

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 4 * MIB


async def test_a_set_whose_image_is_gone_starts_without_it_and_takes_it_back(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    shadow = live.fill()
    await live.sets.stop(NAME)
    for path in (live.image("b"), identity.sidecar_path(live.image("b"))):
        path.rename(f"{path}.away")
    with pytest.raises(RefusedError, match="does not exist"):
        await live.start()
    done = await live.sets.start(NAME, degraded=True)
    assert done.warnings == [
        f"The image of copy b, {live.image('b')}, does not exist. web01 runs without it; when it is back, run "
        "'qorumctl copy rejoin web01 b'."
    ]
    write(live, shadow)
    await live.sets.stop(NAME)
    for path in (live.image("b"), identity.sidecar_path(live.image("b"))):
        Path(f"{path}.away").rename(path)
    with nothing_changes(live), pytest.raises(RefusedError, match=r"Copy b is away since .* copy rejoin web01 b"):
        await live.start()
    with nothing_changes(live), pytest.raises(RefusedError, match="Copy b is away since"):
        await live.sets.scrub(NAME, _report())
    await live.sets.start(NAME, degraded=True)
    with pytest.raises(RefusedError, match=r"Copy b is away since .* Run 'qorumctl copy rejoin web01 b' first"):
        await live.sets.restart(NAME)
    assert (await live.sets.restart(NAME, degraded=True)).changed
    result = await live.sets.rejoin(NAME, "b")
    assert (result.full, result.copied_bytes) == (True, len(NEW))
    assert as_if_nothing_had_been(await standing(live))
    assert (await live.sets.restart(NAME)).state == "healthy"
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}


def _report() -> object:
    return ScrubOptions(mode="report")


async def test_a_stale_copy_is_left_out_though_local_state_was_lost(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    shadow = live.fill()
    await live.sets.detach(NAME, "b")
    write(live, shadow)
    lose_the_daemon(live)
    live.lose_the_state()
    with pytest.raises(RefusedError, match=r"Copy b .* has missed writes"):
        await live.start()
    await live.sets.start(NAME, degraded=True)
    assert set((await standing(live)).copies) == {"a", "c"}
    # With b's vote, a reader would get what was there before.
    live.poke("c", AT, live.contents("b")[AT : AT + 512])
    link = live.link("heal")
    assert link.read(_at()) is None
    link.close()
    write(live, shadow)
    assert (await live.sets.rejoin(NAME, "b")).full
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}


def _at() -> object:
    from qorumctl.core.ranges import Range

    return Range(AT, 512)


async def test_copies_behind_nbd_have_no_sidecar_and_are_refused_all_the_same(
    nbdkit: Nbdkit, live_set: LiveSets
) -> None:
    live = live_set(size_bytes=SIZE)
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    servers = [nbdkit("file", path) for path in paths]
    await live.create(sources=[server.uri for server in servers], size_bytes=None)
    live.sources = paths
    await live.start()
    shadow = live.fill()
    await live.sets.detach(NAME, "b")
    write(live, shadow)
    lose_the_daemon(live)
    with pytest.raises(RefusedError, match="Copy b is away since"):
        await live.start()
    await live.sets.start(NAME, degraded=True)
    assert set((await standing(live)).copies) == {"a", "c"}
    await live.sets.stop(NAME)
    servers[1].end()
    await live.sets.start(NAME, degraded=True)
    await live.sets.stop(NAME)
    servers[2].end()
    with pytest.raises(RefusedError, match="1 of 3 copies of web01 can be used, and 2 are needed"):
        await live.sets.start(NAME, degraded=True)


@pytest.mark.parametrize("edit", ["another name and URI", "exchanged"])
async def test_a_copy_that_is_away_does_not_come_back_by_another_name(
    nbdkit: Nbdkit, live_set: LiveSets, edit: str
) -> None:
    """The definition is all that tells of an NBD export which copy it is."""
    live = live_set(size_bytes=SIZE)
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    servers = [nbdkit("file", path) for path in paths]
    await live.create(sources=[server.uri for server in servers], size_bytes=None)
    live.sources = paths
    await live.start()
    await live.sets.detach(NAME, "b")
    shadow = live.fill()
    await live.sets.stop(NAME)
    definition = live.directories.definition_path(NAME)
    before = definition.read_text()
    b, c = servers[1].uri, servers[2].uri
    if edit == "exchanged":
        definition.write_text(before.replace(b, "@").replace(c, b).replace("@", c))
    else:
        definition.write_text(before.replace('name = "b"', 'name = "x"').replace(b, b.replace("///?", "///same?")))
    with nothing_changes(live), pytest.raises(RefusedError, match="Copy b is away since"):
        await live.start()
    if edit == "exchanged":
        with nothing_changes(live), pytest.raises(RefusedError, match=r"Copy c .* lies where copy b did"):
            await live.sets.start(NAME, degraded=True)
        definition.write_text(before)
    assert (await live.sets.start(NAME, degraded=True)).changed
    assert set((await standing(live)).copies) == {"a", "c"}
    result = await live.sets.rejoin(NAME, "b" if edit == "exchanged" else "x")
    assert (result.full, live.equal_to(shadow)) == (True, {"a": True, "b": True, "c": True})
    assert (await status_of(live.sets)).state == "healthy"


async def test_five_copies_become_three_when_two_are_gone_for_good(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create(count=5)
    await live.start()
    for copy in "de":
        await live.sets.detach(NAME, copy)
    shadow = live.fill()
    await live.sets.stop(NAME)
    definition = live.directories.definition_path(NAME)
    text = definition.read_text()
    kept = text[: text.index('[[copies]]\nname = "d"')] + text[text.index("[volume]") :]
    definition.write_text(kept.replace("threshold = 3", "threshold = 2"))
    with nothing_changes(live), pytest.raises(RefusedError, match="has no copy 'd' any more"):
        await live.start()
    await live.sets.start(NAME, degraded=True)
    assert (await status_of(live.sets)).state == "healthy"
    assert (await live.sets.restart(NAME)).state == "healthy"
    assert list(live.equal_to(shadow).values()) == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda server, _: server.end(), "Copy b .* cannot be reached"),
        (lambda server, _: server.pause(), "Copy b .* did not answer within 1 s"),
        (lambda _, path: os.truncate(path, SIZE // 2), f"Copy b .* has {SIZE // 2} bytes"),
    ],
    ids=["gone", "silent", "too short"],
)
async def test_an_nbd_copy_that_cannot_take_part_is_left_out(
    nbdkit: Nbdkit,
    live_set: LiveSets,
    monkeypatch: pytest.MonkeyPatch,
    what: Callable[[NbdServer, Path], object],
    words: str,
) -> None:
    monkeypatch.setattr(serving, "KILLED_S", 0.5)
    live = live_set(size_bytes=SIZE, timeouts=Timeouts(drain_s=1, monitor_s=5, watcher_s=30))
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = nbdkit("file", paths[1])
    await live.create(sources=[paths[0], server.uri, paths[2]], size_bytes=None)
    what(server, Path(paths[1]))
    with pytest.raises(QorumError, match=words):
        await live.start()
    done = await live.sets.start(NAME, degraded=True)
    assert "Copy b" in done.warnings[0]
    state = await standing(live)
    assert (set(state.copies), "copy-b-file" in state.nodes) == ({"a", "c"}, False)
    server.resume()
    assert (await status_of(live.sets)).state == "degraded"


async def test_what_belongs_elsewhere_is_no_absent_copy(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    sidecar = identity.read(live.image("b"))
    assert sidecar is not None
    identity.write(live.image("b"), sidecar.model_copy(update={"copy_": "c"}))
    with nothing_changes(live), pytest.raises(RefusedError, match="is that of copy 'c'"):
        await live.sets.start(NAME, degraded=True)


async def test_a_degraded_start_that_was_killed_is_repeated(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    shadow = live.fill()
    await live.sets.stop(NAME)
    for turn, step in enumerate((12, 30)):
        away = live.image("b").rename(f"{live.image('b')}.away")
        cut(live, step, "start", NAME, "--degraded")
        await live.sets.start(NAME, degraded=True)
        write(live, shadow, at=turn * 4096)
        away.rename(live.image("b"))
        await live.sets.rejoin(NAME, "b")
        assert as_if_nothing_had_been(await standing(live))
        await live.sets.stop(NAME)
        assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}
