"""Root's commands on sets run with the rights of the service user (qorumctl/service_user.py), but only root may start
and stop units. So before it gives up its rights, the program leaves a child behind that keeps them: the porter, who
runs systemctl on units of sets when asked, and nothing else. It ends with the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

from qorumctl.controller.managed import UnitState
from qorumctl.errors import QorumError

_UNIT = re.compile(r"qorum-(storage|watch)@[a-z0-9][a-z0-9_-]{0,31}\.service")
_VERBS = {"start", "stop", "reset-failed", "show"}
_PROPERTIES = ("LoadState", "ActiveState")
_MOST_BYTES = 4096
_TIMEOUT_S = 90.0
"""For what should take no time. Starts and stops have deadlines of their own, in the units: a start may compare copies
for hours."""
_TELL_AFTER_S = 5.0


class Porter:
    """A controller.managed.Manager. One question at a time. `tell`: of a wait that takes long."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Forks: no thread may run yet."""
        self._tell = tell
        self._asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            try:
                self._asking.close()
                _serve(answering)
            finally:
                os._exit(0)
        answering.close()
        self._asking.setblocking(False)

    async def state(self, unit: str) -> UnitState:
        said = await self._ask("show", unit)
        found = dict(line.partition("=")[::2] for line in said.splitlines())
        return UnitState(*(found.get(name, "") for name in _PROPERTIES))

    async def start(self, unit: str) -> None:
        await self._ask("start", unit)

    async def stop(self, unit: str) -> None:
        await self._ask("stop", unit)

    async def forget_failures(self, unit: str) -> None:
        with contextlib.suppress(QorumError):
            await self._ask("reset-failed", unit)

    async def _ask(self, verb: str, unit: str) -> str:
        """What systemctl prints. Raises QorumError with its words."""
        loop = asyncio.get_running_loop()
        told = loop.call_later(_TELL_AFTER_S, self._tell, f"systemd is to {verb} {unit}: 'qorumctl status' tells more.")
        try:
            await loop.sock_sendall(self._asking, json.dumps([verb, unit]).encode())
            answer = await loop.sock_recv(self._asking, 4 * _MOST_BYTES)
            code, out, err = json.loads(answer)
        except (OSError, ValueError):
            code, out, err = 1, "", "the process that asks it has ended"
        finally:
            told.cancel()
        if code != 0:
            words = (err.strip().splitlines() or [f"exit code {code}"])[0].rstrip(".")
            raise QorumError(
                f"'systemctl {verb} {unit}' failed: {words}.",
                remedy=f"See 'systemctl status {unit}' and 'journalctl -u {unit}'.",
            )
        return str(out)


def _serve(answering: socket.socket) -> None:
    # Ctrl-C is for the program; it is heard of by the end of the connection.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        # Whoever reads from the program must not wait for what systemd still does after a Ctrl-C.
        os.dup2(nowhere, stream)
    while request := answering.recv(_MOST_BYTES):
        verb, unit = json.loads(request)
        answering.sendall(json.dumps(_systemctl(verb, unit)).encode())


def _systemctl(verb: str, unit: str) -> list[Any]:
    if verb not in _VERBS or _UNIT.fullmatch(unit) is None:
        return [1, "", "that is not for qorumctl to ask"]
    options = [f"--property={','.join(_PROPERTIES)}"] if verb == "show" else []
    try:
        done = subprocess.run(
            ["systemctl", "--no-ask-password", verb, *options, "--", unit],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            cwd="/",
            timeout=None if verb in {"start", "stop"} else _TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [1, "", f"no answer within {_TIMEOUT_S:g} s"]
    except OSError as error:
        return [1, "", error.strerror or str(error)]
    return [done.returncode, done.stdout[:_MOST_BYTES], done.stderr[:_MOST_BYTES]]
