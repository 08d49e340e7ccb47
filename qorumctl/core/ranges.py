"""Byte ranges of a disk: split, merge, intersect, subtract, align. Offsets and lengths are bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SECTOR_BYTES = 512
"""The unit of the vote: the smallest thing a disk writes atomically, and the granularity of QEMU's block layer."""


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """`length` bytes from `offset`. Never empty."""

    offset: int
    length: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.length <= 0:
            raise ValueError(f"not a range: {self.offset}:{self.length}")

    @property
    def end(self) -> int:
        return self.offset + self.length

    def overlaps(self, other: Range) -> bool:
        return self.offset < other.end and other.offset < self.end

    def contains(self, other: Range) -> bool:
        return self.offset <= other.offset and other.end <= self.end

    def shifted(self, by_bytes: int) -> Range:
        return Range(self.offset + by_bytes, self.length)


def between(start: int, end: int) -> Range:
    return Range(start, end - start)


def total_bytes(ranges: Iterable[Range]) -> int:
    return sum(r.length for r in ranges)


def coalesce(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes as sorted ranges that neither overlap nor touch."""
    merged: list[Range] = []
    for r in sorted(ranges):
        if merged and r.offset <= merged[-1].end:
            if r.end > merged[-1].end:
                merged[-1] = between(merged[-1].offset, r.end)
        else:
            merged.append(r)
    return merged


class RangeSet:
    """Many ranges, asked about one at a time in logarithmic time: a batch of thousands must not cost its square."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self.ranges = coalesce(ranges)
        self._ends = [r.end for r in self.ranges]

    def parts_of(self, r: Range) -> Iterator[Range]:
        """The parts of `r` that lie in the set, in order."""
        i = bisect_right(self._ends, r.offset)
        while i < len(self.ranges) and self.ranges[i].offset < r.end:
            yield between(max(r.offset, self.ranges[i].offset), min(r.end, self.ranges[i].end))
            i += 1

    def rest_of(self, r: Range) -> Iterator[Range]:
        """The parts of `r` that do not lie in the set, in order."""
        at = r.offset
        for part in self.parts_of(r):
            if at < part.offset:
                yield between(at, part.offset)
            at = part.end
        if at < r.end:
            yield between(at, r.end)

    def touches(self, r: Range) -> bool:
        return next(self.parts_of(r), None) is not None


def intersect(left: Iterable[Range], right: Iterable[Range]) -> list[Range]:
    """The bytes that lie in both."""
    wanted = RangeSet(right)
    return [part for r in coalesce(left) for part in wanted.parts_of(r)]


def subtract(left: Iterable[Range], right: Iterable[Range]) -> list[Range]:
    """The bytes of `left` that do not lie in `right`."""
    unwanted = RangeSet(right)
    return [part for r in coalesce(left) for part in unwanted.rest_of(r)]


def split(ranges: Iterable[Range], most_bytes: int) -> Iterator[Range]:
    """The same ranges, cut where their offset is a multiple of `most_bytes`, so that pieces stay aligned."""
    for r in ranges:
        at = r.offset
        while at < r.end:
            end = min(r.end, (at // most_bytes + 1) * most_bytes)
            yield between(at, end)
            at = end


def align(r: Range, unit_bytes: int, size_bytes: int) -> Range:
    """The smallest range of whole units that contains `r`, cut at the disk's end."""
    start = r.offset // unit_bytes * unit_bytes
    end = min(size_bytes, -(-r.end // unit_bytes) * unit_bytes)
    return between(start, end)


def align_inwards(r: Range, unit_bytes: int) -> Range | None:
    """The largest range of whole units within `r`; None where there is none."""
    start, end = -(-r.offset // unit_bytes) * unit_bytes, r.end // unit_bytes * unit_bytes
    return between(start, end) if start < end else None
