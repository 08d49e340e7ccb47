"""Repair: what is healed, what is looked at again, and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.findings import Action, Cause, Finding
from qorumctl.core.ranges import Range
from qorumctl.errors import CopyError
from qorumctl.scrub.confirm import Confirmer
from qorumctl.scrub.evidence import findings_of
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import StopReason, Watch
from qorumctl.scrub.repair import Repairer
from tests.scrub.world import Steered, VotingFence, plan_of, sectors


class Bench:
    """Copies by their letters, and what a confirmation found in them."""

    def __init__(self, *letters: str) -> None:
        self.copies = [MemoryCopy.from_letters(name, row) for name, row in zip("abc", letters, strict=True)]
        self.plan: ScrubPlan = plan_of(self.copies[0].size_bytes)
        self.fence = VotingFence(self.copies)
        self.supervisor = Steered()
        self.confirmer = Confirmer(self.copies, self.fence, self.plan, self.supervisor)
        self.repairer = Repairer(self.confirmer, self.fence, self.plan, self.supervisor)

    def findings(self) -> dict[int, Finding]:
        looked_at = self.confirmer.confirm([Range(0, self.plan.size_bytes)])
        found = [finding for run in looked_at.damaged for finding in findings_of(run, self.plan)]
        return dict(enumerate(found))


def actions(done: dict[int, Finding]) -> list[Action]:
    return [done[i].action for i in sorted(done)]


def test_what_is_outvoted_is_healed_and_seen_to_be_equal() -> None:
    bench = Bench("AAAA", "AXAA", "AAAY")
    assert actions(bench.repairer.repair(bench.findings(), just_confirmed=True)) == [Action.REPAIRED, Action.REPAIRED]
    assert bench.fence.healed == [sectors(1), sectors(3)]
    assert [copy.letters for copy in bench.copies] == ["AAAA"] * 3


def test_each_look_proves_a_part_of_what_guests_write_all_over() -> None:
    """Never is all of the finding quiet at once; each half of it is, once."""
    bench = Bench("AAAA", "XXXX", "AAAA")
    findings = bench.findings()

    class Restless(VotingFence):
        """At each look a write to another half is on one copy, and not yet on the others."""

        look = 0

        def open_watch(self, *, drain: bool) -> Watch:
            half = sectors(0, 2) if self.look % 2 == 0 else sectors(2, 2)
            for copy in bench.copies:
                copy.write(0, b"A" * copy.size_bytes)
            bench.copies[0].write(half.offset, b"W" * half.length)
            self.written_next = [[half]]
            self.look += 1
            return super().open_watch(drain=drain)

    fence = Restless(bench.copies)
    confirmer = Confirmer(bench.copies, fence, bench.plan, bench.supervisor)
    done = Repairer(confirmer, fence, bench.plan, bench.supervisor).repair(findings, just_confirmed=True)
    assert actions(done) == [Action.REPAIRED]
    assert fence.look == 2


def test_told_to_stop_it_heals_nothing_more_and_leaves_the_rest_pending() -> None:
    """A heal among writers can take its whole deadline, and a batch has thousands."""
    bench = Bench("AAAAAA", "AXAXAX", "AAAAAA")
    findings = bench.findings()

    def stop(_: Range) -> None:
        bench.supervisor.stop = StopReason.INTERRUPTED

    bench.fence.on_heal = stop
    done = bench.repairer.repair(findings, just_confirmed=True)
    assert bench.fence.healed == [sectors(1)]
    assert {i: f.action for i, f in done.items()} == {0: Action.REPAIRED}


def test_told_to_stop_within_a_finding_it_judges_nothing_of_it() -> None:
    bench = Bench("A" * 256, "X" * 256, "A" * 256)
    findings = bench.findings()

    def stop(_: Range) -> None:
        bench.supervisor.stop = StopReason.INTERRUPTED

    bench.fence.on_heal = stop
    assert bench.repairer.repair(findings, just_confirmed=True) == {}
    assert bench.fence.healed == [sectors(0, 128)]


LARGE = 2048
"""Sectors of a MiB."""


def test_what_is_wrong_throughout_is_healed_in_large_requests() -> None:
    bench = Bench("A" * 4500, "A" + "X" * 4499, "A" * 4500)
    assert actions(bench.repairer.repair(bench.findings(), just_confirmed=True)) == [Action.REPAIRED]
    whole = [sectors(LARGE, LARGE)]
    before = [sectors(1, 127), *(sectors(n, 128) for n in range(128, LARGE, 128))]
    behind = [sectors(n, 128) for n in range(2 * LARGE, 4480, 128)] + [sectors(4480, 20)]
    assert bench.fence.healed == before + whole + behind


class Refusing(VotingFence):
    """Nothing large gets through: guests write there, or two copies are damaged in it, each elsewhere."""

    def heal(self, at: Range) -> bool:
        if at.length > 64 << 10:
            self.healed.append(at)
            return False
        return super().heal(at)


def test_a_large_request_that_does_not_get_through_is_made_again_in_small_ones_and_is_the_last() -> None:
    bench = Bench("A" * 2 * LARGE, "X" * 2 * LARGE, "A" * 2 * LARGE)
    findings = bench.findings()
    fence = Refusing(bench.copies)
    repairer = Repairer(bench.confirmer, fence, bench.plan, bench.supervisor)
    assert actions(repairer.repair(findings, just_confirmed=True)) == [Action.REPAIRED]
    assert fence.healed == [sectors(0, LARGE), *(sectors(n, 128) for n in range(0, 2 * LARGE, 128))]


class Volatile(MemoryCopy):
    """Acknowledges, and cannot confirm that anything is on stable storage."""

    def flush(self) -> bool:
        return False


def test_nothing_is_called_repaired_before_each_copy_has_flushed() -> None:
    bench = Bench("AAAA", "AXAA", "AAAA")
    findings = bench.findings()
    bench.copies[1].__class__ = Volatile
    with pytest.raises(CopyError, match="Copy b did not confirm"):
        bench.repairer.repair(findings, just_confirmed=True)


def test_what_a_crashed_run_has_healed_is_flushed_too() -> None:
    """The copies are equal already, and nothing is healed now; the heal of then may lie in a volatile cache."""
    bench = Bench("AAAA", "AXAA", "AAAA")
    findings = bench.findings()
    bench.copies[1].write(512, b"A" * 512)
    bench.copies[1].__class__ = Volatile
    with pytest.raises(CopyError, match="Copy b did not confirm"):
        bench.repairer.repair(findings, just_confirmed=False)


@pytest.mark.parametrize("blamed", [True, False])
def test_a_sector_that_cannot_be_read_after_the_heal_is_not_repaired(blamed: bool) -> None:
    """The disk fails the rewrite, silently for QEMU, and from then on the read. After an unclean stop nobody is blamed,
    and the sector is not repaired either."""
    bench = Bench("AAAA", "AXAA", "AAAA")
    findings = bench.findings()
    if not blamed:
        findings = {i: replace(f, copies=(), cause=Cause.UNCLEAN_SHUTDOWN) for i, f in findings.items()}
    bench.fence.on_heal = lambda _: bench.copies[1].unreadable.add(1)
    assert actions(bench.repairer.repair(findings, just_confirmed=True)) == [Action.FAILED]


def test_a_winner_that_cannot_be_read_any_more_does_not_keep_the_loser_from_being_repaired() -> None:
    bench = Bench("AAAA", "AXAA", "AAAA")
    findings = bench.findings()
    bench.fence.on_heal = lambda _: bench.copies[2].unreadable.add(1)
    assert actions(bench.repairer.repair(findings, just_confirmed=True)) == [Action.REPAIRED]


class Cached(MemoryCopy):
    """`stored`: the letters that the last flush found."""

    stored = ""

    def flush(self) -> bool:
        self.stored = self.letters
        return True


class GivenUp(VotingFence):
    """A heal that is given up among writers happens in the drain that begins the look. `cut_power`: at its end the
    second copy loses what it has not flushed."""

    cut_power = False

    def heal(self, at: Range) -> bool:
        return False

    def open_watch(self, *, drain: bool) -> Watch:
        self._copies[1].write(512, b"A" * 512)
        return super().open_watch(drain=drain)

    def freeze(self, watches: Sequence[Watch]) -> None:
        copy = self._copies[1]
        if self.cut_power and isinstance(copy, Cached) and copy.stored != "AAAA":
            copy.write(512, b"X" * 512)


@pytest.mark.parametrize("cut_power", [False, True])
def test_a_heal_that_was_given_up_is_on_stable_storage_before_it_counts(cut_power: bool) -> None:
    bench = Bench("AAAA", "AXAA", "AAAA")
    findings = bench.findings()
    bench.copies[1].__class__ = Cached
    fence = GivenUp(bench.copies)
    fence.cut_power = cut_power
    confirmer = Confirmer(bench.copies, fence, bench.plan, bench.supervisor)
    done = Repairer(confirmer, fence, bench.plan, bench.supervisor).repair(findings, just_confirmed=True)
    assert actions(done) == [Action.REPAIRED]
    assert isinstance(bench.copies[1], Cached)
    assert bench.copies[1].stored == bench.copies[1].letters == "AAAA"
