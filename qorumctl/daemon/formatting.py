"""Formatting a new image by the daemon, on exactly the inode that the caller created."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Literal

from qorumctl.daemon.client import Monitor
from qorumctl.daemon.replies import understood
from qorumctl.errors import CommandError, CopyError, DaemonStalledError, QorumError

_NODE = "qorum-format"
_JOB = "qorum-format"
_POLL_S = 0.01


async def format_image(
    monitor: Monitor,
    path_for_daemon: str,
    fmt: Literal["raw", "qcow2"],
    size_bytes: int,
    *,
    label: str | None = None,
    timeout_s: float = 60.0,
) -> None:
    """Writes an empty image of `fmt` into an existing, empty file. Raw needs nothing: its length is its size.

    `path_for_daemon`: pass /proc/PID/fd/N, which opens that inode whatever has since been put at its name. `label`:
    the image's name in errors. Raises CopyError; no node or job is left.
    """
    if fmt == "raw":
        return
    shown = label or path_for_daemon
    try:
        await monitor.execute(
            "blockdev-add",
            {"driver": "file", "node-name": _NODE, "filename": path_for_daemon, "auto-read-only": False},
            timeout_s=timeout_s,
        )
        try:
            await _create(monitor, size_bytes, shown, timeout_s)
        except BaseException:
            # A job that hangs keeps the node; what matters is why.
            with contextlib.suppress(QorumError):
                await monitor.execute("blockdev-del", {"node-name": _NODE}, timeout_s=timeout_s)
            raise
        await monitor.execute("blockdev-del", {"node-name": _NODE}, timeout_s=timeout_s)
    except CommandError as error:
        raise _failed(shown, error.description) from None


async def _create(monitor: Monitor, size_bytes: int, shown: str, timeout_s: float) -> None:
    options = {"driver": "qcow2", "file": _NODE, "size": size_bytes}
    await monitor.execute("blockdev-create", {"job-id": _JOB, "options": options}, timeout_s=timeout_s)
    ends_at_s = time.monotonic() + timeout_s
    while True:
        jobs: list[dict[str, Any]] = await monitor.execute("query-jobs", timeout_s=timeout_s)
        with understood("query-jobs"):
            (job,) = (job for job in jobs if job["id"] == _JOB)
            concluded, failure = job["status"] == "concluded", str(job["error"]) if "error" in job else None
        if concluded:
            break
        if time.monotonic() > ends_at_s:
            raise DaemonStalledError(
                f"Formatting {shown} took longer than {timeout_s:g} s.", remedy="Look at its storage.", path=shown
            )
        await asyncio.sleep(_POLL_S)
    # A failed job stays listed until it is dismissed, and its id could not be used again.
    await monitor.execute("job-dismiss", {"id": _JOB}, timeout_s=timeout_s)
    if failure is not None:
        raise _failed(shown, failure)


def _failed(shown: str, said: str) -> CopyError:
    return CopyError(f"{shown} could not be formatted: {said}.", remedy="Check its storage and free space.", path=shown)
