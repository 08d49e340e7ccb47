"""How each command reaches its set: by name, defined or not, and under its lock.

Each method of QuorumSets imports what it needs itself: of all the commands' modules one takes a part, and a short one
would wait longer for the rest than for its answer (0.1 s of processor time).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qorumctl import definitions
from qorumctl.controller.context import SetContext
from qorumctl.controller.options import Timeouts
from qorumctl.errors import DaemonGoneError
from qorumctl.model.spec import SetSpec
from qorumctl.paths import Directories, directories
from qorumctl.store import SetLock


class SetAccess:
    """What the parts of QuorumSets have in common."""

    def __init__(self, directories_: Directories | None = None, *, timeouts: Timeouts | None = None) -> None:
        """Directories and deadlines are those of the command line, its variables (QORUM_...) included, unless given.
        Raises UsageError where a variable makes no sense."""
        self._directories = directories_ or directories()
        self._timeouts = timeouts or Timeouts.from_environment()

    def names(self) -> list[str]:
        """All that are defined, sorted."""
        return definitions.names(self._directories.config)

    def _context(self, name: str) -> SetContext:
        self._directories.definition_path(name)
        return SetContext(name, self._directories, self._timeouts)

    def _defined(self, name: str) -> SetContext:
        """Raises DefinitionError before anything is made for a name that no definition has."""
        context = self._context(name)
        context.spec()
        return context

    def _running(self, context: SetContext) -> SetSpec:
        from qorumctl.controller import serving

        if context.pid() is None:
            raise DaemonGoneError(
                f"{context.name} is not running.", remedy=f"Run 'qorumctl start {context.name}'.", set_name=context.name
            )
        return serving.spec_in_force(context)


async def settle(context: SetContext) -> None:
    """What commands that were killed have left, and nobody else looks for."""
    from qorumctl.controller import export_target, growing

    await export_target.settle(context)
    await growing.settle(context)


@asynccontextmanager
async def at_work(context: SetContext, purpose: str) -> AsyncIterator[SetLock]:
    """Under the set's lock; its metrics are written anew once it is free."""
    from qorumctl.controller import textfile

    async with textfile.published(context):
        with context.lock(purpose) as lock:
            await settle(context)
            yield lock
