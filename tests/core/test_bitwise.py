"""The bitwise majority, and how much is to be believed of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from qorumctl.core.bitwise import Likelihood, Survey, majority
from qorumctl.core.diagnosis import Kind

SECTOR = 512


def flipped(data: bytes, *bits: int) -> bytes:
    made = bytearray(data)
    for bit in bits:
        made[bit // 8] ^= 1 << bit % 8
    return bytes(made)


ORIGINAL = random.Random(7).randbytes(SECTOR)


def survey(*versions: bytes) -> tuple[Survey, bytes | None]:
    named = dict(zip("abcde", versions, strict=False))
    made = Survey(sorted(named))
    return made, made.add(named)


@given(some.lists(some.binary(min_size=3, max_size=3), min_size=1, max_size=9))
def test_each_bit_is_what_most_versions_say(versions: list[bytes]) -> None:
    agreed, tied = majority(versions)
    ties = 0
    for bit in range(24):
        ones = sum(version[bit // 8] >> bit % 8 & 1 for version in versions)
        ties += 2 * ones == len(versions)
        assert agreed[bit // 8] >> bit % 8 & 1 == (2 * ones > len(versions))
    assert tied == ties


@given(some.integers(0, 2**32), some.integers(1, 20))
def test_flips_at_different_bits_are_undone(seed: int, each: int) -> None:
    places = random.Random(seed).sample(range(SECTOR * 8), 3 * each)
    made, agreed = survey(*(flipped(ORIGINAL, *places[n::3]) for n in range(3)))
    assert agreed == ORIGINAL
    assert {distance.bits for distance in made.distances.values()} == {each}
    assert made.tied_bits == 0


def test_two_copies_that_lost_the_same_bit_win_and_nothing_shows_it() -> None:
    made, agreed = survey(flipped(ORIGINAL, 5), flipped(ORIGINAL, 5, 2000), flipped(ORIGINAL, 3000))
    assert agreed == flipped(ORIGINAL, 5)
    assert made.distances["c"].bits == 2


@pytest.mark.parametrize(
    ("versions", "likelihood"),
    [
        ([flipped(ORIGINAL, 9), flipped(ORIGINAL, 1500), flipped(ORIGINAL, 4000)], Likelihood.LIKELY),
        # Beside each other: a number that differs, rather than rot.
        ([flipped(ORIGINAL, 800), flipped(ORIGINAL, 801, 803), flipped(ORIGINAL, 810)], Likelihood.DOUBTFUL),
        # So many that some have likely met.
        ([flipped(ORIGINAL, *range(n, 4096, 211)) for n in (0, 70, 140)], Likelihood.DOUBTFUL),
        # Another write, torn in the middle.
        ([ORIGINAL, flipped(ORIGINAL, 9), ORIGINAL[:256] + random.Random(8).randbytes(256)], Likelihood.UNLIKELY),
        ([random.Random(n).randbytes(SECTOR) for n in range(3)], Likelihood.UNLIKELY),
        ([ORIGINAL, flipped(ORIGINAL, 9), bytes(SECTOR)], Likelihood.UNLIKELY),
        # Two copies alone never decide.
        ([ORIGINAL, flipped(ORIGINAL, 9)], Likelihood.IMPOSSIBLE),
        ([], Likelihood.IMPOSSIBLE),
    ],
)
def test_what_is_said_of_it(versions: list[bytes], likelihood: Likelihood) -> None:
    made, agreed = survey(*versions)
    assert made.likelihood is likelihood
    assert (agreed is None) == (likelihood is Likelihood.IMPOSSIBLE)


def test_one_bad_sector_is_held_against_the_whole_range() -> None:
    made, _ = survey(flipped(ORIGINAL, 9), flipped(ORIGINAL, 1500), flipped(ORIGINAL, 4000))
    made.add({"a": ORIGINAL, "b": flipped(ORIGINAL, 1), "c": bytes(SECTOR)})
    assert made.torn == {"c": [Kind.ZEROED]}
    assert made.likelihood is Likelihood.UNLIKELY


def test_chances_add_up_over_sectors() -> None:
    made = Survey("abc")
    for _ in range(100):
        made.add(dict(zip("abc", (flipped(ORIGINAL, 9), flipped(ORIGINAL, 1500), ORIGINAL), strict=True)))
    assert made.chance_of_coincidence == pytest.approx(100 / 4096)
    assert made.likelihood is Likelihood.DOUBTFUL
