"""Reads a copy through its own read-only NBD export: a thread per copy, several requests in flight."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from qorumctl.copies.base import AHEAD, CHUNK_BYTES, Chunk, carry_on, observe_by_halving
from qorumctl.copies.nbd_link import ALLOCATION, ALLOCATION_ZERO, ROOMS, NbdLink, Ticket
from qorumctl.core.ranges import Range, coalesce, split
from qorumctl.core.vote import Observation


class NbdCopy:
    """A copies.base.CopyReader. `socket` and `export` say where; `timeout_s` bounds every single answer."""

    def __init__(self, name: str, socket: Path, export: str, *, timeout_s: float = 30.0) -> None:
        self._name = name
        self._socket = socket
        self._export = export
        self._timeout_s = timeout_s
        self._link = NbdLink(socket, export, who=f"Copy {name}", timeout_s=timeout_s, copy=name)
        self._status_link: NbdLink | None = None
        self._buffers = [ROOMS.take(CHUNK_BYTES) for _ in range(AHEAD)]
        self._streams = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def size_bytes(self) -> int:
        return self._link.size_bytes

    @contextmanager
    def stream(self, ranges: Sequence[Range], *, ahead: int = AHEAD) -> Iterator[Iterator[Chunk]]:
        pump = _Pump(self._link, deque(split(ranges, CHUNK_BYTES)), self._buffers[:ahead])
        pump.start()
        self._streams += 1
        try:
            yield pump.chunks()
        finally:
            pump.stop()
            self._streams -= 1

    def observe(self, at: Range, *, between_reads: Callable[[], None] = carry_on) -> Observation:
        return observe_by_halving(self._link.read, at, between_reads)

    def observe_many(self, ranges: Sequence[Range]) -> list[Observation | None]:
        return [None if data is None else Observation(data) for data in self._link.read_many(ranges)]

    def zero_ranges(self, within: Range) -> list[Range]:
        if self._status_link is None:
            self._status_link = NbdLink(
                self._socket,
                self._export,
                who=f"Copy {self._name}",
                timeout_s=self._timeout_s,
                meta_context=ALLOCATION,
                copy=self._name,
            )
        if not self._status_link.has_status():
            return []
        return coalesce(r for r, flags in self._status_link.status(within) if flags & ALLOCATION_ZERO)

    def flush(self) -> bool:
        return self._link.flush()

    def close(self) -> None:
        # A drain that misses its deadline hangs up in the middle of a stream: then its buffers may still be written.
        if not self._streams and self._link.is_idle():
            for buffer in self._buffers:
                ROOMS.give(buffer)
            self._buffers = []
        self._link.close()
        if self._status_link is not None:
            self._status_link.close()


class _Pump(threading.Thread):
    """Owns the link while it runs: asks for pieces in order, as far ahead as there are free buffers, and hands them
    over in order. Ends when nothing is left, when told to stop, or with the error that it hands over last."""

    def __init__(self, link: NbdLink, pieces: deque[Range], buffers: Sequence[bytearray]) -> None:
        super().__init__(daemon=True)
        self._link = link
        self._pieces = pieces
        self._free: SimpleQueue[bytearray | None] = SimpleQueue()
        self._ready: SimpleQueue[Chunk | Exception | None] = SimpleQueue()
        self._stopping = False
        for buffer in buffers:
            self._free.put(buffer)

    def run(self) -> None:
        in_flight: deque[tuple[Ticket, bytearray]] = deque()
        try:
            while (self._pieces and not self._stopping) or in_flight:
                while self._pieces and not self._stopping and (not in_flight or not self._free.empty()):
                    buffer = self._free.get()
                    if buffer is None:
                        break
                    in_flight.append((self._link.submit_read(self._pieces.popleft(), buffer), buffer))
                if in_flight:
                    ticket, buffer = in_flight.popleft()
                    failed = not self._link.complete(ticket)
                    # A bytearray of the exact length compares by memcmp; a part of a longer one would not.
                    data = buffer if ticket.range.length == len(buffer) else buffer[: ticket.range.length]
                    self._ready.put(_Loaned(ticket.range, data, failed, buffer))
            self._ready.put(None)
        except Exception as error:
            # Whatever it is: a thread that ended without a word would be waited for, for ever.
            self._ready.put(error)

    def chunks(self) -> Iterator[Chunk]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, _Loaned):
                self._free.put(item.buffer)

    def stop(self) -> None:
        """Asks for nothing more and waits for what is under way; each wait has the link's deadline."""
        self._stopping = True
        self._free.put(None)
        self.join()


class _Loaned(Chunk):
    """A chunk whose buffer goes back to the pump once the next one is asked for."""

    __slots__ = ("buffer",)

    def __init__(self, at: Range, data: bytearray, failed: bool, buffer: bytearray) -> None:
        super().__init__(at, data, failed)
        self.buffer = buffer
