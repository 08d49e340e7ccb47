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
    contents, names = [content for content, _ in camps], [names for _, names in camps]
    known: dict[tuple[tuple[int, ...], frozenset[str]], Verdict] = {}
    runs: list[tuple[int, int, Verdict]] = []
    for number in _differing(contents, length, sorted(deaf_at)):
        start, end = number * SECTOR_BYTES, min(length, (number + 1) * SECTOR_BYTES)
        deaf = deaf_at.get(number, _NOBODY) if deaf_at else _NOBODY
        # Of each camp the first that says the same. A copy that is wrong everywhere makes two camps and one pattern: by
        # far the most frequent case, and the one in which every sector comes along here.
        pattern: tuple[int, ...] = _TWO_CAMPS
        if len(contents) > len(_TWO_CAMPS) or deaf_at:
            versions = [content[start:end] for content in contents]
            pattern = tuple(map(versions.index, versions))
        if (verdict := known.get((pattern, deaf))) is None:
            verdict = _judge(_groups(names, pattern, deaf), deaf, threshold, stale)
            # Another pattern may come to the same where nobody of a camp can be heard.
            verdict = known[pattern, deaf] = next((one for one in known.values() if one == verdict), verdict)
        if runs and runs[-1][1] == start and runs[-1][2] is verdict:
            runs[-1] = runs[-1][0], end, verdict
        else:
            runs.append((start, end, verdict))
    return [Run(between(start, end), verdict) for start, end, verdict in runs]


_NOBODY: frozenset[str] = frozenset()
_TWO_CAMPS = (0, 1)
_S = SECTOR_BYTES
_LINEAR_SECTORS = 32
"""So many are compared one by one: halving each of them to the end cost more than reading them, where all differ."""


def _groups(camps: Sequence[frozenset[str]], pattern: Sequence[int], deaf: frozenset[str]) -> list[frozenset[str]]:
    """Who says the same, of those that can be heard."""
    groups: dict[int, frozenset[str]] = {}
    for first, names in zip(pattern, camps, strict=True):
        groups[first] = groups.get(first, _NOBODY) | (names - deaf)
    return [group for group in groups.values() if group]


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
        if high - low <= _LINEAR_SECTORS:
            wrong = set(always[i : bisect_left(always, high)])
            for other in others:
                wrong.update(
                    n for n in range(low, high) if first[n * _S : (n + 1) * _S] != other[n * _S : (n + 1) * _S]
                )
            yield from sorted(wrong)
        else:
            middle = (low + high) // 2
            pending += [(middle, high), (low, middle)]
