"""A few hundred seeds of the fault simulator, and the proof that it can fail: with one rule broken it does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qorumctl.copies.base import CopyReader
from qorumctl.core.findings import Action, Checkpoint, Finding
from qorumctl.core.ranges import Range
from qorumctl.scrub.engine import Scrub
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Clock, Fence, Journal, Supervisor, Watch
from tests.sim.__main__ import replay_command
from tests.sim.ports import MemoryJournal, SimFence
from tests.sim.run import Parts, Simulation
from tests.sim.scenario import MODES, Mode
from tests.sim.world import Activity, FencedRead, GuestWrite, Violation, World

SEEDS_AT_A_TIME = 25
SEEDS = 150
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_AT_A_TIME))
@pytest.mark.parametrize("mode", MODES)
def test_every_fault_is_found_once_and_healed_or_refused(mode: Mode, first: int) -> None:
    for seed in range(first, first + SEEDS_AT_A_TIME):
        try:
            Simulation(seed, mode).run()
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\nreplay: {replay_command(seed, mode)}")


def test_a_seed_replays_to_the_letter_in_another_process() -> None:
    """Sets of strings are ordered by a hash that differs from process to process: nothing may depend on it."""
    logs = [
        subprocess.run(
            [sys.executable, "-m", "tests.sim", "--seed", "11", "--mode", "B"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[:-1]
        for hash_seed in ("1", "2")
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) > 100


# --- a simulator that cannot fail is worthless ------------------------------------------------------------------------


def assert_caught(parts: Parts, mode: Mode, saying: str, *, seeds: int = 400) -> None:
    for seed in range(seeds):
        try:
            Simulation(seed, mode, parts).run()
        except Violation as violation:
            if saying in str(violation):
                return
    pytest.fail(f"{seeds} seeds did not notice")


class FreezesWithoutDraining(SimFence):
    def _drain_to_freeze(self) -> None:
        pass


class OpensWithoutDraining(SimFence):
    def open_watch(self, *, drain: bool) -> Watch:
        return super().open_watch(drain=False)


class ForgetsWhatWasWritten(SimFence):
    def written(self, watch: Watch, within: Sequence[Range]) -> list[Range]:
        super().written(watch, within)
        return []


class HealsNothing(SimFence):
    """As QEMU does where every rewrite fails: the read itself succeeds."""

    def heal(self, at: Range) -> bool:
        return True


class HealsTooMuch(SimFence):
    """Reads a larger range than it was asked for, as an engine would that heals whole chunks."""

    def heal(self, at: Range) -> bool:
        end = min(self.world.sectors * 512, at.end + 2048)
        return super().heal(Range(at.offset, end - at.offset))


def test_a_freeze_that_does_not_drain_is_caught() -> None:
    assert_caught(Parts(fence=FreezesWithoutDraining), "A", "invented")


def test_a_record_of_writes_that_is_ignored_is_caught() -> None:
    assert_caught(Parts(fence=ForgetsWhatWasWritten), "A", "invented")


def test_writes_marked_when_they_start_are_caught_where_the_watch_opens_without_a_drain() -> None:
    """Then a write that was in flight when the watch was opened is marked nowhere, drained or not."""

    class MarksAtTheStart(World):
        def _start_write(self) -> None:
            before = list(self.writes)
            super()._start_write()
            for write in self.writes:
                if write not in before:
                    super().mark(write)

        def mark(self, write: GuestWrite) -> None:
            pass

    def change(world: World) -> None:
        world.__class__ = MarksAtTheStart

    assert_caught(Parts(world=change, fence=OpensWithoutDraining), "A", "invented")


def test_a_heal_that_does_nothing_is_caught() -> None:
    assert_caught(Parts(fence=HealsNothing), "A", "ended as failed, not repaired")


def test_a_verification_that_is_skipped_is_caught() -> None:
    class BelievesEveryHeal(MemoryJournal):
        def conclude(
            self, settled: Sequence[tuple[int, Finding]], findings: Sequence[Finding], checkpoint: Checkpoint
        ) -> None:
            super().conclude([(n, f.settled(Action.REPAIRED)) for n, f in settled], findings, checkpoint)

    assert_caught(Parts(journal=BelievesEveryHeal), "A", "put down as repaired and is not")


def test_a_heal_without_a_majority_is_caught() -> None:
    assert_caught(Parts(fence=HealsTooMuch), "B", "have no majority")


def test_a_daemon_that_lets_any_version_win_is_caught() -> None:
    class AnyVersionWins(World):
        def wins(self, votes: int) -> bool:
            return votes > 0

    def change(world: World) -> None:
        world.__class__ = AnyVersionWins
        world.hot, world.activity = sorted(world.doomed), Activity(reads=30)

    assert_caught(Parts(world=change), "B", "a sector without a majority was written")


def test_a_fenced_read_that_does_not_wait_for_writes_is_caught() -> None:
    """QEMU's own rewriting without the fence: acknowledged writes are lost."""

    class Unfenced(World):
        def may_begin(self, read: FencedRead) -> bool:
            return True

    def change(world: World) -> None:
        world.__class__ = Unfenced

    assert_caught(Parts(world=change), "A", "hold what was acknowledged")


def test_a_scrub_that_counts_stale_copies_is_caught() -> None:
    class CountsStaleCopies(Scrub):
        def __init__(
            self,
            readers: Sequence[CopyReader],
            fence: Fence,
            journal: Journal,
            supervisor: Supervisor,
            clock: Clock,
            plan: ScrubPlan,
        ) -> None:
            super().__init__(readers, fence, journal, supervisor, clock, replace(plan, stale=frozenset()))

    assert_caught(Parts(scrub=CountsStaleCopies), "B", "has no majority, but was reported")


def test_a_resumed_scrub_that_forgets_what_was_pending_is_caught() -> None:
    class Forgetful(MemoryJournal):
        @property
        def resumable(self) -> list[tuple[int, Finding]]:
            return []

    assert_caught(Parts(journal=Forgetful), "A", "pending")


def test_a_resumed_scrub_that_forgets_what_it_has_reported_is_caught() -> None:
    class Forgetful(MemoryJournal):
        @property
        def settled(self) -> list[Range]:
            return []

    def refuse_all_repairs(world: World) -> None:
        for (sector, name), fault in world.faults.items():
            if fault.kind not in {"unreadable", "missed write"}:
                fault.kind = "stuck"
                world.copies[name].unwritable.add(sector)
                world.untouchable.add(sector)

    assert_caught(Parts(journal=Forgetful, world=refuse_all_repairs), "A", "found more often")


def test_a_journal_that_loses_an_entry_is_caught() -> None:
    class Lossy(MemoryJournal):
        def conclude(
            self, settled: Sequence[tuple[int, Finding]], findings: Sequence[Finding], checkpoint: Checkpoint
        ) -> None:
            super().conclude(settled, findings[1:], checkpoint)

    assert_caught(Parts(journal=Lossy), "C", "was found 0 times")


def test_a_checkpoint_that_moves_before_its_findings_are_on_record_is_caught() -> None:
    class Hasty(MemoryJournal):
        def begin_repair(self, findings: Sequence[Finding]) -> list[int]:
            numbers = super().begin_repair(findings)
            most = max(self.checkpoint.cursor_bytes, *(f.range.end for f in findings))
            self.checkpoint = replace(self.checkpoint, cursor_bytes=most)
            return numbers

    assert_caught(Parts(journal=Hasty), "A", "finished, but the checkpoint says")


def test_a_drain_with_our_own_reads_outstanding_is_caught() -> None:
    class Impatient(SimFence):
        def _check_quiet(self, call: str) -> None:
            if self._readers and call == "freeze":
                with self._readers[0].stream([Range(0, self.world.sectors * 512)]) as chunks:
                    next(chunks)
                    super()._check_quiet(call)

    assert_caught(Parts(fence=Impatient), "A", "outstanding")


def test_every_mode_meets_what_it_is_about() -> None:
    """That a mode passes means little unless its seeds contain crashes, busy ranges, stale copies and lost sectors."""
    logs: dict[Mode, list[str]] = {mode: [] for mode in MODES}
    for mode in MODES:
        for seed in range(60):
            simulation = Simulation(seed, mode)
            simulation.run()
            logs[mode] += simulation.log
    for mode in MODES:
        text = "\n".join(logs[mode])
        for wanted in ("crash", "error", "refused by a", "missed write", "unreadable"):
            assert wanted in text, f"mode {mode} never saw: {wanted}"
        assert ("heal " in text) == (mode != "C")
        assert (" no-majority " in text) == (mode == "B")
