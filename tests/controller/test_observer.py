"""Steering: Ctrl-Z takes hold where the engine says that nothing of its own is outstanding, and not a moment later."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

_TIMES = 200
_STOPPER = f"""
import os, threading
from qorumctl.controller.observer import ScrubControl

def engine():
    for _ in range({_TIMES}):
        ScrubControl().stop_here()
        os.write(1, b"x")
    os._exit(0)

threading.Thread(target=engine).start()
while True:
    sum(range(10000))
"""


def test_a_thread_that_stops_the_process_does_nothing_more_before_it_is_stopped() -> None:
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", _STOPPER], stdout=subprocess.PIPE, cwd=root) as stopper:
        assert stopper.stdout is not None
        early = 0
        try:
            while os.WIFSTOPPED(os.waitpid(stopper.pid, os.WUNTRACED)[1]):
                early += bool(select.select([stopper.stdout], [], [], 0)[0])
                stopper.send_signal(signal.SIGCONT)
                os.read(stopper.stdout.fileno(), 1)
            stopper.returncode = 0
        finally:
            if stopper.returncode is None:
                stopper.kill()
    assert early == 0
