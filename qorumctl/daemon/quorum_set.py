"""One set inside its daemon: open the copies, assemble the graph, export it, watch writes, take it apart.

Nothing here remembers anything: each call asks the daemon what stands. So a later command finds its way after a crash
of an earlier one. Nobody may have a request outstanding while a draining call runs (invariant 9).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from qorumctl.daemon import graph
from qorumctl.daemon.children import Children, check_length, children_of
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.exports import delete_export, export_ids, wait_exports_gone
from qorumctl.daemon.missed import Missed, Record, records_of
from qorumctl.daemon.replies import names, understood
from qorumctl.daemon.watches import WATCH_PREFIX, Watches, bitmaps_of
from qorumctl.errors import CommandError, DaemonGoneError, RefusedError
from qorumctl.model.spec import SetSpec

DRAIN_TIMEOUT_S = 30.0
"""A drain costs the slowest write in flight, usually milliseconds. Longer than this, a copy or a client hangs."""
_SETTING = re.compile(r'"(rewrite-corrupted|vote-threshold)": ?(true|false|\d+)')


@dataclass(frozen=True, slots=True)
class GraphState:
    """What stands in the daemon. `copies`: the names of the quorum's children, in their order; `further`: the keys of
    those that are no copies: newcomers.

    `nodes`: all our block nodes. `exports`: ids, those of watches included. `rewriting` and `threshold`: as the
    running quorum has them; None without a quorum, or when QEMU cut its description short (very long paths).
    `missed`: the records of what copies outside the quorum miss. `doubled`: copies of which two images are children,
    and nothing tells which of them is the newcomer.
    """

    copies: tuple[str, ...]
    nodes: frozenset[str]
    exports: frozenset[str]
    watches: frozenset[str]
    rewriting: bool | None
    threshold: int | None
    missed: tuple[Record, ...] = ()
    further: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()

    @property
    def assembled(self) -> bool:
        return {graph.QUORUM, graph.FENCE} <= self.nodes and graph.HEAL in self.exports

    @property
    def volume_exported(self) -> bool:
        return graph.VOLUME in self.exports

    @property
    def empty(self) -> bool:
        return not self.nodes and not self.exports


class QuorumSet:
    """Control of one set's graph. Errors: DaemonGoneError, DaemonStalledError after `drain_timeout_s`, and CommandError
    from any call; others as named. `newcomers`: keys of images that are to take a copy's place, and have not yet."""

    def __init__(
        self,
        spec: SetSpec,
        monitor: Monitor,
        *,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        newcomers: Iterable[str] = (),
    ) -> None:
        self._spec = spec
        self.monitor = monitor
        self._timeout_s = drain_timeout_s
        self._watches = Watches(monitor, drain_timeout_s=drain_timeout_s)
        self.newcomers = set(newcomers)
        self.children = Children(spec, monitor, self.newcomers, timeout_s=drain_timeout_s)
        self.missed = Missed(monitor, self._watches, spec.size, timeout_s=drain_timeout_s)

    # -- the graph

    async def open_copies(self, *, read_only: bool, without: Set[str] = frozenset()) -> dict[str, int]:
        """Opens each copy and exports it, read-only, as `copy-NAME`. Returns name -> length in bytes.

        With `read_only` False an image that another process uses is refused here, by name. Raises CopyError (of it
        CopyUnavailableError) naming the copy. What was opened stays: `dissolve` rolls back.
        """
        for copy in self._spec.copies:
            if copy.name not in without:
                await self.children.open(copy, read_only=read_only)
        return await self._lengths()

    async def check_lengths(self, *, without: Set[str] = frozenset()) -> None:
        """RefusedError for an opened copy whose length is not the set's size: QEMU aborts on a read past the end of a
        shorter child, and what is read there by itself would look like damage."""
        lengths = await self._lengths()
        for copy in self._spec.copies:
            if copy.name not in without:
                check_length(self._spec, copy, lengths.get(copy.name))

    async def assemble(self, *, without: Set[str] = frozenset()) -> None:
        """Quorum, fence and the `heal` export over the opened copies.

        Raises RefusedError before anything is added when a copy's length is not the set's size, or when two copies are
        one image.
        """
        await self.check_lengths(without=without)
        try:
            await self._run("blockdev-add", graph.quorum_node(self._spec, without=without))
        except CommandError as error:
            if '" lock' not in error.description:
                raise
            # Each copy alone could be locked when it was opened.
            raise RefusedError(
                f"Two copies of {self._spec.name} are one image, or another process has just begun to use one.",
                remedy="Each copy needs an image of its own: look for hard links and symbolic links among them.",
                set_name=self._spec.name,
            ) from None
        await self._run("blockdev-add", graph.fence_node())
        await self._run("block-export-add", graph.heal_export())

    async def dissolve(self) -> None:
        """Takes all of it away: exports (clients are cut off), fence, quorum, copies. Also whatever is half made."""
        exports = await self._export_ids()
        for export_id in exports:
            await delete_export(self.monitor, export_id, force=True, timeout_s=self._timeout_s)
        await wait_exports_gone(self.monitor, exports, timeout_s=self._timeout_s)
        present = {node["node-name"] for node in await self._nodes()}
        tops = sorted(node for node in present if graph.copy_of_node(node) is not None)
        files = sorted(node for node in present if node.startswith(graph.COPY_PREFIX) and node not in tops)
        for node in (graph.CLAIM, graph.FENCE, graph.QUORUM, *tops, *files):
            if node in present:
                await self._run("blockdev-del", {"node-name": node})
        for credentials in await self.children.credentials():
            await self._run("object-del", {"id": credentials})

    async def quit(self) -> None:
        """Asks the daemon to drain, flush and end. It may still run on return: `process.wait_gone` tells."""
        try:
            await self._run("quit")
        except DaemonGoneError:
            # It may end before it has answered.
            return

    # -- the volume

    async def export_volume(self) -> None:
        """The writable export that guests use. Idempotent."""
        if graph.VOLUME not in await self._export_ids():
            await self._run("block-export-add", graph.volume_export(self._spec.copies))

    async def withdraw_volume(self, *, force: bool) -> None:
        """Ends the volume's export and waits until it is gone. Idempotent.

        RefusedError while a client is connected, unless `force` cuts it off.
        """
        try:
            await delete_export(self.monitor, graph.VOLUME, force=force, timeout_s=self._timeout_s)
        except CommandError as error:
            if "in use" not in error.description:
                raise
            raise RefusedError(
                f"A guest is connected to the volume of {self._spec.name}.",
                remedy="Shut it down or detach the disk first; --force cuts it off.",
                set_name=self._spec.name,
            ) from None
        await wait_exports_gone(self.monitor, [graph.VOLUME], timeout_s=self._timeout_s)

    # -- write watches (see watches.py)

    async def open_watch(self, name: str, *, drain: bool) -> None:
        """Begins to record writes. With `drain`, every earlier write has reached all copies on return.

        `name` begins with WATCH_PREFIX and is fresh.
        """
        await self._watches.open(name, drain=drain)

    async def freeze(self, names: Sequence[str]) -> None:
        """Drains and ends the records at one instant; on return each write that was in flight is marked."""
        await self._watches.freeze(names)

    async def publish(self, name: str) -> str:
        """Exports a frozen watch, read-only, under its own name; returns the NBD meta context that holds it."""
        return await self._watches.publish(name)

    async def forget(self, names: Sequence[str]) -> None:
        """Drops watches, exported or not, frozen or not, and their clients. Idempotent."""
        await self._watches.forget(names)

    async def sweep(self) -> frozenset[str]:
        """Forgets every watch that a crashed command left behind, and ends the exports of a crashed rejoin. Returns the
        watches' names. Records of what copies miss stay."""
        left = await self._watches.present()
        await self._watches.forget(sorted(left))
        await self.children.end_exports()
        await self.missed.sweep_exports()
        return left

    async def kick(self) -> None:
        """An empty transaction: drains, and so lets a fenced read through that overlapping writes have starved."""
        await self._watches.kick()

    # -- looking

    async def describe(self) -> GraphState:
        """What stands. Sends no command that drains: it answers while guests work, and as long as the daemon can."""
        nodes = await self._nodes()
        exports = await self._export_ids()
        with understood("query-named-block-nodes"):
            settings = _settings(next((node for node in nodes if node["node-name"] == graph.QUORUM), None))
            watches = [name for name in [*bitmaps_of(nodes), *exports] if name.startswith(WATCH_PREFIX)]
        keys = tuple(children_of(await self._run("x-debug-query-block-graph")))
        number = Counter(graph.copy_of_key(key) for key in keys if key not in self.newcomers)
        rewriting, threshold = settings.get("rewrite-corrupted"), settings.get("vote-threshold")
        return GraphState(
            copies=tuple(number),
            nodes=frozenset(node["node-name"] for node in nodes),
            exports=frozenset(exports),
            watches=frozenset(watches),
            rewriting=None if rewriting is None else bool(rewriting),
            threshold=None if threshold is None else int(threshold),
            missed=tuple(records_of(nodes)),
            further=tuple(key for key in keys if key in self.newcomers),
            doubled=tuple(copy for copy, images in number.items() if images > 1),
        )

    # -- details

    async def _lengths(self) -> dict[str, int]:
        nodes, tops = await self._nodes(), {graph.copy_node(name): name for name in self._spec.copy_names}
        with understood("query-named-block-nodes"):
            lengths = {node["node-name"]: node["image"]["virtual-size"] for node in nodes}
            if not all(type(length) is int for length in lengths.values()):
                raise TypeError("no length")
        return {name: lengths[top] for top, name in tops.items() if top in lengths}

    async def _nodes(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = await self._run("query-named-block-nodes", {"flat": True})
        names("query-named-block-nodes", nodes, "node-name")
        return nodes

    async def _export_ids(self) -> list[str]:
        return await export_ids(self.monitor, timeout_s=self._timeout_s)

    async def _run(self, command: str, arguments: graph.QmpArguments | None = None) -> Any:
        return await self.monitor.execute(command, arguments, timeout_s=self._timeout_s)


def _settings(quorum: dict[str, Any] | None) -> dict[str, Any]:
    """What the quorum node was opened with. QEMU tells it only in the node's `json:` file name, cut at 4 KiB."""
    if quorum is None:
        return {}
    return {key: json.loads(value) for key, value in _SETTING.findall(quorum["file"])}
