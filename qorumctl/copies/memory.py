"""A copy in memory, behind the same interface as the real readers: for tests, and for the fault simulator.

Deterministic and without threads. One letter stands for one sector in `from_letters` and `letters`:

    A..Z a..z 1..9   a sector filled with that character     0   a sector of zeros that was written
    ?                a sector that cannot be read            -   a hole: reads as zero, and block status says so
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager

from qorumctl.copies.base import AHEAD, CHUNK_BYTES, Chunk, carry_on, observe_by_halving
from qorumctl.core.ranges import SECTOR_BYTES, Range, coalesce, intersect, split
from qorumctl.core.vote import Observation
from qorumctl.errors import CopyUnavailableError


class MemoryCopy:
    """`data` is the medium itself, not a copy of it; its length must be whole sectors.

    `unreadable`, `unwritable` and `holes` are sets of sector numbers. Set `available` to False and every call raises
    CopyUnavailableError. `before_read` is called with each request just before it takes effect: a simulator lets the
    rest of the world move there. `outstanding` counts requests that were sent and whose answer was not yet taken.
    """

    def __init__(
        self,
        name: str,
        data: bytearray,
        *,
        unreadable: Iterable[int] = (),
        holes: Iterable[int] = (),
        chunk_bytes: int = CHUNK_BYTES,
        read_ahead: int = 4,
        before_read: Callable[[Range], None] | None = None,
    ) -> None:
        if len(data) % SECTOR_BYTES or chunk_bytes % SECTOR_BYTES:
            raise ValueError("a copy and its chunks are made of whole sectors")
        self.name = name
        self.data = data
        self.unreadable = set(unreadable)
        self.unwritable: set[int] = set()
        self.holes = set(holes)
        self.available = True
        self.outstanding = 0
        self.closed = False
        self._chunk_bytes = chunk_bytes
        self._read_ahead = read_ahead
        self._before_read = before_read or (lambda at: None)

    @classmethod
    def from_letters(cls, name: str, letters: str, *, chunk_bytes: int = CHUNK_BYTES) -> MemoryCopy:
        data = bytearray().join(b"\0" * SECTOR_BYTES if c in "?0-" else c.encode() * SECTOR_BYTES for c in letters)
        unreadable = [sector for sector, c in enumerate(letters) if c == "?"]
        holes = [sector for sector, c in enumerate(letters) if c == "-"]
        return cls(name, data, unreadable=unreadable, holes=holes, chunk_bytes=chunk_bytes)

    @property
    def letters(self) -> str:
        """The sectors as letters; `!` for one that no letter made."""
        return "".join(self._letter(sector) for sector in range(self.size_bytes // SECTOR_BYTES))

    def _letter(self, sector: int) -> str:
        content = self.data[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES]
        if sector in self.unreadable:
            return "?"
        if not any(content):
            return "-" if sector in self.holes else "0"
        return chr(content[0]) if content == content[:1] * SECTOR_BYTES else "!"

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    @contextmanager
    def stream(self, ranges: Sequence[Range], *, ahead: int = AHEAD) -> Generator[Iterator[Chunk]]:
        """As CopyReader.stream. A request takes effect when it is sent, up to `read_ahead` requests before its answer
        is taken: what comes back may be older than the moment it is looked at, as with a real server."""
        self._check_available()
        sent: deque[Chunk] = deque()
        try:
            yield self._chunks(iter(list(split(ranges, self._chunk_bytes))), sent, min(ahead, self._read_ahead))
        finally:
            self.outstanding -= len(sent)
            sent.clear()

    def _chunks(self, wanted: Iterator[Range], sent: deque[Chunk], ahead: int) -> Iterator[Chunk]:
        more = True
        while more or sent:
            while more and len(sent) < ahead:
                at = next(wanted, None)
                if at is None:
                    more = False
                    break
                answer = self._read(at)
                sent.append(Chunk(at, bytearray(at.length) if answer is None else answer, failed=answer is None))
                self.outstanding += 1
            if sent:
                self.outstanding -= 1
                yield sent.popleft()

    def observe(self, at: Range, *, between_reads: Callable[[], None] = carry_on) -> Observation:
        return observe_by_halving(self._read, at, between_reads)

    def observe_many(self, ranges: Sequence[Range]) -> list[Observation | None]:
        return [None if (data := self._read(at)) is None else Observation(data) for at in ranges]

    def zero_ranges(self, within: Range) -> list[Range]:
        self._check_available()
        return intersect([within], coalesce(Range(s * SECTOR_BYTES, SECTOR_BYTES) for s in self.holes))

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    def write(self, offset: int, data: bytes | bytearray) -> bool:
        """What the daemon does to a copy, in whole sectors. A written sector can be read again, as when a disk
        remaps it. False, and nothing is changed, where a sector refuses to be written."""
        sectors = range(offset // SECTOR_BYTES, (offset + len(data)) // SECTOR_BYTES)
        if offset % SECTOR_BYTES or len(data) % SECTOR_BYTES:
            raise ValueError("writes are made of whole sectors")
        if not self.unwritable.isdisjoint(sectors):
            return False
        self.data[offset : offset + len(data)] = data
        self.unreadable.difference_update(sectors)
        self.holes.difference_update(sectors)
        return True

    def peek(self, at: Range) -> bytes | None:
        """The bytes as the daemon would read them, now; None for an I/O error. Moves nothing."""
        sectors = range(at.offset // SECTOR_BYTES, -(-at.end // SECTOR_BYTES))
        return None if not self.unreadable.isdisjoint(sectors) else bytes(self.data[at.offset : at.end])

    def _read(self, at: Range) -> bytearray | None:
        self._check_available()
        if at.end > self.size_bytes:
            raise ValueError(f"{at} is beyond the end of copy {self.name}")
        self._before_read(at)
        self._check_available()
        answer = self.peek(at)
        return None if answer is None else bytearray(answer)

    def _check_available(self) -> None:
        if self.closed or not self.available:
            raise CopyUnavailableError(
                f"Copy {self.name} does not answer.", remedy="Check the copy and start the scrub again.", copy=self.name
            )
