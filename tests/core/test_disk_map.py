"""The map of a disk: no finding is lost, whatever the sizes; the cells are the disk."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from qorumctl.core.disk_map import NO_COPY, Cell, DiskMap, Mark, disk_map
from qorumctl.core.findings import Action, Fate, FindingVerdict, fate_of
from qorumctl.core.ranges import SECTOR_BYTES, Range

S = SECTOR_BYTES
TIB = 1 << 40


@some.composite
def disks(draw: some.DrawFn) -> tuple[int, list[Mark], Range | None, int]:
    """(size, marks, compared, most cells). Sizes that divide by nothing, and one that is no whole number of sectors."""
    size = draw(some.integers(1, 3000) | some.integers(1, 1 << 46)) * S + draw(some.sampled_from([0, 0, 0, 100]))
    sectors = -(-size // S)

    def mark(number: int) -> Mark:
        first = draw(some.integers(0, sectors - 1))
        last = draw(some.integers(first, min(sectors - 1, first + 5)) | some.integers(first, sectors - 1))
        copies = draw(some.lists(some.sampled_from("abc"), unique=True))
        return Mark(number, Range(first * S, (last - first + 1) * S), copies, draw(some.sampled_from(list(Fate))))

    marks = [mark(number) for number in range(draw(some.integers(0, 12)))]
    end = draw(some.integers(0, sectors)) * S
    return size, marks, Range(0, min(end, size)) if end else None, draw(some.integers(1, 200))


@given(disks())
@settings(deadline=None)
def test_the_cells_of_each_lane_are_the_disk(given_: tuple[int, list[Mark], Range | None, int]) -> None:
    size, marks, compared, most = given_
    made = disk_map(size, dict.fromkeys("abc", compared), marks, most_cells=most)
    assert len(made.ranges) == min(most, -(-size // S))
    assert [at.offset for at in made.ranges] == [0, *(at.end for at in made.ranges[:-1])]
    assert made.ranges[-1].end == size
    assert all(at.offset % S == 0 for at in made.ranges)
    lengths = {at.length // S for at in made.ranges[:-1]}
    assert not lengths or max(lengths) - min(lengths) <= 1
    for cells in made.lanes.values():
        assert [cell.range for cell in cells] == made.ranges


@given(disks())
@settings(deadline=None)
def test_no_finding_is_lost_and_none_is_where_it_was_not(given_: tuple[int, list[Mark], Range | None, int]) -> None:
    size, marks, compared, most = given_
    made = disk_map(size, dict.fromkeys("abc", compared), marks, most_cells=most)
    for name, cells in made.lanes.items():
        for cell in cells:
            here = [m for m in marks if name in (m.copies or [NO_COPY]) and m.range.overlaps(cell.range)]
            assert cell.counts == Counter(m.fate for m in here)
            assert cell.number == len(here)
            assert cell.fate == max((m.fate for m in here), default=None)
            if cell.worst:
                assert cell.worst in [(m.fate, m.id) for m in here]
    shown = {m.id for m in marks for name in m.copies or [NO_COPY] if any(c.number for c in made.lanes[name])}
    assert shown == {m.id for m in marks}
    assert made.fates == {m.fate for m in marks}


@given(disks())
@settings(deadline=None)
def test_a_cell_counts_as_compared_only_when_all_of_it_was(given_: tuple[int, list[Mark], Range | None, int]) -> None:
    size, marks, compared, most = given_
    made = disk_map(size, dict.fromkeys("abc", compared), marks, most_cells=most)
    reach = compared.end if compared else 0
    for cells in made.lanes.values():
        assert [cell.compared for cell in cells] == [at.end <= reach for at in made.ranges]
    assert made.all_compared == (reach == size)


def test_one_sector_of_64_tib_is_on_the_map() -> None:
    made = disk_map(
        64 * TIB,
        dict.fromkeys("abc", Range(0, 64 * TIB)),
        [Mark(7, Range(64 * TIB - S, S), "b", Fate.LEFT)],
        most_cells=64,
    )
    assert [cell.number for cell in made.lanes["b"]] == [0] * 63 + [1]
    assert made.lanes["b"][63].worst == (Fate.LEFT, 7)
    assert made.lanes["a"] == [Cell(at, True) for at in made.ranges]


def test_what_blames_nobody_has_a_lane_of_its_own() -> None:
    made = disk_map(8 * S, dict.fromkeys("abc"), [Mark(1, Range(0, S), (), Fate.REPAIRED)], most_cells=8)
    assert {name: sum(cell.number for cell in cells) for name, cells in made.lanes.items()} == {
        "a": 0, "b": 0, "c": 0, NO_COPY: 1,
    }  # fmt: skip


def test_a_copy_that_was_away_is_not_drawn_as_compared() -> None:
    made = disk_map(8 * S, {"a": Range(0, 8 * S), "b": None}, [Mark(1, Range(0, S), (), Fate.LEFT)], most_cells=4)
    assert {name: [cell.compared for cell in cells] for name, cells in made.lanes.items()} == {
        "a": [True] * 4, "b": [False] * 4, NO_COPY: [True] * 4,
    }  # fmt: skip


def test_a_place_beyond_the_disk_is_shown_at_its_end() -> None:
    made = disk_map(8 * S, {"a": None}, [Mark(1, Range(800 * S, S), "a", Fate.LEFT)], most_cells=4)
    assert [cell.number for cell in made.lanes["a"]] == [0, 0, 0, 1]


def test_the_worst_of_a_cell_is_the_first_that_ended_so() -> None:
    marks = [Mark(n, Range(0, S), "a", fate) for n, fate in enumerate((Fate.REPAIRED, Fate.LEFT, Fate.LEFT))]
    (cell,) = disk_map(S, {"a": None}, marks, most_cells=9).lanes["a"]
    assert (cell.worst, cell.counts) == ((Fate.LEFT, 1), {Fate.REPAIRED: 1, Fate.LEFT: 2})


@pytest.mark.parametrize(("size", "cells"), [(0, 8), (S, 0)])
def test_there_is_no_map_of_nothing(size: int, cells: int) -> None:
    with pytest.raises(ValueError, match="no map"):
        DiskMap(size, {}, cells)


@pytest.mark.parametrize(
    ("verdict", "action", "fate"),
    [
        ("outvoted", "repaired", Fate.REPAIRED),
        ("no-majority", "repaired", Fate.REPAIRED),
        ("outvoted", "pending", Fate.PENDING),
        ("outvoted", "left", Fate.LEFT),
        ("unreadable", "failed", Fate.LEFT),
        ("no-majority", "left", Fate.TIED),
        ("no-majority", "failed", Fate.TIED),
    ],
)
def test_what_became_of_it(verdict: str, action: str, fate: Fate) -> None:
    assert fate_of(FindingVerdict(verdict), Action(action)) is fate
