"""The voted content of a set: what `threshold` current copies agree on, sector by sector, by our own vote.

QEMU votes on whole requests and counts every copy; here a sector that is damaged in one copy and another one in the
next lose nothing, and a copy that is known to have missed writes counts for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from qorumctl.copies.base import CHUNK_BYTES, CopyReader
from qorumctl.core.ranges import SECTOR_BYTES, Range, align_inwards, coalesce, intersect, split, subtract
from qorumctl.core.vote import NoMajority, Observation, vote
from qorumctl.scrub.dead import give_up_if_dead
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.units import GIB

MARKER = b"qorum: no majority of copies   \n" * (SECTOR_BYTES // 32)
"""One sector in the place of one that has no majority (docs/import-export.md)."""
_WINDOW_BYTES = GIB
_FAILING_CHUNKS = 4


@dataclass(slots=True)
class Voted:
    """Reads the copies of one set. `lost`: what has no majority, as far as was read. Outside `pieces` nothing is
    outstanding, and between two pieces of a stream nobody may drain."""

    readers: Sequence[CopyReader]
    plan: ScrubPlan
    pause: Callable[[], None]
    lost: list[Range] = field(default_factory=list)

    def pieces(self) -> Generator[tuple[Range, bytes | bytearray | None], None, None]:
        """All of the disk, once, in any order; None: it reads as zero. What is yielded is valid until the next. Where
        no version has won, MARKER stands, and `lost` says so. Raises CopyError, and what `pause` raises."""
        for window in split([Range(0, self.plan.size_bytes)], _WINDOW_BYTES):
            zero = self._zero(window)
            for piece in zero:
                yield piece, None
            doubtful: list[Range] = []
            yield from self._alike(subtract([window], zero), doubtful)
            for piece in doubtful:
                self.pause()
                yield piece, self.settle(piece)
        self.lost = coalesce(self.lost)

    def settle(self, at: Range) -> bytearray:
        """By a precise read of every copy, and the vote."""
        seen = {reader.name: reader.observe(at, between_reads=self.pause) for reader in self.readers}
        content, lost = elect(seen, self.plan.threshold, self.plan.stale)
        self.lost += [r.shifted(at.offset) for r in lost]
        return content

    def _zero(self, window: Range) -> list[Range]:
        zero = [window]
        for reader in self.readers:
            if not zero:
                break
            zero = intersect(zero, reader.zero_ranges(window))
        whole = (align_inwards(r, SECTOR_BYTES) for r in zero)
        return [r for r in whole if r is not None]

    def _alike(self, ranges: list[Range], doubtful: list[Range]) -> Iterator[tuple[Range, bytearray]]:
        failing: dict[str, list[Range]] = {reader.name: [] for reader in self.readers}
        for part in split(ranges, 64 * CHUNK_BYTES):
            self.pause()
            with ExitStack() as stack:
                streams = [stack.enter_context(reader.stream([part])) for reader in self.readers]
                for chunks in zip(*streams, strict=True):
                    at, first = chunks[0].range, chunks[0].data
                    if any(chunk.failed or chunk.data != first for chunk in chunks):
                        doubtful.append(at)
                        for reader, chunk in zip(self.readers, chunks, strict=True):
                            failing[reader.name] += [at] if chunk.failed else []
                    else:
                        yield at, first
        for reader in self.readers:
            if len(failing[reader.name]) >= _FAILING_CHUNKS:
                give_up_if_dead(reader, self.plan, failing[reader.name][0].offset)


def elect(seen: dict[str, Observation], threshold: int, stale: frozenset[str]) -> tuple[bytearray, list[Range]]:
    """What wins, and the ranges, relative to what was observed, in which nothing does: there MARKER stands."""
    content = bytearray(next(iter(seen.values())).data)
    lost = []
    for run in vote(seen, threshold, stale=stale):
        part = slice(run.range.offset, run.range.end)
        if isinstance(run.verdict, NoMajority):
            content[part] = (MARKER * -(-run.range.length // SECTOR_BYTES))[: run.range.length]
            lost.append(run.range)
        else:
            content[part] = seen[min(run.verdict.winners)].data[part]
    return content, lost
