"""What the guest's jobs do, computed on the host; and rot beneath them, with an account of what scrubs found of it."""

from __future__ import annotations

import random

from qorumctl.core.ranges import Range
from qorumctl.model.report import ScrubReport
from tests.integration.harness import SECTOR, LiveSet


class Dice:
    """`dice` of the guest's init."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def roll(self, sides: int) -> int:
        self._state = (self._state * 1103515245 + 12345) & 0x7FFFFFFF
        return (self._state >> 8) % sides


def pattern(shadow: bytearray, *, job: int, seed: int, first: int, sectors: int, rounds: int) -> None:
    """What `pattern JOB SEED FIRST SECTORS` of the guest's init leaves on the disk after so many rounds."""
    dice = Dice(seed)
    for number in range(rounds):
        size = 1 << dice.roll(8)
        count = dice.roll(16) + 1
        at = (first + dice.roll(sectors - size * count + 1)) * SECTOR
        line = " ".join([f"job {job} seed {seed} round {number},"] * 8) + "\n"
        length = size * count * SECTOR
        shadow[at : at + length] = (line.encode() * (length // len(line) + 1))[:length]


class Rot:
    """Flips single bits in the images behind the daemon's back, each in a sector of its own that has no neighbour."""

    def __init__(self, live: LiveSet, seed: int) -> None:
        self._live = live
        self._dice = random.Random(seed)
        self.flipped: set[int] = set()
        """Sectors in ranges that nobody writes or reads: each is to be found once."""
        self.flipped_in_use: set[int] = set()
        """Sectors that the guest may overwrite, or read, before a scrub comes: found once at the most."""
        self.found: list[int] = []

    def strike(self, count: int, within: Range, *, copies: str = "abc", in_use: bool = False) -> None:
        flipped = self.flipped_in_use if in_use else self.flipped
        for _ in range(count):
            sector = 2 * self._dice.randrange(within.offset // SECTOR // 2, within.end // SECTOR // 2)
            if sector not in flipped:
                flipped.add(sector)
                at = sector * SECTOR + self._dice.randrange(SECTOR)
                self._live.flip(self._dice.choice(copies), at, self._dice.randrange(8))

    def account(self, report: ScrubReport) -> None:
        """Nothing may be in a report but what was flipped, and all of it repaired."""
        for finding in report.findings:
            sector = finding.offset // SECTOR
            assert finding.length == SECTOR, finding
            assert sector in self.flipped | self.flipped_in_use, f"invented: {finding}"
            assert finding.action == "repaired", finding
            self.found.append(sector)

    def settle(self) -> None:
        """What was flipped where nobody looks was found, once each, and the rest once at the most."""
        assert sorted(set(self.found) & self.flipped) == sorted(self.flipped)
        assert len(self.found) == len(set(self.found))
