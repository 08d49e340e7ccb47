"""Write watches: dirty bitmaps on the fence that record which ranges guests wrote (invariant 5).

QEMU marks a write in a bitmap when it *completes*. So a watch only tells the truth after `freeze`, whose transaction
drains: every write that was in flight has then completed and is marked. A bitmap that is exported is busy and can be
neither cleared nor reused, and an enabled one can only be exported writable: one fresh bitmap per watch, frozen first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from qorumctl.daemon import graph
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.exports import POLL_S, delete_export, export_ids, wait_exports_gone
from qorumctl.daemon.replies import understood
from qorumctl.errors import CommandError, DaemonStalledError

WATCH_PREFIX = "qorum-watch-"
_GRANULARITY_BYTES = 512
"""A sector, the unit of the vote: coarser, a neighbour's write would make real damage look busy."""


class Watches:
    """The watches of one set. Each call ends within `drain_timeout_s` or raises DaemonStalledError."""

    def __init__(self, monitor: Monitor, *, drain_timeout_s: float) -> None:
        self._monitor = monitor
        self._timeout_s = drain_timeout_s

    async def open(self, name: str, *, drain: bool) -> None:
        if not name.startswith(WATCH_PREFIX):
            raise ValueError(f"a watch's name begins with {WATCH_PREFIX}: {name}")
        bitmap = {"node": graph.FENCE, "name": name, "granularity": _GRANULARITY_BYTES, "persistent": False}
        if drain:
            await self._transaction([{"type": "block-dirty-bitmap-add", "data": bitmap}])
        else:
            await self._monitor.execute("block-dirty-bitmap-add", bitmap, timeout_s=self._timeout_s)

    async def freeze(self, names: Sequence[str]) -> None:
        """One transaction, so all of them end at one drained instant. Nothing to end: no drain."""
        if names:
            await self._transaction(
                [
                    {"type": "block-dirty-bitmap-disable", "data": {"node": graph.FENCE, "name": name}}
                    for name in dict.fromkeys(names)
                ]
            )

    async def publish(self, name: str) -> str:
        await self._monitor.execute(
            "block-export-add", graph.export(name, graph.FENCE, bitmaps=[name]), timeout_s=self._timeout_s
        )
        return f"qemu:dirty-bitmap:{name}"

    async def forget(self, names: Sequence[str]) -> None:
        wanted = set(names)
        exported = wanted.intersection(await export_ids(self._monitor, timeout_s=self._timeout_s)) if wanted else set()
        for name in exported:
            await delete_export(self._monitor, name, force=True, timeout_s=self._timeout_s)
        if exported:
            await wait_exports_gone(self._monitor, exported, timeout_s=self._timeout_s)
        for name in wanted:
            await self._remove(name)

    async def present(self) -> frozenset[str]:
        """Every watch that has left a bitmap or an export, whoever opened it."""
        nodes: list[dict[str, Any]] = await self._monitor.execute(
            "query-named-block-nodes", {"flat": True}, timeout_s=self._timeout_s
        )
        exported = await export_ids(self._monitor, timeout_s=self._timeout_s)
        with understood("query-named-block-nodes"):
            bitmaps = bitmaps_of(nodes)
        return frozenset(name for name in [*bitmaps, *exported] if name.startswith(WATCH_PREFIX))

    async def kick(self) -> None:
        await self._transaction([])

    async def _transaction(self, actions: list[dict[str, object]]) -> None:
        """Drains all I/O first, even with no action: seen on 7.2 and 10.0."""
        await self._monitor.execute("transaction", {"actions": actions}, timeout_s=self._timeout_s)

    async def _remove(self, name: str) -> None:
        ends_at_s = time.monotonic() + self._timeout_s
        while True:
            try:
                await self._monitor.execute(
                    "block-dirty-bitmap-remove", {"node": graph.FENCE, "name": name}, timeout_s=self._timeout_s
                )
            except CommandError as error:
                if "not found" in error.description:
                    return
                # The export lets go of it a moment after it has left the list of exports.
                if "in use" not in error.description:
                    raise
            else:
                return
            if time.monotonic() > ends_at_s:
                raise DaemonStalledError(
                    f"The write watch '{name}' stayed in use for {self._timeout_s:g} s and could not be removed.",
                    remedy="Any later command on the set removes it.",
                )
            await asyncio.sleep(POLL_S)


def bitmaps_of(nodes: list[dict[str, Any]]) -> list[str]:
    """The names of the fence's bitmaps, from a flat query-named-block-nodes."""
    return [
        bitmap["name"]
        for node in nodes
        if node.get("node-name") == graph.FENCE
        for bitmap in node.get("dirty-bitmaps", [])
        if isinstance(bitmap.get("name"), str)
    ]
