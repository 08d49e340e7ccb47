"""Small files that must be whole or absent after a crash, and that nobody else may have put there.

These raise OSError: the caller knows what the file is for and says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path


class NotRegularError(OSError):
    """The path is a directory, a device, a socket or a pipe."""


class TooLargeError(OSError):
    """The file holds more than its reader is ready to take."""


class NotOursError(OSError):
    """The file belongs to somebody else, or has a second name: what is written to it may be another's."""


def open_private(path: Path, flags: int) -> int:
    """Opens a regular file, made 0600 where `flags` have O_CREAT, that nobody else can have put there for us to harm.

    Raises OSError: ELOOP for a symbolic link, NotRegularError, NotOursError. Nothing is changed then, and a pipe is not
    waited for.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:
            # A pipe that nobody reads, a socket.
            raise NotRegularError(f"{path} is not a regular file") from None
        raise
    try:
        facts = os.fstat(fd)
        if flags & (os.O_WRONLY | os.O_RDWR) or not stat.S_ISREG(facts.st_mode):
            # Only reading harms nobody.
            check_private(path, facts)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_private(path: Path, facts: os.stat_result) -> None:
    """Raises NotRegularError, NotOursError."""
    if not stat.S_ISREG(facts.st_mode):
        raise NotRegularError(f"{path} is not a regular file")
    if facts.st_nlink > 1:
        raise NotOursError(f"{path} is a hard link to a file that has another name, too")
    if facts.st_uid not in {0, os.geteuid()}:
        raise NotOursError(f"{path} belongs to another user")


def read_bounded(path: Path, most_bytes: int, *, follow: bool) -> tuple[bytes, os.stat_result]:
    """All of a regular file of at most `most_bytes`, and the facts of exactly the file that was read.

    With `follow` false a symbolic link in the last place raises OSError (ELOOP). Raises NotRegularError, TooLargeError.
    """
    # O_NONBLOCK: opening a pipe would wait for its writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise NotRegularError(f"{path} is not a regular file")
        content = bytearray()
        while piece := os.read(fd, most_bytes + 1 - len(content)):
            content += piece
        if len(content) > most_bytes:
            raise TooLargeError(f"{path} is larger than {most_bytes} bytes")
        return bytes(content), facts
    finally:
        os.close(fd)


def read_start(path: Path, most_bytes: int) -> bytes:
    """The first bytes of a regular file. Raises NotRegularError. A pipe is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotRegularError(f"{path} is not a regular file")
        return os.read(fd, most_bytes)
    finally:
        os.close(fd)


def temporary_of(path: Path) -> Path:
    """What `write_atomically` leaves when it is killed.

    One name, so that the next write clears it. Writers of one file hold their set's lock.
    """
    return path.with_name(f".{path.name}.tmp")


def remove_temporary(path: Path) -> None:
    """Removes what a `write_atomically` of `path` left that was killed. A directory of that name is somebody else's."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        temporary_of(path).unlink()


def write_atomically(
    path: Path, content: bytes, mode: int, *, group: int | None = None, temporary: Path | None = None
) -> None:
    """Replaces `path`: after a crash at any instant it holds the old content or the new, and never a part of it.

    `mode` is set whatever the umask says; `group`, a gid, where one is given. `temporary`: a name in the same directory
    that is the caller's alone, where no lock keeps writers apart.
    """
    temporary = temporary or temporary_of(path)
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            if group is not None:
                os.fchown(fd, -1, group)
            os.fchmod(fd, mode)
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes names that were created, renamed or removed in `directory` survive a power failure."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def reason(error: OSError) -> str:
    """`No space left on device`: what went wrong, without the number and the path that OSError adds."""
    return error.strerror or str(error)
