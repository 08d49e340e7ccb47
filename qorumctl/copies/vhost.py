"""Reads a copy in bulk through memory that the daemon shares: its vhost-user-blk export, by libblkio.

Two to four times as fast as NBD, since nothing is sent and nothing copied (docs/performance.md). Everything else that
a reader does, a few bytes at a time, goes over the copy's NBD export: precise reads, block status, flushes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qorumctl.copies.base import AHEAD, CHUNK_BYTES, Chunk, Memory, carry_on
from qorumctl.copies.blkio import BlkioError, Device
from qorumctl.copies.nbd import NbdCopy
from qorumctl.core.ranges import Range, split
from qorumctl.core.vote import Observation
from qorumctl.errors import CopySharingError, CopyUnavailableError

_LOOK_S = 0.2
"""How soon the end of the daemon is noticed: shared memory does not tell."""


Answers = list[tuple[int, bool]]
"""Slots whose read has ended, and whether it succeeded."""


class VhostCopy:
    """A copies.base.CopyReader. `nbd` reads what this one does not, and is closed with it; `socket` is that of the
    copy's vhost-user-blk export, `alive` tells whether its daemon is. Raises CopyUnavailableError where the export
    cannot be used."""

    def __init__(self, nbd: NbdCopy, socket: Path, alive: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
        self._nbd = nbd
        self._alive = alive
        self._timeout_s = timeout_s
        self._device = self._connected(socket)
        self._streaming = self._closed = False

    @property
    def name(self) -> str:
        return self._nbd.name

    @property
    def size_bytes(self) -> int:
        return self._nbd.size_bytes

    @contextmanager
    def stream(self, ranges: Sequence[Range], *, ahead: int = AHEAD) -> Iterator[Iterator[Chunk]]:
        reading = _Reading(self, split(ranges, CHUNK_BYTES), min(ahead, AHEAD))
        self._streaming = True
        try:
            reading.ask()
            try:
                yield reading.chunks()
            except CopySharingError:
                # Of any copy: they share a reader, and to wait for each one's deadline in turn finds nothing out.
                self._closed = True
                raise
            finally:
                # Closed, it was given up with what is under way: that ends in the daemon's mapping of the memory.
                if not self._closed:
                    reading.end()
        finally:
            self._streaming = False
            if self._closed:
                self._device.close()

    def observe(self, at: Range, *, between_reads: Callable[[], None] = carry_on) -> Observation:
        return self._nbd.observe(at, between_reads=between_reads)

    def observe_many(self, ranges: Sequence[Range]) -> list[Observation | None]:
        return self._nbd.observe_many(ranges)

    def zero_ranges(self, within: Range) -> list[Range]:
        return self._nbd.zero_ranges(within)

    def flush(self) -> bool:
        return self._nbd.flush()

    def close(self) -> None:
        # In the middle of a stream somebody may be looking at a chunk: the memory goes when it ends.
        self._closed = True
        if not self._streaming:
            self._device.close()
        self._nbd.close()

    def ask(self, slot: int, at: Range) -> None:
        """For a stream: it is on its way after the next `answers` or `wait`."""
        with self._giving_up():
            self._device.submit(slot, at.offset, at.length)

    def answers(self) -> Answers:
        """For a stream: what has come so far."""
        with self._giving_up():
            return self._device.completed(None)

    def wait(self) -> Answers:
        """For a stream: at least one answer."""
        ends_at_s = time.monotonic() + self._timeout_s
        with self._giving_up():
            while True:
                left_s = ends_at_s - time.monotonic()
                if answers := self._device.completed(max(0.0, min(left_s, _LOOK_S))):
                    return answers
                if left_s <= 0:
                    raise self._gone(f"did not answer a read within {self._timeout_s:g} s")
                if not self._alive():
                    raise self._gone("cannot be read through shared memory any more: the reader has ended")

    def memory(self, slot: int, at: Range) -> Memory:
        return self._device.memory(slot, at.length)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Where no answer can be had, the device is given up, with whatever is under way on it."""
        try:
            if self._closed:
                raise CopyUnavailableError(f"Copy {self.name} is no longer read.", copy=self.name)
            yield
        except BlkioError as error:
            self._closed = True
            raise self._gone(f"cannot be read through shared memory: {error}") from None
        except CopyUnavailableError:
            self._closed = True
            raise

    def _connected(self, socket: Path) -> Device:
        """libblkio waits for the daemon without a deadline. So a thread does, and is left behind at ours."""
        made: list[Device | BlkioError] = []
        turn = threading.Lock()
        given_up = False

        def connect() -> None:
            try:
                found: Device | BlkioError = Device(socket, slots=AHEAD, slot_bytes=CHUNK_BYTES)
            except BlkioError as error:
                found = error
            with turn:
                made.append(found)
                if given_up and isinstance(found, Device):
                    found.close()

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        with turn:
            given_up = not made
        if given_up:
            raise self._gone(f"did not share its memory within {self._timeout_s:g} s")
        if isinstance(made[0], BlkioError):
            raise self._gone(f"cannot be read through shared memory: {made[0]}")
        return made[0]

    def _gone(self, what: str) -> CopySharingError:
        return CopySharingError(
            f"Copy {self.name} {what}.",
            remedy="See reader.log in the set's runtime directory, or read with '--transport nbd'.",
            copy=self.name,
        )


class _Reading:
    """One stream: asks for pieces in order, as far ahead as there are free slots, and hands them over in order.

    Pieces are of whole sectors: QEMU rounds the length of a file up to one.
    """

    def __init__(self, copy: VhostCopy, pieces: Iterable[Range], ahead: int) -> None:
        self._copy = copy
        self._pieces = deque(pieces)
        self._free = deque(range(ahead))
        self._in_flight: deque[tuple[int, Range]] = deque()
        self._answered: dict[int, bool] = {}

    def ask(self) -> None:
        asked = False
        while self._free and self._pieces:
            slot, at = self._free.popleft(), self._pieces.popleft()
            self._copy.ask(slot, at)
            self._in_flight.append((slot, at))
            asked = True
        if asked:
            self._answered.update(self._copy.answers())

    def chunks(self) -> Iterator[Chunk]:
        while self._in_flight:
            slot, at = self._in_flight.popleft()
            self._wait_for(slot)
            yield Chunk(at, self._copy.memory(slot, at), failed=not self._answered.pop(slot))
            self._free.append(slot)
            self.ask()

    def end(self) -> None:
        """Asks for nothing more, and waits for what is under way."""
        self._pieces.clear()
        while self._in_flight:
            self._wait_for(self._in_flight.popleft()[0])

    def _wait_for(self, slot: int) -> None:
        while slot not in self._answered:
            self._answered.update(self._copy.wait())
