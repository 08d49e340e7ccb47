"""A real Linux guest works on its disk while that is scrubbed and rots beneath it, and while its host loses power."""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from functools import partial

import pytest

from qorumctl.core.ranges import Range
from qorumctl.errors import QorumError
from tests.attack import UNIT_S, Attack
from tests.guest.appliances import Appliances
from tests.guest.guest import Guest
from tests.guest.workload import Rot, pattern
from tests.integration.harness import NAME, SECTOR, LiveSet, in_background, kill_daemon
from tests.live import MIB, wait_for

# A soak has a limit of its own. Two boots and a recovery took 100 s among 30 other busy processes on two cores.
pytestmark = [pytest.mark.live, *([] if UNIT_S in os.environ else [pytest.mark.timeout(600)])]
LiveSets = Callable[..., LiveSet]
Boot = Callable[[LiveSet], Guest]

SIZE = 32 * MIB
IN_USE = Range(0, 16 * MIB)
"""What the guest writes; its file system is as long."""
COLD = Range(16 * MIB, 15 * MIB)
"""What nobody writes, without the last MiB: there Linux looks for a partition table."""
JOBS = 4
SCRUBS = 6
SYNCED = re.compile(r"synced (\S+) ([0-9a-f]{64})")
MAKE_FILES = f"mke2fs -q -F -t ext4 /dev/vda {IN_USE.length // 1024}k && mount -t ext4 /dev/vda /mnt"
CHECK = "umount /mnt && e2fsck -fn /dev/vda"


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def synced(lines: list[str]) -> dict[str, str]:
    """Name -> digest of every file that the guest was told is on disk for good."""
    return {match[1]: match[2] for line in lines if (match := SYNCED.fullmatch(line))}


def files_of(guest: Guest) -> dict[str, str]:
    """Name -> digest of what the guest reads now, of those that a job had finished or was at."""
    listed = (line.split() for line in guest.run("cd /mnt && sha256sum *-*; cd /"))
    return {name: sum_ for sum_, name in listed}


def no_job_failed(guest: Guest) -> bool:
    return not [line for line in guest.lines if line.startswith("failed")]


async def in_a_set(live_set: LiveSets) -> LiveSet:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    return live


async def scrub_and_rot(live: LiveSet, rot: Rot, busy: Callable[[], bool], *, copy_in_use: str = "") -> int:
    """One scrub after the other beside what the guest does, until it has done enough; each has rot to find."""
    scrubs = 0
    while scrubs < SCRUBS or busy():
        # An attack may last long; a sector is struck once.
        if len(rot.flipped) < COLD.length // SECTOR // 4:
            rot.strike(10, COLD)
        if copy_in_use:
            # One copy only: QEMU compares whole requests, and finds no majority when two are damaged in one.
            rot.strike(5, IN_USE, copies=copy_in_use, in_use=True)
        rot.account(await live.scrub())
        scrubs += 1
    return scrubs


@pytest.mark.attack("a scrub under a Linux guest invents and misses nothing", "direct writes by four jobs over rot")
async def test_pattern_writes(live_set: LiveSets, boot: Boot, attack: Attack) -> None:
    live = await in_a_set(live_set)
    for seed in attack.rounds(1):
        shadow = live.fill(seed=seed)
        guest, rot = boot(live), Rot(live, seed)
        sectors = IN_USE.length // JOBS // SECTOR
        for job in range(JOBS):
            guest.run(f"pattern {job} {seed} {job * sectors} {sectors} &")
        rounds: list[int] = []

        def busy(guest: Guest = guest, rounds: list[int] = rounds) -> bool:
            said = guest.run("for n in 0 1 2 3; do cat /run/pattern.$n || echo 0; done 2>/dev/null")
            # A job that is just writing its number down has an empty file.
            rounds[:] = [int(number) for number in said if number.strip()]
            return len(rounds) < JOBS or min(rounds) < 10

        scrubs = await scrub_and_rot(live, rot, busy)
        guest.run("stop")
        assert no_job_failed(guest)
        assert not busy()
        for job in range(JOBS):
            pattern(shadow, job=job, seed=seed, first=job * sectors, sectors=sectors, rounds=rounds[job])
        assert guest.run("dd if=/dev/vda bs=1M iflag=direct status=none | sha256sum")[0].split()[0] == digest(shadow)
        guest.kill()
        rot.settle()
        assert all(live.equal_to(shadow).values())
        assert (await live.scrub()).outcome == "clean"
        attack.count(scrubs=scrubs, runs_written=sum(rounds), flips_found=len(rot.found))


@pytest.mark.attack("a file system is whole after scrubs over rot", "ext4 with fsync; one copy rots in use, too")
async def test_ext4(live_set: LiveSets, boot: Boot, attack: Attack) -> None:
    live = await in_a_set(live_set)
    for seed in attack.rounds(1):
        shadow = live.fill(seed=seed)
        guest, rot = boot(live), Rot(live, seed)
        guest.run(MAKE_FILES)
        for job in range(3):
            guest.run(f"files {job} {seed * 8 + job} &")
        scrubs = await scrub_and_rot(
            live, rot, lambda guest=guest: len(synced(guest.lines)) < 30, copy_in_use="abc"[seed % 3]
        )
        guest.run("stop")
        assert no_job_failed(guest)
        promised = synced(guest.lines)
        # What is read now comes from the disk, not from the guest's memory.
        guest.run("umount /mnt && mount -t ext4 /dev/vda /mnt")
        assert files_of(guest) == promised
        guest.run(CHECK)
        guest.kill()
        rot.account(await live.scrub())
        rot.settle()
        assert len({live.contents(copy) for copy in "abc"}) == 1
        assert live.contents("a")[COLD.offset :] == shadow[COLD.offset :]
        assert (await live.scrub()).outcome == "clean"
        attack.count(scrubs=scrubs, files_synced=len(promised), flips_found=len(rot.found))


class PowerCut:
    """Kills the daemon in the middle of things: once the guest has so many files on disk, and a random moment later."""

    def __init__(self, guest: Guest, dice: random.Random, cut: Callable[[], None]) -> None:
        self._guest, self._cut = guest, cut
        self._files, self._later_s = dice.randrange(5, 30), dice.random() / 10
        self.begun = False

    def run(self) -> None:
        try:
            self._guest.wait_for(lambda lines: len(synced(lines)) >= self._files, "files on disk")
            at_s = time.monotonic() + self._later_s
            wait_for(lambda: time.monotonic() >= at_s, "the moment")
        finally:
            self.begun = True
            self._cut()


async def work_until_the_cut(live: LiveSet, guest: Guest, seed: int, cut: Callable[[], None]) -> int:
    """Three jobs make files, scrubs find rot, until all goes dark. Returns how many scrubs had come to their end."""
    rot, scrubs = Rot(live, seed), 0
    guest.run(MAKE_FILES)
    for job in range(3):
        guest.run(f"files {job} {seed * 8 + job} &")
    coming = PowerCut(guest, random.Random(seed), cut)
    with in_background(coming.run):
        while not coming.begun:
            rot.strike(10, COLD)
            try:
                report = await live.scrub()
            except QorumError:
                wait_for(lambda: coming.begun, "the power cut that broke the scrub")
            else:
                # What was lost by then is no rot.
                if not coming.begun:
                    rot.account(report)
                scrubs += 1
    guest.kill()
    return scrubs


async def start_again(live: LiveSet) -> bool:
    """The set is compared before there is a volume. Returns whether every sector has its majority.

    Where a copy was seen to miss writes before all went dark, it does not vote, and what was in flight then may be
    without a majority. Its vote, by the operator's decision, settles most of that: only three versions leave none.
    """
    result = await live.sets.start(NAME)
    assert result.recovery is not None
    recovery = live.sets.report(NAME, result.recovery)
    assert {finding.cause for finding in recovery.findings} <= {"unclean-shutdown"}
    if recovery.outcome in {"clean", "repaired"}:
        assert result.state == "healthy"
        return True
    assert (result.state, recovery.outcome) == ("damaged", "no-majority")
    assert recovery.uncounted, "without a majority although every copy has voted"
    return (await live.scrub(count_suspects=True)).outcome == "repaired"


async def look_again(live: LiveSet, shadow: bytearray, boot: Boot, promised: dict[str, str], *, fsck: bool) -> None:
    """A new guest replays its journal, and finds all that the last one was promised."""
    guest = boot(live)
    if fsck:
        guest.run("e2fsck -fy /dev/vda; [ $? -le 1 ]")
    guest.run("mount -t ext4 /dev/vda /mnt")
    there = files_of(guest)
    assert {name: there.get(name) for name in promised} == promised
    guest.run(CHECK)
    guest.kill()

    assert (await live.scrub()).outcome == "clean"
    link = live.link()
    assert link.flush()
    link.close()
    assert len({live.contents(copy) for copy in "abc"}) == 1
    assert live.contents("a")[COLD.offset :] == shadow[COLD.offset :]


@pytest.mark.attack(
    "what was fsynced is there after a power cut", "the daemon killed under ext4, scrubs, rot", weight=3
)
async def test_power_cut(live_set: LiveSets, boot: Boot, attack: Attack) -> None:
    live = await in_a_set(live_set)
    for seed in attack.rounds(1):
        shadow = live.fill(seed=seed)
        guest = boot(live)
        cut = live.end if seed % 4 < 2 else lambda: kill_daemon(live.runtime)
        scrubs = await work_until_the_cut(live, guest, seed, cut)
        promised = synced(guest.lines)
        assert promised
        assert await start_again(live)
        await look_again(live, shadow, boot, promised, fsck=seed % 2 == 1)
        attack.count(power_cuts=1, scrubs=scrubs, files_synced=len(promised))


@pytest.mark.attack(
    "a guest's fsync reaches what a power cut leaves",
    "copies lose what they were not told to flush, all at once or one by one",
    weight=3,
)
@pytest.mark.parametrize("most_gap_s", [0, 0.5], ids=["at-once", "one-by-one"])
async def test_power_cut_empties_caches(
    live_set: LiveSets, appliances: Callable[[LiveSet], Appliances], boot: Boot, attack: Attack, most_gap_s: float
) -> None:
    live = live_set(size_bytes=SIZE)
    racks = appliances(live)
    for seed in attack.rounds(1):
        shadow = await racks.start(seed)
        guest = boot(live)
        cut = partial(racks.lose_power, random.Random(seed), most_gap_s)
        scrubs = await work_until_the_cut(live, guest, seed, cut)
        promised = synced(guest.lines)
        assert promised
        racks.power_on()
        attack.count(power_cuts=1, scrubs=scrubs, files_synced=len(promised))
        if await start_again(live):
            await look_again(live, shadow, boot, promised, fsck=seed % 2 == 1)
        else:
            attack.count(undecided=1)
