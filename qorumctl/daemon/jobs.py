"""Mirror jobs: QEMU copies what one node holds to another, sparse where it is zero, and is asked how far it is.

Facts this rests on (qemu-storage-daemon 7.2 and 10.0): a mirror that is READY and cancelled without force ends as
completed, and its target is a copy of that moment (`job-complete` would put the target in the source's place);
`job-cancel` always forces; a failed job stays listed until it is dismissed. Zeros only become holes where the target's
nodes have `discard=unmap`.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from qorumctl.daemon.client import Monitor
from qorumctl.daemon.replies import understood
from qorumctl.errors import CommandError, QorumError

JOB_PREFIX = "qorum-mirror-"
POLL_S = 0.05
_GONE_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class JobState:
    """`ready`: source and target are alike, but for what is being written. `ended`: it is over; `failure` says why, in
    QEMU's words, None where it went well."""

    ready: bool
    ended: bool
    done: int
    total: int
    failure: str | None

    @property
    def fraction(self) -> float:
        return 1.0 if self.ready or self.ended else self.done / max(1, self.total)


async def begin(monitor: Monitor, name: str, source: str, target: str, *, timeout_s: float) -> None:
    """Begins to copy all of `source` to `target`, both nodes. CommandError where QEMU refuses."""
    arguments = {
        "job-id": JOB_PREFIX + name,
        "device": source,
        "target": target,
        "sync": "full",
        "auto-dismiss": False,
        "on-source-error": "report",
        "on-target-error": "report",
    }
    await monitor.execute("blockdev-mirror", arguments, timeout_s=timeout_s)


async def look(monitor: Monitor, *, timeout_s: float) -> dict[str, JobState]:
    """Name -> state, of all that are listed."""
    jobs: list[dict[str, Any]] = await monitor.execute("query-jobs", timeout_s=timeout_s)
    with understood("query-jobs"):
        return {
            str(job["id"]).removeprefix(JOB_PREFIX): JobState(
                ready=job["status"] == "ready",
                ended=job["status"] in {"concluded", "null"},
                done=int(job["current-progress"]),
                total=int(job["total-progress"]),
                failure=str(job["error"]) if "error" in job else None,
            )
            for job in jobs
            if str(job["id"]).startswith(JOB_PREFIX)
        }


async def finish(monitor: Monitor, name: str, *, timeout_s: float) -> str | None:
    """Ends a READY one in order: its target is then a copy of this moment. Returns why that failed, or None."""
    await monitor.execute("block-job-cancel", {"device": JOB_PREFIX + name}, timeout_s=timeout_s)
    return await _dismiss(monitor, name, timeout_s=timeout_s)


async def drop_all(monitor: Monitor, *, timeout_s: float) -> list[str]:
    """Breaks off and forgets every one; idempotent. Returns their names."""
    names = sorted(await look(monitor, timeout_s=timeout_s))
    for name in names:
        # It may have ended by itself.
        with contextlib.suppress(CommandError):
            await monitor.execute("job-cancel", {"id": JOB_PREFIX + name}, timeout_s=timeout_s)
        await _dismiss(monitor, name, timeout_s=timeout_s)
    return names


async def _dismiss(monitor: Monitor, name: str, *, timeout_s: float) -> str | None:
    """Waits for its end, which costs what is in flight, and takes it off the list. Returns its failure."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                state = (await look(monitor, timeout_s=timeout_s)).get(name)
                if state is None:
                    return None
                if state.ended:
                    try:
                        await monitor.execute("job-dismiss", {"id": JOB_PREFIX + name}, timeout_s=timeout_s)
                    except CommandError:
                        # Still aborting.
                        await asyncio.sleep(_GONE_POLL_S)
                        continue
                    return state.failure
                await asyncio.sleep(_GONE_POLL_S)
    except TimeoutError:
        raise QorumError(
            f"A copy job did not end within {timeout_s:g} s: a request of it does not complete.",
            remedy="Look at the storage that it reads and writes; or repeat it when guests write less.",
        ) from None
