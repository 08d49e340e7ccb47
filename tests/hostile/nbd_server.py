"""A small NBD server that lies. Everything that it sends passes through a hook, by the name of what it is."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MAGIC, HAVE_OPTION, REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
REQUEST, SIMPLE, STRUCTURED = 0x25609513, 0x67446698, 0x668E33EF
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_SET_META = 1, 2, 3, 6, 7, 8, 10
READ, WRITE, DISCONNECT, FLUSH, ZEROES, STATUS = 0, 1, 2, 3, 6, 7
FLAGS = 1 | 4 | 8 | 1 << 6  # it has flags, can flush, does FUA, writes zeroes
_ACK, _INFO, _META, _UNSUPPORTED = 1, 3, 4, (1 << 31) + 1

Hook = Callable[[str, bytes], bytes | None]
"""(what it is, its bytes) -> what is sent instead; None closes the connection. May block, or send by itself."""


def honest(_: str, data: bytes) -> bytes:
    return data


@dataclass
class Lies:
    """`size`: what connection n is told. `error`: of reads. `extents`: block status, as (length, flags)."""

    size: Callable[[int], int] | None = None
    hook: Hook = honest
    error: int = 0
    extents: Callable[[int, int], list[tuple[int, int]]] | None = None
    status: bool = True
    structured: bool = True
    writes: list[tuple[int, int]] = field(default_factory=list)
    """(offset, length) of every write that arrived."""


class NbdLiar:
    """Serves `content` on a unix socket, to any number of clients, until `end`."""

    def __init__(self, path: Path, content: bytes | bytearray, lies: Lies | None = None) -> None:
        self.path = path
        self.uri = f"nbd+unix:///?socket={path}"
        self.content = bytearray(content)
        self.lies = lies or Lies()
        self.block_bytes = 0
        """The least that it reads or writes; 0: it does not say."""
        self.connections = 0
        self.ended = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def end(self) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def read(self, offset: int, length: int) -> tuple[bytes, int]:
        """(data, error) of one read."""
        data = bytes(self.content[offset : offset + length])
        return data + bytes(length - len(data)), self.lies.error

    def write(self, offset: int, data: bytes, *, zeroes: bool) -> int:
        """Takes a write; returns the error."""
        self.lies.writes.append((offset, len(data)))
        self.content[offset : offset + len(data)] = data
        return 0

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            self._open.append(client)
            self._threads.append(threading.Thread(target=self._serve, args=(client, number), daemon=True))
            self._threads[-1].start()

    def _serve(self, client: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, EOFError, struct.error), client:
            _Connection(self, client, number).talk()


class _Connection:
    def __init__(self, server: NbdLiar, client: socket.socket, number: int) -> None:
        self._server = server
        self._client = client
        self._number = number
        self._structured = self._meta = False

    def talk(self) -> None:
        self._send("greeting", MAGIC + HAVE_OPTION + struct.pack(">H", 3))
        self._receive(4)
        while not self._begins():
            pass
        while self._request():
            pass

    def _begins(self) -> bool:
        """Answers one option. True once the transmission begins."""
        option: int
        _, option, length = struct.unpack(">8sII", self._receive(16))
        payload = self._receive(length)
        size, flags = self._size(), FLAGS
        if option == OPT_EXPORT_NAME:
            self._send("export", struct.pack(">QH", size, flags) + bytes(124))
            return True
        if option in {OPT_GO, OPT_INFO}:
            self._answer("info", option, _INFO, struct.pack(">HQH", 0, size, flags))
            if block := self._server.block_bytes:
                self._answer("info", option, _INFO, struct.pack(">HIII", 3, block, block, 1 << 25))
            self._answer("ack", option, _ACK)
            return option == OPT_GO
        if option == OPT_STRUCTURED and self._server.lies.structured:
            self._structured = True
            self._answer("structured", option, _ACK)
        elif option == OPT_SET_META and self._server.lies.status and b"base:allocation" in payload:
            self._meta = True
            self._answer("context", option, _META, struct.pack(">I", 1) + b"base:allocation")
            self._answer("contexts", option, _ACK)
        elif option == OPT_SET_META:
            self._answer("contexts", option, _ACK)
        elif option == OPT_ABORT:
            self._answer("abort", option, _ACK)
            raise EOFError
        else:
            self._answer("unsupported", option, _UNSUPPORTED)
        return False

    def _request(self) -> bool:
        magic, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", self._receive(28))
        if magic != REQUEST or kind == DISCONNECT:
            return False
        lies = self._server.lies
        if kind == READ:
            self._reply_read(cookie, offset, *self._server.read(offset, length))
            return True
        if kind == STATUS:
            extents = lies.extents(offset, length) if lies.extents else [(length, 0)]
            body = struct.pack(">I", 1) + b"".join(struct.pack(">II", *extent) for extent in extents)
            self._send("status", struct.pack(">IHHQI", STRUCTURED, 1, 5, cookie, len(body)) + body)
            return True
        error = 0
        if kind in {WRITE, ZEROES}:
            data = self._receive(length) if kind == WRITE else bytes(length)
            error = self._server.write(offset, data, zeroes=kind == ZEROES)
        self._reply("done", cookie, error)
        return True

    def _reply_read(self, cookie: int, offset: int, data: bytes, error: int) -> None:
        if not self._structured:
            self._send("read", struct.pack(">IIQ", SIMPLE, error, cookie) + (b"" if error else data))
        elif error:
            self._reply("read", cookie, error)
        else:
            head = struct.pack(">IHHQI", STRUCTURED, 1, 1, cookie, 8 + len(data))
            self._send("read", head + struct.pack(">Q", offset) + data)

    def _reply(self, what: str, cookie: int, error: int = 0) -> None:
        if not self._structured:
            self._send(what, struct.pack(">IIQ", SIMPLE, error, cookie))
        elif error:
            head = struct.pack(">IHHQI", STRUCTURED, 1, 1 << 15 | 1, cookie, 6)
            self._send(what, head + struct.pack(">IH", error, 0))
        else:
            self._send(what, struct.pack(">IHHQI", STRUCTURED, 1, 0, cookie, 0))

    def _answer(self, what: str, option: int, kind: int, payload: bytes = b"") -> None:
        self._send(what, struct.pack(">QIII", REPLY_MAGIC, option, kind, len(payload)) + payload)

    def _size(self) -> int:
        size = self._server.lies.size
        return len(self._server.content) if size is None else size(self._number)

    def _send(self, what: str, data: bytes) -> None:
        said = self._server.lies.hook(what, data)
        if said is None:
            raise EOFError
        self._client.sendall(said)

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self._client.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)
