"""What the daemon's events say about copies. Pure.

Facts this rests on (block/quorum.c, monitor/monitor.c): QUORUM_REPORT_BAD names the child's node, carries `error` only
for an I/O error (else the copy was outvoted), counts in sectors of 512 bytes, and reports a flush as 0, 0.
QUORUM_FAILURE says that a request failed because fewer than the threshold agreed. Both are throttled to one a second
(for each node, and in all): of what comes within it only the last is told, late.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qorumctl.core.ranges import SECTOR_BYTES
from qorumctl.daemon.graph import COPY_PREFIX, FILE_SUFFIX

EVENTS = ("QUORUM_REPORT_BAD", "QUORUM_FAILURE", "BLOCK_IO_ERROR", "BLOCK_IMAGE_CORRUPTED")
THROTTLE_S = 1.0
_MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class CopyEvent:
    """`kind`: the daemon's name of it. `operation`: `read`, `write` or `flush` where it says so. `error`: the system's
    words, None where the copy was only outvoted. `offset`, `length` in bytes: the whole request, not the damage."""

    time: str
    kind: str
    copy: str | None
    operation: str | None
    offset: int | None
    length: int | None
    error: str | None

    @property
    def missed_write(self) -> bool:
        """The copy does not hold what was written, or has not stored it, while the guest was told that all is well."""
        return self.copy is not None and self.error is not None and self.operation in {"write", "flush"}

    @property
    def sentence(self) -> str:
        who = f"copy {self.copy}" if self.copy else "the set"
        what = self.operation or "I/O"
        where = "" if self.offset is None or not self.length else f" at offset {self.offset} ({self.length} bytes)"
        match self.kind:
            case "QUORUM_REPORT_BAD" if self.error is None:
                return f"{who}: outvoted in a {what}{where}"
            case "QUORUM_FAILURE":
                return f"{who}: no majority{where}; the request failed"
            case "BLOCK_IMAGE_CORRUPTED":
                return f"{who}: {self.error or 'the image is corrupt'}"
            case _:
                return f"{who}: a {what} failed{where}: {self.error or 'I/O error'}"


def parse(event: Mapping[str, Any]) -> CopyEvent:
    """An event of EVENTS. What is missing or odd in it is left out: another version may say less."""
    data = event.get("data")
    data = data if isinstance(data, Mapping) else {}
    kind = str(event.get("event", ""))
    operation = data.get("type", data.get("operation"))
    error = data.get("error", data.get("reason", data.get("msg")))
    offset, length = _bytes(data.get("sector-num")), _bytes(data.get("sectors-count"))
    if kind == "BLOCK_IMAGE_CORRUPTED":
        offset, length = _whole(data.get("offset")), _whole(data.get("size"))
    return CopyEvent(
        time=_time(event.get("timestamp")),
        kind=kind,
        copy=_copy(data.get("node-name")),
        operation=operation if isinstance(operation, str) else None,
        offset=offset,
        length=length,
        error=error if isinstance(error, str) else None,
    )


def _copy(node: object) -> str | None:
    if not isinstance(node, str) or not node.startswith(COPY_PREFIX):
        return None
    return node.removeprefix(COPY_PREFIX).removesuffix(FILE_SUFFIX) or None


def _bytes(sectors: object) -> int | None:
    count = _whole(sectors)
    return None if count is None else count * SECTOR_BYTES


def _whole(number: object) -> int | None:
    return number if type(number) is int and 0 <= number < _MOST else None


def _time(stamp: object) -> str:
    """RFC 3339 of QEMU's seconds and microseconds (-1 where the host could not tell)."""
    moment = datetime.now(UTC)
    if isinstance(stamp, Mapping) and (seconds := _whole(stamp.get("seconds"))) is not None:
        # A time that no calendar holds is no time.
        with contextlib.suppress(ValueError, OverflowError, OSError):
            moment = datetime.fromtimestamp(seconds + (_whole(stamp.get("microseconds")) or 0) / 1e6, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
