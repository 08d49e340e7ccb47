"""Sectors that a copy cannot read, or does not take, are written anew outside the quorum, while guests write."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qorumctl.controller import failing, rewriting
from qorumctl.controller.observer import ScrubControl, StopReason
from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.errors import DaemonGoneError, RefusedError
from qorumctl.model.report import FindingDocument, ScrubReport
from qorumctl.store import Store
from tests.attack import Attack
from tests.integration.absence import as_if_nothing_had_been, cut, standing, write
from tests.integration.bad_disk import BadDisk, bad_disks
from tests.integration.harness import NAME, SECTOR, LiveSet, Writers
from tests.integration.picture import status_of
from tests.live import MIB, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Disks = Callable[..., list[BadDisk]]
SIZE = 4 * MIB


@pytest.fixture
def disks(short_dir: Path) -> Iterator[Disks]:
    """`disks(2)`: copies behind servers of the test's own."""
    with ExitStack() as stack:
        yield lambda count, **keys: stack.enter_context(bad_disks(short_dir, [bytes(SIZE)] * count, **keys))


async def serving(live: LiveSet, bad: list[BadDisk], *, count: int = 3, **options: str) -> bytearray:
    """The last copies are the bad disks."""
    paths = live.paths(count - len(bad))
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    await live.create(sources=[*paths, *(disk.uri for disk in bad)], size_bytes=None, **options)
    await live.start()
    return live.fill()


def told(report: ScrubReport) -> list[tuple[int, int, str, list[str], str]]:
    """(sector, sectors, verdict, copies, action) of each finding."""
    return [(f.offset // SECTOR, f.length // SECTOR, f.verdict, f.copies, f.action) for f in report.findings]


def scrubbed(live: LiveSet, *, ends: set[int]) -> ScrubReport:
    """As a process of its own."""
    running = live.cli("--json", "scrub", NAME, stderr=subprocess.PIPE)
    said, complaints = running.communicate(timeout=300)
    assert running.returncode in {3, 4, *ends}, (running.returncode, said.decode(), complaints.decode())
    report = ScrubReport.model_validate_json(said)
    left = [f for f in told(report) if f[4] != "repaired"]
    assert running.returncode in ends, (running.returncode, left, report.left_because, complaints.decode())
    return report


def equal(live: LiveSet, bad: list[BadDisk], shadow: bytearray) -> list[bool]:
    files = [Path(source).read_bytes() for source in live.sources if source.startswith("/")]
    return [content == shadow for content in [*files, *(disk.content for disk in bad)]]


async def is_healthy(live: LiveSet) -> None:
    assert as_if_nothing_had_been(await standing(live))
    status = await status_of(live.sets)
    assert (status.state, status.unrepaired) == ("healthy", 0), status


@pytest.mark.attack("lost sectors are written anew and no write is lost", "two bad disks under four writers", weight=2)
async def test_lost_sectors_under_writers(live_set: LiveSets, disks: Disks, attack: Attack) -> None:
    """Each writer spares every other block of its part: lost sectors lie in what is written, and just beside it."""
    live = live_set(size_bytes=SIZE)
    bad = disks(2)
    shadow = await serving(live, bad)
    away_at_once: set[int] = set()

    def look(*_: int) -> None:
        with Store.open(live.directories.state_dir(NAME), read_only=True) as store:
            away_at_once.add(len(store.absences()))

    for seed in attack.rounds(1):
        dice = random.Random(seed)
        cold = [8 * block + dice.randrange(8) for block in dice.sample(range(0, SIZE // 4096, 2), 24)]
        hot = [8 * block + dice.randrange(8) for block in dice.sample(range(1, SIZE // 4096, 2), 8)]
        with Writers(live, shadow, Range(0, SIZE), seed=seed, spare=0) as writers:
            for n, disk in enumerate(bad):
                disk.lose(cold[n::2] + hot[n::2])
                disk.at_write = look if dice.randrange(2) else None
            report = scrubbed(live, ends={3})
            enough = writers.writes + 50
            wait_for(lambda enough=enough: writers.writes >= enough, "writes after it", deadline_s=60)
        found = {sector: (verdict, copies, action) for sector, _, verdict, copies, action in told(report)}
        assert {s: found.get(s) for s in cold} == {
            s: ("unreadable", ["bc"[cold.index(s) % 2]], "repaired") for s in cold
        }
        assert [disk.bad for disk in bad] == [set(), set()]
        await is_healthy(live)
        attack.count(repaired=len(report.findings), writes=writers.writes)
    assert away_at_once <= {0, 1}
    assert (await live.scrub()).outcome == "clean"
    await live.sets.stop(NAME)
    assert equal(live, bad, shadow) == [True, True, True]


SINCE = "qorumctl.controller.rewriting:Rewriting.run"


@pytest.mark.attack("a killed scrub is finished by the next", "kill -9 before any step of a rewrite", weight=2)
async def test_killed_before_any_step_and_scrubbed_again(live_set: LiveSets, disks: Disks, attack: Attack) -> None:
    live = live_set(size_bytes=SIZE)
    bad = disks(2)
    shadow = await serving(live, bad)
    for seed in attack.rounds(2):
        dice = random.Random(seed)
        lost = dice.sample(range(8, SIZE // SECTOR, 16), 4)
        bad[0].lose(lost[:2])
        bad[1].lose(lost[2:])
        kills = 0
        for _ in range(2):
            kills += cut(live, dice.randrange(1, 220), "scrub", NAME, since=SINCE, ends={0, 3})
            write(live, shadow, at=dice.randrange(SIZE // 4096) * 4096, data=dice.randbytes(4096))
            write(live, shadow, at=dice.choice(lost) * SECTOR, data=dice.randbytes(SECTOR))
        if dice.randrange(3) == 0:
            # By hand, too; a copy that is not away is no error.
            await live.sets.rejoin(NAME, dice.choice("bc"))
        last = await live.scrub()
        assert last.outcome in {"clean", "repaired"}
        assert {f.action for f in last.findings} <= {"repaired"}
        assert len(last.findings) == len({f.offset for f in last.findings})
        assert [disk.bad for disk in bad] == [set(), set()]
        await is_healthy(live)
        assert equal(live, bad, shadow) == [True, True, True]
        attack.count(kills=kills)


async def test_the_run_that_was_killed_is_the_one_that_says_repaired(live_set: LiveSets, disks: Disks) -> None:
    """Whatever the step: the finding is neither lost nor counted twice."""
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    shadow = await serving(live, [bad])
    bad.lose([100, 101])
    live.dies_at("rewriting:rejoining.bring_back", "scrub", NAME)
    status = await status_of(live.sets)
    assert (status.state, status.copies[2].state) == ("degraded", "missing")
    assert "the next scrub brings it back" in (status.copies[2].note or "")
    write(live, shadow, at=100 * SECTOR, data=b"\x77" * SECTOR)
    report = await live.scrub()
    assert (report.run, told(report)) == (1, [(100, 2, "unreadable", ["c"], "repaired")])
    assert report.outcome == "repaired"
    await is_healthy(live)
    assert equal(live, [bad], shadow) == [True, True, True]


async def test_who_detaches_the_copy_afterwards_means_it(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    await serving(live, [bad])
    bad.lose([100])
    live.dies_at("rewriting:rejoining.bring_back", "scrub", NAME)
    await live.sets.detach(NAME, "c")
    assert (await live.scrub()).outcome == "clean"
    assert (await status_of(live.sets)).copies[2].state == "missing"
    await live.sets.rejoin(NAME, "c")
    assert told(await live.scrub()) == [(100, 1, "unreadable", ["c"], "repaired")]


async def test_the_daemon_dies_in_the_middle(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    shadow = await serving(live, [bad])
    bad.lose([100, 4000])

    def kill(*_: int) -> None:
        bad.at_write = None
        pid = process.running_pid(live.runtime)
        assert pid is not None
        process.kill(live.runtime, pid)

    bad.at_write = kill
    with pytest.raises(DaemonGoneError):
        await live.scrub()
    wait_for(lambda: process.running_pid(live.runtime) is None, "the daemon's end")
    with pytest.raises(RefusedError, match="degraded"):
        await live.start()
    await live.sets.start(NAME, degraded=True)
    write(live, shadow)
    report = await live.scrub()
    assert report.outcome in {"clean", "repaired"}
    assert bad.bad == set()
    await is_healthy(live)
    assert equal(live, [bad], shadow) == [True, True, True]


@pytest.mark.parametrize("refuses", [False, True], ids=["does not keep it", "refuses it"])
async def test_a_sector_that_stays_broken(live_set: LiveSets, disks: Disks, refuses: bool) -> None:
    """All else is repaired, and the copy is back; what it cannot store is on record."""
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    shadow = await serving(live, [bad])
    bad.lose([96, 3000])
    bad.dead, bad.refuses = {100, 101}, refuses
    for _ in range(2):
        report = await live.scrub()
        assert (100, 2, "unreadable", ["c"], "failed") in told(report)
        assert {f.action for f in report.findings if f.offset != 100 * SECTOR} <= {"repaired"}
        assert "its storage has lost these sectors" in report.left_because["c"]
        assert as_if_nothing_had_been(await standing(live))
    assert bad.bad == set()
    status = await status_of(live.sets)
    assert (status.state, status.copies[2].state, status.copies[2].failing) == ("degraded", "suspect", False)
    assert status.copies[2].missed_writes is False
    write(live, shadow)
    bad.dead = set()
    bad.content[100 * SECTOR : 102 * SECTOR] = shadow[100 * SECTOR : 102 * SECTOR]
    assert (await live.scrub()).outcome == "clean"
    assert equal(live, [bad], shadow) == [True, True, True]


async def test_what_it_does_not_take_of_new_writes_costs_it_its_vote(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    shadow = await serving(live, [bad])
    bad.dead, bad.refuses = {100}, True
    live.dies_at("rewriting:rejoining.bring_back", "scrub", NAME)
    write(live, shadow, at=100 * SECTOR, data=b"\x77" * SECTOR)
    assert (await live.sets.rejoin(NAME, "c")).full is False
    copy = (await status_of(live.sets)).copies[2]
    assert (copy.state, copy.missed_writes) == ("suspect", True)
    report = await live.scrub()
    assert (report.uncounted, told(report)) == (["c"], [(100, 1, "unreadable", ["c"], "left")])
    assert "has missed writes" in report.left_because["c"]


async def test_what_has_become_readable_needs_nothing(
    live_set: LiveSets, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    await serving(live, [bad])
    bad.lose([100])

    async def recovers(_: object) -> None:
        bad.bad.clear()

    monkeypatch.setattr(rewriting.watcher, "outlast_throttle", recovers)
    bad.lies.writes.clear()
    report = await live.scrub()
    assert (told(report), bad.lies.writes) == ([(100, 1, "unreadable", ["c"], "repaired")], [])


async def test_too_many_are_left_and_the_copy_is_called_failing(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    bad = disks(2)
    await serving(live, bad)
    lost = range(0, 16 * (failing.MOST_RANGES + 1), 16)
    bad[0].lose(lost)
    bad[1].lose([5000])
    for disk in bad:
        disk.lies.writes.clear()
    report = scrubbed(live, ends={4})
    assert told(report) == [
        *((s, 1, "unreadable", ["b"], "left") for s in lost),
        (5000, 1, "unreadable", ["c"], "left"),
    ]
    assert report.failing_copies == ["b"]
    # Without c, what b has lost could not be read.
    assert "replace that one first, with 'qorumctl copy replace web01 b SOURCE'" in report.left_because["c"]
    assert [disk.lies.writes for disk in bad] == [[], []]
    status = await status_of(live.sets)
    assert [copy.failing for copy in status.copies] == [False, True, False]
    assert "it is failing; 'qorumctl copy replace web01 b SOURCE'" in (status.copies[1].note or "")
    said, _ = live.cli("report", NAME).communicate(timeout=60)
    words = " ".join(said.decode().split())
    assert "Copy b is failing" in words
    assert "Replace it: 'qorumctl copy replace web01 b SOURCE'" in words


async def test_a_disk_of_large_blocks(live_set: LiveSets, disks: Disks) -> None:
    """A lost sector takes its whole block with it; damage of 512 bytes beside it is repaired, too."""
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1, block_bytes=4096)
    shadow = await serving(live, [bad])
    bad.lose([100, 3000])
    bad.content[200 * SECTOR] ^= 1
    assert told(await live.scrub()) == [
        (96, 8, "unreadable", ["c"], "repaired"),
        (200, 1, "outvoted", ["c"], "repaired"),
        (3000, 8, "unreadable", ["c"], "repaired"),
    ]
    await is_healthy(live)
    assert equal(live, [bad], shadow) == [True, True, True]


async def test_where_the_rewrite_of_a_sector_fails_that_of_its_block_does_not(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    shadow = await serving(live, [bad])
    bad.least_bytes = 65536
    bad.content[200 * SECTOR] ^= 1
    report = await live.scrub()
    assert told(report) == [(200, 1, "outvoted", ["c"], "repaired")]
    assert equal(live, [bad], shadow) == [True, True, True]


async def test_five_copies_two_of_them_bad_in_one_place(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    bad = disks(2)
    shadow = await serving(live, bad, count=5)
    bad[0].lose([100, 101, 700])
    bad[1].lose([100, 101, 3000])
    report = await live.scrub()
    assert told(report) == [
        (100, 2, "unreadable", ["d", "e"], "repaired"),
        (700, 1, "unreadable", ["d"], "repaired"),
        (3000, 1, "unreadable", ["e"], "repaired"),
    ]
    assert (await status_of(live.sets)).state == "healthy"
    assert equal(live, bad, shadow) == [True] * 5


# -- what is left, and why


def only(report: ScrubReport) -> FindingDocument:
    (found,) = report.findings
    return found


async def test_where_too_few_copies_would_remain(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    shadow = await serving(live, [bad], count=5)
    for copy in ("a", "b"):
        await live.sets.detach(NAME, copy)
    bad.lose([100])
    report = await live.scrub()
    # Three of five are left, and three must agree: without this one, nobody knows.
    assert (only(report).verdict, only(report).action) == ("no-majority", "left")
    await live.sets.rejoin(NAME, "b")
    report = await live.scrub()
    assert (only(report).action, report.outcome) == ("repaired", "repaired")
    await live.sets.rejoin(NAME, "a")
    assert equal(live, [bad], shadow) == [True] * 5


async def test_where_the_copy_has_missed_a_write(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    bad = disks(2)
    await serving(live, bad)
    bad[1].lose([100])
    with Store.open(live.directories.state_dir(NAME)) as store:
        store.suspect(["c"], missed=True, why="a write failed")
    report = await live.scrub()
    assert (only(report).action, report.uncounted) == ("left", ["c"])
    assert "'qorumctl copy detach web01 c' and then 'qorumctl copy rejoin web01 c'" in report.left_because["c"]
    await live.sets.detach(NAME, "c")
    assert (await live.sets.rejoin(NAME, "c")).full is True
    assert (await live.scrub()).outcome == "clean"
    await is_healthy(live)


@pytest.mark.parametrize("how", ["policy", "mode"])
async def test_who_only_reports_writes_nothing(live_set: LiveSets, disks: Disks, how: str) -> None:
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    await serving(live, [bad], policy="report" if how == "policy" else "repair")
    bad.lose([100])
    bad.lies.writes.clear()
    report = await live.scrub(mode="report")
    assert (only(report).action, report.left_because, bad.lies.writes) == ("left", {}, [])
    assert bad.bad == {100}


async def test_a_copy_that_goes_away_meanwhile_stays_away_until_it_is_back(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    shadow = await serving(live, [bad])
    bad.lose([100])

    def hang_up(*_: int) -> None:
        raise OSError

    bad.at_write = hang_up
    report = await live.scrub()
    assert (only(report).action, report.outcome) == ("left", "damaged")
    assert report.left_because["c"].startswith("it is away.")
    assert "'qorumctl copy rejoin web01 c'" in report.left_because["c"]
    assert (await live.scrub()).outcome == "clean"
    assert (await status_of(live.sets)).copies[2].state == "missing"
    bad.at_write = None
    assert (await live.scrub()).outcome in {"clean", "repaired"}
    await is_healthy(live)
    assert equal(live, [bad], shadow) == [True, True, True]


async def test_a_write_that_spoils_what_lies_beside_keeps_the_copy_away(live_set: LiveSets, disks: Disks) -> None:
    """What can be read is a vote: it has to be right."""
    live = live_set(size_bytes=SIZE)
    (bad,) = disks(1)
    shadow = await serving(live, [bad])
    bad.lose([100])
    bad.spoils = {100: 102}
    report = await live.scrub()
    assert f"a write beside it has spoiled what it held, at offset {102 * SECTOR}" in report.left_because["c"]
    assert (await status_of(live.sets)).copies[2].state == "missing"
    bad.spoils = {}
    assert (await live.scrub()).outcome == "clean"
    await is_healthy(live)
    assert equal(live, [bad], shadow) == [True, True, True]


async def test_asked_to_stop_it_brings_the_copy_back_first(live_set: LiveSets, disks: Disks) -> None:
    live = live_set(size_bytes=SIZE)
    bad = disks(2)
    shadow = await serving(live, bad)
    bad[0].lose([100])
    bad[1].lose([3000])
    control = ScrubControl()
    bad[0].at_write = lambda *_: control.stop(StopReason.PAUSED)
    report = await live.scrub(control=control)
    assert (report.outcome, report.resumable) == ("unfinished", True)
    assert as_if_nothing_had_been(await standing(live))
    assert (bad[0].bad, bad[1].bad) == (set(), {3000})
    report = await live.scrub()
    assert told(report) == [
        (100, 1, "unreadable", ["b"], "repaired"),
        (3000, 1, "unreadable", ["c"], "repaired"),
    ]
    await is_healthy(live)
    assert equal(live, bad, shadow) == [True, True, True]
