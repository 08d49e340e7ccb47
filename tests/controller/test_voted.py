"""The voted content of a set: a row for each disk, a letter for each sector (qorumctl/copies/memory.py)."""

from __future__ import annotations

import pytest

from qorumctl.controller.voted import MARKER, Voted
from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.errors import CopyUnavailableError
from qorumctl.scrub.plan import ScrubPlan


def voted(a: str, b: str, c: str, *, stale: str = "") -> Voted:
    copies = [MemoryCopy.from_letters(name, letters) for name, letters in zip("abc", (a, b, c), strict=True)]
    size = len(a) * SECTOR_BYTES
    plan = ScrubPlan(
        size_bytes=size,
        threshold=2,
        repair=False,
        rewriting=False,
        within=Range(0, size),
        now=lambda: "now",
        stale=frozenset(stale),
    )
    return Voted(copies, plan, lambda: None)


def content(of: Voted) -> str:
    """`!` for MARKER, `-` for what is known to be zero without being read."""
    disk = [""] * (of.plan.size_bytes // SECTOR_BYTES)
    for at, data in of.pieces():
        for sector in range(at.offset // SECTOR_BYTES, at.end // SECTOR_BYTES):
            assert disk[sector] == "", "told twice"
            start = sector * SECTOR_BYTES - at.offset
            piece = None if data is None else bytes(data[start : start + SECTOR_BYTES])
            disk[sector] = "-" if piece is None else "!" if piece == MARKER else chr(piece[0] or ord("0"))
    return "".join(disk)


@pytest.mark.parametrize(
    ("a", "b", "c", "stale", "wanted"),
    [
        ("ABCD", "ABCD", "ABCD", "", "ABCD"),
        ("ABxD", "ABCD", "yBCD", "", "ABCD"),
        ("AxCD", "AyCD", "ABCD", "", "A!CD"),
        ("A?CD", "A?CD", "ABCD", "", "A!CD"),
        ("A?CD", "ABCD", "ABCD", "", "ABCD"),
        ("AoCD", "AoCD", "ABCD", "b", "A!CD"),
        ("ABCD", "AoCD", "ABCD", "b", "ABCD"),
        ("ABCD", "ABCD", "AoCD", "b", "A!CD"),
        ("A--D", "A--D", "A--D", "", "A--D"),
        ("A--D", "A-0D", "A--D", "", "A-0D"),
        ("A--D", "A-xD", "A--D", "", "A-0D"),
    ],
)
def test_each_sector_is_that_of_enough_current_copies(a: str, b: str, c: str, stale: str, wanted: str) -> None:
    of = voted(a, b, c, stale=stale)
    assert content(of) == wanted
    lost = [Range(number * SECTOR_BYTES, SECTOR_BYTES) for number, letter in enumerate(wanted) if letter == "!"]
    assert of.lost == lost


def test_lost_sectors_side_by_side_are_one_range() -> None:
    of = voted("AxyD", "AzwD", "ABCD")
    assert content(of) == "A!!D"
    assert of.lost == [Range(SECTOR_BYTES, 2 * SECTOR_BYTES)]


def test_the_marker_is_text_that_fills_a_sector() -> None:
    assert len(MARKER) == SECTOR_BYTES
    assert set(MARKER.decode().splitlines()) == {"qorum: no majority of copies   "}


def test_a_copy_that_does_not_answer_ends_it() -> None:
    of = voted("ABCD", "ABCD", "ABCD")
    of.readers[1].available = False  # type: ignore[attr-defined]
    with pytest.raises(CopyUnavailableError):
        content(of)
