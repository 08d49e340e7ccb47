"""Taking exports away, and waiting until they are really gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from qorumctl.daemon.client import Monitor
from qorumctl.daemon.replies import names
from qorumctl.errors import CommandError, DaemonStalledError

POLL_S = 0.005
"""Between two looks at something that the daemon finishes on its own, usually within a millisecond."""


async def export_ids(monitor: Monitor, *, timeout_s: float) -> list[str]:
    exports = await monitor.execute("query-block-exports", timeout_s=timeout_s)
    return names("query-block-exports", exports, "id")


async def delete_export(monitor: Monitor, export_id: str, *, force: bool, timeout_s: float) -> None:
    """`block-export-del`; an export that is not there is fine. CommandError when in use and not forced."""
    mode = "hard" if force else "safe"
    try:
        await monitor.execute("block-export-del", {"id": export_id, "mode": mode}, timeout_s=timeout_s)
    except CommandError as error:
        # "is already shutting down": deleted before, its last request is not answered yet.
        if "not found" not in error.description and "shutting down" not in error.description:
            raise


async def wait_exports_gone(monitor: Monitor, export_ids_gone: Iterable[str], *, timeout_s: float) -> None:
    """`block-export-del` only begins: an export goes with its last request. Until then its node has a parent."""
    wanted = set(export_ids_gone)
    ends_at_s = time.monotonic() + timeout_s
    while left := wanted.intersection(await export_ids(monitor, timeout_s=timeout_s)):
        if time.monotonic() > ends_at_s:
            raise DaemonStalledError(
                f"The export '{min(left)}' did not end within {timeout_s:g} s: a request on it does not complete.",
                remedy="Look at the storage of the set's copies.",
            )
        await asyncio.sleep(POLL_S)
