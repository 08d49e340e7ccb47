"""Scrubs of a set in use: nothing is invented, nothing is missed, no acknowledged write is lost, nobody is held up."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from qorumctl.controller.options import Timeouts
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.ranges import Range
from qorumctl.daemon.client import Monitor
from qorumctl.errors import DaemonStalledError
from tests.attack import Attack
from tests.integration.harness import NAME, SECTOR, LiveSet, Writers, in_background
from tests.live import MIB, Daemons, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]


@pytest.mark.attack(
    "a scrub under load finds each flip once, and invents none", "bit rot beneath four writers, 8 deep", weight=4
)
async def test_scrubs_under_four_writers_find_exactly_what_was_damaged(live_set: LiveSets, attack: Attack) -> None:
    """Cold: never written. Among the writes: blocks that are never written, between blocks that always are."""
    live = live_set(size_bytes=32 * MIB)
    await live.create()
    await live.start()
    shadow = live.fill()
    hot, mixed, cold = Range(0, 6 * MIB), Range(6 * MIB, 2 * MIB), Range(8 * MIB, 24 * MIB)
    for seed in attack.rounds(2):
        dice = random.Random(seed)
        quiet = set[int]()
        busy = set[int]()
        found: list[int] = []
        with (
            Writers(live, shadow, hot, count=3, seed=seed * 10, depth=8) as writers,
            Writers(live, shadow, mixed, count=1, seed=seed * 10 + 5, depth=8, spare=0) as among,
        ):
            for _ in range(3):
                fresh = {2 * dice.randrange(cold.offset // SECTOR // 2, cold.end // SECTOR // 2) for _ in range(20)}
                # Sectors apart, in the even blocks of 8.
                fresh |= {mixed.offset // SECTOR + 16 * dice.randrange(256) + 2 * dice.randrange(4) for _ in range(6)}
                fresh -= quiet
                # Damage where guests write is overwritten, or found; never invented elsewhere.
                warm = {2 * dice.randrange(hot.length // SECTOR // 2) for _ in range(6)}
                for sector in sorted(fresh | warm):
                    live.flip(dice.choice("abc"), sector * SECTOR + dice.randrange(SECTOR), dice.randrange(8))
                quiet |= fresh
                busy |= warm
                report = await live.scrub()
                assert report.outcome == "repaired"
                attack.count(scrubs=1, suspects=report.suspects, busy_bytes=report.busy_bytes)
                for finding in report.findings:
                    found += range(finding.offset // SECTOR, (finding.offset + finding.length) // SECTOR)
        assert sorted(sector for sector in found if sector * SECTOR >= hot.end) == sorted(quiet)
        assert {sector for sector in found if sector * SECTOR < hot.end} <= busy
        assert writers.writes + among.writes > 100
        attack.count(writes=writers.writes + among.writes, flips=len(quiet) + len(busy), findings=len(found))
        # What was flipped again after it had been read, where guests write.
        await live.scrub()
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


def loses(open_link: Callable[[], NbdLink], fastest: Path, block: int) -> bool:
    """Reads a block again and again while one write to it is in flight: whether the write, acknowledged, is gone."""
    at, new = Range(block * 4096, 4096), bytes([block % 255 + 1]) * 4096

    def guest_writes() -> None:
        link = open_link()
        assert link.write(at.offset, new)
        link.close()

    reader = open_link()
    with in_background(guest_writes) as guest, fastest.open("rb", buffering=0) as image:
        wait_for(lambda: os.pread(image.fileno(), 1, at.offset) == new[:1], "the write in the fastest copy")
        while guest.is_alive():
            assert reader.read(at) is not None
    kept = reader.read(at) == new
    reader.close()
    return not kept


def lost_writes(open_link: Callable[[], NbdLink], fastest: Path, blocks: Iterable[int]) -> int:
    return sum(loses(open_link, fastest, block) for block in blocks)


@pytest.mark.attack("repair under a guest loses no write", "reads during writes that take 0, 60 and 120 ms", weight=2)
async def test_reads_through_the_fence_lose_no_write_in_flight(
    nbdkit: Nbdkit, live_set: LiveSets, daemons: Daemons, attack: Attack
) -> None:
    """Staggered copies, one attack: on QEMU's own rewriting quorum, which loses writes, and on ours, which does not."""
    live = live_set(size_bytes=MIB)
    await slow_copies(live, nbdkit, (0, 60, 120))
    await live.start()
    plain, fastest = await plain_quorum(daemons, nbdkit, live.images_dir, (0, 60, 120))
    for seed in attack.rounds(1):
        blocks = [(seed * 8 + n) % 256 for n in range(8)]
        await asyncio.to_thread(clear, live, plain, blocks)
        ours = await asyncio.to_thread(lost_writes, live.link, live.image("a"), blocks)
        assert ours == 0
        assert len({live.contents(copy) for copy in "abc"}) == 1
        # Whether a given write is lost depends on the machine's pace: so eight at a time, until one is.
        theirs = 0
        for _ in range(10):
            theirs += await asyncio.to_thread(lost_writes, plain, fastest, blocks)
            if theirs:
                break
            await asyncio.to_thread(clear, live, plain, blocks)
        assert theirs > 0, "the attack proves nothing: it harms no unfenced quorum either"
        attack.count(writes=len(blocks), lost_by_a_plain_quorum=theirs, lost=ours)


def clear(live: LiveSet, plain: Callable[[], NbdLink], blocks: Iterable[int]) -> None:
    """Zeros again, where an earlier round has written."""
    for open_link in (live.link, plain):
        link = open_link()
        tickets = [link.submit_write(block * 4096, bytes(4096)) for block in blocks]
        assert all(link.complete(ticket) for ticket in tickets)
        link.close()


async def plain_quorum(
    daemons: Daemons, nbdkit: Nbdkit, directory: Path, delays_ms: tuple[int, ...]
) -> tuple[Callable[[], NbdLink], Path]:
    """QEMU's quorum as its documentation has it, exported to guests without a fence: a way in, and the first image."""
    runtime, _ = await daemons.spawn()
    children = []
    images = [directory / f"plain{n}.img" for n in range(len(delays_ms))]
    async with await Monitor.open(runtime.control_sock) as monitor:
        for image, delay_ms in zip(images, delays_ms, strict=True):
            image.write_bytes(bytes(MIB))
            server = nbdkit("--filter=delay", "file", image, f"delay-write={delay_ms}ms")
            node = {"driver": "nbd", "node-name": image.stem, "server": {"type": "unix", "path": str(server.socket)}}
            await monitor.execute("blockdev-add", node, timeout_s=20)
            children.append(image.stem)
        quorum = {"driver": "quorum", "node-name": "quorum", "vote-threshold": 2, "rewrite-corrupted": True}
        await monitor.execute("blockdev-add", {**quorum, "children": children}, timeout_s=20)
        export = {"type": "nbd", "id": "volume", "name": "volume", "node-name": "quorum", "writable": True}
        await monitor.execute("block-export-add", export, timeout_s=20)
    return (lambda: NbdLink(runtime.nbd_sock, "volume", who="The test's guest", timeout_s=30.0)), images[0]


async def test_a_slow_write_during_the_scan_is_no_damage(nbdkit: Nbdkit, live_set: LiveSets) -> None:
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
    nbdkit: Nbdkit, live_set: LiveSets
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
