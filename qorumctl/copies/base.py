"""What a scrub needs of a copy: read it, in bulk and precisely, and say where it is zero.

A reader belongs to one thread at a time, and never writes. Outside a stream's context nothing that it asked for is
outstanding: that is the barrier of invariant 9, so that a drain in the daemon never waits for us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from qorumctl.core.ranges import SECTOR_BYTES, Range, between, coalesce
from qorumctl.core.vote import Observation

CHUNK_BYTES = 1 << 20
"""One request of a bulk read. QEMU's NBD server takes up to 32 MiB; 1 MiB keeps the processor's cache warm across
three copies, and costs a thirtieth of the memory."""

AHEAD = 6
"""Chunks asked for or waiting to be compared, per copy: deep enough to hide a round trip, 6 MiB of memory."""


Memory: TypeAlias = Any
"""What a buffer is (collections.abc.Buffer, from Python 3.12 on): a bytearray, or memory that a daemon shares."""


@dataclass(slots=True)
class Chunk:
    """A piece of a bulk read. `data` has the range's length and is only valid until the next chunk is asked for.

    Chunks of readers of one kind compare by memcmp; the memory of two kinds is never equal, whatever it holds.
    `failed`: the copy answered this read with an I/O error; `data` then means nothing.
    """

    range: Range
    data: Memory
    failed: bool = False

    def observation(self) -> Observation:
        """To be voted on: what it says, as bytes that slices of others can be compared with."""
        data = self.data if isinstance(self.data, bytearray) else bytearray(self.data)
        return Observation(data, (between(0, self.range.length),) if self.failed else ())


class CopyReader(Protocol):
    """Reads one copy. Every call raises CopyUnavailableError when the copy does not answer within its deadline,
    or its connection is gone; a sector that the copy cannot read is not an error but part of the answer."""

    @property
    def name(self) -> str:
        """The copy's name, `a`."""

    @property
    def size_bytes(self) -> int: ...

    def stream(self, ranges: Sequence[Range], *, ahead: int = AHEAD) -> AbstractContextManager[Iterator[Chunk]]:
        """Reads the ranges in order, in chunks of at most CHUNK_BYTES cut at its multiples. `ahead`: the most chunks
        that are asked for or wait to be taken; with 1, nothing is outstanding while a chunk is looked at.

        Leaving the context early stops reading ahead and waits for what was asked for.
        """

    def observe(self, at: Range, *, between_reads: Callable[[], None] = ...) -> Observation:
        """One precise read. Where it fails it is halved down to the sectors that cannot be read, which can take hours
        on a disk that takes its time over each: `between_reads` is called after each failure, with nothing
        outstanding, and what it raises ends the reading."""

    def observe_many(self, ranges: Sequence[Range]) -> list[Observation | None]:
        """As `observe` of each, all asked for at once, so for few of them and few bytes: nothing is outstanding on
        return. None where the read failed: which sectors cannot be read only `observe` tells."""

    def zero_ranges(self, within: Range) -> list[Range]:
        """The parts of `within` that read as zero by block status, without reading them."""

    def flush(self) -> bool:
        """Asks for what the copy has acknowledged to be on stable storage. False: it could not be confirmed."""

    def close(self) -> None:
        """Drops the connection, whatever is under way on it. Idempotent."""


def carry_on() -> None:
    """Nobody asks to stop between reads."""


def observe_by_halving(
    read: Callable[[Range], bytes | bytearray | None], at: Range, between_reads: Callable[[], None] = carry_on
) -> Observation:
    """One precise read by means of `read`, which gives exactly the bytes asked for, or None for an I/O error.

    What fails is halved, at sectors counted from the range's start, down to single sectors: one bad sector costs two
    reads for each halving, and a range of which nothing can be read two reads for each of its sectors. A request that
    fails whole but not in its parts (a transient error) leaves nothing unreadable. `between_reads` is called after each
    failure; what it and `read` raise passes through.
    """
    data = bytearray()
    unreadable: list[Range] = []
    pending = [at]
    while pending:
        part = pending.pop()
        answer = read(part)
        if answer is not None:
            if len(answer) != part.length:
                raise ValueError(f"asked for {part.length} bytes at {part.offset}, got {len(answer)}")
            data += answer
            continue
        between_reads()
        if part.length <= SECTOR_BYTES:
            data += bytes(part.length)
            unreadable.append(part.shifted(-at.offset))
        else:
            sectors = -(-part.length // SECTOR_BYTES)
            middle = part.offset + sectors // 2 * SECTOR_BYTES
            pending += [between(middle, part.end), between(part.offset, middle)]
    return Observation(data, tuple(coalesce(unreadable)))
