"""Ten thousand seeds of the fault simulator, and the proof that it can fail: with one rule broken it does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qorumctl.copies.base import CopyReader
from qorumctl.core.findings import Action, Checkpoint, Finding
from qorumctl.core.ranges import Range
from qorumctl.errors import CopyUnavailableError
from qorumctl.scrub.engine import Scrub
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Clock, Fence, Journal, StopReason, Supervisor, Watch
from tests.attack import Attack
from tests.sim.__main__ import replay_command
from tests.sim.ports import MemoryJournal, SimFence, SimReader, SimSupervisor
from tests.sim.run import Parts, Simulation
from tests.sim.scenario import MODES, Mode, mode_of
from tests.sim.truth import KINDS, Activity, FencedRead, GuestWrite, Violation
from tests.sim.world import World

SEEDS = 10_000
BATCHES = 40
"""That run side by side, each on seeds of its own."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.attack(
    "every damage is found once, and healed or refused; no acknowledged write is lost",
    "simulated guests, rot, crashes, hangs, misreads, power cuts and missed writes",
    weight=4 / BATCHES,
)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_fault_is_found_once_and_healed_or_refused(batch: int, attack: Attack) -> None:
    for at in attack.rounds(SEEDS // BATCHES):
        seed = at * BATCHES + batch
        simulation = Simulation(seed, mode_of(seed))
        try:
            simulation.run()
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\nreplay: {replay_command(seed, simulation.mode)}")
        happened = simulation.tally
        attack.count(
            engines=simulation.attempts,
            findings=simulation.findings,
            crashes=happened["crash"],
            hangs=happened["hang"],
            misreads=happened["transient read"],
            power_cuts=happened["power cut"],
            copies_that_missed_a_write=happened["copy found to have missed a write"],
        )


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


# --- copies that hang, lose what they cached, miss writes -------------------------------------------------------------


def test_a_silence_that_is_taken_for_zeros_is_caught() -> None:
    class TakesSilenceForZeros(SimReader):
        def _read(self, at: Range) -> bytearray | None:
            try:
                return super()._read(at)
            except CopyUnavailableError:
                self._fate.refused, self.answered = None, True
                return bytearray(at.length)

    assert_caught(Parts(reader=TakesSilenceForZeros), "A", "invented")


def test_a_scrub_that_goes_on_without_a_copy_is_caught() -> None:
    class GoesOn(SimReader):
        def _read(self, at: Range) -> bytearray | None:
            try:
                return super()._read(at)
            except CopyUnavailableError:
                self.answered = True
                return None

    assert_caught(Parts(reader=GoesOn), "A", "though it was told: Copy")


def test_a_drain_that_a_copy_which_hangs_could_block_is_caught() -> None:
    class AsksForNoSignOfLife(Scrub):
        def run(self) -> StopReason | None:
            self._confirmer._ask_for_a_sign_of_life = lambda: None
            return super().run()

    assert_caught(Parts(scrub=AsksForNoSignOfLife), "A", "without a sign of life")


def test_a_flush_that_is_skipped_is_caught() -> None:
    class Forgetful(SimReader):
        def flush(self) -> bool:
            return True

    assert_caught(Parts(reader=Forgetful), "A", "only in its cache")


def test_a_repair_that_takes_an_unreadable_sector_for_an_equal_one_is_caught() -> None:
    class SeesOnlyDifferences(Scrub):
        def run(self) -> StopReason | None:
            judge = self._repairer._judge
            self._repairer._judge = lambda patient, seen: judge(patient, replace(seen, unreadable={}))
            return super().run()

    assert_caught(Parts(scrub=SeesOnlyDifferences), "A", "put down as repaired and is not")


def test_a_heal_in_which_stale_copies_win_is_caught() -> None:
    """Where a current copy has lost the same write as a stale one, the daemon alone takes the old data for right."""

    class HealsWhateverTheDaemonWill(HealsTooMuch):
        def _check_allowed(self, at: Range) -> None:
            pass

    assert_caught(Parts(fence=HealsWhateverTheDaemonWill), "B", "a sector without a majority was written")


def test_a_copy_that_missed_a_write_of_which_nobody_is_told_is_caught() -> None:
    class KeepsItToItself(SimSupervisor):
        def _reason(self) -> StopReason | None:
            reason = super()._reason()
            return None if reason is StopReason.REPLAN else reason

    assert_caught(Parts(supervisor=KeepsItToItself), "A", "have no majority")


def test_a_scrub_that_holds_on_to_its_plan_is_caught() -> None:
    class HoldsOn(Scrub):
        def run(self) -> StopReason | None:
            ask = self._supervisor.stop_requested
            self._supervisor.stop_requested = lambda: None if (said := ask()) is StopReason.REPLAN else said
            return super().run()

    assert_caught(Parts(scrub=HoldsOn), "A", "though it was told to stop: replan")


def test_storage_that_takes_overlapping_writes_in_any_order_is_caught() -> None:
    class Reorders(World):
        def is_next(self, write: GuestWrite, name: str, piece: Range) -> bool:
            return True

    def change(world: World) -> None:
        world.__class__ = Reorders

    assert_caught(Parts(world=change), "A", "hold what was acknowledged")


def test_every_mode_meets_what_it_is_about() -> None:
    """That a mode passes means little unless its seeds contain what it is to withstand."""
    happened: dict[Mode, Counter[str]] = {mode: Counter() for mode in MODES}
    for seed in range(240):
        simulation = Simulation(seed, mode_of(seed))
        simulation.run()
        happened[simulation.mode] += simulation.tally
    for mode in MODES:
        wanted = {*KINDS, "crash", "error", "hang", "deadline missed", "drain stalled", "transient read", "power cut"}
        wanted |= {"missed write", "replan", "same write lost", "overlapping write", "sector lost in a power cut"}
        assert wanted <= happened[mode].keys(), f"mode {mode} never saw {wanted - happened[mode].keys()}"
        assert ("heal" in happened[mode]) == (mode != "C")
