"""Confirmation: when it gives way."""

from __future__ import annotations

import pytest

from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.ranges import Range
from qorumctl.scrub.confirm import Confirmer, Stopped
from qorumctl.scrub.plan import Tuning
from qorumctl.scrub.ports import StopReason
from tests.scrub.world import Steered, VotingFence, plan_of


def test_the_search_for_what_a_copy_can_read_heeds_a_stop() -> None:
    """A disk takes seconds over each sector that it cannot read, and thousands are tried one by one."""
    supervisor, reads = Steered(), 0

    def count(_: Range) -> None:
        nonlocal reads
        reads += 1
        if reads == 10:
            supervisor.stop = StopReason.INTERRUPTED

    bad = MemoryCopy("c", bytearray(2048 * 512), unreadable=range(2048), before_read=count)
    copies = [MemoryCopy("a", bytearray(2048 * 512)), MemoryCopy("b", bytearray(2048 * 512)), bad]
    fence = VotingFence(copies)
    confirmer = Confirmer(copies, fence, plan_of(2048 * 512), supervisor)
    with pytest.raises(Stopped) as stopped:
        confirmer.confirm([Range(0, 2048 * 512)])
    assert stopped.value.reason is StopReason.INTERRUPTED
    assert reads == 10
    assert fence.open == set()


def test_a_round_whose_reads_succeed_is_brought_to_its_end() -> None:
    supervisor = Steered()
    supervisor.stop = StopReason.PAUSED
    copies = [MemoryCopy.from_letters(name, row) for name, row in zip("abc", ["AA", "AX", "AA"], strict=True)]
    found = Confirmer(copies, VotingFence(copies), plan_of(1024), supervisor).confirm([Range(0, 1024)])
    assert [run.range for run in found.damaged] == [Range(512, 512)]


def test_many_ranges_are_read_together_and_voted_on_each_for_itself() -> None:
    rows = ["A" * 400, "AX" * 200, "A" * 400]
    copies = [MemoryCopy.from_letters(name, row) for name, row in zip("abc", rows, strict=True)]
    plan = plan_of(400 * 512, tuning=Tuning(gap_bytes=0))
    wrong = [Range(sector * 512, 512) for sector in range(1, 400, 2)]
    found = Confirmer(copies, VotingFence(copies), plan, Steered()).confirm([*wrong, Range(0, 512)])
    assert [run.range for run in found.damaged] == wrong


def test_what_one_copy_cannot_read_is_searched_for_and_costs_the_others_nothing() -> None:
    reads: list[Range] = []
    copies = [
        MemoryCopy.from_letters("a", "AAAAAAAA"),
        MemoryCopy("b", bytearray(b"A" * 8 * 512), before_read=reads.append),
        MemoryCopy.from_letters("c", "AAA?AAAX"),
    ]
    plan = plan_of(8 * 512, tuning=Tuning(gap_bytes=0))
    found = Confirmer(copies, VotingFence(copies), plan, Steered()).confirm([Range(0, 2048), Range(3072, 1024)])
    seen = [(run.range, run.verdict.unreadable, getattr(run.verdict, "losers", None)) for run in found.damaged]
    assert seen == [(Range(1536, 512), {"c"}, set()), (Range(3584, 512), set(), {"c"})]
    # The sign of life, and each range once.
    assert reads == [Range(0, 512), Range(0, 2048), Range(3072, 1024)]
