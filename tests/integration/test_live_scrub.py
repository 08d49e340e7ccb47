"""Scrubs of a set in use: nothing is invented, nothing is missed, no acknowledged write is lost, nobody is held up."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.controller.options import Timeouts
from qorumctl.core.ranges import Range
from qorumctl.errors import DaemonStalledError
from tests.integration.harness import NAME, SECTOR, LiveSet, Writers, in_background
from tests.live import MIB, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]


async def test_scrubs_under_four_writers_find_exactly_what_was_damaged(live_set: LiveSets) -> None:
    live = live_set(size_bytes=32 * MIB)
    await live.create()
    await live.start()
    shadow = live.fill()
    hot = Range(0, 8 * MIB)
    dice, injected = random.Random(4), set[int]()
    found: list[int] = []
    with Writers(live, shadow, hot) as writers:
        for _ in range(5):
            for _ in range(12):
                sector = 2 * dice.randrange(hot.end // SECTOR // 2, live.size_bytes // SECTOR // 2)
                if sector not in injected:
                    live.flip(dice.choice("abc"), sector * SECTOR + dice.randrange(SECTOR), dice.randrange(8))
                    injected.add(sector)
            report = await live.scrub()
            assert report.outcome == "repaired"
            found += [f.offset // SECTOR for f in report.findings]
        assert writers.writes > 100
    assert sorted(found) == sorted(injected)
    assert all(live.equal_to(shadow).values())
    assert (await live.scrub()).outcome == "clean"


async def test_damage_among_writes_is_repaired_and_no_write_is_lost(live_set: LiveSets) -> None:
    """The whole disk is hot: damage may be overwritten before anyone sees it, but never the other way round."""
    live = live_set(size_bytes=8 * MIB)
    await live.create()
    await live.start()
    shadow = live.fill()
    dice = random.Random(5)
    with Writers(live, shadow, Range(0, live.size_bytes)):
        for _ in range(5):
            for _ in range(10):
                live.flip(dice.choice("abc"), dice.randrange(live.size_bytes))
            report = await live.scrub()
            assert report.outcome in {"clean", "repaired"}
    await live.scrub()
    assert all(live.equal_to(shadow).values())


async def test_overlapping_writes_reach_all_copies_in_one_order(live_set: LiveSets, tmp_path: Path) -> None:
    """Eight writes to one block in flight together: whichever wins must win in every copy. With QEMU's thread pool
    every fifth block differed on a disk."""
    live = live_set(size_bytes=16 * MIB)
    await live.create(sources=[str(tmp_path / f"{copy}.img") for copy in "abc"])
    await live.start()

    def guest_writes() -> None:
        link = live.link()
        for block in range(300):
            tickets = [link.submit_write(block * 8192, bytes([65 + n]) * 4096) for n in range(8)]
            assert all(link.complete(ticket) for ticket in tickets)
        link.close()

    await asyncio.to_thread(guest_writes)
    assert len({live.contents(copy) for copy in "abc"}) == 1
    assert (await live.scrub()).findings == []


async def slow_copies(live: LiveSet, nbdkit: Nbdkit, delays_ms: tuple[int, ...]) -> None:
    """A set of NBD copies whose writes take their time, each another."""
    sources = []
    for path, delay_ms in zip(live.paths(len(delays_ms)), delays_ms, strict=True):
        Path(path).write_bytes(bytes(live.size_bytes))
        server = nbdkit("--filter=noextents", "--filter=delay", "file", path, f"delay-write={delay_ms}ms")
        sources.append(server.uri)
    await live.create(sources=sources, size_bytes=None)
    live.sources = live.paths(len(delays_ms))


async def test_reads_through_the_fence_lose_no_write_in_flight(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    """Staggered copies: without the fence QEMU's vote reverts the write to what two copies still hold."""
    live = live_set(size_bytes=MIB)
    await slow_copies(live, nbdkit, (0, 300, 600))
    await live.start()

    def guest_writes() -> None:
        link = live.link()
        assert link.write(0, b"N" * 4096)
        link.close()

    with in_background(guest_writes) as guest:
        wait_for(lambda: live.contents("a")[:1] == b"N", "the write in the fastest copy")
        while guest.is_alive():
            link = live.link("heal")
            assert link.read(Range(0, 4096)) is not None
            link.close()
    assert [live.contents(copy)[:1] for copy in "abc"] == [b"N"] * 3


async def test_a_slow_write_during_the_scan_is_no_damage(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    """Two of three copies lag a whole second behind: raw mismatches, drained twice, none of them damage."""
    live = live_set(size_bytes=2 * MIB)
    await slow_copies(live, nbdkit, (0, 400, 800))
    await live.start()
    stop, acknowledged = threading.Event(), bytearray(live.size_bytes)

    def guest_writes() -> None:
        link, dice = live.link(), random.Random(3)
        while not stop.is_set():
            at = dice.randrange(live.size_bytes // 4096) * 4096
            data = dice.randbytes(4096)
            assert link.write(at, data)
            acknowledged[at : at + 4096] = data
        link.close()

    with in_background(guest_writes):
        wait_for(lambda: any(acknowledged), "the first acknowledged write")
        suspects = 0
        for _ in range(3):
            report = await live.scrub()
            assert report.findings == []
            suspects += report.suspects
        stop.set()
    assert suspects > 0, "no scan ever met a write in flight: the test proves nothing"
    assert all(live.equal_to(acknowledged).values())


async def test_slow_writes_into_damage_are_neither_lost_nor_called_failed_repairs(
    live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    """The guest writes into the damaged block throughout: during confirmation, heal and verification."""
    live = live_set(size_bytes=2 * MIB)
    await slow_copies(live, nbdkit, (0, 50, 100))
    await live.start()
    stop, acknowledged = threading.Event(), bytearray(live.size_bytes)

    def guest_writes() -> None:
        link, dice = live.link(), random.Random(4)
        while not stop.is_set():
            at = MIB + dice.randrange(4) * SECTOR
            data = dice.randbytes(SECTOR)
            assert link.write(at, data)
            acknowledged[at : at + SECTOR] = data
        link.close()

    with in_background(guest_writes):
        wait_for(lambda: any(acknowledged), "the first acknowledged write")
        for n in range(3):
            # Eight adjacent sectors, of which the guest writes the first four.
            live.poke("b", MIB, random.Random(n).randbytes(8 * SECTOR))
            report = await live.scrub()
            assert {f.action for f in report.findings} <= {"repaired"}, report.findings
            assert any(f.offset + f.length == MIB + 8 * SECTOR for f in report.findings)
        stop.set()
    await live.scrub()
    assert all(live.equal_to(acknowledged).values())


async def test_a_guest_that_does_not_read_its_replies_stalls_only_the_scrub(live_set: LiveSets) -> None:
    """A drain waits for a reply that nobody takes."""
    live = live_set(timeouts=Timeouts(drain_s=1.5, copy_s=3.0))
    await live.create()
    await live.start()
    shadow = live.fill()
    live.flip("a", 0)
    guest = greeted(live.runtime.nbd_sock)
    try:
        guest.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 8 * MIB, 8 * MIB))
        wait_for(lambda: guest.recv(1, socket.MSG_PEEK), "the beginning of the reply")
        with pytest.raises(DaemonStalledError):
            await live.scrub()
        assert live.contents("a")[:SECTOR] != shadow[:SECTOR]
    finally:
        guest.close()
    report = await live.scrub()
    assert [(f.offset, f.action) for f in report.findings] == [(0, "repaired")]


async def test_a_guest_that_stops_in_the_middle_of_a_write_stalls_only_the_scrub(live_set: LiveSets) -> None:
    """A drain waits for a half-received write. The scrub gives up at its deadline, and nothing is written."""
    live = live_set(timeouts=Timeouts(drain_s=1.5, copy_s=3.0))
    await live.create()
    await live.start()
    shadow = live.fill()
    live.flip("a", 0)
    guest = half_a_write(live.runtime.nbd_sock)
    try:
        with pytest.raises(DaemonStalledError):
            await live.scrub()
        assert live.contents("a")[:SECTOR] != shadow[:SECTOR]
    finally:
        guest.close()
    assert live.sets.report(NAME).resumable
    report = await live.scrub()
    assert [(f.offset, f.action) for f in report.findings] == [(0, "repaired")]
    assert all(live.equal_to(shadow).values())


def greeted(nbd_sock: Path) -> socket.socket:
    """A client by hand, after the handshake, with simple replies."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(nbd_sock))
    client.recv(18, socket.MSG_WAITALL)
    # NBD_FLAG_C_FIXED_NEWSTYLE | NO_ZEROES, then NBD_OPT_EXPORT_NAME.
    client.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 6) + b"volume")
    client.recv(10, socket.MSG_WAITALL)
    return client


def half_a_write(nbd_sock: Path) -> socket.socket:
    """The header of a write and half of its data."""
    client = greeted(nbd_sock)
    client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 64 << 10, 4096) + b"h" * 2048)
    return client


async def test_a_fenced_read_among_writers_is_let_through(live_set: LiveSets) -> None:
    """Sixteen writers on the damaged 64 KiB: new writes overtake a waiting fenced read, a drain lets it through."""
    live = live_set(size_bytes=4 * MIB)
    await live.create()
    await live.start()
    shadow = live.fill()
    hot = Range(MIB, 64 << 10)
    with Writers(live, shadow, hot, count=16):
        ends_at_s = time.monotonic() + 20
        healed = 0
        while healed < 3 and time.monotonic() < ends_at_s:
            live.flip("b", 2 * MIB + healed * SECTOR * 2)
            live.flip("b", hot.offset + random.Random(healed).randrange(hot.length))
            report = await live.scrub()
            healed += sum(f.offset >= 2 * MIB for f in report.findings)
    assert healed == 3
    await live.scrub()
    assert all(live.equal_to(shadow).values())


async def test_a_guest_is_never_held_up_by_a_scrub_that_is_told_to_stop(live_set: LiveSets) -> None:
    from qorumctl.controller.observer import ScrubControl
    from qorumctl.scrub.ports import StopReason

    live = live_set(size_bytes=32 * MIB)
    await live.create()
    await live.start()
    shadow = live.fill()
    control = ScrubControl()

    class StopsHalfWay:
        def started(self, start: object) -> None: ...

        def moved(self, position: object) -> None:
            if position.position_bytes > 8 * MIB:  # type: ignore[attr-defined]
                control.stop(StopReason.INTERRUPTED)

    live.flip("c", 0)
    live.flip("c", 30 * MIB)
    report = await live.scrub(control=control, observer=StopsHalfWay(), rate_bytes_per_s=48 * MIB)
    assert (report.outcome, report.resumable) == ("unfinished", True)
    assert [f.offset for f in report.findings] == [0]
    resumed = await live.scrub()
    assert resumed.run == report.run
    assert [f.offset for f in resumed.findings] == [0, 30 * MIB]
    assert resumed.scanned_bytes == live.size_bytes
    assert all(live.equal_to(shadow).values())


async def test_a_daemon_that_dies_in_a_scrub_is_said_so_and_the_run_resumes(live_set: LiveSets) -> None:
    from qorumctl.daemon import process
    from qorumctl.errors import QorumError

    live = live_set(size_bytes=32 * MIB)
    await live.create()
    await live.start()
    live.fill()

    class Kills:
        done = False

        def started(self, start: object) -> None: ...

        def moved(self, position: object) -> None:
            if not self.done:
                self.done = True
                pid = process.running_pid(live.runtime)
                assert pid is not None
                process.kill(live.runtime, pid)

    with pytest.raises(QorumError) as caught:
        await live.scrub(observer=Kills())
    assert caught.value.exit_code == 1
    assert live.sets.report(NAME).outcome == "failed"
    assert (await live.sets.status([NAME])).sets[0].state == "failed"
    await live.start(now=True)
    report = await live.scrub()
    assert report.outcome in {"clean", "repaired"}
