"""The directory of hooks: which programs in it are run, and why one is not.

Whoever can change a hook runs what he likes with our rights. So every directory on the way to it, from the root on, and
the hook itself must belong to root or to us, and not be writable by anybody else; none may be a symbolic link. Each is
opened through its parent, and what is judged is what was opened. Then nobody else can put another in its place either.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qorumctl.files import reason

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LEFT_BEHIND = re.compile(r"\.(bak|disabled|old|orig|rpmnew|rpmorig|rpmsave|swp|dpkg-[a-z]+)$")
"""By editors, package managers, and operators."""
_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafeError(Exception):
    """A sentence, and what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class NotAFileError(UnsafeError):
    """A directory, a pipe: nothing that anybody means to be run."""


@dataclass(frozen=True, slots=True)
class HookFile:
    """`problem`: why it is not run; with `off`, because nobody means it to be."""

    path: Path
    problem: str | None = None
    remedy: str | None = None
    off: bool = False

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True, slots=True)
class HookDirectory:
    """`hooks`: in the order in which they are run. `problem`: why none is."""

    path: Path | None
    hooks: tuple[HookFile, ...] = ()
    problem: str | None = None
    remedy: str | None = None

    @property
    def meant(self) -> list[HookFile]:
        """Those that are run, or would be if they were not refused."""
        return [hook for hook in self.hooks if not hook.off]


def any_there(directory: Path | None) -> bool:
    """Whether events are to be kept at all. A directory that cannot be read has to be told of."""
    if directory is None:
        return False
    try:
        with os.scandir(directory) as entries:
            return any(not _is_left_out(entry.name) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def look(directory: Path | None) -> HookDirectory:
    """Judges the directory and all that lies in it. Never raises."""
    if directory is None:
        return HookDirectory(None)
    try:
        with closing(_Opened.walk(directory)) as opened:
            found = [_judged(opened.fd, directory / name) for name in opened.names() if not name.startswith(".")]
    except FileNotFoundError:
        return HookDirectory(directory)
    except UnsafeError as error:
        return HookDirectory(directory, (), error.message, error.remedy)
    except OSError as error:
        return HookDirectory(directory, (), f"{directory} cannot be read: {reason(error)}.", "Check its rights.")
    return HookDirectory(directory, tuple(found))


def check(path: Path) -> None:
    """Just before it is run. Raises UnsafeError; OSError where it is gone or cannot be looked at."""
    with closing(_Opened.walk(path.parent)) as opened:
        _check_file(opened.fd, path)


class _Opened:
    """A directory to which the whole way was judged."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def walk(cls, directory: Path) -> _Opened:
        opened = cls(os.open("/", _PATH_ONLY | os.O_DIRECTORY))
        try:
            here = Path("/")
            _check_directory(here, os.fstat(opened.fd), last=False)
            for part in directory.parts[1:]:
                here /= part
                opened._enter(here, last=here == directory)
        except BaseException:
            opened.close()
            raise
        return opened

    def _enter(self, path: Path, *, last: bool) -> None:
        below = os.open(path.name, _PATH_ONLY, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = below
        _check_directory(path, os.fstat(below), last=last)

    def names(self) -> list[str]:
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            with os.scandir(readable) as entries:
                return sorted(entry.name for entry in entries)
        finally:
            os.close(readable)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _check_directory(path: Path, facts: os.stat_result, *, last: bool) -> None:
    if stat.S_ISLNK(facts.st_mode):
        raise UnsafeError(
            f"{path} is a symbolic link.", "Name the directory itself in QORUM_HOOKS_DIR, or put one in its place."
        )
    if not stat.S_ISDIR(facts.st_mode):
        raise UnsafeError(f"{path} is no directory.", "Put one in its place.")
    # In a directory like /tmp others can make names, but not replace one of ours.
    replaceable = facts.st_mode & 0o022 and (last or not facts.st_mode & stat.S_ISVTX)
    _check_owner(path, facts, writable=bool(replaceable))


def _check_owner(path: Path, facts: os.stat_result, *, writable: bool) -> None:
    if facts.st_uid not in {0, os.geteuid()}:
        raise UnsafeError(
            f"{path} belongs to user {facts.st_uid}.", f"Look at what it holds, then run chown root {path}."
        )
    if writable:
        raise UnsafeError(f"{path} can be written by other users.", f"Run chmod go-w {path}.")


def _check_file(directory: int, path: Path) -> os.stat_result:
    fd = os.open(path.name, _PATH_ONLY, dir_fd=directory)
    try:
        facts = os.fstat(fd)
    finally:
        os.close(fd)
    if stat.S_ISLNK(facts.st_mode):
        raise UnsafeError(f"{path} is a symbolic link.", "Put the program itself there.")
    if not stat.S_ISREG(facts.st_mode):
        raise NotAFileError(f"{path} is not a regular file.", "Remove it.")
    _check_owner(path, facts, writable=bool(facts.st_mode & 0o022))
    if facts.st_nlink > 1:
        raise UnsafeError(
            f"{path} has another name, too, in a place that nobody has looked at.", "Put a copy in its place."
        )
    return facts


def _judged(directory: int, path: Path) -> HookFile:
    if _is_left_out(path.name):
        return HookFile(path, "its name says that it is not meant to be run", off=True)
    try:
        facts = _check_file(directory, path)
    except UnsafeError as error:
        return HookFile(path, error.message, error.remedy, off=isinstance(error, NotAFileError))
    except OSError as error:
        return HookFile(path, f"{path} cannot be looked at: {reason(error)}.", off=error.errno == errno.ENOENT)
    if not facts.st_mode & 0o111:
        return HookFile(path, "it is not executable", off=True)
    return HookFile(path)


def _is_left_out(name: str) -> bool:
    return _NAME.fullmatch(name) is None or _LEFT_BEHIND.search(name) is not None
