"""What kind of damage a losing version shows, judged against the winning one. `unknown` is an honest answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from qorumctl.core.ranges import SECTOR_BYTES


class Kind(StrEnum):
    BIT_FLIPS = "bit-flips"
    ZEROED = "zeroed"
    FILLED = "filled"
    TORN = "torn"
    UNREADABLE = "unreadable"
    TRANSIENT = "transient"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`flipped_bits`: of BIT_FLIPS. `fill_byte`: of FILLED. `torn_at_bytes`: of TORN, the equal prefix."""

    kind: Kind
    flipped_bits: int | None = None
    fill_byte: int | None = None
    torn_at_bytes: int | None = None


# Half of all bits differ between unrelated data. Rot flips few; one bit in 64 leaves a wide margin to chance.
_BITS_PER_FLIP_AT_LEAST = 64
_FLIPS_AT_LEAST_ALLOWED = 8
# Unrelated data agrees in its first n bytes once in 256**n: eight make a prefix evidence instead of chance.
_TORN_PREFIX_AT_LEAST_BYTES = 8
_BLOCK_BYTES = 16 * 1024
"""Compared as one number: those of 4 MiB at once take 40 MiB."""


def diagnose(winner: bytes, loser: bytes) -> Diagnosis:
    """Compares one losing version with the winning one, equal in length and different in content.

    Zeroed and filled are judged sector by sector: a range is zeroed when each sector in which it differs is zeroed.
    """
    if len(winner) != len(loser) or winner == loser:
        raise ValueError("a diagnosis needs two versions of one length that differ")
    flipped = count_flipped_bits(winner, loser)
    # Few flips first: a sector of zeros in which rot set one bit back to zero is a flip, not a zeroed sector.
    if flipped <= max(
        _FLIPS_AT_LEAST_ALLOWED, sum(len(w) for w, _ in _wrong(winner, loser)) * 8 // _BITS_PER_FLIP_AT_LEAST
    ):
        return Diagnosis(Kind.BIT_FLIPS, flipped_bits=flipped)
    fills = {lost[0] if lost == lost[:1] * len(lost) else None for _, lost in _wrong(winner, loser)}
    if fills == {0}:
        return Diagnosis(Kind.ZEROED)
    if len(fills) == 1 and (fill := fills.pop()) is not None:
        return Diagnosis(Kind.FILLED, fill_byte=fill)
    torn_at = first_difference(winner, loser)
    if torn_at >= _TORN_PREFIX_AT_LEAST_BYTES and _differs_to_the_end(winner, loser):
        return Diagnosis(Kind.TORN, torn_at_bytes=torn_at)
    return Diagnosis(Kind.UNKNOWN)


def _wrong(winner: bytes, loser: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The sectors that differ, one after the other: a range can be megabytes long."""
    return ((w, lost) for w, lost in _blocks(winner, loser, SECTOR_BYTES) if w != lost)


def _blocks(left: bytes, right: bytes, size_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    return ((left[at : at + size_bytes], right[at : at + size_bytes]) for at in range(0, len(left), size_bytes))


def _difference(left: bytes, right: bytes) -> int:
    return int.from_bytes(left, "little") ^ int.from_bytes(right, "little")


def count_flipped_bits(left: bytes, right: bytes) -> int:
    return sum(_difference(*pair).bit_count() for pair in _blocks(left, right, _BLOCK_BYTES))


def first_difference(left: bytes, right: bytes) -> int:
    """The offset of the first byte that differs; the length when none does."""
    for number, pair in enumerate(_blocks(left, right, _BLOCK_BYTES)):
        if difference := _difference(*pair):
            return number * _BLOCK_BYTES + ((difference & -difference).bit_length() - 1) // 8
    return len(left)


def _differs_to_the_end(winner: bytes, loser: bytes) -> bool:
    """A torn write leaves the new data up to a point and something else from there on: no sector is equal again,
    and the last bytes differ (a smudge in the middle of a sector is not a tear)."""
    last = slice(-_TORN_PREFIX_AT_LEAST_BYTES, None)
    return winner[last] != loser[last] and all(w != lost for w, lost in _blocks(winner, loser, SECTOR_BYTES))
