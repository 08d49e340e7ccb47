"""A front for guests that speak vhost-user-blk: what it promises them, and how it comes and goes with its set."""

from __future__ import annotations

import asyncio
import json
import random
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qorumctl.controller import fronting, serving
from qorumctl.controller.context import SetContext
from qorumctl.controller.options import Timeouts
from qorumctl.daemon import process, sockets
from qorumctl.errors import DaemonGoneError, RefusedError, UsageError
from qorumctl.model.status import FrontStatus
from qorumctl.store import SetLock
from tests.integration.harness import NAME, LiveSet, in_background, kill_daemon
from tests.live import MIB, wait_for
from tests.vhost_user import INFLIGHT_SHMFD, SLOT_BYTES, SLOTS, Disk

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
LiveSets = Callable[..., LiveSet]
needs_sock_diag = pytest.mark.skipif(
    sockets.connections(Path("/none")) is None, reason="the kernel does not tell who is connected"
)


async def running(live_set: LiveSets) -> LiveSet:
    live = live_set(size_bytes=4 * MIB)
    await live.create()
    await live.start()
    return live


@contextmanager
def guest(live: LiveSet) -> Iterator[Disk]:
    disk = Disk(live.front.server)
    try:
        yield disk
    finally:
        disk.close()


async def front_in_status(live: LiveSet) -> FrontStatus | None:
    return (await live.sets.status([NAME])).sets[0].front


class Work:
    """A guest that writes at random with all its slots, and notes what was acknowledged. No two of its requests in
    flight overlap: each slot has a part of the disk."""

    def __init__(self, live: LiveSet, disk: Disk, seed: int) -> None:
        self._disk, self._dice = disk, random.Random(seed)
        self._part = live.size_bytes // SLOTS // 4096 * 4096
        self.shadow = bytearray(live.size_bytes)
        self._flying: dict[int, tuple[int, bytes]] = {}
        self._stop = threading.Event()
        self.writes = 0

    def run(self) -> None:
        for slot in range(SLOTS):
            self._begin(slot)
        while self._flying:
            for slot, fine in self._disk.wait().items():
                assert fine, "a write has failed"
                at, data = self._flying.pop(slot)
                self.shadow[at : at + len(data)] = data
                self.writes += 1
                if not self._stop.is_set():
                    self._begin(slot)

    def _begin(self, slot: int) -> None:
        length = 512 * self._dice.randrange(1, SLOT_BYTES // 512)
        at = slot * self._part + 512 * self._dice.randrange((self._part - length) // 512)
        data = self._dice.randbytes(length)
        self._disk.memory[self._disk.at(slot) : self._disk.at(slot) + length] = data
        self._flying[slot] = (at, data)
        self._disk.submit_write(slot, at, length)

    def more(self, count: int = 40) -> None:
        before = self.writes
        wait_for(lambda: self.writes >= before + count, "writes", deadline_s=120)

    def stop(self) -> None:
        self._stop.set()


# -- what a guest is told


@pytest.mark.parametrize("config_wce_off", [False, True])
async def test_a_guest_reads_and_writes_the_volume(live_set: LiveSets, config_wce_off: bool) -> None:
    live = await running(live_set)
    shadow = live.fill()
    done = await live.sets.front(NAME, config_wce_off=config_wce_off)
    assert done.qemu == (await live.sets.attach(NAME)).vhost_user_blk
    assert done.qemu[-1].endswith(",config-wce=off") == config_wce_off
    with guest(live) as disk:
        assert disk.size_bytes == live.size_bytes
        # QEMU says so whatever its `writethrough` is, and cannot tell a guest what was in flight, so that `reconnect`
        # is not for its guests. Should either change, so should daemon/front.py.
        assert disk.wce is False
        assert not disk.protocol & INFLIGHT_SHMFD
        assert disk.read(MIB, SLOT_BYTES) == shadow[MIB : MIB + SLOT_BYTES]
        assert disk.write(MIB, b"new" * 512)
        shadow[MIB : MIB + 1536] = b"new" * 512
        assert disk.flush()
        disk.wce = True
        assert disk.write(0, b"old" * 512)
        shadow[:1536] = b"old" * 512
        assert disk.flush()
    with guest(live) as disk:
        # What the last one has asked for stays, and the next one is told.
        assert disk.wce
    assert all(live.equal_to(shadow).values())


# -- a buffer that changes under I/O


@contextmanager
def scribbler(disk: Disk) -> Iterator[None]:
    """Changes all slots, without end, whatever is under way."""
    stop = threading.Event()

    def scribble() -> None:
        patterns, n = [bytes([value]) * (SLOTS * SLOT_BYTES) for value in range(8)], 0
        while not stop.is_set():
            n += 1
            disk.memory[disk.at(0) : disk.at(SLOTS)] = patterns[n % 8]

    with in_background(scribble):
        try:
            yield
        finally:
            stop.set()


def write_all(disk: Disk, rounds: int) -> None:
    for _ in range(rounds):
        for slot in range(SLOTS):
            disk.submit_write(slot, slot * SLOT_BYTES)
        left = SLOTS
        while left:
            left -= len(disk.wait())


async def test_a_buffer_changed_under_io_leaves_the_copies_equal(live_set: LiveSets) -> None:
    live = await running(live_set)
    await live.sets.front(NAME)
    with guest(live) as disk, scribbler(disk):
        await asyncio.to_thread(write_all, disk, 20)
    assert len({live.contents(copy) for copy in "abc"}) == 1
    assert (await live.scrub()).outcome == "clean"


def test_without_a_front_it_would_not(short_dir: Path) -> None:
    """The same writes to a quorum's own vhost-user-blk export: why there is a front."""
    images = [short_dir / name for name in "abc"]
    arguments: list[str] = []
    for image in images:
        image.write_bytes(bytes(2 * MIB))
        node = {"driver": "raw", "node-name": image.name, "file": {"driver": "file", "filename": str(image)}}
        arguments += ["--blockdev", json.dumps(node)]
    quorum = {"driver": "quorum", "node-name": "q", "vote-threshold": 2, "children": list("abc")}
    at, ready = short_dir / "sock", short_dir / "pid"
    export = f"vhost-user-blk,id=e,node-name=q,addr.type=unix,addr.path={at},writable=on"
    command = [process.find_binary(), *arguments, "--blockdev", json.dumps(quorum), "--export", export]
    with subprocess.Popen([*command, "--pidfile", str(ready)]) as daemon:
        try:
            wait_for(ready.exists, "the daemon")
            disk = Disk(at)
            with scribbler(disk):
                for _ in range(200):
                    write_all(disk, 1)
                    if len({image.read_bytes() for image in images}) > 1:
                        break
                else:
                    pytest.fail("the copies are equal: this test has lost its teeth")
            disk.close()
        finally:
            daemon.kill()


# -- the set's daemon goes and comes


async def test_a_guest_waits_out_a_restart_and_a_death_of_the_set(live_set: LiveSets) -> None:
    live = await running(live_set)
    await live.sets.front(NAME)
    with guest(live) as disk:
        work = Work(live, disk, seed=3)
        with in_background(work.run):
            try:
                work.more()
                await live.sets.restart(NAME, force=True)
                work.more()
                kill_daemon(live.runtime)
                await live.start()
                work.more()
            finally:
                work.stop()
        assert all(live.equal_to(work.shadow).values())
        assert (await live.sets.status([NAME])).sets[0].state == "healthy"


async def test_what_was_acknowledged_outlives_the_death_of_both_daemons(live_set: LiveSets) -> None:
    live = await running(live_set)
    live.fill()
    await live.sets.front(NAME)
    with guest(live) as disk:
        shadow, dice = bytearray(live.contents("a")), random.Random(5)
        for n in range(20):
            at, data = 4096 * dice.randrange(64), dice.randbytes(4096)
            assert disk.write(at, data)
            shadow[at : at + 4096] = data
            if n == 19:
                disk.memory[disk.at(1) : disk.at(2)] = dice.randbytes(SLOT_BYTES)
                disk.submit_write(1, 2 * MIB)
        kill_daemon(live.runtime)
        kill_daemon(live.front)
    # As systemd does.
    live.front.pidfile.unlink()
    shown = await front_in_status(live)
    assert shown is not None
    assert (shown.pid, shown.connected) == (None, False)
    await live.start()
    assert (await live.sets.status([NAME])).sets[0].state == "healthy"
    assert len({live.contents(copy) for copy in "abc"}) == 1
    await live.sets.restart(NAME)
    assert live.contents("a")[: 2 * MIB] == shadow[: 2 * MIB]

    # A guest that connects again would be served wrongly.
    with pytest.raises(RefusedError, match="ended without being stopped"):
        await live.sets.front(NAME)
    assert (await live.sets.stop_front(NAME)).changed
    assert (await live.sets.front(NAME)).changed
    with guest(live) as disk:
        assert disk.read(0, 4096) == shadow[:4096]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_a_flush_that_another_daemon_answers_covers_what_the_first_has_acknowledged(
    live_set: LiveSets, image_format: str
) -> None:
    live = live_set(size_bytes=4 * MIB)
    await live.create(format=image_format)
    await live.start()
    await live.sets.front(NAME, config_wce_off=True)
    with guest(live) as disk:
        assert disk.write(MIB, b"x" * 4096)
        kill_daemon(live.runtime)
        await live.start()
        assert disk.flush()
        assert disk.read(MIB, 4096) == b"x" * 4096


# -- its life


@needs_sock_diag
async def test_it_is_started_once_and_seen_by_status(live_set: LiveSets) -> None:
    live = await running(live_set)
    assert await front_in_status(live) is None
    with SetLock.acquire(live.directories.state_dir(NAME), purpose="scrub"):
        # Which may go on for hours.
        first = await live.sets.front(NAME, num_queues=2)
    assert first.changed
    assert first.front is not None
    assert first.front.pid == process.running_pid(live.front)
    again = await live.sets.front(NAME, num_queues=2)
    assert (again.changed, again.front) == (False, first.front)
    with pytest.raises(RefusedError, match="runs already, with 2 queues"):
        await live.sets.front(NAME)
    with pytest.raises(RefusedError, match="runs already"):
        await live.sets.front(NAME, num_queues=2, config_wce_off=True)
    assert {stat.S_IMODE(path.stat().st_mode) for path in live.front.sockets} == {0o600}

    shown = await front_in_status(live)
    assert shown == first.front
    with guest(live) as disk:
        assert disk.size_bytes
        shown = await front_in_status(live)
        assert (shown.guest, shown.connected, shown.write_through, shown.num_queues) == (True, True, True, 2)
        with pytest.raises(RefusedError, match="A guest is connected to the front"):
            await live.sets.stop_front(NAME)
    # The kernel tells at once that the guest's end is closed.
    assert (await live.sets.stop_front(NAME)).changed
    assert not (await live.sets.stop_front(NAME)).changed
    assert await front_in_status(live) is None
    assert {path.name for path in live.front.directory.iterdir() if "front" in path.name} == {"front.log"}


async def test_one_that_is_out_of_reach_is_neither_passed_over_nor_doubled(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_SETTLING_S", 0.1)
    live = await running(live_set)
    await live.sets.front(NAME)
    (pid,) = process.processes(live.front)
    for path in (live.front.pidfile, *live.front.sockets):
        path.unlink()
    for refused in (live.sets.front(NAME), live.sets.stop_front(NAME), live.sets.stop(NAME), live.sets.delete(NAME)):
        with pytest.raises(RefusedError, match=rf"runs \(pid {pid}\), but its sockets are gone"):
            await refused
    assert process.processes(live.front) == [pid]
    await live.sets.stop(NAME, force=True)
    assert process.processes(live.front) == []


@needs_sock_diag
async def test_a_guest_in_a_network_namespace_of_its_own_is_seen(live_set: LiveSets) -> None:
    """As in a container: the kernel tells of its connection in that namespace alone."""
    live = await running(live_set)
    await live.sets.front(NAME)
    connect = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(1, flush=True); input()"
    )
    command = ["unshare", "--net", sys.executable, "-c", connect, str(live.front.server)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        if not other.stdout.readline():
            pytest.skip("no network namespace is to be had")
        # Accepted a moment later.
        context = SetContext(NAME, live.directories, Timeouts())
        wait_for(lambda: getattr(fronting.look(context), "guest", False), "the guest's connection")
        with pytest.raises(RefusedError, match="A guest is connected to the front"):
            await live.sets.stop_front(NAME)
        other.stdin.close()
    assert (await live.sets.stop_front(NAME, force=True)).changed


async def test_the_set_is_not_stopped_beneath_it_unless_forced(live_set: LiveSets) -> None:
    live = await running(live_set)
    started = await live.sets.front(NAME, config_wce_off=True)
    assert started.qemu[-1].endswith(",config-wce=off")
    with guest(live) as disk:
        assert disk.write(0, b"x" * 512)
        for refused in (live.sets.stop(NAME), live.sets.restart(NAME), live.sets.delete(NAME)):
            with pytest.raises(RefusedError, match="front of web01 runs"):
                await refused
        assert disk.write(0, b"y" * 512)
        assert not (await live.sets.stop(NAME, force=True)).warnings
    assert process.processes(live.front) == []
    assert live.contents("b")[:512] == b"y" * 512
    await live.start()
    assert (await live.sets.status([NAME])).sets[0].state == "healthy"


async def test_it_needs_a_set_that_runs(live_set: LiveSets) -> None:
    live = await running(live_set)
    with pytest.raises(UsageError, match="from 1 to 64 queues"):
        await live.sets.front(NAME, num_queues=0)
    await live.sets.stop(NAME)
    with pytest.raises(DaemonGoneError, match="is not running"):
        await live.sets.front(NAME)
    assert not live.front.log.exists()
