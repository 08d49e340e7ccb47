"""`copy detach`: who may leave, and what becomes of a copy that does not even answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.controller.options import Timeouts
from qorumctl.errors import DaemonGoneError, DaemonStalledError, RefusedError, UsageError
from tests.integration.absence import AT, NEW, as_if_nothing_had_been, standing, write
from tests.integration.harness import NAME, LiveSet
from tests.integration.picture import nothing_changes, refused, status_of
from tests.live import MIB, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 4 * MIB


async def running(live: LiveSet) -> bytearray:
    await live.create()
    await live.start()
    return live.fill()


async def test_a_detached_copy_is_let_go_of_and_gets_no_write(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    before = live.contents("b")
    done = await live.sets.detach(NAME, "b")
    assert (done.changed, done.full, done.state) == (True, False, "degraded")
    state = await standing(live)
    assert (set(state.copies), "copy-b" in state.nodes, "copy-b" in state.exports) == ({"a", "c"}, False, False)
    write(live, shadow)
    assert live.contents("b") == before
    status = await status_of(live.sets)
    assert status.reason is not None
    assert status.reason.startswith("Copy b: detached, away since ")
    assert status.reason.endswith("; 4 KiB written since, which rejoin copies.")
    with nothing_changes(live):
        assert (await live.sets.detach(NAME, "b")).changed is False
    assert [record.count_bytes for record in (await standing(live)).missed] == [len(NEW)]
    assert (await live.sets.rejoin(NAME, "b")).changed
    assert (await live.sets.rejoin(NAME, "b")).changed is False


async def test_too_few_would_remain(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await running(live)
    await live.sets.detach(NAME, "b")
    await refused(
        live,
        live.sets.detach(NAME, "c"),
        "Copy c cannot leave web01: 1 current copies would remain (copy b is away), and 2 are needed. "
        "Nothing was changed. Bring another copy up to date first: see 'qorumctl status web01'.",
    )
    await live.sets.rejoin(NAME, "b")
    with live.sets._context(NAME).store() as store:
        store.suspect(["a"], missed=True, why="a write failed")
    with pytest.raises(RefusedError, match="copy a has missed a write"):
        await live.sets.detach(NAME, "c")
    assert as_if_nothing_had_been(await standing(live))


async def test_a_copy_that_had_missed_a_write_is_compared_when_it_returns(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    live.poke("b", AT, bytes(512))
    with live.sets._context(NAME).store() as store:
        store.suspect(["b"], missed=True, why="a write failed")
    assert (await live.sets.detach(NAME, "b")).reason == "it had missed a write before it left"
    result = await live.sets.rejoin(NAME, "b")
    assert (result.full, result.copied_bytes) == (True, 4096)
    assert live.contents("b") == shadow
    assert (await status_of(live.sets)).state == "healthy"


async def test_what_there_is_not(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    with pytest.raises(DaemonGoneError, match="web01 is not running"):
        await live.sets.detach(NAME, "b")
    await live.start()
    with pytest.raises(UsageError, match="web01 has no copy 'x'"):
        await live.sets.detach(NAME, "x")


async def test_a_copy_that_hangs_leaves_once_its_server_is_killed(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE, timeouts=Timeouts(drain_s=3, copy_s=3, monitor_s=2, watcher_s=30))
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = nbdkit("file", paths[1])
    await live.create(sources=[paths[0], server.uri, paths[2]], size_bytes=None)
    live.sources = paths
    await live.start()
    shadow = live.fill()
    server.pause()
    guest = live.link(timeout_s=60)
    ticket = guest.submit_write(AT, NEW)
    with pytest.raises(RefusedError, match=r"does not answer.*use --force"):
        await live.sets.detach(NAME, "b")
    with pytest.raises(DaemonStalledError, match="Kill the copy's own server"):
        await live.sets.detach(NAME, "b", force=True)
    server.end()
    assert guest.wait(ticket, 30)
    shadow[AT : AT + len(NEW)] = NEW
    guest.close()
    done = await live.sets.detach(NAME, "b", force=True)
    assert (done.full, done.reason) == (True, "it was detached by force, with writes under way")
    Path(server.socket).unlink()
    Path(server.socket).symlink_to(nbdkit("file", paths[1]).socket)
    result = await live.sets.rejoin(NAME, "b")
    assert (result.full, result.compared_bytes) == (True, SIZE)
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}
    assert as_if_nothing_had_been(await standing(live))


async def test_it_waits_for_no_file_of_the_copy_that_is_away(live_set: LiveSets) -> None:
    """Its file system may hang: stop and start --degraded do not look at it."""
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    await live.sets.detach(NAME, "b")
    sidecar = Path(f"{live.image('b')}.qorum")
    kept = sidecar.read_bytes()
    sidecar.unlink()
    os.mkfifo(sidecar)
    write(live, shadow)
    assert (await live.sets.stop(NAME)).warnings == []
    await live.sets.start(NAME, degraded=True)
    sidecar.unlink()
    sidecar.write_bytes(kept)
    await live.sets.rejoin(NAME, "b")
    wait_for(lambda: live.contents("b") == shadow, "the copy's content")
