"""libblkio's C interface, as much of it as reading a vhost-user-blk export takes. The only module that imports cffi.

The daemon writes what it reads straight into memory that both processes map: no socket, no copy. (libblkio, driver
`virtio-blk-vhost-user`; blkio.h of version 1.2 and later. It is in Debian 13, Fedora and Ubuntu.)
"""

from __future__ import annotations

import errno
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

VARIABLE = "QORUM_LIBBLKIO"
"""The path of the library, where the system's linker does not find it."""
_SONAME = "libblkio.so.1"
_DECLARATIONS = """
struct blkio; struct blkioq; struct timespec { long tv_sec; long tv_nsec; };
struct blkio_mem_region { void *addr; size_t len; uint64_t iova; int64_t fd_offset; int fd; uint32_t flags; };
struct blkio_completion { void *user_data; const char *error_msg; int ret; uint8_t reserved_[12]; };
const char *blkio_get_error_msg(void);
int blkio_create(const char *driver, struct blkio **bp);
int blkio_connect(struct blkio *b);
int blkio_start(struct blkio *b);
void blkio_destroy(struct blkio **bp);
int blkio_set_str(struct blkio *b, const char *name, const char *value);
int blkio_set_bool(struct blkio *b, const char *name, bool value);
int blkio_alloc_mem_region(struct blkio *b, struct blkio_mem_region *region, size_t len);
int blkio_map_mem_region(struct blkio *b, const struct blkio_mem_region *region);
struct blkioq *blkio_get_queue(struct blkio *b, int index);
void blkioq_read(struct blkioq *q, uint64_t start, void *buf, size_t len, void *user_data, uint32_t flags);
int blkioq_do_io(struct blkioq *q, struct blkio_completion *c, int min, int max, struct timespec *timeout);
"""
_FUNCTIONS = re.findall(r"(blkioq?_\w+)\(", _DECLARATIONS)


class BlkioError(Exception):
    """What libblkio says, as a clause: `connect: Connection refused`."""


@cache
def _library() -> tuple[Any, Any]:
    """cffi's FFI and the library. Raises BlkioError."""
    try:
        from cffi import FFI
    except ImportError:
        raise BlkioError("the Python package cffi is not installed") from None
    ffi = FFI()
    ffi.cdef(_DECLARATIONS)
    path = os.environ.get(VARIABLE) or _SONAME
    try:
        library = ffi.dlopen(path)
    except OSError as error:
        if f"{_SONAME}: cannot open" in str(error) and path == _SONAME:
            raise BlkioError("libblkio is not installed") from None
        raise BlkioError(f"{path} does not load: {error}") from None
    # cffi looks a function up where it is used first: what is not libblkio is to be known before.
    if missing := [name for name in _FUNCTIONS if not hasattr(library, name)]:
        raise BlkioError(f"{path} is not libblkio 1.2 or later: it lacks {missing[0]}")
    return ffi, library


def why_not() -> str | None:
    """Why libblkio cannot be used, as a clause; None where it can."""
    try:
        _library()
    except BlkioError as error:
        return str(error)
    return None


def forget() -> None:
    """Looks for the library anew, where it is needed next."""
    _library.cache_clear()


class Device:
    """A connection to one export, which serves one client at a time, and `slots` pieces of memory of `slot_bytes` each
    that the daemon reads into. One thread at a time. Raises BlkioError.

    libblkio talks to the socket only here, in the constructor, and without a deadline.
    """

    def __init__(self, socket: Path, *, slots: int, slot_bytes: int) -> None:
        self._ffi, self._lib = _library()
        self._slot_bytes = slot_bytes
        self._owner = self._ffi.new("struct blkio **")
        self._queue: Any = None
        self._check(self._lib.blkio_create(b"virtio-blk-vhost-user", self._owner), "create")
        try:
            handle = self._owner[0]
            self._check(self._lib.blkio_set_str(handle, b"path", os.fsencode(socket)), "path")
            self._check(self._lib.blkio_set_bool(handle, b"read-only", True), "read-only")
            self._check(self._lib.blkio_connect(handle), "connect")
            self._check(self._lib.blkio_start(handle), "start")
            self._region = self._ffi.new("struct blkio_mem_region *")
            self._check(self._lib.blkio_alloc_mem_region(handle, self._region, slots * slot_bytes), "memory")
            self._check(self._lib.blkio_map_mem_region(handle, self._region), "memory")
            self._memory = self._ffi.cast("char *", self._region.addr)
            self._queue = self._lib.blkio_get_queue(handle, 0)
            self._completions = self._ffi.new("struct blkio_completion[]", slots)
            self._slots = slots
        except BlkioError:
            self.close()
            raise

    def submit(self, slot: int, offset_bytes: int, length_bytes: int) -> None:
        """Asks for a piece, of whole sectors; it is on its way after the next `completed`."""
        self._lib.blkioq_read(
            self._open(), offset_bytes, self._at(slot), length_bytes, self._ffi.cast("void *", slot), 0
        )

    def completed(self, timeout_s: float | None) -> list[tuple[int, bool]]:
        """Sends what was submitted, and waits for at least one answer, unless `timeout_s` is None; no longer than that.
        Slots whose read has ended, and whether it succeeded."""
        timeout = self._ffi.NULL
        if timeout_s is not None:
            whole_s = int(timeout_s)
            timeout = self._ffi.new("struct timespec *", (whole_s, int((timeout_s - whole_s) * 1e9)))
        found = self._lib.blkioq_do_io(self._open(), self._completions, timeout_s is not None, self._slots, timeout)
        if found in (-errno.ETIME, -errno.EINTR):
            return []
        self._check(found, "read")
        return [
            (int(self._ffi.cast("intptr_t", completion.user_data)), completion.ret == 0)
            for completion in self._completions[0:found]
        ]

    def memory(self, slot: int, length_bytes: int) -> Any:
        """What lies in a slot, as a buffer that compares with others of its kind by memcmp."""
        return self._ffi.buffer(self._at(slot), length_bytes)

    def close(self) -> None:
        """Lets go of the export and of the memory, whatever is under way. Idempotent."""
        self._queue = None
        if self._owner[0] != self._ffi.NULL:
            self._lib.blkio_destroy(self._owner)

    def _open(self) -> Any:
        """The queue; using one that is destroyed would crash the process."""
        if self._queue is None:
            raise BlkioError("it has been closed")
        return self._queue

    def _at(self, slot: int) -> Any:
        return self._memory + slot * self._slot_bytes

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            said = self._ffi.string(self._lib.blkio_get_error_msg()).decode(errors="replace")
            raise BlkioError(f"{what}: {said or os.strerror(-result)}")
