"""Logs that nobody rotates: kept short by whoever is there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from qorumctl.files import open_private
from qorumctl.units import MIB

MOST_BYTES = 4 * MIB
_KEPT_BYTES = MIB


def trim(path: Path) -> None:
    """Cuts a log above MOST_BYTES to its tail. Best effort, never raises.

    Its writers must have opened it O_APPEND: they go on at its new end. What they write in the microseconds between
    the two steps is lost or stands before the tail.
    """
    with contextlib.suppress(OSError):
        fd = open_private(path, os.O_RDWR | os.O_APPEND)
        try:
            size = os.fstat(fd).st_size
            if size > MOST_BYTES:
                tail = os.pread(fd, _KEPT_BYTES, size - _KEPT_BYTES)
                os.ftruncate(fd, 0)
                os.write(fd, b"[earlier lines were dropped]\n" + tail[tail.find(b"\n") + 1 :])
        finally:
            os.close(fd)
