"""Where what is said on standard error goes: to the journal as entries with fields, else to people as lines.

systemd connects the standard error of a service to the journal and says so: JOURNAL_STREAM holds device and inode of
that stream (systemd.exec(5)). A process whose standard error is another one, a terminal or a pipe, has inherited the
variable, and is not meant. The protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/) is a datagram of fields.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from qorumctl.logbook import Entry, Value, entry_of

if TYPE_CHECKING:
    from qorumctl.cli.outlet import Outlet

SOCKET_VARIABLE = "QORUM_JOURNAL_SOCKET"
_SOCKET = Path("/run/systemd/journal/socket")
_IDENTIFIER = "qorumctl"
_MOST_VALUE_BYTES = 8192
"""Of one field. With at most some twenty of them an entry stays below what a datagram holds (net.core.wmem_default,
212,992): no sealed memory file needs to be passed instead."""
_RETRY_S = 0.01
_SEND_S = 1.0
"""A journal that does not read holds up what is written for so long, and then not at all until it reads again."""


def is_journal(stream: TextIO) -> bool:
    """Whether this is the stream that systemd connected to the journal."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = os.fstat(stream.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


class Journal:
    """The journal of this machine. Opens nothing until there is something to say."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or Path(os.environ.get(SOCKET_VARIABLE) or _SOCKET)
        self._socket: socket.socket | None = None
        self._is_stuck = False

    def write(self, level: int, text: str, entry: Entry) -> None:
        """Never raises. Where there is no journal the sentence goes to standard error, with the prefix from which
        systemd takes the priority (sd-daemon(3))."""
        if not self._send(datagram(level, text, entry)):
            lines = "".join(f"<{priority(level)}>{line}\n" for line in text.splitlines())
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(lines)
                sys.stderr.flush()

    def _send(self, data: bytes) -> bool:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            ends_at_s = time.monotonic() + _SEND_S
            # Not by a timeout of the socket: that waits for a queue three quarters empty, however much it would take.
            while not self._is_sent(self._socket, data):
                if self._is_stuck or time.monotonic() > ends_at_s:
                    # Standard error leads to the same journal, and would wait without end.
                    self._is_stuck = True
                    return True
                time.sleep(_RETRY_S)
        except OSError:
            return False
        self._is_stuck = False
        return True

    def _is_sent(self, connection: socket.socket, data: bytes) -> bool:
        try:
            connection.sendto(data, str(self._path))
        except BlockingIOError:
            return False
        return True


def datagram(level: int, text: str, entry: Entry) -> bytes:
    return b"".join(_field(name, value) for name, value in _fields(level, text, entry))


def _fields(level: int, text: str, entry: Entry) -> Iterator[tuple[str, str]]:
    yield "MESSAGE", text
    yield "PRIORITY", str(priority(level))
    yield "SYSLOG_IDENTIFIER", _IDENTIFIER
    if entry.news is not None:
        yield "MESSAGE_ID", entry.news.value.message_id
    for name, value in entry.fields.items():
        for one in _values(value):
            yield f"QORUM_{name.upper()}", one


def _values(value: Value) -> Iterable[str]:
    if value is None:
        return ()
    return (str(value),) if isinstance(value, str | int) else value


def _field(name: str, value: str) -> bytes:
    """A value of several lines, or with other control characters, is preceded by its length."""
    data = value.encode(errors="backslashreplace")[:_MOST_VALUE_BYTES]
    if all(byte >= 0x20 for byte in data):
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data)


def priority(level: int) -> int:
    """syslog(3)'s, of a level of logging."""
    for least, number in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return number
    return 7


class LogHandler(logging.Handler):
    """Hands records to the outlet, which keeps lines apart from a progress bar."""

    def __init__(self, outlet: Outlet) -> None:
        super().__init__()
        self._outlet = outlet
        formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            entry = entry_of(record)
            if self._outlet.journal is not None:
                self._outlet.say(record.getMessage(), record.levelno, entry)
            elif entry.news is None or self._outlet.verbose:
                # News are in what the command prints.
                self._outlet.say(self.format(record), record.levelno, entry)
        except Exception:
            self.handleError(record)
