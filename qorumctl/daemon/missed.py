"""What a copy outside the quorum misses: dirty bitmaps on the fence, one after the other, so that at any instant each
range that was written since the copy left is marked in one that still stands.

    begin      the first is added, before the copy leaves; drained: every earlier write is on the copy
    rotate     the next is added and the last one ended in one drained transaction; what the last one holds can be read
    drop       once all of it is stored on the copy

A new daemon has none of them: the record is lost with the daemon that kept it. `Watches.sweep` leaves them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qorumctl.daemon import graph
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.exports import delete_export, export_ids, wait_exports_gone
from qorumctl.daemon.replies import understood
from qorumctl.daemon.watches import Watches
from qorumctl.units import KIB

MISSED_PREFIX = "qorum-missed-"
_FINE_BYTES, _COARSE_BYTES = 4 * KIB, 64 * KIB
_FINE_UP_TO_BYTES = 1 << 40
"""A bitmap of 4 KiB for each bit takes 32 MiB of memory for 1 TiB."""
_FINEST_BYTES = 512


@dataclass(frozen=True, slots=True)
class Record:
    """One bitmap. `recording`: it still marks what is written. `count_bytes`: what is marked in it, in units of
    `granularity_bytes`."""

    name: str
    copy: str
    number: int
    recording: bool
    count_bytes: int
    granularity_bytes: int


class Missed:
    """The records of one set. Each call ends within `timeout_s` or raises DaemonStalledError."""

    def __init__(self, monitor: Monitor, watches: Watches, size_bytes: int, *, timeout_s: float) -> None:
        self._monitor = monitor
        self._watches = watches
        self.granularity_bytes = _FINE_BYTES if size_bytes <= _FINE_UP_TO_BYTES else _COARSE_BYTES
        self._timeout_s = timeout_s

    async def of(self, copy: str) -> list[Record]:
        """In the order in which they were begun."""
        return [record for record in await self.all() if record.copy == copy]

    async def all(self) -> list[Record]:
        return records_of(
            await self._monitor.execute("query-named-block-nodes", {"flat": True}, timeout_s=self._timeout_s)
        )

    async def begin(self, copy: str, *, drain: bool = True, by_sectors: bool = False) -> str:
        """From here on what is written is recorded. With `drain` every earlier write has reached all children.
        `by_sectors`: no sector is marked that was not written itself, for eight times the memory."""
        bitmap = self._fresh(copy, await self.of(copy), by_sectors=by_sectors)
        if drain:
            await self._transaction([{"type": "block-dirty-bitmap-add", "data": bitmap}])
        else:
            await self._monitor.execute("block-dirty-bitmap-add", bitmap, timeout_s=self._timeout_s)
        return str(bitmap["name"])

    async def rotate(self, copy: str) -> list[str]:
        """Begins the next record and ends all others at one drained instant; returns the names of those that ended,
        also of those that ended before and were not dropped."""
        before = await self.of(copy)
        actions: list[dict[str, object]] = [{"type": "block-dirty-bitmap-add", "data": self._fresh(copy, before)}]
        await self._transaction([*actions, *_endings(before)])
        return [record.name for record in before]

    async def end(self, copy: str) -> list[str]:
        """Ends all records, drained: what is in flight is marked. Returns their names."""
        before = await self.of(copy)
        if endings := _endings(before):
            await self._transaction(endings)
        return [record.name for record in before]

    async def unpublish(self, names: Iterable[str]) -> None:
        """Ends the exports through which records were read; the records stay."""
        wanted = set(names).intersection(await export_ids(self._monitor, timeout_s=self._timeout_s))
        for name in wanted:
            await delete_export(self._monitor, name, force=True, timeout_s=self._timeout_s)
        if wanted:
            await wait_exports_gone(self._monitor, wanted, timeout_s=self._timeout_s)

    async def drop(self, names: Iterable[str]) -> None:
        await self._watches.forget(list(names))

    async def sweep_exports(self) -> None:
        """After a crash: records that are still exported."""
        present = await export_ids(self._monitor, timeout_s=self._timeout_s)
        await self.unpublish(name for name in present if name.startswith(MISSED_PREFIX))

    def _fresh(self, copy: str, before: list[Record], *, by_sectors: bool = False) -> dict[str, object]:
        """As fine as those before it."""
        granularity = min(
            [_FINEST_BYTES if by_sectors else self.granularity_bytes, *(r.granularity_bytes for r in before)]
        )
        number = max((record.number for record in before), default=0) + 1
        name = f"{MISSED_PREFIX}{copy}-{number}"
        return {"node": graph.FENCE, "name": name, "granularity": granularity, "persistent": False}

    async def _transaction(self, actions: list[dict[str, object]]) -> None:
        await self._monitor.execute("transaction", {"actions": actions}, timeout_s=self._timeout_s)


def records_of(nodes: Any) -> list[Record]:
    """From a flat query-named-block-nodes. Raises DaemonError."""
    with understood("query-named-block-nodes"):
        bitmaps = [b for node in nodes if node.get("node-name") == graph.FENCE for b in node.get("dirty-bitmaps", [])]
        found = [record for bitmap in bitmaps if (record := _record(bitmap)) is not None]
    return sorted(found, key=lambda record: (record.copy, record.number))


def _record(bitmap: Mapping[str, Any]) -> Record | None:
    name = str(bitmap.get("name", ""))
    copy, _, number = name.removeprefix(MISSED_PREFIX).rpartition("-")
    if not name.startswith(MISSED_PREFIX) or not number.isdecimal():
        return None
    return Record(name, copy, int(number), bool(bitmap["recording"]), int(bitmap["count"]), int(bitmap["granularity"]))


def _endings(records: list[Record]) -> list[dict[str, object]]:
    return [
        {"type": "block-dirty-bitmap-disable", "data": {"node": graph.FENCE, "name": record.name}}
        for record in records
        if record.recording
    ]
