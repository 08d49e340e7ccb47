"""The vote: what N copies say about a range -> runs of verdicts, sector by sector.

The result set is closed. A sector on which every copy agrees yields nothing. Any other sector is `Outvoted` (at least
`threshold` current copies agree; the rest may be rewritten from them) or `NoMajority` (nobody may write anything).
Being unreadable is never a vote. Two readable copies that differ are no majority, whatever the third cannot say.

After TigerBeetle's superblock quorums: copies in, a verdict or a named refusal out, no I/O in between.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from qorumctl.core.ranges import SECTOR_BYTES, Range, between


def strict_majority(copies: int) -> int:
    """The smallest threshold that no two disjoint groups can both reach."""
    return copies // 2 + 1


@dataclass(frozen=True, slots=True)
class Observation:
    """What one copy said when it was read over a range.

    `data` holds as many bytes as the range; within `unreadable` (relative to its start) they mean nothing.
    """

    data: bytes | bytearray | memoryview
    unreadable: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class Outvoted:
    """`winners` agree and are at least `threshold` current copies. They are never written.

    `losers` hold something else, `unreadable` hold nothing that can be read; one of the two is not empty.
    """

    winners: frozenset[str]
    losers: frozenset[str]
    unreadable: frozenset[str]


@dataclass(frozen=True, slots=True)
class NoMajority:
    """No version has `threshold` current copies behind it. `groups`: who agrees with whom, unreadable ones left out."""

    groups: frozenset[frozenset[str]]
    unreadable: frozenset[str]


Verdict = Outvoted | NoMajority


@dataclass(frozen=True, slots=True)
class Run:
    """Adjacent sectors with one verdict. The range is relative to what was observed."""

    range: Range
    verdict: Verdict


def vote(observations: Mapping[str, Observation], threshold: int, *, stale: Set[str] = frozenset()) -> list[Run]:
    """Votes on each sector of a range; returns the runs of sectors that are not unanimous, in order.

    `observations`: copy name -> what it said, all of one length. `stale`: copies that are known to have missed writes:
    they are compared, and can be outvoted, but count for nobody. Raises ValueError when `threshold` is not a strict
    majority of the copies: two disjoint groups could then both win.
    """
    copies = len(observations)
    if not copies // 2 < threshold <= copies:
        raise ValueError(f"threshold {threshold} is not a strict majority of {copies}")
    lengths = {len(o.data) for o in observations.values()}
    if len(lengths) != 1:
        raise ValueError("observations differ in length")
    length = lengths.pop()
    deaf_at = _deaf(observations)
    camps = _camps(observations)
    verdicts: dict[tuple[frozenset[frozenset[str]], frozenset[str]], Verdict] = {}
    runs: list[tuple[int, int, Verdict]] = []
    for number in _differing([content for content, _ in camps], length, sorted(deaf_at)):
        start, end = number * SECTOR_BYTES, min(length, (number + 1) * SECTOR_BYTES)
        deaf = deaf_at.get(number, _NOBODY)
        groups: dict[bytes, frozenset[str]] = {}
        for content, names in camps:
            if hearing := names - deaf:
                version = content[start:end]
                groups[version] = groups[version] | hearing if version in groups else hearing
        case = frozenset(groups.values()), deaf
        if (verdict := verdicts.get(case)) is None:
            verdict = verdicts[case] = _judge(list(groups.values()), deaf, threshold, stale)
        if runs and runs[-1][1] == start and runs[-1][2] is verdict:
            runs[-1] = runs[-1][0], end, verdict
        else:
            runs.append((start, end, verdict))
    return [Run(between(start, end), verdict) for start, end, verdict in runs]


_NOBODY: frozenset[str] = frozenset()


def _camps(observations: Mapping[str, Observation]) -> list[tuple[bytes, frozenset[str]]]:
    """Contents, and who holds each throughout: where one copy is wrong everywhere, the others are looked at once."""
    camps: list[tuple[bytes, set[str]]] = []
    for name, observation in observations.items():
        for content, names in camps:
            if content == observation.data:
                names.add(name)
                break
        else:
            camps.append((bytes(observation.data), {name}))
    return [(content, frozenset(names)) for content, names in camps]


def _deaf(observations: Mapping[str, Observation]) -> dict[int, frozenset[str]]:
    """Sector number -> the copies that could not read it."""
    deaf: dict[int, frozenset[str]] = {}
    for name, observation in observations.items():
        for r in observation.unreadable:
            for number in range(r.offset // SECTOR_BYTES, -(-r.end // SECTOR_BYTES)):
                deaf[number] = deaf.get(number, _NOBODY) | {name}
    return deaf


def _judge(groups: Sequence[frozenset[str]], deaf: frozenset[str], threshold: int, stale: Set[str]) -> Verdict:
    for group in groups:
        if len(group - stale) >= threshold:
            return Outvoted(group, frozenset().union(*groups) - group, deaf)
    return NoMajority(frozenset(groups), deaf)


def _differing(contents: list[bytes], length: int, always: Sequence[int]) -> Iterator[int]:
    """Numbers, ascending, of the sectors in which the contents differ, and of those in `always` (sorted). Halves what
    differs, so that one bad sector in a large range costs a logarithm of comparisons."""
    first, *others = contents
    pending = [(0, -(-length // SECTOR_BYTES))]
    while pending:
        low, high = pending.pop()
        start, end = low * SECTOR_BYTES, high * SECTOR_BYTES
        i = bisect_left(always, low)
        forced = i < len(always) and always[i] < high
        if not forced:
            part = first[start:end]
            if all(other[start:end] == part for other in others):
                continue
        if high - low == 1:
            yield low
        else:
            middle = (low + high) // 2
            pending += [(middle, high), (low, middle)]
