"""The whole promise at once, from the command line: a gigabyte, 200 flips, ten kills, with and without guests."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from qorumctl.core.ranges import Range
from qorumctl.model.report import ScrubReport
from tests.integration.harness import NAME, SECTOR, LiveSet, Writers
from tests.live import MIB, wait_for

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
LiveSets = Callable[..., LiveSet]
GIB = 1 << 30


def damage(live: LiveSet, within: Range, flips: int, *, seed: int = 11) -> list[int]:
    """Flips bytes over the copies: no two share a sector, some share a request. Returns the sectors, sorted."""
    dice = random.Random(seed)
    first, count = within.offset // SECTOR, within.length // SECTOR
    # Every fourth has a neighbour two sectors on, in another copy: one request of QEMU's covers both.
    lonely = [first + 4 * n for n in dice.sample(range(count // 4), flips - flips // 4)]
    sectors = [*lonely, *(sector + 2 for sector in lonely[: flips // 4])]
    for n, sector in enumerate(sectors):
        live.flip("abc"[n % 3], sector * SECTOR + dice.randrange(SECTOR), dice.randrange(8))
    return sorted(sectors)


def report_of(output: bytes) -> ScrubReport:
    return ScrubReport.model_validate(json.loads(output))


def finish(live: LiveSet, *arguments: str) -> tuple[int, ScrubReport]:
    scrub = live.cli("--json", "scrub", NAME, *arguments)
    output, _ = scrub.communicate(timeout=120)
    return scrub.returncode, report_of(output)


def kill_scrubs(live: LiveSet, times: int, *, seed: int = 2) -> int:
    """Starts scrubs and kills each at a random instant of its work. Returns how many were still at work then."""
    dice = random.Random(seed)
    return sum(kill_one(live, dice.uniform(0, 0.7)) for _ in range(times))


def kill_one(live: LiveSet, after_s: float) -> bool:
    scrub = live.cli("--json", "scrub", NAME, "--rate", "400MiB")
    lock = live.directories.state_dir(NAME) / "lock"
    wait_for(lambda: scrub.poll() is not None or f"{scrub.pid} scrub" in lock.read_text(), "a scrub at work")
    ends_at_s = time.monotonic() + after_s
    wait_for(lambda: scrub.poll() is not None or time.monotonic() > ends_at_s, "the random instant")
    at_work = scrub.poll() is None
    scrub.kill()
    scrub.communicate()
    return at_work


@pytest.mark.parametrize("guests", [False, True], ids=["quiet", "four-writers"])
async def test_a_gigabyte_with_200_flips_and_ten_kills(live_set: LiveSets, guests: bool) -> None:
    live = live_set(size_bytes=GIB)
    await live.create()
    await live.start()
    shadow = await asyncio.to_thread(live.fill)
    hot = Range(960 * MIB, 64 * MIB)
    sectors = damage(live, Range(0, hot.offset), 200)

    def check() -> None:
        with Writers(live, shadow, hot) if guests else nullcontext():
            assert kill_scrubs(live, 10) >= 5
            code, report = finish(live)
        assert [f.offset // SECTOR for f in report.findings] == sectors
        assert {(f.length, f.action, f.verdict) for f in report.findings} == {(SECTOR, "repaired", "outvoted")}
        assert code == 3
        assert all(live.equal_to(shadow).values())
        assert finish(live)[0] == 0
        left = live.leftovers()
        assert left["watches"] == frozenset()
        assert left["exports"] == {"volume", "heal", "copy-a", "copy-b", "copy-c"}

    await asyncio.to_thread(check)


async def test_ctrl_c_stops_in_order_and_the_next_scrub_resumes(live_set: LiveSets) -> None:
    live = live_set(size_bytes=64 * MIB)
    await live.create()
    await live.start()
    shadow = live.fill()
    sectors = damage(live, Range(0, live.size_bytes), 40)

    def check() -> None:
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 6)):
            scrub = live.cli("--json", "scrub", NAME, "--rate", "20MiB")
            wait_for(lambda: position(live) > 4 * MIB, "a scrub on its way")
            scrub.send_signal(number)
            output, _ = scrub.communicate(timeout=20)
            assert scrub.returncode == code
            assert report_of(output).outcome == "unfinished"
        assert live.leftovers()["watches"] == frozenset()
        code, report = finish(live)
        assert (code, [f.offset // SECTOR for f in report.findings]) == (3, sectors)
        assert all(live.equal_to(shadow).values())

    await asyncio.to_thread(check)


async def test_pause_and_cancel_from_another_terminal(live_set: LiveSets) -> None:
    live = live_set(size_bytes=64 * MIB)
    await live.create()
    await live.start()
    live.fill()

    def check() -> None:
        for request, resumable in (("pause", True), ("cancel", False)):
            # What is left of it after the pause takes longer than a command on a busy machine.
            scrub = live.cli("--json", "scrub", NAME, "--rate", "4MiB")
            wait_for(lambda: position(live) > 0, "a scrub on its way")
            asked = live.cli("--json", request, NAME)
            asked.communicate(timeout=20)
            assert asked.returncode == 0
            output, _ = scrub.communicate(timeout=20)
            assert scrub.returncode == 6
            report = report_of(output)
            assert (report.outcome, report.resumable) == ("unfinished", resumable)

    await asyncio.to_thread(check)


async def test_ctrl_z_never_stops_with_a_request_outstanding(live_set: LiveSets) -> None:
    """A suspended scrub that had asked for something would hold up the daemon's next drain, and every guest."""
    live = live_set(size_bytes=64 * MIB)
    await live.create()
    await live.start()
    shadow = live.fill()

    def check() -> None:
        sectors = damage(live, Range(0, live.size_bytes), 40)
        scrub = live.cli("--json", "scrub", NAME, "--rate", "8MiB")
        wait_for(lambda: position(live) > 0, "a scrub on its way")
        assert sum(suspend_and_resume(live, scrub) for _ in range(4)) >= 3
        output, _ = scrub.communicate(timeout=30)
        assert [f.offset // SECTOR for f in report_of(output).findings] == sectors
        assert all(live.equal_to(shadow).values())

    await asyncio.to_thread(check)


def suspend_and_resume(live: LiveSet, scrub: subprocess.Popen[bytes]) -> bool:
    """Ctrl-Z; then a guest's read and a drain, which hang if the scrub left a reply unread; then it goes on."""
    scrub.send_signal(signal.SIGTSTP)
    wait_for(lambda: scrub.poll() is not None or state_of(scrub.pid) == "T", "a suspended scrub")
    if scrub.poll() is not None:
        return False
    drain(live)
    link = live.link(timeout_s=5)
    assert link.read(Range(0, 4096)) is not None
    link.close()
    before = position(live)
    os.kill(scrub.pid, signal.SIGCONT)
    wait_for(lambda: scrub.poll() is not None or position(live) > before, "a scrub that goes on")
    return True


def drain(live: LiveSet) -> None:
    from qorumctl.daemon.client import Monitor

    async def transaction() -> None:
        async with await Monitor.open(live.runtime.control_sock) as monitor:
            await monitor.execute("transaction", {"actions": []}, timeout_s=5)

    asyncio.run(transaction())


def position(live: LiveSet) -> int:
    with live.sets._context(NAME).store(read_only=True) as store:
        runs = store.runs(1)
        return runs[0].position_bytes if runs and runs[0].state == "running" else 0


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
