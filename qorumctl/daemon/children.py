"""Single copies of a running set: open and close their nodes, take them out of the quorum and bring them back.

Facts this rests on (qemu-storage-daemon 7.2 and 10.0): QEMU's names of a quorum's children are not stable, so a child
is looked up by its node each time; a node can only become a child while no export of it stands; both ways drain first,
and a child is refused to leave when fewer than the threshold would remain. `x-` marks commands that QEMU calls
unstable.

A copy is named as in the definition, wherever its node is (see graph.py), and never is a newcomer meant by that; an
image that is to take a copy's place is named by its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any
from uuid import uuid4

from qorumctl.daemon import copy_errors, graph
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.exports import delete_export, export_ids, wait_exports_gone
from qorumctl.daemon.replies import names, understood
from qorumctl.errors import CommandError, DaemonStalledError, RefusedError
from qorumctl.model.spec import CopySpec, SetSpec
from qorumctl.units import format_exact_size

RESYNC_PREFIX = "resync-"
"""Of the writable exports through which a copy outside the quorum is brought up to date."""


class Children:
    """The copies of one set, one at a time. Errors as QuorumSet."""

    def __init__(self, spec: SetSpec, monitor: Monitor, newcomers: Set[str], *, timeout_s: float) -> None:
        self._spec = spec
        self._monitor = monitor
        self._newcomers = newcomers
        self._timeout_s = timeout_s

    # -- nodes

    async def open(
        self, copy: CopySpec, *, read_only: bool, exported: bool = True, more: graph.QmpArguments | None = None
    ) -> None:
        """Opens a copy's nodes, exported read-only as `copy-NAME` unless not `exported`. With `read_only` False an
        image that another process uses is refused. `more`: options for its upper node, and `discard` for both. Raises
        CopyError; what was opened stays."""
        more = more or {}
        discard = {"discard": more["discard"]} if "discard" in more else {}
        try:
            if (credentials := graph.tls_object(copy)) is not None:
                await self._run("object-add", credentials)
            await self._run("blockdev-add", graph.protocol_node(copy, read_only=read_only) | discard)
            await self._run("blockdev-add", graph.format_node(copy, read_only=read_only) | more)
            if not read_only:
                await self._claim(copy)
        except CommandError as error:
            raise copy_errors.explain(copy, error) from None
        except DaemonStalledError:
            raise copy_errors.silent(copy, self._timeout_s) from None
        if exported:
            await self.export(copy.name)

    async def close(self, name: str) -> bool:
        """Ends all exports of a copy that is no child, and closes its nodes, also half made ones. Idempotent; tells
        whether nodes were open."""
        await self.end_exports(name)
        nodes = await self._nodes()
        keys = self.keys_of(name, nodes) or [name]
        wanted = [graph.CLAIM, *(node for key in keys for node in (graph.copy_node(key), graph.file_node(key)))]
        present = [node for node in wanted if node in nodes]
        for node in present:
            await self._run("blockdev-del", {"node-name": node})
        credentials = await self.credentials()
        for key in keys:
            if graph.tls_id(key) in credentials:
                await self._run("object-del", {"id": graph.tls_id(key)})
        return bool(present)

    async def check_length(self, copy: CopySpec) -> None:
        """RefusedError where an open copy has not the set's length: QEMU aborts at a read past the end of a shorter
        child."""
        check_length(self._spec, copy, await self.length(copy.name))

    async def length(self, name: str) -> int | None:
        """Bytes of an open copy, a multiple of 512; None where it is not open."""
        node = (await self._nodes()).get(graph.copy_node(await self.key(name)))
        with understood("query-named-block-nodes"):
            length = None if node is None else node["image"]["virtual-size"]
            if node is not None and type(length) is not int:
                raise TypeError("no length")
        return length

    async def credentials(self) -> list[str]:
        try:
            objects: list[dict[str, Any]] = await self._run("qom-list", {"path": "/objects"})
        except CommandError as error:
            # 7.2 makes /objects with the first object-add.
            if "not found" not in error.description:
                raise
            return []
        return [name for name in names("qom-list", objects, "name") if name.startswith(graph.TLS_PREFIX)]

    # -- where a copy is

    def keys_of(self, name: str, nodes: Iterable[str]) -> list[str]:
        """Keys of a copy of which any node is open, or of a newcomer itself, by number."""
        if "." in name:
            return [name]
        keys = {key for node in nodes if (key := graph.key_of_any_node(node)) is not None}
        mine = [key for key in keys if graph.copy_of_key(key) == name and key not in self._newcomers]
        return sorted(mine, key=graph.key_number)

    async def key(self, name: str) -> str:
        """Where the copy's nodes are: `c`, or `c.2` where another image has taken its place since the start."""
        keys = self.keys_of(name, await self._nodes())
        if len(keys) < 2:
            return keys[0] if keys else name
        # Two, for the moment in which the one takes the other's place.
        exports = await self._run("query-block-exports")
        with understood("query-block-exports"):
            behind = {export["node-name"] for export in exports if export["id"] == graph.copy_node(name)}
        present = children_of(await self._run("x-debug-query-block-graph"))
        ranked = sorted(keys, key=lambda key: (graph.copy_node(key) not in behind, key not in present))
        return ranked[0]

    # -- exports

    async def export(self, name: str) -> None:
        """The read-only export through which a copy is compared. Idempotent."""
        if graph.copy_node(name) not in await export_ids(self._monitor, timeout_s=self._timeout_s):
            node = graph.copy_node(await self.key(name))
            await self._run("block-export-add", graph.export(graph.copy_node(name), node))

    async def export_for_resync(self, name: str) -> str:
        """A writable export of a copy that is no child of the quorum; returns its name, which nobody can guess."""
        export = f"{RESYNC_PREFIX}{name}-{uuid4().hex}"
        node = graph.copy_node(await self.key(name))
        await self._run("block-export-add", graph.export(export, node, writable=True))
        return export

    async def end_exports(self, name: str | None = None) -> None:
        """All exports of a copy; of none: those that a crashed rejoin left writable."""
        present = await export_ids(self._monitor, timeout_s=self._timeout_s)
        resync = RESYNC_PREFIX if name is None else f"{RESYNC_PREFIX}{name}-"
        wanted = [e for e in present if e.startswith(resync) or (name is not None and e == graph.copy_node(name))]
        for export in wanted:
            await delete_export(self._monitor, export, force=True, timeout_s=self._timeout_s)
        if wanted:
            await wait_exports_gone(self._monitor, wanted, timeout_s=self._timeout_s)

    # -- the quorum

    async def take_out(self, name: str) -> None:
        """Ends the copy's exports and removes it from the quorum; its nodes stay open. Drains. Idempotent."""
        key = await self.key(name)
        await self.end_exports(name)
        await self._leave(key)

    async def bring_in(self, copy: CopySpec) -> None:
        """Makes an open copy a child of the quorum. Drains: every write that is acknowledged from here on is in it."""
        await self.end_exports(copy.name)
        await self.check_length(copy)
        node = graph.copy_node(await self.key(copy.name))
        await self._run("x-blockdev-change", {"parent": graph.QUORUM, "node": node})

    async def is_child(self, key: str) -> bool:
        return key in children_of(await self._run("x-debug-query-block-graph"))

    async def succeed(self, name: str, key: str) -> None:
        """The image `key`, a child, takes the place of the copy: whatever else the copy had leaves the quorum and is
        closed, and the copy's export is that of `key`. Drains. Idempotent."""
        exports = await self._run("query-block-exports")
        with understood("query-block-exports"):
            behind = [e["node-name"] for e in exports if e["id"] == graph.copy_node(name)]
        mine = graph.copy_node(key) in behind
        if not mine:
            await self.end_exports(name)
        await self.end_exports(key)
        nodes = await self._nodes()
        for old in (other for other in self.keys_of(name, nodes) if other != key):
            await self._leave(old)
            for node in (graph.copy_node(old), graph.file_node(old)):
                if node in nodes:
                    await self._run("blockdev-del", {"node-name": node})
            if graph.tls_id(old) in await self.credentials():
                await self._run("object-del", {"id": graph.tls_id(old)})
        if not mine:
            await self._run("block-export-add", graph.export(graph.copy_node(name), graph.copy_node(key)))

    # -- details

    async def _leave(self, key: str) -> None:
        child = children_of(await self._run("x-debug-query-block-graph")).get(key)
        if child is not None:
            await self._run("x-blockdev-change", {"parent": graph.QUORUM, "child": child})

    async def _claim(self, copy: CopySpec) -> None:
        """Takes, and gives back, the image lock that the quorum will take.

        A raw image is locked only when the quorum is added, and QEMU's error then does not say which child it means.
        A quorum of this one copy asks for the same rights; no I/O goes through it.
        """
        await self._run(
            "blockdev-add",
            {
                "driver": "quorum",
                "node-name": graph.CLAIM,
                "vote-threshold": 1,
                "rewrite-corrupted": True,
                "children": [graph.copy_node(copy.name)],
            },
        )
        await self._run("blockdev-del", {"node-name": graph.CLAIM})

    async def _nodes(self) -> dict[str, dict[str, Any]]:
        nodes = await self._run("query-named-block-nodes", {"flat": True})
        return dict(zip(names("query-named-block-nodes", nodes, "node-name"), nodes, strict=True))

    async def _run(self, command: str, arguments: graph.QmpArguments | None = None) -> Any:
        return await self._monitor.execute(command, arguments, timeout_s=self._timeout_s)


def check_length(spec: SetSpec, copy: CopySpec, length_bytes: int | None) -> None:
    """`length_bytes` None: it is not open. Raises RefusedError."""
    if length_bytes is None:
        raise RefusedError(
            f"Copy {copy.name} is not open.",
            remedy="Nothing was changed. Look at the daemon's log, then repeat the command.",
            copy=copy.name,
            path=copy.source.label,
        )
    if length_bytes != spec.size:
        raise RefusedError(
            f"Copy {copy.name} ({copy.source.label}) has {length_bytes} bytes, the set {spec.size} "
            f"({format_exact_size(spec.size)}).",
            remedy="Nothing was changed. Restore the copy's length, or correct the definition's size.",
            copy=copy.name,
            path=copy.source.label,
        )


def children_of(block_graph: Any) -> dict[str, str]:
    """Of an x-debug-query-block-graph: key of a copy or newcomer -> QEMU's name of it as a child of the quorum, in the
    children's order. Raises DaemonError."""
    with understood("x-debug-query-block-graph"):
        drivers = {node["id"]: node["name"] for node in block_graph["nodes"] if node["type"] == "block-driver"}
        edges = [edge for edge in block_graph["edges"] if drivers.get(edge["parent"]) == graph.QUORUM]
        edges.sort(key=lambda edge: int(edge["name"].rpartition(".")[2]))
        copies = ((graph.copy_of_node(drivers[edge["child"]]), edge["name"]) for edge in edges)
        return {name: child for name, child in copies if name is not None}
