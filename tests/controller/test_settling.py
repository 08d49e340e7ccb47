"""The last step of a copy's return: what is healed, and who decides what is right."""

from __future__ import annotations

from dataclasses import replace

from qorumctl.controller.settling import Settlement, settle
from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range
from tests.scrub.world import VotingFence, plan_of, sectors


class Bench:
    """Copies by their letters; the last one comes back. A sector of the volume is what most of them hold."""

    def __init__(self, *letters: str, threshold: int = 2, repair: bool = True) -> None:
        self.copies = [MemoryCopy.from_letters(name, row) for name, row in zip("abcde", letters, strict=False)]
        self.fence = VotingFence(self.copies)
        self.plan = replace(plan_of(self.copies[0].size_bytes), threshold=threshold, repair=repair)
        self.progress: list[int] = []

    def settle(self) -> Settlement:
        everything = [Range(0, self.plan.size_bytes)]
        back = self.copies[-1].name
        return settle(back, self.copies, self.fence, self.plan, everything, self.progress.append)

    @property
    def letters(self) -> list[str]:
        return [copy.letters for copy in self.copies]


def test_what_it_lacks_is_healed_and_seen_to_be_equal() -> None:
    bench = Bench("AAAA", "AAAA", "AXAX")
    found = bench.settle()
    assert (found.healed_bytes, found.verified_bytes) == (2 * SECTOR_BYTES, 4 * SECTOR_BYTES)
    assert (found.wrong, found.undecided) == ([], [])
    assert bench.letters == ["AAAA"] * 3
    assert bench.progress == [4 * SECTOR_BYTES]


def test_its_own_word_never_makes_a_majority() -> None:
    """It lacks a write, and another has lost the same one unseen: together they would overwrite the copy that is right.
    No mark says so of either."""
    bench = Bench("AAAA", "AXAA", "AXAA")
    found = bench.settle()
    assert found.undecided == [sectors(1)]
    assert bench.fence.healed == []
    assert bench.letters == ["AAAA", "AXAA", "AXAA"]


def test_nor_does_a_fourth_copy_that_takes_the_place_of_one() -> None:
    bench = Bench("AAAA", "AAAA", "AXAA", "AXAA", threshold=3)
    assert bench.settle().undecided == [sectors(1)]
    assert bench.fence.healed == []


def test_where_the_others_differ_nobody_can_tell() -> None:
    """Of three, two are left that count."""
    bench = Bench("AAAA", "AAAX", "AAAA")
    assert bench.settle().undecided == [sectors(3)]
    assert bench.fence.healed == []


def test_another_copy_that_is_outvoted_does_not_keep_it_out() -> None:
    bench = Bench("AAAA", "AAAA", "AAAA", "AAAX", "AXAA", threshold=3)
    found = bench.settle()
    assert (found.others, found.wrong, found.undecided) == ({"d"}, [], [])
    assert found.healed_bytes == SECTOR_BYTES, "its own; a scrub is for the rest"
    assert bench.letters[-1] == "AAAA"


def test_nothing_is_healed_in_a_set_that_only_reports() -> None:
    bench = Bench("AAAA", "AAAA", "AXAA", repair=False)
    assert bench.settle().wrong == [sectors(1)]
    assert bench.fence.healed == []


def test_what_guests_write_meanwhile_is_looked_at_again() -> None:
    bench = Bench("AAAA", "AAAA", "AXAA")
    bench.fence.written_next = [[sectors(1)]]
    found = bench.settle()
    assert (found.wrong, found.undecided, found.verified_bytes) == ([], [], 4 * SECTOR_BYTES)
    assert bench.letters == ["AAAA"] * 3
