"""One connection to one QMP monitor. The only module that imports qemu.qmp; none of its exceptions leaves here.

Facts this rests on (qemu.qmp 0.0.6): `connect` has no timeout; a daemon's death raises ExecInterruptedError in flight
and StateError later; the default event listener keeps every event for ever; cancelling `execute` cancels nothing in
the daemon, its reply is dropped when it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket as sockets
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from qorumctl.daemon import conversation
from qorumctl.errors import CommandError, DaemonError, DaemonGoneError, DaemonStalledError

COMMAND_TIMEOUT_S = 60.0
"""The deadline of a command that names none. Nothing we send takes a second on a healthy daemon; a copy that hangs
can hold a drain for as long as its server or the kernel's TCP does, and then waiting longer helps nobody."""
_CLOSE_TIMEOUT_S = 2.0
_BACKLOG_RETRY_S = 0.02
_TRIES = 4
"""QEMU gives a new client what it could not tell the last one: an event in place of the greeting, or between it and the
answer (seen on 7.2 and 10.0, 5 of 41,000 connections while events came). It is gone with that connection."""

_MOST_EVENTS = 1000
"""Kept for a reader that is held up. QEMU throttles what we listen to to some events a second: minutes of it."""
_LOOK_AGAIN_S = 1.0
_WHO = "See which process listens there ('ss -xlp'); if it is the set's daemon, run 'qorumctl doctor'."
RawEvent = Mapping[str, Any]
"""An event as the daemon tells it: `event`, `data`, `timestamp`."""

_library_log = logging.getLogger("qemu.qmp")
if _library_log.level == logging.NOTSET:
    # It reports a daemon's death with tracebacks on stderr; we raise DaemonGoneError and say it in a sentence.
    _library_log.setLevel(logging.CRITICAL + 1)


class Monitor:
    """An open monitor: `async with await Monitor.open(path) as monitor`. Concurrent `execute` calls are safe."""

    def __init__(self, client: QMPClient, socket: Path, peer: int | None) -> None:
        self._client = client
        self._socket = socket
        self._peer = peer

    @classmethod
    async def open(cls, socket: Path, *, timeout_s: float = 5.0) -> Self:
        """Connects and negotiates.

        A monitor serves one client; a second one is queued in the socket's backlog and hangs. So: DaemonStalledError
        after `timeout_s`. DaemonGoneError when nothing listens, DaemonError when it is not ours to open.
        """
        peer = None
        try:
            async with asyncio.timeout(timeout_s):
                for tries_left in reversed(range(_TRIES)):
                    connected = await _connect(socket)
                    peer = _peer(connected)
                    try:
                        return cls(await _negotiate(connected), socket, peer)
                    except ConnectError as error:
                        if isinstance(error.exc, EOFError | ConnectionError):
                            raise _gone(socket) from None
                        if not tries_left:
                            break
        except TimeoutError:
            raise suspended(socket, peer) or DaemonStalledError(
                f"The monitor {socket} did not answer within {timeout_s:g} s: "
                "either the daemon hangs, or another client holds the monitor.",
                remedy="Wait for the other command to end; if there is none, a copy of the set does not answer.",
                path=str(socket),
            ) from None
        raise DaemonError(
            f"The monitor {socket} cannot be used: what answers there does not speak as QEMU does.",
            remedy=_WHO,
            path=str(socket),
        )

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        """Runs one command and returns its reply; `timeout_s` None means COMMAND_TIMEOUT_S.

        Raises CommandError (refused), DaemonGoneError (died), DaemonStalledError (the deadline; the daemon goes on
        with the command, it may still take effect).
        """
        deadline_s = COMMAND_TIMEOUT_S if timeout_s is None else timeout_s
        began_s = time.monotonic()
        conversation.asked(self._socket, command, arguments)
        try:
            async with asyncio.timeout(deadline_s):
                reply = await self._client.execute(command, arguments)
        except TimeoutError:
            raise self.stalled(command, deadline_s) from None
        except ExecuteError as error:
            conversation.refused(self._socket, command, str(error))
            raise CommandError(command, error.error_class, str(error)) from None
        except (ExecInterruptedError, StateError, ConnectionError):
            raise _gone(self._socket, command) from None
        except QMPError as error:
            raise DaemonError(
                f"The answer to {command} makes no sense ({type(error).__name__}).", remedy=_WHO, path=str(self._socket)
            ) from None
        conversation.answered(self._socket, command, reply, time.monotonic() - began_s)
        return reply

    def stalled(self, command: str, deadline_s: float) -> DaemonStalledError:
        """What to raise when the daemon did not finish this in time. `command`: a name, or what it was doing."""
        return suspended(self._socket, self._peer) or DaemonStalledError(
            f"qemu-storage-daemon did not finish {command} within {deadline_s:g} s.",
            remedy="A guest that was stopped in a request holds it up, or a copy that hangs: look at both.",
            path=str(self._socket),
        )

    def listen(self, *names: str) -> EventStream:
        """From this call on, events of these names are kept; `EventStream.read` gives them."""
        return EventStream(self._client, names, self._socket)

    async def close(self) -> None:
        """Idempotent; never raises. Commands in flight end with DaemonGoneError."""
        # disconnect() re-raises whatever ended the connection, and flushes, which a stalled daemon can hold up.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.disconnect(), _CLOSE_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class EventStream:
    """Events of one monitor, in order, in bounded memory. `lost`: how many were dropped because nobody read them."""

    def __init__(self, client: QMPClient, names: tuple[str, ...], socket: Path) -> None:
        self.lost = 0
        self._socket = socket
        self._client = client
        self._kept: deque[RawEvent] = deque()
        self._arrived = asyncio.Event()
        # A listener's own queue and history grow without bound: what it would queue is kept here, and refused there.
        client.register_listener(EventListener(names, self._keep))

    async def read(self) -> AsyncIterator[RawEvent]:
        """Ends when the connection has ended, and everything that came before was given."""
        while True:
            while self._kept:
                yield self._kept.popleft()
            self._arrived.clear()
            if self._client.runstate is not Runstate.RUNNING:
                return
            # The daemon's death wakes nobody who waits for an event.
            waits = {
                asyncio.ensure_future(self._arrived.wait()),
                asyncio.ensure_future(self._client.runstate_changed()),
            }
            try:
                # The deadline: a state that changes before the second of these has begun to wait is missed by it.
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=_LOOK_AGAIN_S)
            finally:
                for wait in waits:
                    wait.cancel()

    def _keep(self, event: Message) -> bool:
        conversation.told(self._socket, event)
        if len(self._kept) < _MOST_EVENTS:
            self._kept.append(dict(event))
        else:
            self.lost += 1
        self._arrived.set()
        return False


async def _negotiate(connected: sockets.socket) -> QMPClient:
    """Takes the socket over; closed when it fails. Raises ConnectError."""
    client = QMPClient()
    # Its queue and its history grow without bound, and nobody here waits for events. It cannot be removed.
    client.events.event_filter = lambda _event: False
    try:
        await client.connect(connected)
    except BaseException:
        connected.close()
        raise
    return client


async def _connect(path: Path) -> sockets.socket:
    """A connected socket. The caller sets the deadline."""
    connected = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        connected.setblocking(False)
        while True:
            try:
                connected.connect(str(path))
            except BlockingIOError:
                # The backlog is full. asyncio would take an unconnected socket for a connected one here.
                await asyncio.sleep(_BACKLOG_RETRY_S)
            else:
                return connected
    except BaseException as error:
        connected.close()
        if isinstance(error, FileNotFoundError | ConnectionError):
            raise _gone(path) from None
        if isinstance(error, PermissionError):
            raise DaemonError(
                f"The monitor {path} may not be opened by this user.",
                remedy="Run the command as root, or as the user who started the set.",
                path=str(path),
            ) from None
        if isinstance(error, OSError):
            raise DaemonError(
                f"The monitor {path} cannot be opened: {error.strerror or error}.",
                remedy="Start the set again.",
                path=str(path),
            ) from None
        raise


def _peer(connected: sockets.socket) -> int | None:
    """The pid of whoever listens at the other end."""
    with contextlib.suppress(OSError):
        pid, _, _ = struct.unpack("3i", connected.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12))
        return int(pid) or None
    return None


def suspended(socket: Path, pid: int | None) -> DaemonStalledError | None:
    """Why the daemon behind this monitor is silent, where its process tells: it was stopped, or waits in the kernel for
    its storage."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None
    if state in "Tt":
        return DaemonStalledError(
            f"qemu-storage-daemon (pid {pid}) was stopped by a signal and answers nobody.",
            remedy=f"Let it go on with 'kill -CONT {pid}'.",
            path=str(socket),
        )
    if state == "D":
        return DaemonStalledError(
            f"qemu-storage-daemon (pid {pid}) waits in the kernel for storage that does not answer.",
            remedy="Look at the storage of the set's local copies.",
            path=str(socket),
        )
    return None


def _gone(socket: Path, command: str | None = None) -> DaemonGoneError:
    during = f" while it ran {command}" if command else ""
    return DaemonGoneError(
        f"qemu-storage-daemon is gone{during}: its monitor {socket} does not answer.",
        remedy="Start the set again; qsd.log beside the socket may say why it ended.",
        path=str(socket),
    )
