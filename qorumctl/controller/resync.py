"""Brings a copy that is outside the quorum up to date: the volume's voted content is written to it directly.

Nobody else writes to the copy meanwhile, so reading it back proves that it holds what was written. What guests write to
the volume after a range was read is in the record that is being kept (daemon/missed.py): the next pass copies it.
One request at a time, so that nothing is outstanding when a fenced read has to be let through by a drain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Protocol

from qorumctl.controller.bridge import LiveFence
from qorumctl.copies.base import CopyReader, observe_by_halving
from qorumctl.copies.nbd_link import ALLOCATION_ZERO, NbdLink
from qorumctl.core.ranges import (
    SECTOR_BYTES,
    Range,
    align,
    align_inwards,
    between,
    coalesce,
    intersect,
    split,
    subtract,
)
from qorumctl.errors import CopyError
from qorumctl.units import GIB, KIB, MIB

_PIECE_BYTES = MIB
_ZEROS = bytes(_PIECE_BYTES)
_BATCH_BYTES = 64 * MIB
"""Between two flushes of the copy, after each of which what was written is read back: what a kill costs to repeat."""
_BLOCK_BYTES = 4 * KIB
"""What differs is written by blocks of this size."""
_FENCED_BYTES = 64 * KIB
_LOOKS = 3
_REWRITE_BYTES = (_BLOCK_BYTES, 64 * KIB)
"""By blocks of these sizes what a copy cannot read is written anew. Storage with blocks larger than what it is given
reads the rest of the block first, which fails where that is broken, too: NBD allows blocks of up to 64 KiB."""
_REWRITE_S = 30.0
"""A disk may take seconds over each sector that it gives up, and so long the set has one copy less: what was not come
to then stays as it is."""
_GAP_BYTES = 16 * KIB
_WINDOW_BYTES = GIB

Moved = Callable[[int], None]


class Pace(Protocol):
    def pause(self) -> None: ...

    def spend(self, count_bytes: int) -> None: ...


class Resync:
    """`who`: the copy, as a sentence begins. `link` and `status`: its writable export, for data and for block status.
    `pace.pause` is called between requests and may raise. CopyError where the copy does not store what it is given."""

    def __init__(
        self,
        who: str,
        others: Sequence[CopyReader],
        fence: LiveFence,
        link: NbdLink,
        status: NbdLink,
        pace: Pace,
    ) -> None:
        self._who = who
        self._others = others
        self._fence = fence
        self._link = link
        self._status = status
        self._pace = pace
        self.compared_bytes = 0
        self.copied_bytes = 0
        self.verified_bytes = 0
        self.broken: list[Range] = []
        """What the copy did not hold after it was written anew."""
        self._unreadable: list[Range] = []
        self._differing: list[Range] = []
        self._written: list[tuple[Range, bytes]] = []

    def copy(self, ranges: Sequence[Range], moved: Moved) -> list[Range]:
        """Copies the ranges; on return they are stored. Returns what of them has no majority, and was left. What lies
        between them the copy has already: nothing there keeps it away."""
        unknown: list[Range] = []
        done = 0
        for batch in _batches(subtract(_bridged(ranges), self.broken)):
            for piece in batch:
                self._pace.pause()
                unknown += self._copy_piece(piece)
                self._pace.spend(piece.length)
                done += piece.length
                moved(done)
            self._settle()
        return intersect(unknown, ranges)

    def compare(self, start: int, size_bytes: int, moved: Moved, settled: Moved) -> list[Range]:
        """Compares the whole copy from `start` on, and writes what differs. `settled(n)`: all before n is stored.
        Returns what has no majority, and was left."""
        unknown: list[Range] = []
        for window in split([between(start, size_bytes)] if start < size_bytes else [], _WINDOW_BYTES):
            for batch in _batches(self._worth_reading(window)):
                for piece in batch:
                    self._pace.pause()
                    unknown += self._compare_piece(piece)
                    self._pace.spend(piece.length)
                    moved(piece.end)
                self._settle()
                if not unknown:
                    settled(batch[-1].end)
            if not unknown:
                settled(window.end)
            moved(window.end)
        return coalesce(unknown)

    def rewrite(self, ranges: Sequence[Range], size_bytes: int) -> None:
        """Writes what the volume holds to ranges that the copy cannot read, or does not take by other ways, so that its
        storage can put sound sectors in their place. What it does not hold even then is `broken`, and passed over from
        here on: of `ranges` anything, beside them what cannot be read, which is no vote. All else that was written is
        proven. What has no majority is left as it is."""
        ends_at_s, wrong = time.monotonic() + _REWRITE_S, coalesce(ranges)
        for unit in _REWRITE_BYTES:
            blocks = list(split(coalesce(align(r, unit, size_bytes) for r in wrong), unit))
            tried = next(
                (n for n, block in enumerate(blocks) if not self._rewrite_block(block, ends_at_s)), len(blocks)
            )
            if spoiled := subtract(self._differing, ranges):
                raise self._failed(spoiled[0], "a write beside it has spoiled what it held")
            wrong = coalesce([*self._unreadable, *self._differing, *intersect(blocks[tried:], wrong)])
            self._unreadable, self._differing = [], []
        self.broken = wrong

    def _rewrite_block(self, block: Range, ends_at_s: float) -> bool:
        """False: there is no time left. What the copy does not hold afterwards is noted."""
        self._pace.pause()
        if time.monotonic() > ends_at_s:
            return False
        data, unknown = self._voted(block)
        for part in subtract([block], unknown):
            content = bytes(data[_within(part, block)])
            # Zeros are written, too: to give the space back mends no sector.
            if not self._link.write(part.offset, content) and block.length <= _BLOCK_BYTES:
                for sector in split([part], SECTOR_BYTES):
                    self._link.write(sector.offset, content[_within(sector, part)])
            if not self._link.flush():
                raise self._failed(part, "it does not confirm a flush")
            seen = observe_by_halving(self._link.read, part)
            unreadable = [r.shifted(part.offset) for r in seen.unreadable]
            sectors = split([part], SECTOR_BYTES) if seen.data != content else ()
            differing = [s for s in sectors if seen.data[_within(s, part)] != content[_within(s, part)]]
            self._unreadable += unreadable
            self._differing += subtract(differing, unreadable)
            self.copied_bytes += part.length
            self.verified_bytes += part.length
        return True

    def _worth_reading(self, window: Range) -> list[Range]:
        """All but what this copy and every other report as zero."""
        zero = (
            [r for r, flags in self._status.status(window) if flags & ALLOCATION_ZERO]
            if self._status.has_status()
            else []
        )
        for other in self._others:
            zero = intersect(zero, other.zero_ranges(window)) if zero else []
        whole = [align_inwards(r, _BLOCK_BYTES) for r in coalesce(zero)]
        return subtract([window], [r for r in whole if r is not None])

    def _copy_piece(self, piece: Range) -> list[Range]:
        data, unknown = self._voted(piece)
        for part in subtract([piece], unknown):
            self._write(part, bytes(data[_within(part, piece)]))
        return unknown

    def _voted(self, piece: Range) -> tuple[bytes | bytearray | memoryview, list[Range]]:
        """What the volume holds, and what of it has no majority. `others` are all of the quorum: where they agree, that
        is it. Where they differ a write may be in flight, which is in the record once it is done; what differs still is
        read through the fence. Not at once: guests' writes overtake a fenced read, and it takes the daemon's time."""
        for _ in range(_LOOKS):
            first, *more = [other.observe(piece) for other in self._others]
            if all(not seen.unreadable and seen.data == first.data for seen in (first, *more)):
                return first.data, []
        data, unknown = bytearray(), list[Range]()
        for part in split([piece], _FENCED_BYTES):
            voted = observe_by_halving(self._fence.read, part)
            data += voted.data
            unknown += [r.shifted(part.offset) for r in voted.unreadable]
        return data, unknown

    def _compare_piece(self, piece: Range) -> list[Range]:
        mine = self._link.read(piece)
        voted, unknown = self._voted(piece)
        self.compared_bytes += piece.length
        if mine == voted and not unknown:
            return []
        blocks = (
            block
            for block in split([piece], _BLOCK_BYTES)
            if mine is None or mine[_within(block, piece)] != voted[_within(block, piece)]
        )
        for part in subtract(blocks, [*unknown, *self.broken]):
            self._write(part, bytes(voted[_within(part, piece)]))
        return unknown

    def _write(self, at: Range, data: bytes) -> None:
        zero = data == _ZEROS[: len(data)]
        written = self._link.zero(at) if zero else self._link.write(at.offset, data)
        if not written:
            raise self._failed(at, "a write failed")
        self.copied_bytes += at.length
        self._written.append((at, _digest(data)))

    def _settle(self) -> None:
        """Flushes, then reads back all that was written since: what differs is an error."""
        if not self._written:
            return
        if not self._link.flush():
            raise self._failed(self._written[0][0], "it does not confirm a flush")
        for at, digest in self._written:
            self._pace.pause()
            held = self._link.read(at)
            if held is None or _digest(bytes(held)) != digest:
                raise self._failed(at, "it does not hold what was written to it")
            self.verified_bytes += at.length
        self._written.clear()

    def _failed(self, at: Range, what: str) -> CopyError:
        return CopyError(
            f"{self._who} cannot be brought up to date: {what}, at offset {at.offset}.",
            remedy="It stays out of the quorum. Look at its storage, then repeat the command.",
        )


def _within(part: Range, of: Range) -> slice:
    return slice(part.offset - of.offset, part.end - of.offset)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _bridged(ranges: Iterable[Range]) -> list[Range]:
    """Ranges that lie close together as one: a gap costs less than a round trip."""
    found: list[Range] = []
    for r in ranges:
        if found and r.offset - found[-1].end <= _GAP_BYTES:
            found[-1] = between(found[-1].offset, r.end)
        else:
            found.append(r)
    return found


def _batches(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    batch: list[Range] = []
    room = _BATCH_BYTES
    for piece in split(ranges, _PIECE_BYTES):
        batch.append(piece)
        room -= piece.length
        if room <= 0 or len(batch) >= _BATCH_BYTES // _BLOCK_BYTES:
            yield batch
            batch, room = [], _BATCH_BYTES
    if batch:
        yield batch
