"""The bitwise majority of versions that have none as a whole, and whether it is likely to be the original.

Where rot has flipped a few bits in each copy, independently, each single bit still has a majority, and all of them
together are what was written. Where the copies hold different writes, whole or torn, they are a mixture that nobody has
ever written. Which of the two it is nobody can prove; what speaks for it, and against it, can be counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations, pairwise

from qorumctl.core.diagnosis import Kind, diagnose

_UNLIKELY_CHANCE = 0.01
"""From this chance of two flips at one bit on, in all of the range, it is no more called likely."""
_MOST_SCATTERED = 200
"""Flips in one sector, of 4096 bits: that many meet each other by chance."""


class Likelihood(StrEnum):
    """Of the bitwise majority being what was written."""

    LIKELY = "likely"
    DOUBTFUL = "doubtful"
    UNLIKELY = "unlikely"
    IMPOSSIBLE = "impossible"
    """There is none: bits are tied, or nothing can be read."""


def majority(versions: Sequence[bytes]) -> tuple[bytes, int]:
    """Bit by bit what more than half of the versions hold, all of one length; and the number of bits without such,
    which are 0 in it."""
    length = len(versions[0])
    # at_least[n]: the bits that are set in n or more of the versions seen so far.
    at_least = [(1 << 8 * length) - 1, *[0] * (len(versions) + 1)]
    for version in versions:
        bits = int.from_bytes(version, "little")
        for n in range(len(versions), 0, -1):
            at_least[n] |= at_least[n - 1] & bits
    half, odd = divmod(len(versions), 2)
    tied = 0 if odd else at_least[half] & ~at_least[half + 1]
    return at_least[half + 1].to_bytes(length, "little"), tied.bit_count()


@dataclass(slots=True)
class Distance:
    """Of one copy to the bitwise majority. `kinds`: what its differing sectors look like beside it, and how many."""

    bits: int = 0
    sectors: int = 0
    kinds: Counter[Kind] = field(default_factory=Counter)


class Survey:
    """Counts over the sectors of a range that have no majority, one at a time. `names`: the copies that count."""

    def __init__(self, names: Sequence[str]) -> None:
        self.distances = {name: Distance() for name in names}
        self.sectors = 0
        self.tied_bits = 0
        self.crowded_sectors = 0
        """In which flips of a copy, or of two, lie closer together than chance would have it."""
        self.chance_of_coincidence = 0.0
        """At most so likely have independent flips met in one bit somewhere, where the majority is then wrong."""

    def add(self, versions: Mapping[str, bytes]) -> bytes | None:
        """One sector, of the copies that can be read there. Returns its bitwise majority; None: it has none."""
        self.sectors += 1
        if not versions:
            self.tied_bits += 1
            return None
        agreed, tied = majority(list(versions.values()))
        self.tied_bits += tied
        if tied:
            return None
        flips: list[int] = []
        for name, version in versions.items():
            if differing := int.from_bytes(version, "little") ^ int.from_bytes(agreed, "little"):
                distance = self.distances[name]
                distance.bits += differing.bit_count()
                distance.sectors += 1
                distance.kinds[diagnose(agreed, version).kind] += 1
                flips.append(differing)
        self.crowded_sectors += _are_crowded(flips, len(agreed))
        counts = [differing.bit_count() for differing in flips]
        self.chance_of_coincidence += sum(x * y for x, y in combinations(counts, 2)) / (8 * len(agreed))
        return agreed

    @property
    def torn(self) -> dict[str, list[Kind]]:
        """Copy -> what it shows that is no rot of single bits, the most frequent first."""
        found: dict[str, list[Kind]] = {}
        for name, distance in self.distances.items():
            if kinds := [kind for kind, _ in distance.kinds.most_common() if kind is not Kind.BIT_FLIPS]:
                found[name] = list[Kind](kinds)
        return found

    @property
    def likelihood(self) -> Likelihood:
        if self.tied_bits or not self.sectors:
            return Likelihood.IMPOSSIBLE
        if self.torn:
            return Likelihood.UNLIKELY
        if self.crowded_sectors or self.chance_of_coincidence >= _UNLIKELY_CHANCE:
            return Likelihood.DOUBTFUL
        return Likelihood.LIKELY


def _are_crowded(flips: Sequence[int], length_bytes: int) -> bool:
    """Whether more flips lie within one byte, or in bytes beside each other, than scattered ones would: a version with
    another number in it looks like that. Of n scattered flips n*n/2 pairs are each so close with 3 chances in 512."""
    number = sum(differing.bit_count() for differing in flips)
    if number > _MOST_SCATTERED:
        return True
    places = sorted(place // 8 for differing in flips for place in _places(differing))
    close = sum(right - left <= 1 for left, right in pairwise(places))
    expected = number * number / 2 * 3 / length_bytes
    return close > 4 * expected + (1 if number > 3 else 0)


def _places(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
