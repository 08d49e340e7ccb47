"""The SQLite file under a store: opening, schema versions, transactions, and errors in human words."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qorumctl.errors import DamagedStateError, StoreError
from qorumctl.files import check_private, reason
from qorumctl.paths import check_ours, ensure_private
from qorumctl.store.migrations import MIGRATIONS

T = TypeVar("T")

FILE_NAME = "state.db"
BUSY_TIMEOUT_S = 10.0
"""Writers are short: a transaction of a scrub takes a few disk flushes. Ten seconds is a disk in trouble."""

_log = logging.getLogger("qorumctl.store")
_APPLICATION = int.from_bytes(b"Qrum")


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told of events. `wants`: whether there is anybody; `wake`: after the commit of one. Neither should
    raise."""

    wants: Callable[[], bool]
    wake: Callable[[], None]


_NOBODY = Listener(lambda: False, lambda: None)


class Database:
    """One connection, usable from several threads: each transaction holds a lock of this process."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, on_disk: bool) -> None:
        self.path = path
        self.listener = _NOBODY
        self._connection = connection
        self._lock = threading.RLock()
        self._news: list[Callable[[], None]] = []
        files = [path, Path(f"{path}-wal")] if on_disk else []
        self._files = {file: _inode(file) for file in files}

    @classmethod
    def open(cls, directory: Path, *, read_only: bool, migrations: tuple[str, ...] = MIGRATIONS) -> Database:
        """Opens `state.db`, made and migrated if need be. A read-only one that does not exist reads as empty.

        Raises StoreError, or RefusedError for a directory that is not ours.
        """
        path = directory / FILE_NAME
        if read_only:
            check_ours(directory)
            if not os.path.lexists(path):
                return cls._connect(path, ":memory:", migrations, read_only=True)
        else:
            ensure_private(directory)
        _make_private_file(path)
        try:
            return cls._connect(path, str(path), migrations, read_only=read_only)
        except StoreError as error:
            if not (read_only and _no_room(error.__cause__)):
                raise
        return cls._connect(path, str(path), migrations, read_only=True, alone=True)

    @classmethod
    def _connect(
        cls, path: Path, target: str, migrations: tuple[str, ...], *, read_only: bool, alone: bool = False
    ) -> Database:
        """`alone`: nobody else has it open, and SQLite makes no -shm, for which a full disk has no room."""
        with translated(path):
            # isolation_level None: Python's module begins no transactions of its own.
            connection = sqlite3.connect(target, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            on_disk = target != ":memory:"
            try:
                connection.row_factory = sqlite3.Row
                if alone:
                    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
                # A damaged page is found when it is read, and nothing that stands in the file is a program.
                connection.execute("PRAGMA cell_size_check=ON")
                connection.execute("PRAGMA trusted_schema=OFF")
                if _version(connection) != len(migrations) or not read_only:
                    # Before the first change: what somebody else has put there is theirs.
                    _check_ours(connection, path)
                    connection.execute("PRAGMA journal_mode=WAL")
                    _migrate(connection, path, migrations)
                if read_only:
                    connection.execute("PRAGMA query_only=ON")
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, on_disk=on_disk)

    def close(self) -> None:
        """Idempotent."""
        with self._lock, translated(self.path):
            self._connection.close()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed, and on disk, when the block ends; undone when it raises."""
        with self._lock, translated(self.path):
            # IMMEDIATE: a transaction that turns from reading to writing is not covered by the busy timeout.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._rollback()
                raise
            finally:
                news, self._news = self._news, []
            # Only now: what was renamed during the transaction has taken it along.
            self._check_in_place()
        for told in news:
            try:
                told()
            except Exception as error:
                # What is on disk must not look as if it had failed, and the others are to be told all the same.
                _log.warning("Of what was noted in %s not everybody was told: %r.", self.path, error)

    def once_committed(self, told: Callable[[], None]) -> None:
        """By whoever holds a transaction: what is to be done when it is on disk, and not where it is undone; once,
        however often it was said."""
        if told not in self._news:
            self._news.append(told)

    @contextmanager
    def write_lazily(self) -> Iterator[sqlite3.Connection]:
        """As `write`, without waiting for the disk: a power failure may undo it, nothing else is ever at stake.

        In WAL mode a later `write` flushes this one with it, so the order of transactions holds.
        """
        with self._lock, translated(self.path):
            self._connection.execute("PRAGMA synchronous=NORMAL")
            try:
                with self.write() as connection:
                    yield connection
            finally:
                self._connection.execute("PRAGMA synchronous=FULL")

    def check_whole(self) -> None:
        """Reads all of it. DamagedStateError where anything is not as SQLite would have it."""
        for row in self.rows("PRAGMA quick_check(1)"):
            if row[0] != "ok":
                raise damaged(self.path, str(row[0]).replace("\n", " "))

    def _check_in_place(self) -> None:
        """SQLite goes on writing to a file that was removed or replaced, and all of it is lost. Raises StoreError."""
        for path, inode in self._files.items():
            there = _inode(path)
            if inode is None and path != self.path:
                # The -wal is made with the first read or write.
                self._files[path] = there
            elif there != inode:
                raise StoreError(
                    f"The state {self.path} was removed or replaced while it was in use; what was noted in it is lost.",
                    remedy=_anew(self.path),
                    path=str(self.path),
                )

    def rows(self, query: str, parameters: tuple[Any, ...] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        """All rows of a small answer."""
        with self._lock, translated(self.path):
            return self._connection.execute(query, parameters).fetchall()

    def row(self, query: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Row | None:
        rows = self.rows(query, parameters)
        return rows[0] if rows else None

    def parse(self, function: Callable[[], T]) -> T:
        """What `function` makes of rows that were read. SQLite keeps no checksums: a damaged page can hold rows that
        look whole. StoreError where a value cannot be what we wrote."""
        try:
            return function()
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise damaged(self.path, f"a row holds what was never written ({type(error).__name__})") from error

    def _rollback(self) -> None:
        # SQLite has rolled back by itself after some errors (disk full among them).
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                # What is not committed is gone when the connection is; the first error is the one to report.
                self._connection.close()


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    """Version 0 is an empty file, 1 was not signed yet. Raises DamagedStateError for another program's database."""
    version = _version(connection)
    signature = connection.execute("PRAGMA application_id").fetchone()[0]
    if version == 0 and not signature and connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
        return
    if version == 0 or signature != (0 if version == 1 else _APPLICATION):
        raise damaged(path, "it is another program's database")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _migrate(connection: sqlite3.Connection, path: Path, migrations: tuple[str, ...]) -> None:
    if _version(connection) == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)  # again: another process may have migrated while we waited
        if version > len(migrations):
            raise StoreError(
                f"{path} was written by a newer qorumctl (version {version}, this one knows {len(migrations)}).",
                remedy="Use that qorumctl again, or upgrade this one.",
                path=str(path),
            )
        for script in migrations[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """executescript would commit: it cannot be part of a transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _make_private_file(path: Path) -> None:
    """Exists, 0600, is no link. SQLite gives its -wal and -shm files the rights of the database.

    One that is there is not opened: closing it would drop the locks of every connection that this process has to it
    (POSIX locks), and the next process to close its own would take the -wal away from them.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        facts = path.lstat()
        check_private(path, facts)
        # SQLite would follow a link in their place.
        for suffix in ("-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                beside = path.with_name(f"{path.name}{suffix}")
                check_private(beside, beside.lstat())
        if facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) != 0o600:
            path.chmod(0o600)
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise StoreError(
            f"The state {path} cannot be opened: {reason(error)}.",
            remedy="Nothing was changed. Check what stands there, its rights, and the free space.",
            path=str(path),
        ) from error


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """sqlite3.Error -> StoreError."""
    try:
        yield
    except UnicodeDecodeError as error:
        # Python's, for a message of SQLite that quotes a damaged schema.
        raise damaged(path, "its schema cannot be read") from error
    except sqlite3.Error as error:
        raise _in_words(error, path) from error


def damaged(path: Path, detail: str) -> DamagedStateError:
    return DamagedStateError(f"The state {path} is damaged: {detail}.", remedy=_anew(path), path=str(path))


def _anew(path: Path) -> str:
    name = path.parent.name
    return (
        f"The images are not affected. 'qorumctl scrub {name}', or 'start' where it is stopped, begins a new state,"
        " keeps a damaged one aside, and compares the copies."
    )


def _full(path: Path, detail: str) -> tuple[str, str]:
    return f"The state {path} cannot be written: {detail}.", "Free some space on its file system, and try again."


def _busy(path: Path, detail: str) -> tuple[str, str]:
    return f"The state {path} is in use by another process: {detail}.", "Try again in a moment."


def _rights(path: Path, detail: str) -> tuple[str, str]:
    return f"The state {path} cannot be used: {detail}.", "Check the rights of the file and its directory."


def _failing(path: Path, detail: str) -> tuple[str, str]:
    return f"The state {path} could not be read or written: {detail}.", "Check the disk below it, and its free space."


_WORDS: dict[int, Callable[[Path, str], tuple[str, str]]] = {
    sqlite3.SQLITE_FULL: _full,
    sqlite3.SQLITE_BUSY: _busy,
    sqlite3.SQLITE_LOCKED: _busy,
    sqlite3.SQLITE_READONLY: _rights,
    sqlite3.SQLITE_CANTOPEN: _rights,
    sqlite3.SQLITE_PERM: _rights,
    sqlite3.SQLITE_AUTH: _rights,
    sqlite3.SQLITE_IOERR: _failing,
}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_DAMAGE_WORDS = ("no such table", "no such column", "has no column", "malformed", "Could not decode to UTF-8")
"""Errors that SQLite, or Python, reports under a code that says nothing."""


def _no_room(error: BaseException | None) -> bool:
    """Not even for the -shm, which every connection needs, to read as well: a code of its own."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE


def _in_words(error: sqlite3.Error, path: Path) -> StoreError:
    # The low byte is the primary code; the rest says more (SQLITE_IOERR_WRITE). Python's own errors carry none.
    code: int = getattr(error, "sqlite_errorcode", 0)
    name: str = getattr(error, "sqlite_errorname", "")
    detail = f"{error} ({name})" if code & 0xFF == sqlite3.SQLITE_IOERR else str(error)
    if code & 0xFF in _DAMAGE or any(words in detail for words in _DAMAGE_WORDS):
        return damaged(path, detail)
    words = _full if _no_room(error) else _WORDS.get(code & 0xFF, _failing)
    message, remedy = words(path, detail)
    return StoreError(message, remedy=remedy, path=str(path))
