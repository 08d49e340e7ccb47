"""QuorumSets: every command on sets, typed and asynchronous. The command line is one caller of it."""

from __future__ import annotations

from qorumctl.controller.sets_life import Life
from qorumctl.controller.sets_work import Work


class QuorumSets(Life, Work):
    """All sets of one user. What it returns are the documents that `--json` prints: pydantic models, frozen; bytes as
    integers, times as RFC 3339 strings in UTC.

    Each method raises QorumError alone, with `message`, `remedy`, `code` and, where one is at fault, `set_name`, `copy`
    and `path`. A name that no definition has is a DefinitionError, a word that cannot be understood a UsageError: in
    both cases nothing was touched. Commands that change a set hold its lock, and end with it in whatever way they do:
    LockedError, after 0.2 s, names who has it. A daemon that is begun belongs to nobody: it outlives the caller.

    Where an `observer` is taken it is told of the work from another thread; `control.stop(StopReason.INTERRUPTED)`,
    from any thread, ends that work in order. Cancelling the task does the same before CancelledError is raised.
    Methods that are not `async` read files for some milliseconds; `enable` and `disable` wait for systemctl.
    """
