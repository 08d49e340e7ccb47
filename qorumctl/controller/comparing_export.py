"""What an export has written, read again and compared with what the set holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from qorumctl.controller.voted import Voted
from qorumctl.copies.base import CHUNK_BYTES
from qorumctl.copies.nbd import NbdCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range, between, coalesce, split, subtract
from qorumctl.daemon import sink

_ZEROS = bytes(CHUNK_BYTES)


class Checker:
    """Reads the file through the sink, whose `socket` this is."""

    def __init__(self, socket: Path, *, timeout_s: float) -> None:
        self._file = NbdCopy("export", socket, sink.NODE, timeout_s=timeout_s)

    def close(self) -> None:
        self._file.close()

    def compare(self, voted: Voted, moved: Callable[[int], None]) -> list[Range]:
        """Where the file holds something else, by sectors. Raises what `voted` raises."""
        wrong: list[Range] = []
        done = 0
        with closing(voted.pieces()) as pieces:
            for at, data in pieces:
                done += at.length
                if data is None:
                    for part in split(subtract([at], self._file.zero_ranges(at)), CHUNK_BYTES):
                        wrong += self._unlike(part, _ZEROS[: part.length])
                else:
                    wrong += self._unlike(at, data)
                moved(done)
        return coalesce(wrong)

    @staticmethod
    def unexplained(wrong: Sequence[Range], written: Sequence[Range]) -> list[Range]:
        """What no guest has written since the moment that the file is of."""
        return subtract(wrong, written)

    def _unlike(self, at: Range, expected: bytes | bytearray) -> list[Range]:
        seen = self._file.observe(at)
        if not seen.unreadable and seen.data == expected:
            return []
        deaf = {sector for r in seen.unreadable for sector in range(r.offset, r.end, SECTOR_BYTES)}
        sectors = (between(start, min(at.length, start + SECTOR_BYTES)) for start in range(0, at.length, SECTOR_BYTES))
        return [
            r.shifted(at.offset)
            for r in sectors
            if r.offset in deaf or seen.data[r.offset : r.end] != expected[r.offset : r.end]
        ]
