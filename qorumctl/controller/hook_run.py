"""Runs one hook, once: without a shell, in a session and an environment of its own, for a limited time.

Nothing that it does holds us up. Its input is a file in memory, which it need not read. Its output is read as it comes,
and only the end of it kept. Its end is that of its process, not of its output, which a daemon that it has left behind
may keep open. Then, and at its limit, its whole process group is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from qorumctl import hook_files
from qorumctl.files import reason
from qorumctl.hook_files import UnsafeError

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOST_OUTPUT_BYTES = 2000
_READ_BYTES = 65536
_DIES_S = 5.0
"""After a SIGKILL. A process that waits for dead storage dies when that comes back."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`reason` None: it worked. `output`: the end of what it printed. `gone`: it was removed, which is no failure;
    `stopped`: neither is that we were asked to end."""

    reason: str | None = None
    output: str = ""
    took_s: float = 0.0
    gone: bool = False
    stopped: bool = False


class Stopping:
    """SIGTERM, as a descriptor that can be waited for. As an exception it can be lost: Python drops those that are
    raised in its own callbacks after a fork (seen: a delivery that did not end)."""

    def __init__(self) -> None:
        self.fd, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGTERM, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(self._write_end)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGTERM, self._handler)
        os.close(self.fd)
        os.close(self._write_end)

    def asked(self, *, within_s: float = 0.0) -> bool:
        """Waits so long for it."""
        return bool(select.select([self.fd], [], [], within_s)[0])


def run(
    path: Path, document: bytes, *, set_name: str, event: str, limit_s: float, stopping: Stopping | None = None
) -> Outcome:
    """To be called in the main thread: with its end, in whatever way, the hook is killed. Never raises for what a hook
    does."""
    begun_s = time.monotonic()
    output = bytearray()
    variables = {"QORUM_SET": set_name, "QORUM_EVENT": event}
    try:
        hook_files.check(path)
        why = _run(path, document, variables, _Limit(begun_s + limit_s, limit_s, stopping), output)
    except UnsafeError as error:
        why = error.message.removesuffix(".")
    except OSError as error:
        if not os.path.lexists(path):
            return Outcome(gone=True)
        # ENOENT: there is one, but not what its first line names.
        missing = isinstance(error, FileNotFoundError)
        why = "its interpreter does not exist" if missing else f"it cannot be run: {reason(error)}"
    if stopping is not None and stopping.asked():
        return Outcome(stopped=True)
    return Outcome(why, output.decode(errors="replace").replace("\0", ""), time.monotonic() - begun_s)


@dataclass(frozen=True, slots=True)
class _Limit:
    ends_at_s: float
    limit_s: float
    stopping: Stopping | None


def _run(path: Path, document: bytes, variables: Mapping[str, str], limit: _Limit, output: bytearray) -> str | None:
    """What went wrong, in words."""
    stdin = os.memfd_create("event", os.MFD_CLOEXEC)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            os.write(stdin, document)
            os.lseek(stdin, 0, os.SEEK_SET)
            parent = os.getpid()
            hook = subprocess.Popen(
                [str(path)],
                stdin=stdin,
                stdout=write_end,
                stderr=write_end,
                cwd="/",
                env={"PATH": _PATH, "LANG": "C.UTF-8", **variables},
                umask=0o077,
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509 - there is one thread
            )
        finally:
            os.close(write_end)
            os.close(stdin)
        os.set_blocking(read_end, False)
        try:
            ended = _watch(hook.pid, read_end, output, limit)
        finally:
            # While the leader is not reaped, no other group can have its number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(hook.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            hook.wait(_DIES_S)
    finally:
        os.close(read_end)
    if not ended:
        return f"it took more than {limit.limit_s:g} s and was killed"
    return _words(hook.returncode)


def _watch(pid: int, read_end: int, output: bytearray, limit: _Limit) -> bool:
    """Whether it ended by itself. `output` gets the end of what it printed."""
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(read_end, select.POLLIN)
        if limit.stopping is not None:
            poll.register(limit.stopping.fd, select.POLLIN)
        while (left_s := limit.ends_at_s - time.monotonic()) > 0:
            ready = dict(poll.poll(left_s * 1000))
            if read_end in ready and not _take(read_end, output):
                poll.unregister(read_end)
            if handle in ready:
                # What is still in the pipe; a daemon that goes on printing must not keep us.
                _take(read_end, output)
                return True
            if limit.stopping is not None and limit.stopping.fd in ready:
                break
        return False
    finally:
        os.close(handle)


def _take(read_end: int, output: bytearray) -> bool:
    """False at the end of the output."""
    try:
        piece = os.read(read_end, _READ_BYTES)
    except BlockingIOError:
        return True
    output += piece
    del output[:-_MOST_OUTPUT_BYTES]
    return bool(piece)


def _words(code: int | None) -> str | None:
    if code is None:
        return "it does not die"
    if code < 0:
        # Those for real-time have numbers alone.
        known = -code in set(signal.Signals)
        return f"it was ended by {signal.Signals(-code).name if known else f'signal {-code}'}"
    return None if code == 0 else f"it ended with exit code {code}"


def _die_with(parent: int) -> None:
    """In the new process. A killed deliverer must not leave a hook behind that nobody limits."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
