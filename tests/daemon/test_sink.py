"""The daemon that writes an export's file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from qorumctl.daemon import process, sink
from qorumctl.daemon.sink import SinkPaths


async def test_one_that_does_not_listen_yet_is_ended_too(tmp_path: Path) -> None:
    """Whoever started it was killed a moment later; nobody would ever find it."""
    paths = SinkPaths(tmp_path)
    program = "import signal; signal.pause()"
    begun = subprocess.Popen([sys.executable, "-c", program, "--pidfile", str(paths.pidfile)])
    try:
        assert process.find_pid(paths) is None
        await sink.end(paths)
        assert begun.wait(timeout=60) == -signal.SIGKILL
    finally:
        begun.kill()
        begun.wait()
