"""What kind of damage a losing version shows, judged against the winning one. `unknown` is an honest answer."""

from __future__ import annotations

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


def diagnose(winner: bytes, loser: bytes) -> Diagnosis:
    """Compares one losing version with the winning one, equal in length and different in content.

    Zeroed and filled are judged sector by sector: a range is zeroed when each sector in which it differs is zeroed.
    """
    if len(winner) != len(loser) or winner == loser:
        raise ValueError("a diagnosis needs two versions of one length that differ")
    sectors = [
        (winner[at : at + SECTOR_BYTES], loser[at : at + SECTOR_BYTES]) for at in range(0, len(winner), SECTOR_BYTES)
    ]
    wrong = [pair for pair in sectors if pair[0] != pair[1]]
    flipped = count_flipped_bits(winner, loser)
    # Few flips first: a sector of zeros in which rot set one bit back to zero is a flip, not a zeroed sector.
    if flipped <= max(_FLIPS_AT_LEAST_ALLOWED, sum(len(w) for w, _ in wrong) * 8 // _BITS_PER_FLIP_AT_LEAST):
        return Diagnosis(Kind.BIT_FLIPS, flipped_bits=flipped)
    fills = {lost[0] if lost == lost[:1] * len(lost) else None for _, lost in wrong}
    if fills == {0}:
        return Diagnosis(Kind.ZEROED)
    if len(fills) == 1 and (fill := fills.pop()) is not None:
        return Diagnosis(Kind.FILLED, fill_byte=fill)
    torn_at = first_difference(winner, loser)
    if torn_at >= _TORN_PREFIX_AT_LEAST_BYTES and _differs_to_the_end(winner, loser):
        return Diagnosis(Kind.TORN, torn_at_bytes=torn_at)
    return Diagnosis(Kind.UNKNOWN)


def count_flipped_bits(left: bytes, right: bytes) -> int:
    return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).bit_count()


def first_difference(left: bytes, right: bytes) -> int:
    """The offset of the first byte that differs; the length when none does."""
    difference = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
    return ((difference & -difference).bit_length() - 1) // 8 if difference else len(left)


def _differs_to_the_end(winner: bytes, loser: bytes) -> bool:
    """A torn write leaves the new data up to a point and something else from there on: no sector is equal again,
    and the last bytes differ (a smudge in the middle of a sector is not a tear)."""
    from_the_end = first_difference(winner[::-1], loser[::-1])
    return from_the_end < _TORN_PREFIX_AT_LEAST_BYTES and all(
        winner[at : at + SECTOR_BYTES] != loser[at : at + SECTOR_BYTES] for at in range(0, len(winner), SECTOR_BYTES)
    )
