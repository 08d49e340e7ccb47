"""What kind of damage: each kind by example, and what must never be mistaken for another."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorumctl.core.diagnosis import Diagnosis, Kind, count_flipped_bits, diagnose, first_difference
from qorumctl.core.ranges import SECTOR_BYTES

NOISE = random.Random(1).randbytes(8 * SECTOR_BYTES)
OTHER = random.Random(2).randbytes(8 * SECTOR_BYTES)
SECTOR = NOISE[:SECTOR_BYTES]


def flipped(content: bytes, *bits: int) -> bytes:
    rotten = bytearray(content)
    for bit in bits:
        rotten[bit // 8] ^= 1 << bit % 8
    return bytes(rotten)


@given(st.binary(min_size=SECTOR_BYTES, max_size=SECTOR_BYTES), st.sets(st.integers(0, 4095), min_size=1, max_size=64))
def test_a_few_flipped_bits_are_counted(winner: bytes, bits: set[int]) -> None:
    assert diagnose(winner, flipped(winner, *bits)) == Diagnosis(Kind.BIT_FLIPS, flipped_bits=len(bits))


def test_flips_are_counted_over_all_sectors_of_a_range() -> None:
    assert diagnose(NOISE, flipped(NOISE, 3, 5000, 30000)) == Diagnosis(Kind.BIT_FLIPS, flipped_bits=3)


def test_a_sector_of_zeros_with_a_bit_rotted_is_a_flip() -> None:
    zeros = bytes(SECTOR_BYTES)
    assert diagnose(zeros, flipped(zeros, 77)) == Diagnosis(Kind.BIT_FLIPS, flipped_bits=1)


def test_a_bit_rotted_back_to_zero_is_a_flip_and_not_a_zeroed_sector() -> None:
    zeros = bytes(SECTOR_BYTES)
    assert diagnose(flipped(zeros, 77), zeros) == Diagnosis(Kind.BIT_FLIPS, flipped_bits=1)


def test_a_zeroed_sector() -> None:
    assert diagnose(SECTOR, bytes(SECTOR_BYTES)) == Diagnosis(Kind.ZEROED)


def test_zeroed_sectors_among_good_ones() -> None:
    loser = NOISE[:1024] + bytes(1024) + NOISE[2048:]
    assert diagnose(NOISE, loser) == Diagnosis(Kind.ZEROED)


@pytest.mark.parametrize("fill", [0x01, 0x5A, 0xFF])
def test_a_sector_filled_with_one_byte(fill: int) -> None:
    assert diagnose(SECTOR, bytes([fill]) * SECTOR_BYTES) == Diagnosis(Kind.FILLED, fill_byte=fill)


def test_zeros_overwritten_with_one_byte() -> None:
    assert diagnose(bytes(SECTOR_BYTES), b"\xff" * SECTOR_BYTES) == Diagnosis(Kind.FILLED, fill_byte=0xFF)


def test_sectors_filled_with_different_bytes_are_unknown() -> None:
    assert diagnose(NOISE[:1024], b"\x11" * 512 + b"\x22" * 512) == Diagnosis(Kind.UNKNOWN)


@pytest.mark.parametrize("at", [8, 100, 300, 480])
def test_torn_in_the_middle_of_a_sector(at: int) -> None:
    loser = SECTOR[:at] + OTHER[at:SECTOR_BYTES]
    assert diagnose(SECTOR, loser) == Diagnosis(Kind.TORN, torn_at_bytes=first_difference(SECTOR, loser))
    assert first_difference(SECTOR, loser) >= at


def test_torn_in_the_first_sector_of_many() -> None:
    loser = NOISE[:200] + OTHER[200:]
    assert diagnose(NOISE, loser) == Diagnosis(Kind.TORN, torn_at_bytes=200)


def test_a_prefix_so_short_that_chance_explains_it_is_no_tear() -> None:
    loser = SECTOR[:3] + OTHER[3:SECTOR_BYTES]
    assert diagnose(SECTOR, loser) == Diagnosis(Kind.UNKNOWN)


def test_a_smudge_in_the_middle_of_a_sector_is_no_tear() -> None:
    loser = SECTOR[:100] + OTHER[100:200] + SECTOR[200:]
    assert diagnose(SECTOR, loser) == Diagnosis(Kind.UNKNOWN)


def test_a_sector_that_is_right_again_rules_out_a_tear() -> None:
    loser = NOISE[:200] + OTHER[200:1024] + NOISE[1024:1536] + OTHER[1536:2048]
    assert diagnose(NOISE[:2048], loser) == Diagnosis(Kind.UNKNOWN)


def test_unrelated_data_is_unknown() -> None:
    assert diagnose(SECTOR, OTHER[:SECTOR_BYTES]) == Diagnosis(Kind.UNKNOWN)


@pytest.mark.parametrize(("winner", "loser"), [(b"A" * 512, b"A" * 512), (b"A" * 512, b"B" * 511), (b"", b"")])
def test_there_must_be_something_to_diagnose(winner: bytes, loser: bytes) -> None:
    with pytest.raises(ValueError, match="differ"):
        diagnose(winner, loser)


versions = st.integers(1, 1100).flatmap(
    lambda n: st.tuples(st.binary(min_size=n, max_size=n), st.binary(min_size=n, max_size=n))
)


@given(versions)
def test_a_diagnosis_carries_exactly_its_own_evidence(pair: tuple[bytes, bytes]) -> None:
    winner, loser = pair
    if winner == loser:
        return
    said = diagnose(winner, loser)
    assert (said.flipped_bits is not None) == (said.kind is Kind.BIT_FLIPS)
    assert (said.fill_byte is not None) == (said.kind is Kind.FILLED)
    assert (said.torn_at_bytes is not None) == (said.kind is Kind.TORN)
    assert said.fill_byte != 0
    if said.torn_at_bytes is not None:
        assert winner[: said.torn_at_bytes] == loser[: said.torn_at_bytes]


@given(versions)
def test_counting_and_first_difference_agree_with_the_plain_loops(pair: tuple[bytes, bytes]) -> None:
    left, right = pair
    assert count_flipped_bits(left, right) == sum((x ^ y).bit_count() for x, y in zip(left, right, strict=True))
    expected = next((at for at, (x, y) in enumerate(zip(left, right, strict=True)) if x != y), len(left))
    assert first_difference(left, right) == expected
