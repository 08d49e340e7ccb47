"""One set as a command sees it: its directories, its definition, its daemon, and the monitors it may talk to."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from qorumctl import definitions
from qorumctl.controller import waking
from qorumctl.controller.options import Timeouts
from qorumctl.daemon import graph, process
from qorumctl.daemon.client import Monitor, suspended
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.daemon.runtime import FrontPaths, RuntimePaths
from qorumctl.errors import (
    DaemonError,
    DaemonGoneError,
    DaemonStalledError,
    DamagedStateError,
    DefinitionError,
    LockedError,
    StoreError,
)
from qorumctl.files import open_private, reason
from qorumctl.model.spec import SetSpec
from qorumctl.paths import Directories, check_ours
from qorumctl.store import SetLock, Store
from qorumctl.store.absent import Absence
from qorumctl.store.records import now
from qorumctl.store.replacing import Replacement

_RUNNING_DEFINITION = "running.definition"
_UNCOMPARED = "uncompared"
_WRITTEN_THROUGH = "written-through"
_SERVED = "volume.served"
_LOCK_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class SetContext:
    """Everything a command needs to find a set. Opens nothing by itself."""

    name: str
    directories: Directories
    timeouts: Timeouts

    @property
    def definition_path(self) -> Path:
        return self.directories.definition_path(self.name)

    @property
    def state_dir(self) -> Path:
        return self.directories.state_dir(self.name)

    @property
    def runtime(self) -> RuntimePaths:
        return RuntimePaths(self.directories.runtime_dir(self.name))

    def spec(self) -> SetSpec:
        """The definition as it stands in its file. Raises DefinitionError."""
        if not self.is_defined() and self.announcement_path.exists():
            raise DefinitionError(
                f"The creation of {self.name} is unfinished: there is no such set yet.",
                remedy="Wait for 'qorumctl create' to end. If it was interrupted, repeat it, or give it up with "
                f"'qorumctl delete {self.name} --images --yes'.",
                set_name=self.name,
                path=str(self.announcement_path),
            )
        return definitions.load(self.definition_path)

    @property
    def announcement_path(self) -> Path:
        """What a `create` is about to make: see controller/interrupted.py."""
        return self.state_dir / "creating.json"

    def is_defined(self) -> bool:
        """Whether something stands where the definition belongs, usable or not."""
        return os.path.lexists(self.definition_path)

    def pid(self) -> int | None:
        """RefusedError where another user may have put there what we would take for our daemon's."""
        check_ours(self.runtime.directory)
        return process.find_pid(self.runtime)

    @property
    def front(self) -> FrontPaths:
        return FrontPaths(self.directories.runtime_dir(self.name))

    def front_pid(self) -> int | None:
        """As `pid`, of the set's front (controller/fronting.py)."""
        check_ours(self.front.directory)
        return process.find_pid(self.front)

    def front_lock(self, purpose: str) -> SetLock:
        """Who starts and stops the front, and who must not meet one that is just being started. Taken after `lock`,
        by whoever takes both; not the same one: a scrub holds that for hours."""
        return SetLock.acquire(self.state_dir, purpose=purpose, file_name="front.lock")

    def lock(self, purpose: str) -> SetLock:
        """The one writer of the set. Raises LockedError naming who holds it."""
        return SetLock.acquire(self.state_dir, purpose=purpose)

    def store(self, *, read_only: bool = False) -> Store:
        return Store.open(self.state_dir, read_only=read_only, listener=waking.listener(self.directories, self.name))

    def quorum(self, spec: SetSpec, monitor: Monitor) -> QuorumSet:
        newcomers = [note.key for note in self.replacements().values() if not self.has_succeeded(note)]
        return QuorumSet(spec, monitor, drain_timeout_s=self.timeouts.drain_s, newcomers=newcomers)

    def running_spec(self, store: Store) -> SetSpec | None:
        """What the daemon was started from: the file may have been edited since. None: stopped in order."""
        text = store.meta(_RUNNING_DEFINITION)
        if not text:
            return None
        try:
            return SetSpec.model_validate_json(text)
        except ValueError:
            # Written by another version. The file is the next best account of what runs.
            return self.spec()

    def note_running(self, store: Store, spec: SetSpec | None) -> None:
        store.set_meta(_RUNNING_DEFINITION, None if spec is None else spec.model_dump_json())
        if spec is not None:
            store.outbox.forget_daemon_gone()

    def note_written_through(self, store: Store, spec: SetSpec) -> None:
        """Of the volume that is about to be exported."""
        store.set_meta(_WRITTEN_THROUGH, "yes" if graph.writes_through(spec.copies) else None)

    def written_through(self, store: Store) -> bool:
        """Whether the volume that is exported is known to be: not an older version's, nor one whose record was lost."""
        return store.meta(_WRITTEN_THROUGH) is not None

    def tell_if_died(self, store: Store, pid: int | None) -> None:
        """To the hooks, once: a daemon that nobody has stopped is gone."""
        if self.died(store):
            store.outbox.tell_daemon_gone(now(), pid)

    def absences(self) -> dict[str, Absence]:
        """Copy -> the mark that it is away. A record that is damaged has none: see controller/record.py."""
        if not self.state_dir.is_dir():
            return {}
        try:
            with self.store(read_only=True) as store:
                return store.absences()
        except DamagedStateError:
            return {}

    def replacements(self) -> dict[str, Replacement]:
        """Copy -> the note that another image is to take its place. Of a record that cannot be read there is none: a
        set is stopped without it, and whoever needs it says what is wrong with it."""
        with contextlib.suppress(StoreError):
            if self.state_dir.is_dir():
                with self.store(read_only=True) as store:
                    return store.replacements()
        return {}

    def has_succeeded(self, note: Replacement) -> bool:
        """Whether the newcomer has taken the copy's place: it was proven, and the definition names it. One that names
        it without that was edited by hand."""
        if not note.proven:
            return False
        with contextlib.suppress(DefinitionError):
            return any(copy.name == note.copy and copy.source == note.source for copy in self.spec().copies)
        return False

    def uncompared(self, store: Store) -> bool:
        """Whether an unclean stop is on record, after which nothing has compared the copies from end to end."""
        return store.meta(_UNCOMPARED) is not None

    def died(self, store: Store) -> bool:
        """Whether the daemon, which does not run, was never stopped in order. Sidecars say so, too; a set of devices
        has none."""
        return store.meta(_RUNNING_DEFINITION) is not None

    def note_uncompared(self, store: Store, uncompared: bool) -> None:
        store.set_meta(_UNCOMPARED, "1" if uncompared else None)

    def may_have_served(self, store: Store) -> bool:
        """Whether the daemon, or the last one, has had a volume for guests. Where nothing is on record: yes."""
        return store.meta(_SERVED) != "no"

    def note_served(self, store: Store, served: bool) -> None:
        store.set_meta(_SERVED, "yes" if served else "no")

    @asynccontextmanager
    async def control(self, *, timeout_s: float | None = None) -> AsyncIterator[Monitor]:
        """The control monitor. It serves one client, and a second one hangs: so our commands queue on a lock first.

        Raises LockedError when another command of ours keeps it for the whole time, DaemonStalledError when the daemon
        does not answer (or a stranger holds the monitor), DaemonGoneError when there is none.
        """
        limit_s = self.timeouts.monitor_s if timeout_s is None else timeout_s
        descriptor = await self._queue(limit_s)
        try:
            async with await self._open(self.runtime.control_sock, self.runtime.scrub_sock, limit_s) as monitor:
                yield monitor
        finally:
            os.close(descriptor)

    @asynccontextmanager
    async def scrub_monitor(self) -> AsyncIterator[Monitor]:
        """The monitor of whoever holds the set's lock; `status`, which holds none, uses the other one."""
        limit_s = self.timeouts.monitor_s
        async with await self._open(self.runtime.scrub_sock, self.runtime.control_sock, limit_s) as monitor:
            yield monitor

    async def _open(self, path: Path, other: Path, limit_s: float) -> Monitor:
        """`other`: a daemon that hangs answers on no monitor; one that answers there has a stranger on this one."""
        try:
            return await Monitor.open(path, timeout_s=limit_s)
        except DaemonStalledError as stalled:
            if (told := suspended(path, self.pid())) is not None:
                raise told from None
            try:
                await (await Monitor.open(other, timeout_s=limit_s / 2)).close()
            except DaemonError:
                if path == self.runtime.control_sock and SetLock.held_by(self.state_dir) is not None:
                    # The other one may be in use by that command.
                    raise stalled from None
                raise DaemonStalledError(
                    f"The daemon of {self.name} does not answer: it waits for a copy, or for a guest, that hangs.",
                    remedy="Look at the storage of its copies, and at its guests.",
                    set_name=self.name,
                    path=str(path),
                ) from None
        raise DaemonStalledError(
            f"Another program holds the monitor {path}; the daemon of {self.name} itself answers.",
            remedy="Find it with 'ss -xp' and end it: this monitor is for qorumctl alone, and serves one at a time.",
            set_name=self.name,
            path=str(path),
        )

    async def _queue(self, limit_s: float) -> int:
        path = self.runtime.directory / "control.lock"
        try:
            descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            raise DaemonGoneError(f"{self.name} is not running.", remedy=f"Run 'qorumctl start {self.name}'.") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be used: {reason(error)}.", remedy="Check its rights.") from None
        ends_at_s = time.monotonic() + limit_s
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() >= ends_at_s:
                        raise LockedError(
                            f"Another command is talking to the daemon of {self.name}.", remedy="Try again in a moment."
                        ) from None
                    await asyncio.sleep(_LOCK_POLL_S)
                else:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
