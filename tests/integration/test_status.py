"""What `status` says of a set that is not well, and that asking harms nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.controller.options import Timeouts
from qorumctl.daemon import process
from qorumctl.errors import CopyUnavailableError, DaemonStalledError, LockedError
from tests.integration.harness import NAME, SECTOR, LiveSet, in_background
from tests.integration.picture import status_of
from tests.live import MIB, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
HASTY = Timeouts(status_s=0.5, monitor_s=1.0, stop_s=2.0, copy_s=2.0, drain_s=2.0)


def copies_of(status: object) -> dict[str, str]:
    return {copy.name: str(copy.state) for copy in status.copies}  # type: ignore[attr-defined]


async def test_damage_that_was_left_degrades(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    live.fill()
    live.flip("b", 100 * SECTOR)
    await live.scrub(mode="report")
    status = await status_of(live.sets)
    assert (status.state, status.reason) == ("degraded", "Copy b: 1 damaged range not repaired.")
    assert copies_of(status) == {"a": "current", "b": "suspect", "c": "current"}
    assert (status.unrepaired, {c.name: c.outvoted for c in status.copies}) == (1, {"a": 0, "b": 1, "c": 0})
    await live.scrub()
    status = await status_of(live.sets)
    assert (status.state, status.unrepaired) == ("healthy", 0)
    assert {c.name: c.repaired for c in status.copies} == {"a": 0, "b": 1, "c": 0}


async def test_a_copy_that_left_the_quorum_degrades(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    await live.sets.qmp(NAME, "block-export-del", {"id": "copy-c"})
    children = (await live.sets.qmp(NAME, "x-debug-query-block-graph")).result
    name = next(edge["name"] for edge in children["edges"] if edge["name"] == "children.2")
    await live.sets.qmp(NAME, "x-blockdev-change", {"parent": "quorum", "child": name})
    status = await status_of(live.sets)
    assert (status.state, status.reason) == ("degraded", "Copy c: not in the quorum.")
    assert copies_of(status) == {"a": "current", "b": "current", "c": "missing"}


async def with_a_remote_copy(live_set: LiveSets, nbdkit: Callable[..., NbdServer]) -> tuple[LiveSet, NbdServer]:
    live = live_set(size_bytes=4 * MIB, timeouts=HASTY)
    server = nbdkit("memory", "4M")
    files = [str(live.images_dir / name) for name in ("a.img", "b.img")]
    for path in files:
        Path(path).write_bytes(bytes(4 * MIB))
    await live.create(sources=[*files, server.uri], size_bytes=None)
    await live.start()
    return live, server


async def test_a_copy_that_hangs_is_said_within_the_deadline_and_guests_go_on_afterwards(
    live_set: LiveSets, nbdkit: Callable[..., NbdServer]
) -> None:
    live, server = await with_a_remote_copy(live_set, nbdkit)
    guest = live.link()
    server.pause()
    try:
        began_s = time.monotonic()
        status = await status_of(live.sets)
        assert time.monotonic() - began_s < 4 * HASTY.status_s
        assert (status.state, status.reason) == (
            "stalled",
            "Copy c does not answer; reads and writes of the volume wait for it.",
        )
        assert copies_of(status) == {"a": "current", "b": "current", "c": "stalled"}
        reports = await asyncio.gather(*(live.sets.status([NAME]) for _ in range(5)))
        assert {copies_of(report.sets[0])["a"] for report in reports} == {"current"}
    finally:
        server.resume()
    wait_for(lambda: guest.write(0, b"x" * SECTOR), "a write")
    assert (await status_of(live.sets)).state == "healthy"
    guest.close()


async def test_a_daemon_that_hangs_is_said_within_the_deadline(live_set: LiveSets) -> None:
    live = live_set(timeouts=HASTY)
    await live.create()
    await live.start()
    pid = process.running_pid(live.runtime)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        reports = await asyncio.gather(*(live.sets.status([NAME]) for _ in range(3)))
        assert time.monotonic() - began_s < 4 * HASTY.status_s
        assert {report.sets[0].state for report in reports} == {"stalled"}
        assert [line.state for line in (await live.sets.list()).sets] == ["stalled"]
        with pytest.raises(DaemonStalledError):
            await live.sets.stop(NAME)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (await status_of(live.sets)).state == "healthy"


async def test_force_ends_a_daemon_that_hangs_and_the_next_start_compares(live_set: LiveSets) -> None:
    live = live_set(timeouts=HASTY)
    await live.create()
    await live.start()
    pid = process.running_pid(live.runtime)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    stopped = await live.sets.stop(NAME, force=True)
    assert stopped.warnings == ["The daemon did not answer and was ended: the next start compares the copies."]
    assert process.running_pid(live.runtime) is None
    assert (await status_of(live.sets)).state == "stopped"
    assert (await live.sets.start(NAME)).recovery is not None


async def test_a_copy_that_hangs_holds_up_a_stop_until_it_is_forced(
    live_set: LiveSets, nbdkit: Callable[..., NbdServer]
) -> None:
    live, server = await with_a_remote_copy(live_set, nbdkit)
    assert live.fill()
    server.pause()
    try:
        with pytest.raises(CopyUnavailableError, match="Copy c did not answer within 2 s: a stop would hang"):
            await live.sets.stop(NAME)
        assert (await status_of(live.sets)).volume is not None, "a stop that is refused takes nothing away"
        stopped = await live.sets.stop(NAME, force=True)
        assert stopped.state == "stopped"
        assert any("the next start compares the copies" in warning for warning in stopped.warnings)
    finally:
        server.resume()
    try:
        started = await live.sets.start(NAME)
    except CopyUnavailableError:
        # nbdkit 1.32 may abort as it answers a client that is gone (connections.c: `sock >= 0`).
        wait_for(lambda: not server.is_alive(), "the end of an nbdkit that no longer answers")
    else:
        assert started.recovery is not None


async def test_many_at_once_do_not_take_each_other_for_a_stall(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    reports = await asyncio.gather(*(live.sets.status([NAME]) for _ in range(20)))
    assert {report.sets[0].state for report in reports} == {"healthy"}
    others = [live.cli("--json", "status", NAME) for _ in range(4)]
    assert [other.wait(30) for other in others] == [0] * 4
    for other in others:
        other.communicate()


async def test_a_running_scrub_is_shown_and_a_start_beside_it_changes_nothing(live_set: LiveSets) -> None:
    live = live_set(size_bytes=64 * MIB)
    await live.create()
    await live.start()
    live.fill()

    def scrub() -> None:
        asyncio.run(live.scrub(rate_bytes_per_s=8 * MIB))

    with in_background(scrub):
        shown = wait_for(lambda: look(live), "a scrub")
        assert (shown.state, shown.scrub.mode, shown.scrub.pid) == ("healthy", "repair", os.getpid())
        assert not (await live.sets.start(NAME)).changed
        with pytest.raises(LockedError) as caught:
            await live.sets.stop(NAME)
        assert str(caught.value) == (
            f"web01 is held by 'scrub' (pid {os.getpid()}). Wait until it ends, or run 'qorumctl pause web01' first."
        )
        assert (await live.sets.pause(NAME)).resumable
    assert (await status_of(live.sets)).scrub is None


def look(live: LiveSet) -> object:
    """In a loop of its own: the test's is at work."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(lambda: asyncio.run(status_of(live.sets))).result()
    return status if status.scrub is not None else None


async def test_status_of_a_stopped_set_starts_nothing(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    status = await status_of(live.sets)
    assert (status.state, status.reason, status.pid) == ("stopped", "The set is not running.", None)
    assert copies_of(status) == {"a": "offline", "b": "offline", "c": "offline"}
    assert not live.runtime.directory.exists()
