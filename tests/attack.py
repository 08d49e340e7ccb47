"""Attacks on a promise: short in `make test`, as long as wanted in `make soak`, counted for docs/safety.md.

    @pytest.mark.attack("a scrub under load invents no damage", "bit rot beneath four writers", weight=3)
    async def test_scrubs_under_writers(live_set, attack):
        for seed in attack.rounds(2):
            ...
            attack.count(flips=200, writes=writers.writes)

A failure names its seed: QORUM_ATTACK_FIRST=SEED with the test's name plays that one again.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FIRST = "QORUM_ATTACK_FIRST"
"""The first seed; 0 unless set."""
UNIT_S = "QORUM_ATTACK_UNIT_S"
"""Seconds for each unit of weight; unset: the short form."""
TALLY = "QORUM_ATTACK_TALLY"
"""A file to append one line of JSON to for each attack that was run."""


class Attack:
    """One attack as it runs: its seeds, its length, and what it has counted."""

    def __init__(self, test: str, weight: float) -> None:
        self._test = test
        self._weight = weight
        self._counts: Counter[str] = Counter()
        self._rounds = 0
        self.first = int(os.environ.get(FIRST, "0"))

    def rounds(self, short: int) -> Iterator[int]:
        """Seeds, one a round: `short` of them, or as many as fit the time that a soak gives, at least one."""
        unit_s = os.environ.get(UNIT_S)
        ends_at_s = time.monotonic() + self._weight * float(unit_s or 0)
        seed = self.first
        while True:
            try:
                yield seed
            except GeneratorExit:
                # The round was broken off: by a failure, most likely.
                print(f"play it again: {FIRST}={seed} python -m pytest '{self._test}'")
                raise
            self._rounds += 1
            seed += 1
            if (time.monotonic() >= ends_at_s) if unit_s else (seed - self.first >= short):
                return

    def count(self, **figures: int) -> None:
        """Adds up what the table tells: writes acknowledged, flips found, kills survived, ..."""
        self._counts.update(figures)

    def note(self, *, passed: bool) -> None:
        path = os.environ.get(TALLY)
        if path:
            line = {"test": self._test, "passed": passed, "first": self.first, "rounds": self._rounds, **self._counts}
            with Path(path).open("a") as file:
                file.write(json.dumps(line) + "\n")
