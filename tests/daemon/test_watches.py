"""Write watches: what was written between opening and freezing is marked, nothing else, and no write slips past."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from qorumctl.daemon.client import Monitor
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.daemon.watches import WATCH_PREFIX
from qorumctl.errors import CommandError, DaemonStalledError
from qorumctl.model.spec import SetSpec
from tests.live import SIZE, Daemons, NbdServer, make_spec, wait_for

pytestmark = pytest.mark.live
Connect = Callable[..., Any]

W1, W2 = WATCH_PREFIX + "1", WATCH_PREFIX + "2"
SECTOR = b"\xa5" * 512


@contextlib.asynccontextmanager
async def assembled(daemons: Daemons, spec: SetSpec) -> AsyncIterator[tuple[QuorumSet, RuntimePaths]]:
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        quorum = QuorumSet(spec, monitor)
        await quorum.open_copies(read_only=False)
        await quorum.assemble()
        await quorum.export_volume()
        yield quorum, paths


@pytest.fixture
def spec(image: Callable[..., Path]) -> SetSpec:
    return make_spec({name: image(name) for name in "abc"})


class SlowSet:
    """A set whose copy c is held up at will, and a write that is in flight for as long as it is."""

    def __init__(self, spec: SetSpec, fast: Path, late: Path, server: NbdServer) -> None:
        self.spec, self._fast, self._late, self._server = spec, fast, late, server

    def begin_write(self, volume: Any, offset: int) -> None:
        """Returns once the write has reached copy a, and cannot reach copy c."""
        self._server.pause()
        # Kept: libnbd reads it until the write has completed.
        self._buffer = pytest.importorskip("nbd").Buffer.from_bytearray(bytearray(SECTOR))
        volume.aio_pwrite(self._buffer, offset)
        wait_for(lambda: holds(self._fast, offset), "the write on the fast copy")

    async def finish_during(self, draining: Coroutine[Any, Any, None]) -> None:
        """Checks that the call waits for the write, and lets the write through."""
        call = asyncio.create_task(draining)
        done, _ = await asyncio.wait({call}, timeout=0.2)
        assert not done, "it did not wait for the write in flight"
        self._server.resume()
        await call

    def resume(self) -> None:
        self._server.resume()

    def complete(self, offset: int) -> bool:
        return holds(self._late, offset)


@pytest.fixture
def slow(image: Callable[..., Path], nbdkit: Callable[..., NbdServer]) -> SlowSet:
    fast, late = image("a"), image("c")
    server = nbdkit("file", late)
    return SlowSet(make_spec({"a": fast, "b": image("b"), "c": server.uri}), fast, late, server)


async def marked(quorum: QuorumSet, paths: RuntimePaths, connect: Connect, watch: str) -> list[tuple[int, int]]:
    """The (offset, length) of what a frozen watch recorded."""
    context = await quorum.publish(watch)
    assert context == f"qemu:dirty-bitmap:{watch}"
    handle, found = connect(paths, watch, context=context), []

    def take(_context: str, offset: int, entries: list[int], _error: object) -> None:
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if flags:
                found.append((offset, length))
            offset += length

    handle.block_status(SIZE, 0, take)
    return found


def holds(path: Path, offset: int) -> bool:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(512) == SECTOR


@pytest.mark.parametrize("drain", [True, False])
async def test_what_is_written_while_it_is_open_is_marked_to_the_sector(
    daemons: Daemons, spec: SetSpec, connect: Connect, drain: bool
) -> None:
    async with assembled(daemons, spec) as (quorum, paths):
        volume = connect(paths, "volume")
        volume.pwrite(SECTOR, 0)
        await quorum.open_watch(W1, drain=drain)
        volume.pwrite(SECTOR * 2, 8192)
        volume.pwrite(SECTOR, SIZE - 512)
        await quorum.freeze([W1])
        volume.pwrite(SECTOR, 65536)
        assert await marked(quorum, paths, connect, W1) == [(8192, 1024), (SIZE - 512, 512)]


async def test_watches_overlap_and_end_together(daemons: Daemons, spec: SetSpec, connect: Connect) -> None:
    async with assembled(daemons, spec) as (quorum, paths):
        volume = connect(paths, "volume")
        await quorum.open_watch(W1, drain=False)
        volume.pwrite(SECTOR, 0)
        await quorum.open_watch(W2, drain=False)
        volume.pwrite(SECTOR, 4096)
        await quorum.freeze([W1, W2, W1])
        volume.pwrite(SECTOR, 8192)
        assert await marked(quorum, paths, connect, W1) == [(0, 512), (4096, 512)]
        assert await marked(quorum, paths, connect, W2) == [(4096, 512)]
        assert (await quorum.describe()).watches == {W1, W2}


async def test_a_write_in_flight_at_the_freeze_is_waited_for_and_marked(
    daemons: Daemons, slow: SlowSet, connect: Connect
) -> None:
    """QEMU marks a write when it completes: without the drain, this one would be missing."""
    async with assembled(daemons, slow.spec) as (quorum, paths):
        await quorum.open_watch(W1, drain=True)
        slow.begin_write(connect(paths, "volume"), 4096)
        await slow.finish_during(quorum.freeze([W1]))
        assert slow.complete(4096), "freeze returned only when it had reached every copy"
        assert await marked(quorum, paths, connect, W1) == [(4096, 512)]


async def test_a_drained_opening_waits_for_earlier_writes_and_does_not_mark_them(
    daemons: Daemons, slow: SlowSet, connect: Connect
) -> None:
    async with assembled(daemons, slow.spec) as (quorum, paths):
        slow.begin_write(connect(paths, "volume"), 4096)
        await slow.finish_during(quorum.open_watch(W1, drain=True))
        assert slow.complete(4096)
        await quorum.freeze([W1])
        assert await marked(quorum, paths, connect, W1) == []


async def test_an_opening_without_drain_does_not_wait(daemons: Daemons, slow: SlowSet, connect: Connect) -> None:
    async with assembled(daemons, slow.spec) as (quorum, paths):
        slow.begin_write(connect(paths, "volume"), 4096)
        await quorum.open_watch(W1, drain=False)
        assert not slow.complete(4096)
        await slow.finish_during(quorum.freeze([W1]))
        assert await marked(quorum, paths, connect, W1) == [(4096, 512)], "it completed while the watch was open"


async def test_a_kick_drains(daemons: Daemons, slow: SlowSet, connect: Connect) -> None:
    async with assembled(daemons, slow.spec) as (quorum, paths):
        slow.begin_write(connect(paths, "volume"), 4096)
        await slow.finish_during(quorum.kick())
        assert slow.complete(4096)


async def test_looking_does_not_drain(daemons: Daemons, slow: SlowSet, connect: Connect) -> None:
    async with assembled(daemons, slow.spec) as (quorum, paths):
        slow.begin_write(connect(paths, "volume"), 4096)
        assert (await quorum.describe()).assembled
        assert not slow.complete(4096)


@pytest.mark.parametrize("step", ["open", "freeze", "kick"])
async def test_a_drain_that_takes_too_long_is_a_stall(
    daemons: Daemons, slow: SlowSet, connect: Connect, step: str
) -> None:
    async with assembled(daemons, slow.spec) as (quorum, paths):
        impatient = QuorumSet(slow.spec, quorum.monitor, drain_timeout_s=0.3)
        if step == "freeze":
            await quorum.open_watch(W1, drain=True)
        slow.begin_write(connect(paths, "volume"), 4096)
        with pytest.raises(DaemonStalledError, match=r"transaction within 0\.3 s"):
            await {
                "open": lambda: impatient.open_watch(W1, drain=True),
                "freeze": lambda: impatient.freeze([W1]),
                "kick": impatient.kick,
            }[step]()
        # The daemon goes on: what the given-up command left behind is found and swept.
        slow.resume()
        assert await quorum.sweep() == (set() if step == "kick" else {W1})
        assert slow.complete(4096)
        assert (await quorum.describe()).watches == frozenset()


async def test_forget_drops_every_kind_and_may_be_repeated(daemons: Daemons, spec: SetSpec, connect: Connect) -> None:
    open_one, frozen, published = (f"{WATCH_PREFIX}{kind}" for kind in ("open", "frozen", "published"))
    async with assembled(daemons, spec) as (quorum, paths):
        for name in (open_one, frozen, published):
            await quorum.open_watch(name, drain=True)
        await quorum.freeze([frozen, published])
        reader = connect(paths, published, context=await quorum.publish(published))
        assert reader.aio_is_ready()
        for _ in range(2):
            await quorum.forget([open_one, frozen, published])
            assert (await quorum.describe()).watches == frozenset()
        await quorum.open_watch(published, drain=True)


async def test_sweep_finds_what_a_crashed_command_left(daemons: Daemons, spec: SetSpec, connect: Connect) -> None:
    async with assembled(daemons, spec) as (quorum, paths):
        await quorum.open_watch(W1, drain=True)
        await quorum.open_watch(W2, drain=True)
        await quorum.freeze([W1])
        connect(paths, W1, context=await quorum.publish(W1))
        before = await quorum.describe()
        assert before.watches == {W1, W2}
        async with await Monitor.open(paths.scrub_sock) as another:
            assert await QuorumSet(spec, another).sweep() == {W1, W2}
        after = await quorum.describe()
        assert after.watches == frozenset()
        assert after.exports == before.exports - {W1}, "the set's own exports stay"
        assert await quorum.sweep() == frozenset()


async def test_sweep_before_assembly_finds_nothing(daemons: Daemons, spec: SetSpec) -> None:
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        assert await QuorumSet(spec, monitor).sweep() == frozenset()
        await QuorumSet(spec, monitor).forget([W1])


async def test_a_watch_that_still_records_is_not_published(daemons: Daemons, spec: SetSpec) -> None:
    async with assembled(daemons, spec) as (quorum, _):
        await quorum.open_watch(W1, drain=True)
        with pytest.raises(CommandError):
            await quorum.publish(W1)
        await quorum.sweep()
        assert (await quorum.describe()).watches == frozenset()


async def test_a_name_that_sweep_would_miss_is_a_mistake(daemons: Daemons, spec: SetSpec) -> None:
    async with assembled(daemons, spec) as (quorum, _):
        with pytest.raises(ValueError, match=WATCH_PREFIX):
            await quorum.open_watch("mine", drain=True)
