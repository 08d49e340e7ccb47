"""A journal for tests: a real datagram socket, and what stood in the datagrams."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections import defaultdict
from pathlib import Path

from qorumctl.logbook import News
from tests.cli.conftest import PROGRAM, Machine

Fields = dict[str, list[str]]


def parse(datagram: bytes) -> Fields:
    """The native protocol: `NAME=value`, or the name alone, a length of 64 bits, and the value."""
    fields: Fields = defaultdict(list)
    rest = datagram
    while rest:
        head, _, rest = rest.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, end, rest = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
            assert (len(value), end) == (length, b"\n")
        fields[name.decode()].append(value.decode())
    return fields


class FakeJournal:
    """A thread reads, as journald does: few datagrams fit the socket."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "journal"
        self.stream = directory / "stream"
        self.stream.touch()
        self.raw: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._caught_up = threading.Semaphore(0)
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Of a service whose standard error is `stream`."""
        found = self.stream.stat()
        return {"QORUM_JOURNAL_SOCKET": str(self.path), "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}

    def entries(self, kind: News | None = None) -> list[Fields]:
        """All that was sent so far, or all of one kind."""
        self._send(b"look")
        assert self._caught_up.acquire(timeout=20)
        entries = [parse(datagram) for datagram in self.raw]
        return [entry for entry in entries if kind is None or entry.get("MESSAGE_ID") == [kind.value.message_id]]

    def printed(self) -> str:
        """What went to the stream beside the entries."""
        return self.stream.read_text()

    def close(self) -> None:
        self._send(b"end")

    def _send(self, word: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(word, str(self.path))

    def _read(self) -> None:
        while (datagram := self._socket.recv(1 << 20)) != b"end":
            if datagram == b"look":
                self._caught_up.release()
            else:
                self.raw.append(datagram)
        self._socket.close()


def as_a_service(machine: Machine, journal: FakeJournal, *arguments: str) -> int:
    """Runs a command as systemd would: both its streams lead to the journal. Returns its exit code."""
    with journal.stream.open("ab") as stream:
        return subprocess.run(
            [*PROGRAM, *arguments],
            env=machine.environment | journal.environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            timeout=60,
            check=False,
        ).returncode
