"""The sink: a daemon of its own that writes the file of an export, and serves it over NBD while it does.

Not the set's daemon: a drain there waits for whatever a job has begun to write, so a target that hangs would hold up
every guest. A sink can be killed at any time: the job then fails, and the guests notice nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.exports import delete_export, wait_exports_gone
from qorumctl.daemon.formatting import format_image
from qorumctl.daemon.graph import QmpArguments, export
from qorumctl.daemon.runtime import DaemonPaths, escaped

NODE = "sink"
TARGET = "export-target"
"""The node in the set's own daemon that leads to the sink."""
_FILE_NODE = "sink-file"
_TIMEOUT_S = 30.0
_ENDS_S = 5.0


@dataclass(frozen=True, slots=True)
class SinkPaths(DaemonPaths):
    """In the set's runtime directory."""

    @property
    def monitors(self) -> Mapping[str, Path]:
        return {"control": self.directory / "sink.qmp"}

    @property
    def server(self) -> Path:
        return self.directory / "sink.sock"

    @property
    def servers(self) -> list[str]:
        return ["--nbd-server", f"addr.type=unix,addr.path={escaped(self.server)},max-connections=0"]

    @property
    def pidfile(self) -> Path:
        return self.directory / "sink.pid"

    @property
    def log(self) -> Path:
        return self.directory / "sink.log"

    @property
    def stop_first(self) -> str:
        return "Wait for the export to end."


class Sink:
    """One that runs. `path`: /proc/PID/fd/N, so that it is this inode, whatever has since been put at its name."""

    def __init__(self, paths: SinkPaths, path: str, fmt: Literal["raw", "qcow2"], label: str) -> None:
        self.paths = paths
        self._path = path
        self._format = fmt
        self._label = label

    async def begin(self, size_bytes: int) -> None:
        """Starts it, formats the file, and exports it writable. Raises CopyError, DaemonError."""
        await process.spawn(self.paths)
        async with await Monitor.open(self.paths.control_sock, timeout_s=_TIMEOUT_S) as monitor:
            await format_image(monitor, self._path, self._format, size_bytes, label=self._label)
            await self._open(monitor, read_only=False)

    async def reopen(self) -> None:
        """Closes the file, which writes all that is kept in memory, and opens it read-only."""
        async with await Monitor.open(self.paths.control_sock, timeout_s=_TIMEOUT_S) as monitor:
            await delete_export(monitor, NODE, force=True, timeout_s=_TIMEOUT_S)
            await wait_exports_gone(monitor, [NODE], timeout_s=_TIMEOUT_S)
            for node in (NODE, _FILE_NODE):
                await monitor.execute("blockdev-del", {"node-name": node}, timeout_s=_TIMEOUT_S)
            await self._open(monitor, read_only=True)

    async def _open(self, monitor: Monitor, *, read_only: bool) -> None:
        shared: QmpArguments = {"read-only": read_only, "auto-read-only": False, "discard": "unmap"}
        file: QmpArguments = {"driver": "file", "node-name": _FILE_NODE, "filename": self._path}
        top: QmpArguments = {"driver": self._format, "node-name": NODE, "file": _FILE_NODE}
        if self._format == "qcow2":
            top["backing"] = None
        if not read_only:
            top["detect-zeroes"] = "unmap"
        for node in (file, top):
            await monitor.execute("blockdev-add", node | shared, timeout_s=_TIMEOUT_S)
        await monitor.execute("block-export-add", export(NODE, NODE, writable=not read_only), timeout_s=_TIMEOUT_S)


async def end(paths: SinkPaths, *, in_order: bool = False) -> None:
    """Ends the sink, also one that a killed command left. Idempotent. A killed one that is at a file which hangs ends
    when that answers: nobody waits for it."""
    pid = process.find_pid(paths)
    if pid is not None:
        if in_order:
            process.terminate(paths, pid)
            in_order = await process.wait_gone(paths, pid, deadline_s=_TIMEOUT_S)
        if not in_order:
            process.kill(paths, pid)
            await process.wait_gone(paths, pid, deadline_s=_ENDS_S)
    # One whose starter was killed a moment ago does not listen yet, and nobody would ever find it.
    for stray in process.processes(paths):
        if stray != pid and process.kill(paths, stray):
            await process.wait_gone(paths, stray, deadline_s=_ENDS_S)
    if paths.directory.is_dir() and process.find_pid(paths) is None:
        await asyncio.to_thread(process.clear_runtime, paths)


def target_node(paths: SinkPaths) -> QmpArguments:
    """`blockdev-add` in the set's own daemon. What is lost with the sink fails at once."""
    return {
        "driver": "nbd",
        "node-name": TARGET,
        "server": {"type": "unix", "path": str(paths.server)},
        "export": NODE,
        "reconnect-delay": 0,
        "discard": "unmap",
    }
