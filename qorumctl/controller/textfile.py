"""The metrics of each set as a file, for node_exporter's textfile collector. Nothing fails for their sake."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from qorumctl.controller.background import in_thread
from qorumctl.controller.context import SetContext
from qorumctl.errors import LockedError, QorumError, RefusedError, StoreError, UsageError
from qorumctl.files import read_bounded, reason, write_atomically
from qorumctl.logbook import warn
from qorumctl.model.status import CopyState
from qorumctl.store import SetLock

_LOCK_NAME = "metrics.lock"
_NOTE_NAME = "metrics.paths"
"""Where files were written, between NULs: whoever deletes the set may be told of another directory, or of none."""
_MOST_NOTED_BYTES = 16384
_POLL_S = 0.05
_WRITE_S = 10.0
_log = logging.getLogger("qorumctl.metrics")


def path_of(context: SetContext) -> Path | None:
    """None where nobody has asked for a file (QORUM_TEXTFILE_DIR)."""
    directory = context.directories.textfile
    return None if directory is None else directory / _name(context)


def _name(context: SetContext) -> str:
    return f"qorum-{context.name}.prom"


@asynccontextmanager
async def published(context: SetContext) -> AsyncIterator[None]:
    """After a command that may have changed how the set is, also where it failed on its way. Only ever warns."""
    try:
        yield
    except (UsageError, RefusedError, LockedError):
        raise
    except QorumError:
        await _publish_aloud(context)
        raise
    await _publish_aloud(context)


async def _publish_aloud(context: SetContext) -> None:
    if (warning := (await publish(context)).warning) is not None:
        warn(_log, warning, set_name=context.name)


class Published(NamedTuple):
    """`warning`: why nothing was written, where that was asked for. `stalled`: a copy does not answer."""

    warning: str | None = None
    stalled: bool = False


async def publish(context: SetContext) -> Published:
    """Writes the set's file anew. Never raises."""
    path = path_of(context)
    if path is None or not context.is_defined():
        return Published()
    try:
        return Published(stalled=await _publish(context, path))
    except TimeoutError:
        return Published(f"The metrics of {context.name} could not be written to {path} within {_WRITE_S:g} s.")
    except QorumError as error:
        return Published(str(error))
    except Exception as error:
        # Whatever it is: the scrub has been done, and the watcher has to go on.
        return Published(f"The metrics of {context.name} could not be written: {error!r}.")


async def _publish(context: SetContext, path: Path) -> bool:
    """Under a lock, so that whoever writes last has looked last. Returns whether a copy does not answer."""
    from qorumctl.controller import metrics

    lock = await _turn(context)
    try:
        seen = await metrics.observe(context)
        text = metrics.text([seen])
    except BaseException:
        lock.release()
        raise

    def work() -> None:
        with lock:
            if context.is_defined():
                write(path, text)
                with suppress(OSError):
                    _note(context, path)

    async with asyncio.timeout(_WRITE_S):
        # A write that hangs keeps the lock when nobody waits for it any more: it must not end after a later one.
        await in_thread(work)
    return any(copy.state is CopyState.STALLED for copy in seen.status.copies)


async def _turn(context: SetContext) -> SetLock:
    """Raises LockedError."""
    ends_at_s = time.monotonic() + 2 * context.timeouts.monitor_s
    while True:
        try:
            return SetLock.acquire(context.state_dir, purpose="metrics", file_name=_LOCK_NAME)
        except LockedError:
            if time.monotonic() > ends_at_s:
                raise
        await asyncio.sleep(_POLL_S)


def write(path: Path, text: str) -> None:
    """Replaces `path`, for everybody to read. Raises StoreError."""
    if not path.is_absolute():
        # The watcher has another working directory.
        raise StoreError(
            f"The metrics cannot be written to {path}, which is not an absolute path.",
            remedy="Set QORUM_TEXTFILE_DIR to one.",
            path=str(path),
        )
    # Two commands may be told the same --textfile. It is a name that node_exporter does not read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        write_atomically(path, text.encode(), 0o644, temporary=temporary)
    except OSError as error:
        raise StoreError(
            f"The metrics cannot be written to {path}: {reason(error)}.",
            remedy=f"Make {path.parent} a directory that {_who()} may write to.",
            path=str(path),
        ) from error


async def remove(context: SetContext) -> str | None:
    """For a set that is deleted, whose watcher has ended: wherever its files were written. Returns a warning where that
    did not work; never raises."""
    own = path_of(context)
    paths = list(dict.fromkeys([*_noted(context), *([own] if own is not None else [])]))
    if not paths:
        return None
    left: list[str] = []
    try:
        # A watcher's last write may still be under way.
        with await _turn(context):
            for path in paths:
                try:
                    path.unlink(missing_ok=True)
                    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
                        temporary.unlink(missing_ok=True)
                except OSError as error:
                    left.append(f"{path} was left, and tells of a set that is gone: {reason(error)}.")
    except QorumError as error:
        left.append(f"{paths[0]} was left, and tells of a set that is gone. {error}")
    return " ".join(left) or None


def _noted(context: SetContext) -> list[Path]:
    try:
        content, _ = read_bounded(context.state_dir / _NOTE_NAME, _MOST_NOTED_BYTES, follow=False)
    except OSError:
        return []
    found = [Path(os.fsdecode(name)) for name in content.split(b"\0")]
    return [path for path in found if path.name == _name(context)]


def _note(context: SetContext, path: Path) -> None:
    noted = _noted(context)
    if path not in noted:
        content = b"\0".join(os.fsencode(one) for one in [*noted, path])
        if len(content) <= _MOST_NOTED_BYTES:
            write_atomically(context.state_dir / _NOTE_NAME, content, 0o600)


def _who() -> str:
    return "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
