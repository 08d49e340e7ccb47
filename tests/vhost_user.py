"""A guest without a machine: a vhost-user-blk client, whose requests and memory are the test's.

It speaks what QEMU's docs/interop/vhost-user.rst and the virtio specification (2.7, 5.2) say, with one split queue in a
memfd that the daemon maps. Nothing is copied on the way: what a test changes in a buffer under way, the daemon sees.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
import time
from pathlib import Path

_VERSION, _REPLY = 0x1, 0x4
_GET_FEATURES, _SET_FEATURES, _SET_OWNER, _SET_MEM_TABLE = 1, 2, 3, 5
_SET_VRING_NUM, _SET_VRING_ADDR, _SET_VRING_BASE, _SET_VRING_KICK, _SET_VRING_CALL = 8, 9, 10, 12, 13
_GET_PROTOCOL_FEATURES, _SET_PROTOCOL_FEATURES, _SET_VRING_ENABLE, _GET_CONFIG, _SET_CONFIG = 15, 16, 18, 24, 25
FLUSH, CONFIG_WCE, _PROTOCOL, _VERSION_1 = 1 << 9, 1 << 11, 1 << 30, 1 << 32
"""Features of the device."""
_CONFIG, INFLIGHT_SHMFD = 1 << 9, 1 << 12
"""Features of the protocol."""
_READ, _WRITE, _FLUSH = 0, 1, 4
_CONFIG_BYTES, _WCE_AT = 60, 32
_QUEUE = 64
SLOTS = _QUEUE // 3
_AVAIL, _USED, _HEADS, _DATA = 1024, 2048, 4096, 8192
SLOT_BYTES = 1 << 16


class Disk:
    """Its data lies in `memory`: slot N from `at(N)` on, SLOT_BYTES of it. No slot has two requests at once."""

    def __init__(self, path: Path, *, features: int = FLUSH | CONFIG_WCE) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        fd = os.memfd_create("guest")
        size = _DATA + SLOTS * SLOT_BYTES
        os.ftruncate(fd, size)
        self.memory = mmap.mmap(fd, size)
        # struct.pack_into clears what it is about to write: the daemon would read an index of 0 for a moment.
        self._numbers = memoryview(self.memory).cast("H")
        self._kick, self._call = os.eventfd(0), os.eventfd(0)
        self.offered = self._ask("Q", _GET_FEATURES)
        self._send(_SET_OWNER)
        self.protocol = self._ask("Q", _GET_PROTOCOL_FEATURES)
        self._send(_SET_PROTOCOL_FEATURES, struct.pack("Q", _CONFIG))
        self._send(_SET_FEATURES, struct.pack("Q", (features & self.offered) | _PROTOCOL | _VERSION_1))
        # Addresses of the guest are those in the memory.
        self._send(_SET_MEM_TABLE, struct.pack("IIQQQQ", 1, 0, 0, size, 0, 0), fd)
        os.close(fd)
        self._send(_SET_VRING_NUM, struct.pack("II", 0, _QUEUE))
        self._send(_SET_VRING_BASE, struct.pack("II", 0, 0))
        self._send(_SET_VRING_ADDR, struct.pack("IIQQQQ", 0, 0, 0, _USED, _AVAIL, 0))
        self._send(_SET_VRING_KICK, struct.pack("Q", 0), self._kick)
        self._send(_SET_VRING_CALL, struct.pack("Q", 0), self._call)
        self._send(_SET_VRING_ENABLE, struct.pack("II", 0, 1))
        self._submitted = self._completed = 0
        self._flying: set[int] = set()

    @property
    def config(self) -> bytes:
        self._send(_GET_CONFIG, struct.pack("III", 0, _CONFIG_BYTES, 0) + bytes(_CONFIG_BYTES))
        return self._reply()[12:]

    @property
    def wce(self) -> bool:
        return bool(self.config[_WCE_AT])

    @wce.setter
    def wce(self, value: bool) -> None:
        self._send(_SET_CONFIG, struct.pack("IIIB", _WCE_AT, 1, 0, value))
        assert self.wce == value

    @property
    def size_bytes(self) -> int:
        return int(struct.unpack_from("Q", self.config)[0]) * 512

    @staticmethod
    def at(slot: int) -> int:
        return _DATA + slot * SLOT_BYTES

    def submit_write(self, slot: int, offset: int, length: int = SLOT_BYTES) -> None:
        """Of what the slot holds, and comes to hold until it is done."""
        self._submit(_WRITE, slot, offset, length)

    def submit_read(self, slot: int, offset: int, length: int = SLOT_BYTES) -> None:
        self._submit(_READ, slot, offset, length)

    def write(self, offset: int, data: bytes) -> bool:
        self.memory[self.at(0) : self.at(0) + len(data)] = data
        self._submit(_WRITE, 0, offset, len(data))
        return self.wait()[0]

    def read(self, offset: int, length: int) -> bytes | None:
        self._submit(_READ, 0, offset, length)
        return self.memory[self.at(0) : self.at(0) + length] if self.wait()[0] else None

    def flush(self) -> bool:
        self._submit(_FLUSH, 0)
        return self.wait()[0]

    def _submit(self, kind: int, slot: int, offset: int = 0, length: int = 0) -> None:
        assert slot not in self._flying
        head = _HEADS + slot * 32
        struct.pack_into("IIQ", self.memory, head, kind, 0, offset // 512)
        self.memory[head + 16] = 0xFF
        data = [(self.at(slot), length, kind == _READ)] if length else []
        parts = [(head, 16, False), *data, (head + 16, 1, True)]
        for n, (address, size, for_device) in enumerate(parts):
            more = n + 1 < len(parts)
            flags, following = more | for_device << 1, slot * 3 + n + 1 if more else 0
            struct.pack_into("QIHH", self.memory, (slot * 3 + n) * 16, address, size, flags, following)
        struct.pack_into("H", self.memory, _AVAIL + 4 + 2 * (self._submitted % _QUEUE), slot * 3)
        self._submitted += 1
        self._numbers[_AVAIL // 2 + 1] = self._submitted & 0xFFFF
        self._flying.add(slot)
        os.eventfd_write(self._kick, 1)

    def completed(self) -> dict[int, bool]:
        """Slot -> whether it succeeded, of what has completed since."""
        done = {}
        used = self._numbers[_USED // 2 + 1]
        while self._completed & 0xFFFF != used:
            (head,) = struct.unpack_from("I", self.memory, _USED + 4 + 8 * (self._completed % _QUEUE))
            self._completed += 1
            done[head // 3] = self.memory[_HEADS + head // 3 * 32 + 16] == 0
            self._flying.discard(head // 3)
        return done

    def wait(self, *, deadline_s: float = 120.0) -> dict[int, bool]:
        """What has completed, at least one."""
        poller = select.poll()
        poller.register(self._call, select.POLLIN)
        ends_at_s = time.monotonic() + deadline_s
        while not (done := self.completed()):
            left_s = ends_at_s - time.monotonic()
            assert left_s > 0, "no answer"
            if poller.poll(left_s * 1000):
                os.eventfd_read(self._call)
        return done

    def close(self) -> None:
        self._socket.close()
        os.close(self._kick)
        os.close(self._call)

    def _ask(self, form: str, request: int) -> int:
        self._send(request)
        return int(struct.unpack(form, self._reply())[0])

    def _send(self, request: int, payload: bytes = b"", *fds: int) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([struct.pack("III", request, _VERSION, len(payload)) + payload], ancillary)

    def _reply(self) -> bytes:
        _, flags, size = struct.unpack("III", self._exactly(12))
        assert flags & _REPLY
        return self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            piece = self._socket.recv(count - len(got))
            assert piece, "the backend has hung up"
            got += piece
        return got
