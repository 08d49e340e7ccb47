"""One NBD connection in which every wait has a deadline. The only module that imports libnbd.

Data travels over connections with *simple replies*: with structured ones QEMU's server answers a failing read by
closing the connection, and every request in flight on it fails (`nbd_co_send_sparse_read`). Block status and
dirty bitmaps need structured replies: they get connections of their own.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import AF_UNIX, SHUT_RDWR, SOCK_STREAM, fromfd
from typing import Any

import nbd

from qorumctl.core.ranges import Range, between, split
from qorumctl.errors import CopyUnavailableError

ALLOCATION = "base:allocation"
ALLOCATION_ZERO = 2
"""NBD_STATE_ZERO of the protocol: the extent reads as zeros."""

_STATUS_STEP_BYTES = 1 << 30
"""Block status lengths are 32 bits on the wire."""


_SCRATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request under way, by libnbd's cookie for it."""

    range: Range
    cookie: int


class _Rooms:
    """Memory for requests, used again and again by all connections of the process.

    libnbd 1.14 never lets go of the memory behind a Buffer that it was given: each request keeps one more reference
    (seen: 8 MiB lost with every read of 8 MiB, and 8 GiB by a process that ran some hundred scrubs). Sizes are powers
    of two, so that rooms fit again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[bytearray]] = {}

    def take(self, length: int) -> bytearray:
        """At least `length` bytes, of any content."""
        size = max(4096, 1 << (length - 1).bit_length())
        with self._lock:
            free = self._free.get(size)
            return free.pop() if free else bytearray(size)

    def give(self, room: bytearray) -> None:
        """Only what no request can write into any more."""
        with self._lock:
            self._free.setdefault(len(room), []).append(room)


ROOMS = _Rooms()


class _Views:
    """The beginnings of rooms as libnbd takes them, each made once: it never lets go of one that it was given (see
    _Rooms), and a new one for each request cost 322 bytes of memory: 2 GB in a scrub with a million findings."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], Any] = {}

    def of(self, room: bytearray, length: int) -> Any:
        view = self._made.get((id(room), length))
        if view is None:
            # It holds the room, so that no other ever has its id.
            view = self._made[id(room), length] = nbd.Buffer.from_buffer(memoryview(room)[:length])
        return view


_VIEWS = _Views()


class NbdLink:
    """One connection to one export of a unix socket. One thread at a time.

    Every method raises CopyUnavailableError when the peer is gone or silent: `who` names it in the sentence.
    """

    def __init__(
        self,
        socket: Path,
        export: str,
        *,
        who: str,
        timeout_s: float,
        meta_context: str | None = None,
        copy: str | None = None,
    ) -> None:
        self._who = who
        self._copy = copy
        self._timeout_s = timeout_s
        self._context = meta_context
        self._scratch = ROOMS.take(_SCRATCH_BYTES)
        self._writing: dict[int, bytearray] = {}
        self._nbd: Any = nbd.NBD()
        try:
            self._nbd.set_export_name(export)
            self._nbd.set_request_structured_replies(meta_context is not None)
            # Block sizes are not asked for: the server then takes requests of any alignment and pads them itself,
            # which a sector of a copy with 4096-byte blocks needs.
            self._nbd.set_request_block_size(False)
            if meta_context is not None:
                self._nbd.add_meta_context(meta_context)
            self._nbd.aio_connect_unix(str(socket))
            self._wait_connected()
            self.size_bytes: int = self._nbd.get_size()
        except nbd.Error as error:
            self.close()
            raise self._gone(f"cannot be reached: {_words(error)}") from None
        except BaseException:
            self.close()
            raise

    def _wait_connected(self) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        while self._nbd.aio_is_connecting():
            self._poll_until(deadline_s, "did not answer a new connection")
        if not self._nbd.aio_is_ready():
            raise self._gone("refused a connection")

    def _poll_until(self, deadline_s: float, complaint: str) -> None:
        left_ms = int((deadline_s - time.monotonic()) * 1000)
        if left_ms <= 0:
            self.close()
            raise self._gone(f"{complaint} within {self._timeout_s:g} s")
        self._nbd.poll(min(left_ms + 1, 1000))

    def _gone(self, what: str) -> CopyUnavailableError:
        return CopyUnavailableError(
            f"{self._who} {what}.",
            remedy="See 'qorumctl status', and the daemon's log in the set's runtime directory.",
            copy=self._copy,
        )

    def submit_read(self, at: Range, into: bytearray | None = None) -> Ticket:
        """Begins to read into the beginning of `into`, which the caller keeps and uses again for later reads.

        None: the content does not matter; for one read at a time, of at most 1 MiB.
        """
        view = _VIEWS.of(self._scratch if into is None else into, at.length)
        try:
            cookie = self._nbd.aio_pread(view, at.offset)
        except nbd.Error as error:
            raise self._gone(f"cannot be read at offset {at.offset}: {_words(error)}") from None
        return Ticket(at, cookie)

    def wait(self, ticket: Ticket, timeout_s: float) -> bool | None:
        """True: read. False: the server answered with an error. None: no answer in this time, it is still under way."""
        deadline_s = time.monotonic() + timeout_s
        while (answer := self._retire(ticket.cookie, ticket.range)) is None:
            left_s = deadline_s - time.monotonic()
            try:
                arrived = self._nbd.poll(int(max(0.0, left_s) * 1000) + (left_s > 0))
            except nbd.Error as error:
                raise self._gone(f"closed the connection: {_words(error)}") from None
            # A process that was stopped past the deadline has its answer waiting: that is no silence. But an answer
            # that trickles in has no more than twice the time.
            if left_s <= 0 and (not arrived or left_s < -timeout_s):
                return None
        return answer

    def _retire(self, cookie: int, at: Range) -> bool | None:
        try:
            completed = bool(self._nbd.aio_command_completed(cookie))
        except nbd.Error as error:
            if (
                self._nbd.aio_is_dead()
                or self._nbd.aio_is_closed()
                or error.errnum in {errno.ENOTCONN, errno.ESHUTDOWN}
            ):
                raise self._gone(f"closed the connection in a request at offset {at.offset}") from None
            return False
        if completed and (room := self._writing.pop(cookie, None)) is not None:
            ROOMS.give(room)
        return True if completed else None

    def _finish(self, cookie: int, at: Range, what: str) -> bool:
        """Waits with the link's own deadline, after which the connection is closed: it must not hold up a drain."""
        answer = self.wait(Ticket(at, cookie), self._timeout_s)
        if answer is None:
            self.close()
            raise self._gone(f"did not answer {what} within {self._timeout_s:g} s")
        return answer

    def complete(self, ticket: Ticket) -> bool:
        """Waits for a read or a write. False: it failed."""
        return self._finish(ticket.cookie, ticket.range, f"a request at offset {ticket.range.offset}")

    def read(self, at: Range) -> bytearray | None:
        """None where the server answers with an error."""
        data = bytearray()
        for piece in split([at], _SCRATCH_BYTES):
            if not self.complete(self.submit_read(piece)):
                return None
            data += memoryview(self._scratch)[: piece.length]
        return data

    def read_many(self, ranges: Sequence[Range]) -> list[bytearray | None]:
        """As `read` of each, all under way at once. Not more of them, or of their bytes, than one wants to wait for:
        nothing is outstanding on return. Where it raises, the connection is closed."""
        rooms = [ROOMS.take(at.length) for at in ranges]
        try:
            tickets = [self.submit_read(at, room) for at, room in zip(ranges, rooms, strict=True)]
            answered = [self.complete(ticket) for ticket in tickets]
        except BaseException:
            # Their rooms are left behind: what is under way may still be written into them.
            self.close()
            raise
        answers: list[bytearray | None] = []
        for at, room, has_it in zip(ranges, rooms, answered, strict=True):
            answers.append(room[: at.length] if has_it else None)
            ROOMS.give(room)
        return answers

    def write(self, offset_bytes: int, data: bytes) -> bool:
        """False where the server refuses the write."""
        return self.complete(self.submit_write(offset_bytes, data))

    def submit_write(self, offset_bytes: int, data: bytes) -> Ticket:
        """Begins to write."""
        room = ROOMS.take(len(data))
        room[: len(data)] = data
        try:
            cookie = self._nbd.aio_pwrite(_VIEWS.of(room, len(data)), offset_bytes)
        except nbd.Error as error:
            raise self._gone(f"cannot be written at offset {offset_bytes}: {_words(error)}") from None
        self._writing[cookie] = room
        return Ticket(Range(offset_bytes, len(data)), cookie)

    def zero(self, at: Range) -> bool:
        """Makes a range read as zeros, without space where the storage can. False where the server refuses."""
        try:
            cookie = self._nbd.aio_zero(at.length, at.offset)
        except nbd.Error as error:
            raise self._gone(f"cannot be zeroed at offset {at.offset}: {_words(error)}") from None
        return self._finish(cookie, at, "a request")

    def flush(self) -> bool:
        """False where the server answers with an error."""
        try:
            cookie = self._nbd.aio_flush()
        except nbd.Error as error:
            raise self._gone(f"cannot be flushed: {_words(error)}") from None
        return self._finish(cookie, Range(0, 1), "a flush")

    def has_status(self) -> bool:
        """Whether the server grants the meta context that this link asked for."""
        try:
            return self._context is not None and bool(self._nbd.can_meta_context(self._context))
        except nbd.Error as error:
            # It died since it was last used, and only now anybody asks.
            raise self._gone(f"cannot report block status: {_words(error)}") from None

    def status(self, within: Range) -> list[tuple[Range, int]]:
        """The flags of the link's meta context over a range. Empty where the server cannot say, or not in time: a
        server that tells of one byte with each answer would be asked for ever."""
        extents: list[tuple[Range, int]] = []
        at, deadline_s = within.offset, time.monotonic() + self._timeout_s
        while at < within.end:
            if time.monotonic() > deadline_s:
                return []
            found = self._status_step(between(at, min(within.end, at + _STATUS_STEP_BYTES)))
            if not found:
                return []
            extents += [(r, flags) for r, flags in found]
            at = found[-1][0].end
        return extents

    def _status_step(self, asked: Range) -> list[tuple[Range, int]]:
        entries: list[int] = []

        def collect(context: str, _offset: int, pairs: list[int], _error: object) -> int:
            if context == self._context:
                entries.extend(pairs)
            return 0

        try:
            cookie = self._nbd.aio_block_status(asked.length, asked.offset, collect)
        except nbd.Error as error:
            raise self._gone(f"cannot report block status: {_words(error)}") from None
        if not self._finish(cookie, asked, "a block status request"):
            return []
        extents: list[tuple[Range, int]] = []
        at = asked.offset
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if at >= asked.end or length == 0:
                break
            extents.append((between(at, min(asked.end, at + length)), flags))
            at += length
        return extents

    def is_idle(self) -> bool:
        """Whether no request is under way that could still write into a buffer of its. False once it is closed."""
        try:
            return bool(self._nbd.aio_in_flight() == 0)
        except nbd.Error:
            return False

    def close(self) -> None:
        """Closes the socket at once, whatever is under way. Idempotent. By the owning thread only."""
        if self.is_idle():
            ROOMS.give(self._scratch)
        handle, self._nbd = self._nbd, _CLOSED
        # libnbd 1.14 frees a handle, and closes its socket, only when Python lets go of it, which may be late; a drain
        # in the daemon waits for nothing on a socket that is shut down.
        with contextlib.suppress(nbd.Error, OSError), fromfd(handle.aio_get_fd(), AF_UNIX, SOCK_STREAM) as connection:
            connection.shutdown(SHUT_RDWR)


class _Closed:
    """Stands for a handle after close: every use reports a connection that is gone."""

    def __getattr__(self, name: str) -> Any:
        if name in {"aio_is_dead", "aio_is_closed"}:
            return lambda: True
        raise nbd.Error("connection closed", errno.ENOTCONN)


_CLOSED: Any = _Closed()


def libnbd_version() -> str:
    """`1.14.2`"""
    return str(nbd.NBD().get_version())


def _words(error: nbd.Error) -> str:
    """libnbd's message without its function's name in front."""
    return str(error.string).split(": ", 1)[-1]
