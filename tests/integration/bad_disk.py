"""A disk that loses sectors, behind NBD: some come back when they are written, as a disk remaps them, some never do."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hostile.nbd_server import Lies, NbdLiar

SECTOR = 512


class BadDisk(NbdLiar):
    """`bad`: sectors that cannot be read until they are written whole. `dead`: that never can be read again; with
    `refuses` they take no write either. To be told that they are zeros mends none. `least_bytes`: it refuses smaller
    writes. `spoils`: a sector whose writing changes another one.

    `at_write`, where it is set, is called before a write, in the server's thread.
    """

    def __init__(self, path: Path, content: bytes | bytearray, *, block_bytes: int = 0) -> None:
        self.bad: set[int] = set()
        self.dead: set[int] = set()
        self.refuses = False
        self.least_bytes = 0
        self.spoils: dict[int, int] = {}
        self.at_write: Callable[[int, int], None] | None = None
        self._lock = threading.Lock()
        super().__init__(path, content, Lies(status=False))
        self.block_bytes = block_bytes

    def lose(self, sectors: Iterable[int]) -> None:
        with self._lock:
            self.bad |= set(sectors)

    def read(self, offset: int, length: int) -> tuple[bytes, int]:
        with self._lock:
            block = max(SECTOR, self.block_bytes)
            if offset % block or length % block:
                assert not self.block_bytes, "the client does not keep to the block size"
            lost = not (self.bad | self.dead).isdisjoint(self._touched(offset, length))
            data, _ = super().read(offset, length)
            return data, errno.EIO if lost else 0

    def write(self, offset: int, data: bytes, *, zeroes: bool) -> int:
        if self.at_write is not None:
            self.at_write(offset, len(data))
        with self._lock:
            assert not self.block_bytes or not (offset % self.block_bytes or len(data) % self.block_bytes)
            touched = self._touched(offset, len(data))
            if len(data) < self.least_bytes or (self.refuses and not self.dead.isdisjoint(touched)):
                return errno.EIO
            if not zeroes:
                self.bad -= {s for s in touched if offset <= s * SECTOR and (s + 1) * SECTOR <= offset + len(data)}
            error = super().write(offset, data, zeroes=zeroes)
            for spoilt in (self.spoils[s] for s in self.spoils.keys() & set(touched)):
                self.content[spoilt * SECTOR] ^= 1
            return error

    def _touched(self, offset: int, length: int) -> range:
        return range(offset // SECTOR, -(-(offset + length) // SECTOR))


@contextmanager
def bad_disks(directory: Path, contents: Iterable[bytes], *, block_bytes: int = 0) -> Iterator[list[BadDisk]]:
    disks: list[BadDisk] = []
    try:
        for content in contents:
            disks.append(BadDisk(directory / f"disk{len(disks)}", content, block_bytes=block_bytes))
        yield disks
    finally:
        for disk in disks:
            disk.end()
