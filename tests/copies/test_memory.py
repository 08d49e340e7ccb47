"""The memory-backed copy, and the halving that every reader shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorumctl.copies.base import CopyReader, observe_by_halving
from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range, between, coalesce
from qorumctl.errors import CopyUnavailableError


def sectors(start: int, end: int) -> Range:
    return between(start * SECTOR_BYTES, end * SECTOR_BYTES)


def test_it_is_a_copy_reader() -> None:
    reader: CopyReader = MemoryCopy.from_letters("a", "AB")
    assert (reader.name, reader.size_bytes) == ("a", 1024)


def test_letters_come_back() -> None:
    copy = MemoryCopy.from_letters("a", "AB0-?1")
    assert copy.letters == "AB0-?1"
    copy.data[0] ^= 1
    assert copy.letters == "!B0-?1"


def test_observe_reports_the_sectors_that_cannot_be_read_and_the_bytes_of_the_rest() -> None:
    seen = MemoryCopy.from_letters("a", "ZZAB??C?").observe(sectors(2, 8))
    assert seen.unreadable == (sectors(2, 4), sectors(5, 6))
    assert bytes(seen.data[:1024]) == b"A" * 512 + b"B" * 512
    assert bytes(seen.data[4 * 512 : 5 * 512]) == b"C" * 512


@given(st.text(alphabet="AAAAB?", min_size=1, max_size=40), st.data())
def test_halving_finds_exactly_the_bad_sectors(letters: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(letters) - 1))
    end = data.draw(st.integers(start + 1, len(letters)))
    copy = MemoryCopy.from_letters("a", letters)
    seen = copy.observe(sectors(start, end))
    here = letters[start:end]
    assert seen.unreadable == tuple(coalesce(sectors(i, i + 1) for i, c in enumerate(here) if c == "?"))
    assert bytes(seen.data) == b"".join(b"\0" * 512 if c == "?" else c.encode() * 512 for c in here)


def test_one_bad_sector_costs_two_reads_for_each_halving() -> None:
    reads: list[Range] = []

    def read(at: Range) -> bytes | None:
        reads.append(at)
        return None if at.contains(sectors(700, 701)) else bytes(at.length)

    seen = observe_by_halving(read, sectors(0, 2048))
    assert seen.unreadable == (sectors(700, 701),)
    assert len(reads) == 1 + 2 * 11


def test_an_error_that_passes_leaves_nothing_unreadable() -> None:
    answers = iter([None, b"A" * 512, b"B" * 512])
    seen = observe_by_halving(lambda at: next(answers), Range(512, 1024))
    assert (bytes(seen.data), seen.unreadable) == (b"A" * 512 + b"B" * 512, ())


def test_halving_keeps_a_partial_last_sector() -> None:
    seen = observe_by_halving(lambda at: None if at.end > 1024 else b"A" * at.length, Range(512, 600))
    assert (len(seen.data), seen.unreadable) == (600, (Range(512, 88),))


def test_a_reader_that_answers_with_another_length_is_a_bug() -> None:
    with pytest.raises(ValueError, match="asked for 1024 bytes at 0, got 512"):
        observe_by_halving(lambda at: bytes(512), Range(0, 1024))


def test_a_stream_cuts_at_multiples_of_the_chunk_and_marks_what_failed() -> None:
    copy = MemoryCopy.from_letters("a", "AAAABBBBC?CCDDDD", chunk_bytes=4 * 512)
    with copy.stream([sectors(1, 6), sectors(8, 12)]) as chunks:
        got = [(chunk.range, chunk.failed, None if chunk.failed else bytes(chunk.data)) for chunk in chunks]
    assert got == [
        (sectors(1, 4), False, b"A" * 1536),
        (sectors(4, 6), False, b"B" * 1024),
        (sectors(8, 12), True, None),
    ]
    assert copy.outstanding == 0


def test_leaving_a_stream_early_leaves_nothing_outstanding() -> None:
    copy = MemoryCopy.from_letters("a", "A" * 64, chunk_bytes=512)
    with copy.stream([sectors(0, 64)]) as chunks:
        next(chunks)
        assert copy.outstanding == 3
    assert copy.outstanding == 0


def test_read_ahead_returns_what_was_there_when_it_was_asked_for() -> None:
    copy = MemoryCopy.from_letters("a", "AAAA", chunk_bytes=512)
    with copy.stream([sectors(0, 4)]) as chunks:
        next(chunks)
        copy.write(512, b"B" * 512)
        assert bytes(next(chunks).data) == b"A" * 512
    assert copy.letters == "ABAA"


def test_holes_are_reported_until_they_are_written() -> None:
    copy = MemoryCopy.from_letters("a", "-0-A--")
    assert copy.zero_ranges(sectors(0, 5)) == [sectors(0, 1), sectors(2, 3), sectors(4, 5)]
    copy.write(0, b"\0" * 512)
    assert copy.zero_ranges(sectors(0, 5)) == [sectors(2, 3), sectors(4, 5)]


def test_a_write_makes_a_bad_sector_readable_unless_it_refuses_to_be_written() -> None:
    copy = MemoryCopy.from_letters("a", "??A")
    copy.unwritable.add(1)
    assert copy.write(0, b"B" * 512)
    assert not copy.write(512, b"B" * 1024)
    assert copy.letters == "B?A"


@pytest.mark.parametrize("break_it", ["gone", "closed"])
def test_a_copy_that_does_not_answer_is_named(break_it: str) -> None:
    copy = MemoryCopy.from_letters("b", "AA")
    if break_it == "closed":
        copy.close()
        copy.close()
    else:
        copy.available = False
    with pytest.raises(CopyUnavailableError) as caught:
        copy.observe(sectors(0, 1))
    assert caught.value.copy == "b"
    with pytest.raises(CopyUnavailableError):
        copy.zero_ranges(sectors(0, 1))
    with pytest.raises(CopyUnavailableError), copy.stream([sectors(0, 1)]) as chunks:
        list(chunks)


def test_a_copy_that_goes_away_under_a_stream_is_noticed() -> None:
    copy = MemoryCopy.from_letters("b", "AAAAAAAA", chunk_bytes=512)
    with copy.stream([sectors(0, 8)]) as chunks:
        next(chunks)
        copy.available = False
        with pytest.raises(CopyUnavailableError):
            list(chunks)
    assert copy.outstanding == 0
