"""`start`, `stop` and `restart` where systemd runs the set: through its unit, so that systemd knows.

A daemon that root starts beside the unit would not be stopped in order at shutdown, nor be started again when it dies;
one that is stopped behind the unit's back is a failure to it, or begun again. `Manager` is systemd as far as it is
needed here. Only root has one (cli/porter.py): the units run as the service user, so that a unit's own `qorumctl
start` does what it always does, and a unit that somebody made to run as root is recognised by its control group.

What was typed, and what came of it, passes through two files in the state directory (`Errand`): systemd hands over
neither options nor sentences.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from qorumctl.controller import interrupted, serving, succession, vetting
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.options import Timeouts
from qorumctl.controller.sets import QuorumSets
from qorumctl.controller.units import storage_unit, watch_unit
from qorumctl.errors import QorumError, StoreError
from qorumctl.files import open_private, read_bounded, reason, write_atomically
from qorumctl.model.status import ErrorReport, Result
from qorumctl.paths import SERVICE_DIRECTORIES, directories

_REQUEST = "unit.request"
_ANSWER = "unit.answer"
_MOST_BYTES = 65536
_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class UnitState:
    """As `systemctl show` has it: `loaded`, `not-found` ...; `active`, `activating`, `inactive`, `failed` ..."""

    load: str
    active: str

    @property
    def is_up(self) -> bool:
        return self.active in {"active", "activating", "reloading"}


class Manager(Protocol):
    """systemd, for whoever may start and stop units. All raise QorumError; `start` and `stop` wait for the end."""

    async def state(self, unit: str) -> UnitState: ...

    async def start(self, unit: str) -> None: ...

    async def stop(self, unit: str) -> None: ...

    async def forget_failures(self, unit: str) -> None: ...


@dataclass(frozen=True, slots=True)
class StartOptions:
    now: bool = False
    degraded: bool = False
    takeover: bool = False


async def start(
    sets: QuorumSets,
    manager: Manager | None,
    name: str,
    options: StartOptions,
    observer: Observer,
    control: ScrubControl,
) -> Result:
    """As QuorumSets.start."""

    async def by_ourselves(options: StartOptions) -> Result:
        return await sets.start(name, **asdict(options), observer=observer, control=control)

    state = await _state(manager, name)
    if manager is None or state is None:
        return await _answering(name, "start", lambda asked: by_ourselves(replace(options, **asked)))
    context = _context(name)
    if not await serving.is_up(context):
        return await _start_unit(manager, context, options)
    if state.is_up:
        # A watcher that has ended is begun anew.
        with contextlib.suppress(QorumError):
            await manager.start(watch_unit(name))
        return await by_ourselves(options)
    result = await by_ourselves(options)
    outside = (
        f"{name} was started by hand and runs outside its unit: no systemd stops it at shutdown or starts it anew. "
        f"Run 'qorumctl restart {name}' when no guest uses it."
    )
    return result.model_copy(update={"warnings": [*result.warnings, outside]})


async def stop(
    sets: QuorumSets, manager: Manager | None, name: str, *, force: bool, keep_front: bool = False
) -> Result:
    """As QuorumSets.stop."""

    async def by_ourselves(force: bool, keep_front: bool = keep_front) -> Result:
        return await sets.stop(name, force=force, keep_front=keep_front)

    unit = storage_unit(name)
    state = await _state(manager, name)
    if manager is None or state is None:
        return await _answering(name, "stop", lambda asked: by_ourselves(force, **asked))
    if force and state.is_up:
        # A daemon that had to be killed would be begun again, were it not for systemd to stop it.
        with Errand(_context(name), "stop", {"keep_front": keep_front}) as errand:
            await manager.stop(unit)
        return errand.outcome() or await by_ourselves(force)
    # systemd cannot be refused. So we stop the set, or refuse to, and it sees its main process end in order.
    result = await by_ourselves(force)
    if state.active not in {"inactive", "failed"}:
        await manager.stop(unit)
    await manager.stop(watch_unit(name))
    return result


async def restart(
    sets: QuorumSets,
    manager: Manager | None,
    name: str,
    options: StartOptions,
    observer: Observer,
    control: ScrubControl,
    *,
    force: bool,
) -> Result:
    """As QuorumSets.restart. A set that was started by hand comes under its unit."""
    if manager is None or await _state(manager, name) is None:
        return await sets.restart(name, force=force, **asdict(options), observer=observer, control=control)
    context = _context(name)
    with context.lock("restart"):
        with contextlib.suppress(QorumError):
            # What hinders that, `stop` tells.
            await succession.settle_leftovers(context)
        vetting.vet_restart(context, context.spec(), takeover=options.takeover, degraded=options.degraded)
    stopped = await stop(sets, manager, name, force=force, keep_front=True)
    started = await start(sets, manager, name, options, observer, control)
    return started.model_copy(update={"command": "restart", "warnings": [*stopped.warnings, *started.warnings]})


async def _start_unit(manager: Manager, context: SetContext, options: StartOptions) -> Result:
    """The set does not run."""
    unit = storage_unit(context.name)
    with context.lock("start"):
        # What is refused is refused here: a unit that fails is told to everybody, and tried again.
        spec = context.spec()
        interrupted.settle(context)
        succession.after_restart(context)
        vetting.vet_restart(context, spec, takeover=options.takeover, degraded=options.degraded)
    await manager.forget_failures(unit)
    failed: QorumError | None = None
    with Errand(context, "start", asdict(options)) as errand:
        try:
            await manager.start(unit)
        except QorumError as error:
            failed = error
            # It would be tried again, without the options that were meant for this time.
            with contextlib.suppress(QorumError):
                await manager.stop(unit)
    result = errand.outcome() or Result(set=context.name, command="start", changed=True)
    if failed is not None:
        raise failed
    return result


async def _state(manager: Manager | None, name: str) -> UnitState | None:
    """Of the set's unit; None where systemd is not in charge of it."""
    if manager is None or directories().places != SERVICE_DIRECTORIES.places or _within(storage_unit(name)):
        return None
    context = _context(name)
    if context.pid() is None:
        # Before systemd hears of a set that nobody has defined. One that runs can be stopped without.
        context.spec()
    state = await manager.state(storage_unit(name))
    return state if state.load == "loaded" else None


def _within(unit: str, cgroups: Path = _CGROUPS) -> bool:
    """Whether systemd runs this process for the unit: then it is the unit that starts the set, and not we the unit."""
    try:
        lines = cgroups.read_text().splitlines()
    except OSError:
        return False
    return any(unit in line.split(":", 2)[-1].split("/") for line in lines)


def _context(name: str) -> SetContext:
    return SetContext(name, directories(), Timeouts.from_environment())


class Errand:
    """What the command in the unit is to do for us. It counts only while we wait: the lock on its file is ours, and
    ends with us. So nothing that is left of it can make a later start skip a comparison, or take a set over."""

    def __init__(self, context: SetContext, command: str, options: dict[str, Any]) -> None:
        self._request, self._answer = context.state_dir / _REQUEST, context.state_dir / _ANSWER
        self._text = json.dumps({"command": command, "options": options})
        self._descriptor = -1
        self._said: bytes | None = None

    def __enter__(self) -> Errand:
        try:
            self._descriptor = open_private(self._request, os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._answer.unlink(missing_ok=True)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, self._text.encode())
        except OSError as error:
            self._close()
            raise StoreError(
                f"{self._request} cannot be used: {reason(error)}.", remedy="Is another command starting the set?"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._said, _facts = read_bounded(self._answer, _MOST_BYTES, follow=False)
        for path in (self._request, self._answer):
            with contextlib.suppress(OSError):
                path.unlink()
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def outcome(self) -> Result | None:
        """What came of it; its error is raised. None: the command in the unit has said nothing."""
        try:
            said = json.loads(self._said or b"null")
            if said is None:
                return None
            if said.get("schema") == "qorum.result/1":
                return Result.model_validate(said)
            failed = ErrorReport.model_validate(said)
        except ValueError:
            return None
        raise _FailedInUnit(failed)


class _FailedInUnit(QorumError):
    """An error of the command in the unit, as it was raised there."""

    def __init__(self, report: ErrorReport) -> None:
        super().__init__(report.message, remedy=report.remedy, set_name=report.set, copy=report.copy_, path=report.path)
        self.code = report.code  # type: ignore[misc]
        self.exit_code = report.exit_code  # type: ignore[misc]


async def _answering(name: str, command: str, work: Callable[[dict[str, Any]], Awaitable[Result]]) -> Result:
    """In the unit: with the options that somebody waits with, who is told what came of it. Elsewhere: just the work."""
    with _asked(name, command) as (options, answer):
        try:
            result = await work(options)
        except QorumError as error:
            answer(ErrorReport.of(error))
            raise
        answer(result)
        return result


@contextlib.contextmanager
def _asked(name: str, command: str) -> Iterator[tuple[dict[str, Any], Callable[[Result | ErrorReport], None]]]:
    context = _context(name)
    path = context.state_dir / _REQUEST
    is_ours = False
    options: dict[str, Any] = {}
    if _within(storage_unit(name)):
        with contextlib.suppress(OSError, ValueError):
            data, _ = read_bounded(path, _MOST_BYTES, follow=False)
            asked = json.loads(data)
            # systemd may run a stop where somebody waits for a start: that is not what was asked for.
            is_ours = asked["command"] == command and _is_waiting(path)
            options = asked["options"] if is_ours else {}

    def answer(said: Result | ErrorReport) -> None:
        with contextlib.suppress(OSError):
            if is_ours and _is_waiting(path):
                write_atomically(context.state_dir / _ANSWER, said.model_dump_json(by_alias=True).encode(), 0o600)

    yield options, answer


def _is_waiting(request: Path) -> bool:
    """Whether whoever wrote it waits still. OSError where there is none."""
    descriptor = open_private(request, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
