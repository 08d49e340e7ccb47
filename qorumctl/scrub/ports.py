"""What the engine needs of the world beside the copies: a fence, a journal, a clock, a way to be stopped.

The engine is synchronous and single-threaded; each port may be a real daemon, SQLite and a wall clock, or a simulator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NewType, Protocol

from qorumctl.core.findings import Checkpoint, Finding
from qorumctl.core.ranges import Range

Watch = NewType("Watch", str)
"""A record of where guests write, from its opening to its freezing (in the daemon: a dirty bitmap on the fence)."""


class Fence(Protocol):
    """The set's write side. Each call raises DaemonGoneError, DaemonStalledError or CommandError.

    The engine has no request outstanding on any connection while it calls one of these (invariant 9).
    """

    def open_watch(self, *, drain: bool) -> Watch:
        """Begins to record guest writes. With `drain`, every earlier write has reached all copies on return."""

    def freeze(self, watches: Sequence[Watch]) -> None:
        """Drains, and ends all the records at that instant: every write that was in flight has completed and is
        marked (QEMU marks a write when it completes, so a record that is read without this drain lies)."""

    def written(self, watch: Watch, within: Sequence[Range]) -> list[Range]:
        """The ranges, by whole sectors, that were written while the watch was open. Only after `freeze`."""

    def forget(self, watches: Iterable[Watch]) -> None:
        """Drops records, frozen or not. Idempotent."""

    def heal(self, at: Range) -> bool:
        """Reads exactly this range through the fence, so that the daemon votes on it and rewrites the outvoted.

        False when the read failed or was starved by guest writes: nothing is known then. True proves nothing
        either: QEMU ignores rewrite errors. Only reading the copies again tells.
        """


class StopReason(StrEnum):
    PAUSED = "paused"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    OUT_OF_TIME = "out-of-time"
    """Its budget is used up."""
    REPLAN = "replan"
    """What the plan says of the copies is no longer so. Whoever made it goes on at once with another."""


class Supervisor(Protocol):
    """Asked between steps, when the engine has nothing outstanding. Told how far the scrub is."""

    def stop_requested(self) -> StopReason | None: ...

    def suspend_if_requested(self) -> None:
        """Where Ctrl-Z takes effect: the process stops here and nowhere else."""

    def wants_quiet(self) -> bool:
        """Cheap, asked after every chunk: true when one of the two above would act."""

    def moved(self, position_bytes: int, read_bytes: int, suspects: int) -> None:
        """`position_bytes`: the cursor. `read_bytes`: of each copy, since this call was last made."""

    def recovered(self, copy: str, reads: int) -> None:
        """So many reads of a copy failed and succeeded when they were made again."""


class Clock(Protocol):
    def now_s(self) -> float:
        """Monotonic."""

    def sleep(self, seconds: float) -> None: ...


class Journal(Protocol):
    """Durable memory of a run. Each call is one transaction: after a crash it has happened whole or not at all."""

    def begin_repair(self, findings: Sequence[Finding]) -> list[int]:
        """Records confirmed findings before anything is healed, as pending; returns their ids."""

    def conclude(
        self, settled: Sequence[tuple[int, Finding]], findings: Sequence[Finding], checkpoint: Checkpoint
    ) -> None:
        """Gives pending findings their last action, records those that need no repair, and moves the checkpoint."""
