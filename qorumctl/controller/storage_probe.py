"""Can a directory, or a device, hold copies: direct I/O and locks, by doing both."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import stat
import struct
from pathlib import Path

from qorumctl.files import reason
from qorumctl.model.status import CheckItem

DIRECT = "direct I/O"
LOCKS = "locks"
_BLOCK_BYTES = 4096
_FLOCK = struct.Struct("hhqqi0q")
"""struct flock of a 64-bit Linux: type, whence, start, length, pid (0 for these locks), padded to a multiple of 8."""
_NOT_MEDIUM = (
    'Set cache = "writeback" for copies that lie there: a scrub then reads through the page cache, and may miss'
    " what the disk has lost."
)


def examine_storage(path: Path) -> list[CheckItem]:
    """Two items, DIRECT and LOCKS, or one for a device. For a file its directory is looked at.

    Writes one temporary file, which has lost its name before the first byte is written. Raises OSError.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        remedy = "Mount or make it, or name the directory that is to hold images."
        return [_bad(subject, f"{path} does not exist", remedy) for subject in (DIRECT, LOCKS)]
    if stat.S_ISBLK(mode):
        return [_device(path)]
    directory = path if stat.S_ISDIR(mode) else path.parent
    temporary = directory / f".qorum-doctor-{secrets.token_hex(6)}"
    try:
        plain = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        remedy = f"Give this user the right to write in {directory}, or name another directory."
        return [_bad(subject, f"{directory}: {reason(error)}", remedy) for subject in (DIRECT, LOCKS)]
    try:
        direct = _open_direct(temporary)
        second = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    finally:
        temporary.unlink(missing_ok=True)
    try:
        return [_direct(directory, direct), _locks(directory, plain, second)]
    finally:
        for fd in (plain, second, direct):
            if isinstance(fd, int):
                os.close(fd)


def _open_direct(path: Path) -> int | OSError:
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return error


def _direct(directory: Path, opened: int | OSError) -> CheckItem:
    try:
        if isinstance(opened, OSError):
            raise opened
        # Anonymous memory begins at a page, as O_DIRECT wants it.
        with mmap.mmap(-1, _BLOCK_BYTES) as block:
            block.write(b"q" * _BLOCK_BYTES)
            os.pwrite(opened, block, 0)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            return _bad(DIRECT, f"{directory}: {reason(error)}", f"Check the file system of {directory}.")
        return _bad(DIRECT, f"the file system of {directory} refuses O_DIRECT", _NOT_MEDIUM)
    return CheckItem(subject=DIRECT, ok=True, detail=f"{directory}: {_BLOCK_BYTES} bytes written with O_DIRECT")


def _locks(directory: Path, first: int, second: int) -> CheckItem:
    """The open-file-description locks by which QEMU keeps a second program away from an image."""
    remedy = "Use a file system with working locks (NFS: without nolock): else two programs can open one image."
    lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(first, fcntl.F_OFD_SETLK, lock)
    except OSError as error:
        return _bad(LOCKS, f"{directory}: {reason(error)}", remedy)
    try:
        fcntl.fcntl(second, fcntl.F_OFD_SETLK, lock)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return CheckItem(subject=LOCKS, ok=True, detail=f"{directory}: a locked file stays closed to others")
        return _bad(LOCKS, f"{directory}: {reason(error)}", remedy)
    return _bad(LOCKS, f"{directory}: two could lock one file at a time", remedy)


def _device(path: Path) -> CheckItem:
    """Only read: it may hold a copy."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            with mmap.mmap(-1, _BLOCK_BYTES) as block:
                os.preadv(fd, [block], 0)
        finally:
            os.close(fd)
    except OSError as error:
        return _bad(DIRECT, f"{path}: {reason(error)}", "Check the device and its rights.")
    return CheckItem(subject=DIRECT, ok=True, detail=f"{path}: {_BLOCK_BYTES} bytes read with O_DIRECT")


def _bad(subject: str, detail: str, remedy: str) -> CheckItem:
    return CheckItem(subject=subject, ok=False, detail=detail, remedy=remedy)
