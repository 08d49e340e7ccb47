"""`watch`: hears what the daemon says of the copies, and writes it down. A lock of its own: there is one for each set.

A copy whose write or flush failed keeps its place in the quorum: QEMU acknowledged the write, because the threshold had
it, and tells of the copy in an event, once, to whoever listens at that moment. So a time in which the volume was
exported and nobody listened makes every copy suspect.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from qorumctl.controller import suspects, textfile, watcher
from qorumctl.controller.context import SetContext
from qorumctl.controller.hooks import wake_for_leftovers
from qorumctl.controller.log_files import trim
from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.events import EVENTS, THROTTLE_S, CopyEvent, parse
from qorumctl.daemon.exports import export_ids
from qorumctl.daemon.graph import HEAL, VOLUME, copy_of_key
from qorumctl.errors import DaemonError, LockedError, QorumError, StoreError
from qorumctl.logbook import warn
from qorumctl.model.status import EventDocument
from qorumctl.store import SetLock, Store
from qorumctl.store.records import now

_log = logging.getLogger("qorumctl.metrics")
UNWATCHED = "UNWATCHED"
_POLL_S = 0.25
_RETRY_S = 2.0
"""After a monitor that could not be had: it may be somebody else's for long."""
_IDLE_S = 30.0
"""A watcher that `start` began ends when there has been no daemon for so long: the next `start` begins another."""
_GONE_S = 5.0
_UPKEEP_EVERY_S = 5.0
_PUBLISH_EVERY_S = 60.0
_PUBLISH_STALLED_EVERY_S = 300.0
"""Metrics. To look is to read a sector of each copy, and one that hangs keeps each of these requests."""
_LEFTOVERS_EVERY = 12
"""Rounds of upkeep: a minute."""
_ENDS_DAEMONS = frozenset({"start", "stop", "restart", "delete"})
_STORE_TRIES = 5
_STORE_RETRY_S = 1.0
_DROPS_WITHIN_S = 1.2 * THROTTLE_S
TOO_FAST = "its reports came faster than the daemon tells them"


class Audience(Protocol):
    """Told of events, and of the watcher's own doings in a sentence."""

    def heard(self, event: EventDocument) -> None: ...

    def note(self, text: str) -> None: ...


class _Pace:
    """Notices when the daemon may have kept something to itself: two reports of one copy within its throttle's period
    can have had others between them, a failed write among them.

    A scrub's own repairs come that fast, and the copy they are about is being compared: while one holds the set's lock
    nothing is made of it, nor just after: the last of them are told a second late, and heard when we come to it.
    """

    def __init__(self, context: SetContext) -> None:
        self._context = context
        self._last: dict[str, tuple[float, bool]] = {}

    def may_have_dropped(self, event: CopyEvent) -> bool:
        if event.copy is None or event.kind != "QUORUM_REPORT_BAD":
            return False
        now_s, busy = time.monotonic(), self._scrubbed()
        last_s, was_busy = self._last.get(event.copy, (-math.inf, False))
        self._last[event.copy] = (now_s, busy)
        return now_s - last_s < _DROPS_WITHIN_S and not busy and not was_busy

    def _scrubbed(self) -> bool:
        # The lock first: whoever holds it notes the end before letting go.
        if SetLock.held_by(self._context.state_dir) is not None:
            return True
        with contextlib.suppress(QorumError, ValueError), self._context.store(read_only=True) as store:
            return watcher.scrubbed_lately(store)
        return False


@dataclass(slots=True)
class _Watch:
    context: SetContext
    audience: Audience
    detached: bool
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until it is cancelled, the set is deleted, or (`detached`) there is no daemon for long."""
        publishing = asyncio.ensure_future(self._publish())
        try:
            await self._run()
        finally:
            publishing.cancel()

    async def _run(self) -> None:
        await self._noting(lambda store: watcher.note_listening(store, None))
        idle_since_s = time.monotonic()
        while self.context.is_defined():
            pid = self.context.pid()
            if pid is not None:
                await self._session(pid)
                idle_since_s = time.monotonic()
            elif self.detached and time.monotonic() - idle_since_s > _IDLE_S:
                return
            await asyncio.sleep(_POLL_S)

    async def _session(self, pid: int) -> None:
        """One daemon, from now to its end."""
        try:
            monitor = await Monitor.open(self.context.runtime.watch_sock, timeout_s=self.context.timeouts.monitor_s)
        except DaemonError as error:
            if self.context.pid() is not None:
                self.audience.note(str(error))
                await asyncio.sleep(_RETRY_S)
            return
        async with monitor:
            stream = monitor.listen(*EVENTS)
            try:
                # Only now that events are kept: an export that begins later is watched from its beginning.
                exports = await export_ids(monitor, timeout_s=self.context.timeouts.monitor_s)
            except DaemonError as error:
                self.audience.note(str(error))
                return
            if self.context.pid() != pid:
                # Another took its place before we had connected: noted under the wrong pid, nobody would find us.
                return
            if self._was_served(exports):
                await self._unwatched(watcher.UNHEARD)
            await self._noting(lambda store: watcher.note_listening(store, pid))
            self.audience.note(f"Listening to the daemon of {self.context.name} (pid {pid}).")
            self._changed.set()
            heard_all = False
            upkeep = asyncio.ensure_future(self._keep_up(pid))
            try:
                lost, pace = 0, _Pace(self.context)
                async for raw in stream.read():
                    event = parse(raw)
                    await self._heard(event, dropped=pace.may_have_dropped(event))
                    if stream.lost > lost:
                        lost = stream.lost
                        await self._unwatched("events came faster than they could be written down")
                # Its monitors are the last that it closes: a moment later it is gone. If not, we were cut off.
                heard_all = await process.wait_gone(self.context.runtime, pid, deadline_s=_GONE_S)
            finally:
                upkeep.cancel()
                with self.context.store() as store:
                    if heard_all:
                        self._tell_if_died(store, pid)
                        watcher.note_done(store, pid)
                    else:
                        watcher.note_listening(store, None)
            ended = "has ended" if heard_all else "no longer talks to us"
            self.audience.note(f"The daemon of {self.context.name} (pid {pid}) {ended}.")
            self._changed.set()

    def _tell_if_died(self, store: Store, pid: int) -> None:
        """A command that ends or begins a daemon says itself how that went; where it was killed, the next one tells."""
        holder = SetLock.held_by(self.context.state_dir)
        if holder is None or holder[1] not in _ENDS_DAEMONS:
            self.context.tell_if_died(store, pid)

    def _was_served(self, exports: Collection[str]) -> bool:
        """Whether guests may have written before we listened. A stop that was killed has withdrawn the volume already:
        then the record tells. A daemon that only compares has no `heal`, and never served."""
        if VOLUME in exports or HEAL not in exports:
            return VOLUME in exports
        with self.context.store(read_only=True) as store:
            return self.context.may_have_served(store)

    async def _heard(self, event: CopyEvent, *, dropped: bool) -> None:
        document = _document(self.context.name, event)
        # The mark first: an event without one would be a copy that missed a write and still counts.
        if event.missed_write and event.copy is not None:
            key, why = event.copy, f"a {event.operation} failed ({event.error})"
            await self._noting(lambda store: _suspect(store, key, missed=True, why=why, failed=True))
        elif dropped and event.copy is not None:
            key = event.copy
            await self._noting(lambda store: _suspect(store, key, missed=False, why=TOO_FAST))
        await self._tell(document)

    async def _unwatched(self, why: str) -> None:
        await self._noting(lambda store: watcher.suspect_all(self.context, store, why))
        await self._tell(EventDocument(set=self.context.name, time=now(), kind=UNWATCHED, text=f"the set: {why}"))

    async def _tell(self, document: EventDocument) -> None:
        detail = json.dumps(document.model_dump(mode="json", exclude={"schema_", "set", "kind", "copy_"}))

        def note(store: Store) -> None:
            store.add_event(document.kind, document.copy_, detail)
            watcher.note_heard(store)

        await self._noting(note)
        self.audience.heard(document)

    async def _noting(self, write: Callable[[Store], None]) -> None:
        """A disk that is full for a moment is no reason to stop listening. One that stays so is: the set then counts as
        unwatched, which is the truth."""
        for attempt in range(_STORE_TRIES):
            try:
                with self.context.store() as store:
                    return write(store)
            except StoreError as error:
                if attempt == _STORE_TRIES - 1:
                    raise
                self.audience.note(str(error))
                await asyncio.sleep(_STORE_RETRY_S)

    async def _publish(self) -> None:
        """Metrics, now and then, and when a daemon comes or goes. A warning is told once, not each minute."""
        told = None
        while textfile.path_of(self.context) is not None:
            warning, stalled = await textfile.publish(self.context)
            if warning is not None and warning != told:
                warn(_log, warning, set_name=self.context.name)
            told = warning
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PUBLISH_STALLED_EVERY_S if stalled else _PUBLISH_EVERY_S):
                    await self._changed.wait()
            self._changed.clear()

    async def _keep_up(self, pid: int) -> None:
        runtime = self.context.runtime
        for round_ in itertools.count():
            if round_ % _LEFTOVERS_EVERY == 0:
                wake_for_leftovers(self.context)
            for path in (runtime.log, runtime.directory / watcher.LOG_NAME):
                trim(path)
            with contextlib.suppress(QorumError), self.context.store() as store:
                watcher.keep_noted(store, pid)
                watcher.settle_scrubbed(self.context, store)
            await asyncio.sleep(_UPKEEP_EVERY_S)


async def watch(context: SetContext, audience: Audience, *, detached: bool) -> None:
    """Watches; while another process does, tells what that one writes down, and takes its place when it ends.

    Ends when the set is deleted. `detached`: also when another watches, or when there is no daemon for long.
    """
    last, told = _newest(context), False
    while context.is_defined():
        last = _follow(context, audience, last)
        try:
            lock = SetLock.acquire(
                context.state_dir, purpose=watcher.DETACHED if detached else "watch", file_name=watcher.LOCK_NAME
            )
        except LockedError:
            if detached:
                return
            if not told:
                audience.note(f"Another watcher listens to {context.name}: what it hears is told here, too.")
                told = True
            await asyncio.sleep(_POLL_S)
            continue
        with lock:
            await _Watch(context, audience, detached).run()
        return


def _newest(context: SetContext) -> int:
    with context.store() as store:
        return max((event.id for event in store.events(1)), default=0)


def _follow(context: SetContext, audience: Audience, last: int) -> int:
    if not context.state_dir.is_dir():
        return last
    with context.store(read_only=True) as store:
        for row in store.events_after(last):
            try:
                detail: dict[str, Any] = json.loads(row.detail)
                audience.heard(EventDocument(set=context.name, kind=row.kind, copy_=row.copy, **detail))
            except (ValueError, TypeError):
                # Another version's.
                audience.note(f"{row.time} {row.kind} {row.copy or ''} {row.detail}")
            last = row.id
    return last


def _suspect(store: Store, key: str, *, missed: bool, why: str, failed: bool = False) -> None:
    marked: set[str] = set()
    # Once more where a replacement has come to its end meanwhile: it has handed over what was on record then.
    while (name := suspects.bearer(store, key)) not in marked:
        store.suspect([name], missed=missed, why=why, failed=failed)
        marked.add(name)


def _document(name: str, event: CopyEvent) -> EventDocument:
    # Where its nodes are (`c.2`) is nothing that people know of.
    event = replace(event, copy=None if event.copy is None else copy_of_key(event.copy))
    return EventDocument(
        set=name,
        time=event.time,
        kind=event.kind,
        copy_=event.copy,
        operation=event.operation,
        offset=event.offset,
        length=event.length,
        error=event.error,
        missed_write=event.missed_write,
        text=event.sentence,
    )
