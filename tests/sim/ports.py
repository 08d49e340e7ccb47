"""The engine's ports, served by the simulated world. Every call lets the world move, and may be the engine's last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.findings import Action, Checkpoint, Finding
from qorumctl.core.ranges import SECTOR_BYTES, Range, coalesce, intersect
from qorumctl.errors import CopyUnavailableError, DaemonStalledError
from qorumctl.scrub.ports import StopReason, Watch
from tests.sim.medium import Medium
from tests.sim.truth import FencedRead, Violation, range_of, sectors_of
from tests.sim.world import Stalled, WatchState, World, spoiled


class Crash(BaseException):
    """kill -9. Nothing that the engine still tries while it unwinds has any effect."""


MOST_CALLS = 50_000
"""A run makes a few hundred; one that makes so many will never end."""


@dataclass(slots=True)
class Fate:
    """Ends, fails or pauses the engine at some of its calls, as often as the numbers say. `world` moves at each.

    `told`: why it was told to stop. `refused`: who did not answer it. After either it may only wind up.
    """

    world: World
    crashes: int = 0
    failures: int = 0
    pauses: int = 0
    calls: int = 0
    dead: bool = False
    pausing: bool = False
    told: StopReason | None = None
    refused: str | None = None

    def revive(self) -> None:
        self.dead = self.pausing = False
        self.told = self.refused = None

    def call(self, name: str, error: Callable[[], Exception] | None = None) -> _Call:
        """Surrounds what a call does: a crash or an error strikes before or after it has taken effect, and the engine
        cannot know which."""
        if self.dead:
            raise Crash
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise Violation("the engine does not come to an end")
        self.world.note(name)
        self.world.tick()
        # What matters most happens rarely: between two entries in the journal a crash is made likely.
        rare = name.startswith(("begin_repair", "conclude", "heal", "flush"))
        strikes = self.world.dice.random() < (0.06 if rare else 0.006)
        if strikes and self.world.dice.random() < 0.5:
            self.strike(error)
            strikes = False
        return _Call(self, error) if strikes else _UNHARMED

    def strike(self, error: Callable[[], Exception] | None) -> None:
        if self.crashes:
            self.crashes -= 1
            self.dead = True
            self.world.tally["crash"] += 1
            self.world.note("crash")
            raise Crash
        if self.failures and error is not None:
            self.failures -= 1
            self.world.tally["error"] += 1
            self.world.note("error")
            raise self.refuse(error())
        if self.pauses:
            self.pauses -= 1
            self.pausing = True

    def refuse(self, error: Exception) -> Exception:
        """The engine is told that somebody does not answer: it must give up."""
        self.refused = str(error)
        return error

    def check_may_change(self, call: str) -> None:
        if self.refused is not None and not self.dead:
            raise Violation(f"{call}, though it was told: {self.refused}")


class _Unharmed:
    """Most calls."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(slots=True)
class _Call(_Unharmed):
    """A call that has its effect, and whose answer does not arrive."""

    fate: Fate
    error: Callable[[], Exception] | None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.fate.strike(self.error)


_UNHARMED = _Unharmed()


def _stalled() -> Exception:
    return DaemonStalledError("qemu-storage-daemon did not answer in time.")


class SimReader(MemoryCopy):
    """A reader of one of the world's copies: same medium, own connection."""

    def __init__(self, medium: Medium, fate: Fate, chunk_bytes: int, read_ahead: int) -> None:
        super().__init__(medium.name, medium.data, chunk_bytes=chunk_bytes, read_ahead=read_ahead)
        self.unreadable, self.unwritable, self.holes = medium.unreadable, medium.unwritable, medium.holes
        self.answered = False
        """Whether it has, since the last drain: a copy that hangs would block the next one, and with it every guest."""
        self._medium = medium
        self._fate = fate
        self._world = fate.world

    def _gone(self) -> Exception:
        return CopyUnavailableError(f"Copy {self.name} does not answer.", copy=self.name)

    def _wait(self) -> None:
        if self._world.hung_until_s and not self._world.answers(self.name):
            self.missed_its_deadline()

    def missed_its_deadline(self) -> None:
        self._world.tally["deadline missed"] += 1
        raise self._fate.refuse(self._gone())

    def _read(self, at: Range) -> bytearray | None:
        with self._fate.call(f"read {self.name} {at.offset}:{at.length}", self._gone):
            self._wait()
            self.answered = True
            answer = self.peek(at)
            bad = self._world.misread(self.name, sectors_of(at)) if self._world.activity.transients else None
            if bad is not None and answer is not None:
                answer = None if self._world.dice.random() < 0.5 else spoiled(answer, bad * SECTOR_BYTES - at.offset)
            return None if answer is None else bytearray(answer)

    def zero_ranges(self, within: Range) -> list[Range]:
        with self._fate.call(f"zero_ranges {self.name}", self._gone):
            self._wait()
            sectors = [s for s in sectors_of(within) if s in self.holes]
            return coalesce(range_of(s, s + 1) for s in sectors) if sectors else []

    def flush(self) -> bool:
        with self._fate.call(f"flush {self.name}", self._gone):
            self._wait()
            if self._fate.failures and self._world.dice.random() < 0.02:
                self._fate.failures -= 1
                self._fate.refused = f"{self.name} has not flushed"
                return False
            self._medium.sync()
            return True


class SimFence:
    """The fence with QEMU's true semantics. Subclasses break one rule each, to prove that the checks see it."""

    def __init__(self, world: World, fate: Fate, readers: Sequence[SimReader], *, may_heal: bool) -> None:
        self.world = world
        self.fate = fate
        self._readers = readers
        self._may_heal = may_heal
        self._serial = 0
        self._healed = False
        """Since the copies last gave a sign of life: a heal may wait for one that hangs."""

    def _check_quiet(self, call: str) -> None:
        if busy := [reader.name for reader in self._readers if reader.outstanding]:
            raise Violation(f"{call} while reads of {', '.join(busy)} are outstanding: a drain would wait for us")

    def _check_alive(self, call: str) -> None:
        if silent := [reader.name for reader in self._readers if not reader.answered]:
            raise Violation(f"{call} drains without a sign of life from {', '.join(silent)}")
        for reader in self._readers:
            reader.answered = False
        self._healed = False

    def _change_graph(self, call: str) -> None:
        """An export that comes, or goes: the daemon drains, here too."""
        if self._healed:
            raise Violation(f"{call} drains after a heal, without a sign of life from the copies")
        self._drain()

    def _drain(self) -> None:
        try:
            self.world.drain()
        except Stalled:
            self.world.tally["drain stalled"] += 1
            raise self.fate.refuse(_stalled()) from None

    def open_watch(self, *, drain: bool) -> Watch:
        self._check_quiet("open_watch")
        with self.fate.call(f"open_watch drain={drain}", _stalled):
            if drain:
                self._check_alive("open_watch")
                self._drain()
            elif self.fate.told is not None:
                raise Violation(f"begins another segment, though it was told to stop: {self.fate.told}")
            else:
                self.world.lose_the_same_write()
            self._serial += 1
            name = f"watch-{self._serial}"
            self.world.watches[name] = WatchState()
        return Watch(name)

    def freeze(self, watches: Sequence[Watch]) -> None:
        self._check_quiet("freeze")
        with self.fate.call("freeze", _stalled):
            self._check_alive("freeze")
            self._drain_to_freeze()
            for watch in watches:
                self.world.watches[watch].enabled = False

    def _drain_to_freeze(self) -> None:
        self._drain()

    def written(self, watch: Watch, within: Sequence[Range]) -> list[Range]:
        self._check_quiet("written")
        with self.fate.call("written", _stalled):
            state = self.world.watches[watch]
            if state.enabled:
                raise Violation("a record of writes was read before it was frozen")
            self._change_graph("written")
            state.published = True
            return intersect(within, coalesce(range_of(sector, sector + 1) for sector in state.marked))

    def forget(self, watches: Iterable[Watch]) -> None:
        self._check_quiet("forget")
        with self.fate.call("forget"):
            for watch in watches:
                if (state := self.world.watches.pop(watch, None)) is not None and state.published:
                    self._change_graph("forget")

    def heal(self, at: Range) -> bool:
        """A starved heal is kicked by a drain, or given up: then, like one whose sender was killed, it stays where it
        is and happens later."""
        self._check_quiet("heal")
        self._check_allowed(at)
        with self.fate.call(f"heal {at.offset}:{at.length}", _stalled):
            self.world.tally["heal"] += 1
            self._healed = True
            read = FencedRead(at, of_engine=True)
            self.world.reads.append(read)
            for _ in range(30):
                if read not in self.world.reads:
                    break
                self.world.step()
            else:
                if self.world.dice.random() < 0.8:
                    self._drain()
            return read not in self.world.reads and bool(read.succeeded)

    def _check_allowed(self, at: Range) -> None:
        self.fate.check_may_change(f"heals {at}")
        if self.fate.told is not None:
            raise Violation(f"heals {at}, though it was told to stop: {self.fate.told}")
        if not self._may_heal:
            raise Violation(f"a scrub that only reports heals {at}")
        if doomed := sorted(self.world.doomed.keys() & set(sectors_of(at))):
            raise Violation(f"heal of {at}, though sectors {doomed} have no majority")


class SimSupervisor:
    def __init__(self, fate: Fate, readers: Sequence[SimReader]) -> None:
        self._fate = fate
        self._readers = readers
        self.position_bytes = 0

    def _check_quiet(self) -> None:
        if any(reader.outstanding for reader in self._readers):
            raise Violation("asked to stop or suspend with reads outstanding")

    def stop_requested(self) -> StopReason | None:
        self._check_quiet()
        with self._fate.call("stop_requested"):
            self._fate.told = self._reason()
            return self._fate.told

    def _reason(self) -> StopReason | None:
        """Where word of a copy that missed a write reaches the engine."""
        if self._fate.pausing:
            return StopReason.PAUSED
        world = self._fate.world
        if world.missing and not world.writes and not world.reads:
            world.spread_the_word()
        return StopReason.REPLAN if world.stale - world.heeded else None

    def suspend_if_requested(self) -> None:
        self._check_quiet()
        with self._fate.call("suspend_if_requested"):
            pass

    def wants_quiet(self) -> bool:
        return self._reason() is not None

    def moved(self, position_bytes: int, read_bytes: int, suspects: int) -> None:
        self.position_bytes = position_bytes

    def recovered(self, copy: str, reads: int) -> None:
        return


class SimClock:
    def __init__(self, world: World) -> None:
        self._world = world

    def now_s(self) -> float:
        return self._world.now_s

    def sleep(self, seconds: float) -> None:
        self._world.now_s += seconds
        self._world.tick()


class MemoryJournal:
    """Remembers one run, in transactions, as the state database does. `inspect` looks at each finding as it is put on
    record, `prove` at each that is put down as repaired."""

    def __init__(self, fate: Fate, inspect: Callable[[Finding], None], prove: Callable[[Finding], None]) -> None:
        self.findings: dict[int, Finding] = {}
        self.checkpoint = Checkpoint()
        self.fate = fate
        self._inspect = inspect
        self._prove = prove

    def begin_repair(self, findings: Sequence[Finding]) -> list[int]:
        self.fate.check_may_change("begin_repair")
        with self.fate.call(f"begin_repair {len(findings)}"):
            return [self._add(finding) for finding in findings]

    def conclude(
        self, settled: Sequence[tuple[int, Finding]], findings: Sequence[Finding], checkpoint: Checkpoint
    ) -> None:
        self.fate.check_may_change("conclude")
        with self.fate.call(f"conclude {len(settled)} {len(findings)}"):
            for number, finding in settled:
                self._settle_one(number, finding)
            for finding in findings:
                if finding.action is Action.PENDING:
                    raise Violation(f"recorded as final, but pending: {finding}")
                self._add(finding)
            self._move(checkpoint)

    def _add(self, finding: Finding) -> int:
        self._inspect(finding)
        number = len(self.findings) + 1
        self.findings[number] = finding
        return number

    def _settle_one(self, number: int, finding: Finding) -> None:
        before = self.findings[number]
        if before.action is not Action.PENDING or finding.action is Action.PENDING:
            raise Violation(f"finding {number} was {before.action} and is settled as {finding.action}")
        if finding != before.settled(finding.action):
            raise Violation(f"finding {number} was changed while it was settled")
        if finding.action is Action.REPAIRED:
            self._prove(finding)
        self.findings[number] = finding

    def _move(self, checkpoint: Checkpoint) -> None:
        if checkpoint.cursor_bytes < self.checkpoint.cursor_bytes:
            raise Violation("the cursor went back")
        self.checkpoint = checkpoint

    @property
    def pending(self) -> list[tuple[int, Finding]]:
        return [(number, f) for number, f in self.findings.items() if f.action is Action.PENDING]

    @property
    def resumable(self) -> list[tuple[int, Finding]]:
        """What a resumed run has to settle first."""
        return self.pending

    @property
    def settled(self) -> list[Range]:
        """Damage that stays, on record for parts that a resumed run may look at again. As the state database says it:
        not what was repaired, which may be damaged anew."""
        ahead = min([self.checkpoint.cursor_bytes, *(r.offset for r in self.checkpoint.busy)])
        stays = (f for f in self.findings.values() if f.action in {Action.LEFT, Action.FAILED})
        return [f.range for f in stays if f.range.end > ahead]
