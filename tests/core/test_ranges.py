"""Ranges are sets of bytes: each operation is checked against the set it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorumctl.core.ranges import (
    Range,
    RangeSet,
    align,
    align_inwards,
    between,
    coalesce,
    intersect,
    split,
    subtract,
    total_bytes,
)

ranges = st.builds(Range, st.integers(0, 60), st.integers(1, 20))
some = st.lists(ranges, max_size=8)


def bytes_of(of: Iterable[Range]) -> set[int]:
    return {at for r in of for at in range(r.offset, r.end)}


def assert_tidy(result: list[Range]) -> None:
    """Sorted, and neither overlapping nor touching."""
    assert all(left.end < right.offset for left, right in pairwise(result))


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (5, -1)])
def test_an_empty_or_negative_range_is_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="not a range"):
        Range(offset, length)


def test_between_refuses_what_is_empty() -> None:
    with pytest.raises(ValueError, match="not a range"):
        between(7, 7)


@given(ranges, ranges)
def test_overlaps_and_contains(left: Range, right: Range) -> None:
    assert left.overlaps(right) == bool(bytes_of([left]) & bytes_of([right]))
    assert left.contains(right) == (bytes_of([left]) >= bytes_of([right]))


@given(ranges, st.integers(0, 50))
def test_shifted(r: Range, by: int) -> None:
    assert bytes_of([r.shifted(by)]) == {at + by for at in bytes_of([r])}
    assert r.shifted(by).shifted(-by) == r


@given(some)
def test_coalesce_keeps_the_bytes(of: list[Range]) -> None:
    assert bytes_of(coalesce(of)) == bytes_of(of)
    assert_tidy(coalesce(of))
    assert total_bytes(coalesce(of)) == len(bytes_of(of))


@given(some, some)
def test_intersect(left: list[Range], right: list[Range]) -> None:
    assert bytes_of(intersect(left, right)) == bytes_of(left) & bytes_of(right)
    assert_tidy(intersect(left, right))


@given(some, some)
def test_subtract(left: list[Range], right: list[Range]) -> None:
    assert bytes_of(subtract(left, right)) == bytes_of(left) - bytes_of(right)
    assert_tidy(subtract(left, right))


@given(some, some)
def test_what_is_in_both_and_what_is_left_make_the_whole(left: list[Range], right: list[Range]) -> None:
    assert coalesce([*intersect(left, right), *subtract(left, right)]) == coalesce(left)


@given(some, ranges)
def test_a_range_set_parts_a_range(of: list[Range], r: Range) -> None:
    held = RangeSet(of)
    parts, rest = list(held.parts_of(r)), list(held.rest_of(r))
    assert bytes_of(parts) == bytes_of(of) & bytes_of([r])
    assert bytes_of(rest) == bytes_of([r]) - bytes_of(of)
    assert_tidy(parts)
    assert_tidy(rest)
    assert held.touches(r) == bool(parts)


@given(some, st.integers(1, 16))
def test_split_cuts_at_multiples_and_nowhere_else(of: list[Range], most: int) -> None:
    for r in of:
        pieces = list(split([r], most))
        assert coalesce(pieces) == [r]
        assert total_bytes(pieces) == r.length
        assert all(piece.length <= most for piece in pieces)
        assert all(left.end == right.offset for left, right in pairwise(pieces))
        assert all(piece.end % most == 0 for piece in pieces[:-1])
    assert list(split(of, most)) == [piece for r in of for piece in split([r], most)]


@given(ranges, st.integers(1, 16), st.integers(80, 100))
def test_align_is_the_smallest_range_of_whole_units(r: Range, unit: int, size: int) -> None:
    touched = {at // unit for at in bytes_of([r])}
    assert bytes_of([align(r, unit, size)]) == {at for at in range(size) if at // unit in touched}


def test_align_inwards_keeps_whole_units_only() -> None:
    assert align_inwards(Range(1000, 8192), 4096) == Range(4096, 4096)
    assert align_inwards(Range(4096, 8192), 4096) == Range(4096, 8192)
    assert align_inwards(Range(1000, 7000), 4096) is None


def test_align_stops_at_the_end_of_the_disk() -> None:
    assert align(Range(1000, 24), 4096, 1024) == Range(0, 1024)
