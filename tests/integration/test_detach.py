"""`copy detach`: who may leave, and what becomes of a copy that does not even answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.controller.options import Timeouts
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.quorum_set import QuorumSet
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
        "Copy c cannot leave web01: 1 current copy would remain (copy b is away), and 2 are needed. "
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


async def test_a_copy_that_died_unnoticed_does_not_remain(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    """Nobody has written since, so nothing is on record of it. Without b not one write would be done."""
    live = live_set(size_bytes=SIZE)
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = nbdkit("file", paths[2])
    await live.create(sources=[*paths[:2], server.uri], size_bytes=None)
    live.sources = paths
    await live.start()
    server.kill()
    for force in (False, True):
        with nothing_changes(live), pytest.raises(RefusedError, match=r"would remain \(copy c cannot be read\)"):
            await live.sets.detach(NAME, "b", force=force)
    write(live, bytearray(SIZE))


async def test_of_five_copies_two_may_leave_and_none_that_waits_for_one_that_hangs(
    nbdkit: Nbdkit, live_set: LiveSets
) -> None:
    live = live_set(size_bytes=SIZE, timeouts=Timeouts(copy_s=3, monitor_s=1, watcher_s=30))
    paths = live.paths(5)
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = nbdkit("file", paths[4])
    await live.create(sources=[*paths[:4], server.uri], size_bytes=None)
    live.sources = paths
    await live.start()
    shadow = live.fill()
    server.pause()
    with nothing_changes(live), pytest.raises(RefusedError, match="Copy e of web01 does not answer: while it hangs"):
        await live.sets.detach(NAME, "b")
    server.resume()
    for turn, copy in enumerate("bd"):
        assert not (await live.sets.detach(NAME, copy)).full
        write(live, shadow, at=turn * MIB)
    with nothing_changes(live), pytest.raises(RefusedError, match=r"2 current copies .*copy b is away, copy d is away"):
        await live.sets.detach(NAME, "a")
    for copy, missed in (("b", 2), ("d", 1)):
        result = await live.sets.rejoin(NAME, copy)
        assert (result.full, result.copied_bytes) == (False, missed * len(NEW))
    assert (await status_of(live.sets)).state == "healthy"
    await live.sets.stop(NAME)
    assert set(live.equal_to(shadow).values()) == {True}
    await live.start()


async def test_a_detach_that_was_killed_as_the_copy_left_is_repeated(live_set: LiveSets) -> None:
    """Its export had ended, and it was in the quorum still."""
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    spec = live.sets.show(NAME).definition
    async with await Monitor.open(live.runtime.control_sock) as monitor:
        await QuorumSet(spec, monitor).children.end_exports("b")
    assert (await live.sets.detach(NAME, "b")).full is False
    write(live, shadow)
    assert (await live.sets.rejoin(NAME, "b")).copied_bytes == len(NEW)
    assert as_if_nothing_had_been(await standing(live))


async def test_what_there_is_not(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    with pytest.raises(DaemonGoneError, match="web01 is not running"):
        await live.sets.detach(NAME, "b")
    await live.start()
    with pytest.raises(UsageError, match="web01 has no copy 'x'"):
        await live.sets.detach(NAME, "x")


async def test_a_copy_that_hangs_leaves_once_its_server_is_killed(nbdkit: Nbdkit, live_set: LiveSets) -> None:
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
    server.kill()
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
