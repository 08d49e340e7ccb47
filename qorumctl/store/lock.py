"""One command at a time: a lock that belongs to a process, not to a file, so that the dead hold nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from qorumctl.errors import LockedError, StoreError
from qorumctl.files import open_private, reason
from qorumctl.paths import ensure_private

_NAME = "lock"
_GRACE_S = 0.2
"""`held_by` holds the lock, shared, for some microseconds; whoever meets that must not be told the set is in use."""
_POLL_S = 0.01
_MOST_BYTES = 256


class SetLock:
    """Held from `acquire` until `release`, or until the process ends in whatever way: the kernel then lets go."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd: int | None = fd
        self._path = path

    @classmethod
    def acquire(cls, state_directory: Path, *, purpose: str, wait_s: float = 0.0, file_name: str = _NAME) -> SetLock:
        """Takes the lock of the set whose state is in `state_directory` (`.../web01`), which is made if need be.

        `purpose`: the command, for whoever finds the set locked. `file_name`: another lock of the same set. Raises
        LockedError after `wait_s`, StoreError.
        """
        ensure_private(state_directory)
        path = state_directory / file_name
        deadline_s = time.monotonic() + max(wait_s, _GRACE_S)
        fd = _open(path)
        try:
            while not (_try(fd, fcntl.LOCK_EX) and _is(fd, path)):
                if time.monotonic() >= deadline_s:
                    raise _locked(state_directory.name, _holder(fd))
                time.sleep(_POLL_S)
                if not _is(fd, path):
                    # Its last holder has removed it, with the set or a refused `create`: this is nobody's lock.
                    ensure_private(state_directory)
                    removed, fd = fd, _open(path)
                    os.close(removed)
            _sign(fd, purpose)
        except OSError as error:
            os.close(fd)
            raise _failed(path, error) from error
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, path)

    @staticmethod
    def held_by(state_directory: Path, *, file_name: str = _NAME) -> tuple[int, str] | None:
        """(pid, purpose) of whoever holds the lock now; None when nobody does. (0, "") before the holder has signed."""
        path = state_directory / file_name
        try:
            fd = open_private(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(path, error) from error
        try:
            return None if _try(fd, fcntl.LOCK_SH) else _holder(fd)
        except OSError as error:
            raise _failed(path, error) from error
        finally:
            os.close(fd)

    def release(self) -> None:
        """Idempotent. The file stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def remove_if_alone(self) -> None:
        """Removes the file and its directory where nothing else is in it: for a command that was refused and changed
        nothing. Whoever waits for the lock finds that it has gone, and makes a new one."""
        if [entry.name for entry in self._path.parent.iterdir()] == [_NAME]:
            self._path.unlink()
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()

    def __enter__(self) -> SetLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _open(path: Path) -> int:
    try:
        return open_private(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise _failed(path, error) from error


def _is(fd: int, path: Path) -> bool:
    """Whether the file of this name is the one that is open."""
    ours = os.fstat(fd)
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _try(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return False
        raise
    return True


def _sign(fd: int, purpose: str) -> None:
    """In place, which takes no space where somebody has signed before. On a full disk a lock is held unsigned: it must
    not keep a set from being stopped."""
    signature = f"{os.getpid()} {purpose}\n".encode()[:_MOST_BYTES]
    try:
        os.pwrite(fd, signature, 0)
        os.ftruncate(fd, len(signature))
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        os.ftruncate(fd, 0)


def _holder(fd: int) -> tuple[int, str]:
    pid, _, purpose = os.pread(fd, _MOST_BYTES, 0).decode(errors="replace").partition("\n")[0].partition(" ")
    return (int(pid), purpose) if pid.isdecimal() else (0, "")


def _locked(name: str, holder: tuple[int, str]) -> LockedError:
    pid, purpose = holder
    by = f"'{purpose}' (pid {pid})" if pid else "another command"
    remedy = "Wait until it ends, and try again."
    if purpose == "scrub":
        remedy = f"Wait until it ends, or run 'qorumctl pause {name}' first."
    elif pid and purpose in {"copy rejoin", "copy replace"}:
        remedy = f"Wait until it ends, or interrupt it, with Ctrl-C or 'kill -INT {pid}': repeated, it goes on."
    return LockedError(f"{name} is held by {by}.", remedy=remedy, set_name=name)


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"The lock {path} cannot be used: {reason(error)}.",
        remedy="Check the directory and its rights.",
        path=str(path),
    )
