"""The SQLite file under a store: opening, schema versions, transactions, and errors in human words."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qorumctl.errors import StoreError
from qorumctl.files import reason
from qorumctl.paths import ensure_private

FILE_NAME = "state.db"
BUSY_TIMEOUT_S = 10.0
"""Writers are short: a transaction of a scrub takes a few disk flushes. Ten seconds is a disk in trouble."""

_SCHEMA_1 = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    mode TEXT NOT NULL, state TEXT NOT NULL, outcome TEXT, message TEXT,
    started TEXT NOT NULL, finished TEXT,
    size INTEGER NOT NULL, within_offset INTEGER, within_length INTEGER,
    thorough INTEGER NOT NULL, cause TEXT, parameters TEXT NOT NULL,
    cursor INTEGER NOT NULL, scanned INTEGER NOT NULL, skipped INTEGER NOT NULL,
    read_bytes TEXT NOT NULL, suspects INTEGER NOT NULL, busy TEXT NOT NULL,
    request TEXT, pid INTEGER, position INTEGER NOT NULL
) STRICT;
CREATE TABLE findings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL REFERENCES runs(id),
    start INTEGER NOT NULL, length INTEGER NOT NULL,
    verdict TEXT NOT NULL, copies TEXT NOT NULL, action TEXT NOT NULL,
    diagnosis TEXT NOT NULL, confirmed TEXT NOT NULL, source TEXT NOT NULL, cause TEXT
) STRICT;
CREATE INDEX findings_by_run ON findings (run, action, verdict);
CREATE INDEX findings_by_offset ON findings (run, start, id);
CREATE INDEX findings_by_copies ON findings (copies, verdict, action);
CREATE TABLE versions (
    finding INTEGER NOT NULL REFERENCES findings(id) ON DELETE CASCADE,
    rank INTEGER NOT NULL, digest TEXT NOT NULL, copies TEXT NOT NULL, sample BLOB NOT NULL,
    PRIMARY KEY (finding, rank)
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, kind TEXT NOT NULL, copy TEXT, detail TEXT NOT NULL
) STRICT;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

MIGRATIONS: tuple[str, ...] = (_SCHEMA_1,)
"""MIGRATIONS[n] leads from version n to n + 1. Applied in one transaction; never changed once released."""


class Database:
    """One connection, usable from several threads: each transaction holds a lock of this process."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, directory: Path, *, read_only: bool, migrations: tuple[str, ...] = MIGRATIONS) -> Database:
        """Opens `state.db`, made and migrated if need be. A read-only one that does not exist reads as empty.

        Raises StoreError, or RefusedError for a directory that is not ours.
        """
        path = directory / FILE_NAME
        if read_only and not os.path.lexists(path):
            return cls._connect(path, ":memory:", migrations, read_only=True)
        if not read_only:
            ensure_private(directory)
        _make_private_file(path)
        return cls._connect(path, str(path), migrations, read_only=read_only)

    @classmethod
    def _connect(cls, path: Path, target: str, migrations: tuple[str, ...], *, read_only: bool) -> Database:
        with translated(path):
            # isolation_level None: Python's module begins no transactions of its own.
            connection = sqlite3.connect(target, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            try:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
                if _version(connection) != len(migrations) or not read_only:
                    connection.execute("PRAGMA journal_mode=WAL")
                    _migrate(connection, path, migrations)
                if read_only:
                    connection.execute("PRAGMA query_only=ON")
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

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

    def rows(self, query: str, parameters: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        """All rows of a small answer."""
        with self._lock, translated(self.path):
            return self._connection.execute(query, parameters).fetchall()

    def row(self, query: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Row | None:
        rows = self.rows(query, parameters)
        return rows[0] if rows else None

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
    """Exists, 0600, is no link. SQLite gives its -wal and -shm files the rights of the database."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except OSError as error:
        raise StoreError(
            f"The state {path} cannot be opened: {reason(error)}.",
            remedy="Check the directory, its rights and its free space.",
            path=str(path),
        ) from error


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """sqlite3.Error -> StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        message, remedy = _words(error, path)
        raise StoreError(message, remedy=remedy, path=str(path)) from error


def _damaged(path: Path, detail: str) -> tuple[str, str]:
    return (
        f"The state {path} is damaged: {detail}.",
        "The images are not affected. Move state.db, state.db-wal and state.db-shm aside (keep them as evidence) and"
        " scrub: history begins anew.",
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
    sqlite3.SQLITE_CORRUPT: _damaged,
    sqlite3.SQLITE_NOTADB: _damaged,
    sqlite3.SQLITE_FULL: _full,
    sqlite3.SQLITE_BUSY: _busy,
    sqlite3.SQLITE_LOCKED: _busy,
    sqlite3.SQLITE_READONLY: _rights,
    sqlite3.SQLITE_CANTOPEN: _rights,
    sqlite3.SQLITE_PERM: _rights,
    sqlite3.SQLITE_AUTH: _rights,
    sqlite3.SQLITE_IOERR: _failing,
}


def _words(error: sqlite3.Error, path: Path) -> tuple[str, str]:
    # The low byte is the primary code; the rest says more (SQLITE_IOERR_WRITE). Python's own errors carry none.
    code: int = getattr(error, "sqlite_errorcode", 0)
    name: str = getattr(error, "sqlite_errorname", "")
    detail = f"{error} ({name})" if code & 0xFF == sqlite3.SQLITE_IOERR else str(error)
    if "no such table" in detail or "no such column" in detail or "malformed" in detail:
        return _damaged(path, detail)
    return _WORDS.get(code & 0xFF, _failing)(path, detail)
