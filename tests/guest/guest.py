"""A Linux guest in a virtual machine, with a volume for its disk, directed over a serial port."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tests.guest.image import KERNEL
from tests.live import wait_for

DEADLINE_S = 150.0
"""Without KVM, beside other tests, on a machine that is several times slower than the one this was written on."""
_STATUS = re.compile(r"\x1e(\w+)")


class GuestError(AssertionError):
    """The guest is gone, silent, or a command in it has failed; with the end of what its kernel said."""


class Guest:
    """One virtual machine, from power on to `kill`. Its disk is /dev/vda; `init` beside this file says what it knows.

    `disk`: words of a shell, as `qorumctl attach --as qemu` prints them. `log`: where the kernel's messages go.
    Ends with the thread that made it: the kernel kills it then, however that thread ends.
    """

    def __init__(self, initramfs: Path, disk: str, log: Path) -> None:
        self._log = log
        self.lines: list[str] = []
        """All that was heard, statuses apart: what jobs say in the background too."""
        self._statuses: list[str] = []
        words = [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", "256"),
            # Without random numbers from its processor Linux has none for minutes, and mke2fs waits 4 s for a UUID.
            *("-cpu", "qemu64,+rdrand"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", f"file:{log}"),
            *("-chardev", "stdio,id=commands,signal=off", "-serial", "chardev:commands"),
            # The kernel checks its timer by counting ticks, and panics where a loaded machine delivers too few (seen).
            *(
                "-kernel",
                str(KERNEL),
                "-initrd",
                str(initramfs),
                "-append",
                "console=ttyS0 quiet panic=-1 no_timer_check",
            ),
        ]
        # `disk` is pasted, as a user would do it.
        command = ["sh", "-c", f"exec {shlex.join(words)} {disk}"]
        with log.with_suffix(".err").open("wb") as complaints:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input = self._process.stdin
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,))
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _listen(self, output: IO[bytes]) -> None:
        for raw in output:
            line = raw.decode(errors="replace").strip("\r\n")
            status = _STATUS.search(line)
            if status is None:
                self.lines.append(line)
                continue
            if status.start():
                self.lines.append(line[: status.start()])
            self._statuses.append(status[1])

    def wait_ready(self) -> None:
        self._wait(lambda: self._statuses, "the guest's start")
        assert self._statuses.pop(0) == "ready"
        self.lines.clear()

    def run(self, command: str, *, deadline_s: float = DEADLINE_S) -> list[str]:
        """One line of shell; returns what the guest said meanwhile. A status other than 0 is an error."""
        first = len(self.lines)
        self._input.write(command.encode() + b"\n")
        self._input.flush()
        self._wait(lambda: self._statuses, f"the guest's answer to `{command}`", deadline_s=deadline_s)
        status, said = self._statuses.pop(0), self.lines[first:]
        if status != "0":
            raise GuestError(self._explain(f"`{command}` ended with {status}: {said}"))
        return said

    def wait_for(self, condition: Callable[[list[str]], object], what: str) -> None:
        """Until the condition holds of all the lines heard so far."""
        self._wait(lambda: condition(self.lines), what)

    def _wait(self, condition: Callable[[], object], what: str, *, deadline_s: float = DEADLINE_S) -> None:
        ends_at_s = time.monotonic() + deadline_s
        wait_for(
            lambda: condition() or not self._listener.is_alive() or time.monotonic() > ends_at_s,
            what,
            deadline_s=deadline_s + 60,
        )
        if not condition():
            reason = (
                "the virtual machine has ended" if not self._listener.is_alive() else f"not within {deadline_s:g} s"
            )
            raise GuestError(self._explain(f"{what}: {reason}"))

    def _explain(self, message: str) -> str:
        parts = [path.read_text(errors="replace")[-2000:] for path in (self._log, self._log.with_suffix(".err"))]
        return "\n".join([message, *filter(None, map(str.strip, parts))])

    def kill(self) -> None:
        """Power off. Afterwards `lines` holds all that the guest ever said."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        self._input.close()
