"""The vote: what N copies say about a range -> runs of verdicts, sector by sector.

The result set is closed. A sector on which every copy agrees yields nothing. Any other sector is `Outvoted` (at least
`threshold` current copies agree; the rest may be rewritten from them) or `NoMajority` (nobody may write anything).
Being unreadable is never a vote. Two readable copies that differ are no majority, whatever the third cannot say.

After TigerBeetle's superblock quorums: copies in, a verdict or a named refusal out, no I/O in between.
"""

from __future__ import annotations

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
    views = {name: memoryview(o.data) for name, o in observations.items()}
    lengths = {len(view) for view in views.values()}
    if len(lengths) != 1:
        raise ValueError("observations differ in length")
    unreadable = {name: frozenset(_sectors(o.unreadable)) for name, o in observations.items()}
    runs: list[Run] = []
    for sector in _differing(list(views.values()), lengths.pop(), frozenset().union(*unreadable.values())):
        deaf = frozenset(name for name, sectors in unreadable.items() if sector.offset // SECTOR_BYTES in sectors)
        groups: dict[bytes, set[str]] = {}
        for name, view in views.items():
            if name not in deaf:
                groups.setdefault(bytes(view[sector.offset : sector.end]), set()).add(name)
        verdict = _judge([frozenset(group) for group in groups.values()], deaf, threshold, stale)
        if runs and runs[-1].range.end == sector.offset and runs[-1].verdict == verdict:
            runs[-1] = Run(between(runs[-1].range.offset, sector.end), verdict)
        else:
            runs.append(Run(sector, verdict))
    return runs


def _judge(groups: Sequence[frozenset[str]], deaf: frozenset[str], threshold: int, stale: Set[str]) -> Verdict:
    for group in groups:
        if len(group - stale) >= threshold:
            return Outvoted(group, frozenset().union(*groups) - group, deaf)
    return NoMajority(frozenset(groups), deaf)


def _sectors(ranges: Sequence[Range]) -> Iterator[int]:
    for r in ranges:
        yield from range(r.offset // SECTOR_BYTES, -(-r.end // SECTOR_BYTES))


def _differing(views: list[memoryview], length: int, always: Set[int]) -> Iterator[Range]:
    """Sectors in which the copies differ, or that some copy could not read. Halves what differs, so that one bad
    sector in a large range costs a logarithm of comparisons."""
    whole = [bytes(view) for view in views]
    pending = [(0, length)]
    while pending:
        start, end = pending.pop()
        numbers = range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES))
        forced = bool(always) and any(n in always for n in numbers)
        first = whole[0][start:end]
        if not forced and all(other[start:end] == first for other in whole[1:]):
            continue
        if len(numbers) == 1:
            yield between(start, end)
        else:
            middle = numbers[len(numbers) // 2] * SECTOR_BYTES
            pending += [(middle, end), (start, middle)]
