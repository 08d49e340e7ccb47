"""The orderly end of a running set: the volume withdrawn, everything flushed, the daemon asked to end.

A copy that hangs is found out first: withdrawing drains, `quit` does, and a daemon that has begun to quit cannot be
held back: it would be gone the moment the copy answers, long after the stop had failed.
"""

from __future__ import annotations

import asyncio
import time

from qorumctl.controller import watcher
from qorumctl.controller.context import SetContext
from qorumctl.copies.nbd import NbdCopy
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.daemon.graph import HEAL, copy_node, copy_of_node
from qorumctl.errors import CopyUnavailableError, DaemonStalledError
from qorumctl.model.spec import SetSpec


async def withdraw_and_flush(context: SetContext, spec: SetSpec, *, force: bool) -> bool | None:
    """Whether all copies have confirmed a flush after the last guest was gone; None where the set was not assembled, so
    that there never was one. Asks the daemon to end.

    Raises CopyUnavailableError, with nothing changed, when a copy hangs; DaemonStalledError when something does later.
    """
    async with context.scrub_monitor() as monitor:
        quorum = context.quorum(spec, monitor)
        state = await quorum.describe()
        if state.assembled:
            await asyncio.gather(*(asyncio.to_thread(_sign_of_life, context, name) for name in state.copies))
        await quorum.sweep()
        await quorum.withdraw_volume(force=force)
        flushed = None
        if state.assembled:
            # The quorum's flush succeeds with the threshold; so each copy is asked as well.
            exports = (*map(copy_node, state.copies), HEAL)
            flushed = all([await asyncio.to_thread(_flush, context, export) for export in exports])
        await watcher.outlast_throttle(context)
        await quorum.quit()
        return flushed


def _sign_of_life(context: SetContext, name: str) -> None:
    """One that cannot be reached, or cannot read, does not hang: its flush will fail at once."""
    limit_s, began_s = context.timeouts.copy_s, time.monotonic()
    try:
        reader = NbdCopy(name, context.runtime.nbd_sock, copy_node(name), timeout_s=limit_s)
        try:
            reader.observe(Range(0, SECTOR_BYTES))
        finally:
            reader.close()
    except CopyUnavailableError:
        if time.monotonic() - began_s < limit_s:
            return
        raise CopyUnavailableError(
            f"Copy {name} did not answer within {limit_s:g} s: a stop would hang, too, and was not begun.",
            remedy="Bring its storage back.",
            set_name=context.name,
            copy=name,
        ) from None


def _flush(context: SetContext, export: str) -> bool:
    limit_s, began_s = context.timeouts.stop_s, time.monotonic()
    try:
        link = NbdLink(context.runtime.nbd_sock, export, who="The set", timeout_s=limit_s)
        try:
            return link.flush()
        finally:
            link.close()
    except CopyUnavailableError:
        if time.monotonic() - began_s < limit_s:
            return False
        copy = copy_of_node(export)
        raise DaemonStalledError(
            f"{f'Copy {copy}' if copy else 'The set'} did not confirm a flush within {limit_s:g} s; the volume of "
            f"{context.name} is withdrawn, the daemon still runs.",
            remedy="When its storage answers again, stop or start the set once more.",
            set_name=context.name,
            copy=copy,
        ) from None
