"""Whether somebody uses an image, and whether it holds anything: to be known before one is adopted or removed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from pathlib import Path

from qorumctl.images import QCOW2_MAGIC
from qorumctl.model.spec import FileSource

# QEMU block/file-posix.c: who uses an image holds a shared lock on byte 100 + n for each permission it has, and on
# 200 + n for each that it denies to others. BLK_PERM_WRITE is number 1.
_PERMISSIONS_AT = 100
_WRITE_AT = _PERMISSIONS_AT + 1
_LOCK_BYTES = 200
_FLOCK = struct.Struct("hhqqi4x")
"""struct flock on 64-bit Linux: type, whence, start, length, pid."""
# QEMU docs/interop/qcow2.txt: l1_size and l1_table_offset at 36; nb_snapshots at 60.
_L1_AT, _SNAPSHOTS_AT = 36, 60
_GRACE_S = 2.0
"""A killed daemon is gone before its locks are: the kernel lets go of its files when it has torn down the native
AIO contexts. Seen in nine of nine starts that followed a SIGKILL at once."""
_POLL_S = 0.02
_MOST_L1_ENTRIES = 1 << 22
"""QEMU's QCOW_MAX_L1_SIZE, 32 MiB, in entries."""


def is_used(path: str | Path, *, writers_only: bool = False) -> bool:
    """Whether a QEMU program has the image open. False, too, where the file system keeps no locks."""
    ends_at_s = time.monotonic() + _GRACE_S
    while _is_locked(path, writers_only=writers_only):
        if time.monotonic() >= ends_at_s:
            return True
        time.sleep(_POLL_S)
    return False


def _is_locked(path: str | Path, *, writers_only: bool) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        start, length = (_WRITE_AT, 1) if writers_only else (_PERMISSIONS_AT, _LOCK_BYTES)
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question))[0]
    except OSError:
        return False
    else:
        return bool(kind != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def is_blank(source: FileSource, size_bytes: int) -> bool:
    """Whether the path leads straight to a file of ours alone that looks as `create` makes it and holds no data yet:
    nothing is lost with it. False where there is none."""
    with contextlib.suppress(OSError):
        fd = os.open(source.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(fd)
            ours = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_uid == os.geteuid()
            if not ours or stat.S_IMODE(facts.st_mode) != 0o600:
                return False
            if source.format == "qcow2":
                return _qcow2_is_blank(fd)
            return facts.st_size in {0, size_bytes} and _has_no_data(fd)
        finally:
            os.close(fd)
    return False


def holds_nothing(source: FileSource) -> bool:
    """Whether nothing was ever written to the image. False where that cannot be told, or there is none."""
    with contextlib.suppress(OSError):
        fd = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _qcow2_is_blank(fd) if source.format == "qcow2" else _has_no_data(fd)
        finally:
            os.close(fd)
    return False


def _has_no_data(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def _qcow2_is_blank(fd: int) -> bool:
    header = os.pread(fd, 72, 0)
    if not header.startswith(QCOW2_MAGIC):
        # Formatting writes the header first; before that the file is empty.
        return _has_no_data(fd)
    if len(header) < 72:
        return False
    entries, table_at = struct.unpack_from(">IQ", header, _L1_AT)
    (snapshots,) = struct.unpack_from(">I", header, _SNAPSHOTS_AT)
    if snapshots or entries > _MOST_L1_ENTRIES:
        return False
    return not any(os.pread(fd, entries * 8, table_at))
