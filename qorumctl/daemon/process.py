"""The daemon as a process: start it detached, find it again, end it, clear what it left behind.

Facts this rests on: `--pidfile` is written last, so its presence means ready; SIGTERM drains first, so a hung copy
holds it up; after SIGKILL sockets and pidfile stay; QEMU unlinks a socket's path before it binds, so a second daemon
would steal a living one's sockets: never spawn without looking for the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qorumctl.daemon.client import Monitor
from qorumctl.daemon.runtime import DaemonPaths, escaped
from qorumctl.errors import DaemonError, DaemonStartError, RefusedError
from qorumctl.files import open_private, read_bounded, reason

_POLL_S = 0.02
_LOG_TAIL_BYTES = 8192
_MOST_PIDFILE_BYTES = 64
_DEFAULT_BINARY = "qemu-storage-daemon"
TUNING = {"MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
"""For every daemon that is started: a set's (by hand, or by its unit, whose ExecStart= is `qorumctl start`), a reader,
a front. What the environment says of the two is overruled.

glibc otherwise maps memory for each buffer of 128 KiB and more, unmaps it after the request, and so faults in fresh
pages every time, until it has raised its own threshold far enough, some GiB later. Measured in fresh daemons side by
side (`make bench`, QEMU 7.2, two busy cores, medians of three): QEMU's vote on 512 MiB took 1.5 s of processor time and
6.6 s in all, and with these 0.35 and 1.2; `nbdcopy`, whose requests are smaller, 0.71 and 0.68 s.
Requests are at most 32 MiB, which 64 MiB keep on the heap; 256 MiB of free heap are kept rather than given back.
"""
_INSTALL = "Install qemu-system-common (Debian 12) or qemu-utils (from QEMU 10 on), or name the program in QORUM_QSD."


def find_binary() -> str:
    """The daemon's absolute path: QORUM_QSD, else `qemu-storage-daemon` on PATH.

    DaemonStartError says what to install.
    """
    wanted = os.environ.get("QORUM_QSD")
    found = shutil.which(wanted or _DEFAULT_BINARY)
    if found is None and wanted:
        raise DaemonStartError(
            f"QORUM_QSD names {wanted}, which is not a program that can be run.",
            remedy="Correct or unset QORUM_QSD.",
            path=wanted,
        )
    if found is None:
        raise DaemonStartError(f"{_DEFAULT_BINARY} is not installed, or not on PATH.", remedy=_INSTALL)
    return str(Path(found).absolute())


async def spawn(paths: DaemonPaths, arguments: Sequence[str] = (), *, deadline_s: float = 20.0) -> int:
    """Starts the daemon detached and waits until it answers QMP; returns its pid. `arguments`: beside its monitors.

    Raises RefusedError (path too long, or one is running already) and DaemonStartError; then no process, socket or
    pidfile is left. The log stays: it says why.
    """
    paths.check()
    binary = find_binary()
    clear_runtime(paths)
    process, log_start = _launch([binary, *_arguments(paths, arguments)], paths)
    try:
        await _until_ready(process, paths, log_start, deadline_s)
    except BaseException:
        process.kill()
        await asyncio.shield(asyncio.to_thread(process.wait))
        clear_runtime(paths)
        raise
    # A caller that lives on must reap it: an unreaped daemon stays a zombie when it ends.
    threading.Thread(target=process.wait, name=f"reap-qsd-{process.pid}", daemon=True).start()
    return process.pid


def running_pid(paths: DaemonPaths) -> int | None:
    """The pid of the daemon that serves these paths, or None. A stale pidfile, or a pid that now belongs to another
    process, is None: the process must be alive and name our pidfile on its command line."""
    try:
        content, _ = read_bounded(paths.pidfile, _MOST_PIDFILE_BYTES, follow=False)
        pid = int(content)
    except (OSError, ValueError):
        return None
    return pid if pid > 0 and _is_ours(paths, pid) else None


def find_pid(paths: DaemonPaths) -> int | None:
    """As `running_pid`; a daemon that has lost its pidfile, or has not written it yet, is found by its socket."""
    return running_pid(paths) or _listener(paths)


def processes(paths: DaemonPaths) -> list[int]:
    """Every living daemon that was started for these paths, also one that does not listen yet, or no longer where
    anybody could reach it. Reads all of /proc: some milliseconds."""
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in found if _is_ours(paths, pid)]


async def wait_gone(paths: DaemonPaths, pid: int, *, deadline_s: float) -> bool:
    """Waits until our daemon `pid` has ended. False when it still runs at the deadline."""
    with _pidfd(paths, pid) as process:
        if process is None:
            return True
        poller = select.poll()
        poller.register(process, select.POLLIN)
        ends_at_s = time.monotonic() + deadline_s
        while not poller.poll(0):
            if time.monotonic() >= ends_at_s:
                return False
            await asyncio.sleep(_POLL_S)
        return True


@contextlib.contextmanager
def handle_on(pid: int, is_the_one: Callable[[], bool]) -> Iterator[int | None]:
    """A pidfd that pid reuse cannot redirect; None when `pid` is gone, or not the one that is meant."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Asked after opening: what the handle means can no longer change.
        yield handle if is_the_one() else None
    finally:
        os.close(handle)


def terminate(paths: DaemonPaths, pid: int) -> bool:
    """SIGTERM: the daemon drains and flushes, then ends. False when `pid` is not our daemon any more."""
    return _signal(paths, pid, signal.SIGTERM)


def kill(paths: DaemonPaths, pid: int) -> bool:
    """SIGKILL. False when `pid` is not our daemon any more."""
    return _signal(paths, pid, signal.SIGKILL)


def clear_runtime(paths: DaemonPaths) -> None:
    """Removes the sockets and the pidfile of a dead daemon. RefusedError when one lives."""
    # A pidfile can be lost. Clearing, or starting another daemon, would then cut off one that guests use.
    if (pid := find_pid(paths)) is not None:
        raise RefusedError(
            f"A daemon (pid {pid}) already serves {paths.directory}.",
            remedy=paths.stop_first,
            path=str(paths.directory),
        )
    for path in (*paths.sockets, *paths.transient, paths.pidfile):
        try:
            mode = path.lstat().st_mode
            if not stat.S_ISSOCK(mode) and path != paths.pidfile:
                raise RefusedError(
                    f"{path} stands where a socket belongs and is not one.", remedy="Move it away.", path=str(path)
                )
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DaemonError(
                f"{path} cannot be removed: {reason(error)}.", remedy="Move it away.", path=str(path)
            ) from None


def _launch(command: list[str], paths: DaemonPaths) -> tuple[subprocess.Popen[bytes], int]:
    """Returns the process and where its part of the log begins."""
    try:
        log = open_private(paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            log_start = os.fstat(log).st_size
            process = subprocess.Popen(
                command,
                env={**os.environ, **TUNING},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                umask=0o077,
                start_new_session=True,
                close_fds=True,
            )
        finally:
            os.close(log)
    except OSError as error:
        raise DaemonStartError(
            f"{command[0]} cannot be started: {reason(error)}{f' ({error.filename})' if error.filename else ''}.",
            remedy=f"Check that {paths.directory} exists and is yours.",
            path=str(paths.directory),
        ) from None
    return process, log_start


def _arguments(paths: DaemonPaths, more: Sequence[str]) -> list[str]:
    arguments: list[str] = []
    for name, path in paths.monitors.items():
        arguments += ["--chardev", f"socket,id={name},path={escaped(path)},server=on,wait=off"]
        arguments += ["--monitor", f"chardev={name}"]
    return [*arguments, *paths.servers, *more, "--pidfile", str(paths.pidfile)]


async def _until_ready(process: subprocess.Popen[bytes], paths: DaemonPaths, log_start: int, deadline_s: float) -> None:
    ends_at_s = time.monotonic() + deadline_s
    while running_pid(paths) != process.pid:
        if process.poll() is not None:
            said = _last_line(paths.log, log_start) or f"exit {process.returncode}"
            raise DaemonStartError(
                f"qemu-storage-daemon ended at once: {said}.",
                remedy=f"The whole story is in {paths.log}.",
                path=str(paths.log),
            )
        if time.monotonic() > ends_at_s:
            raise DaemonStartError(
                f"qemu-storage-daemon was not ready within {deadline_s:g} s and has been ended.",
                remedy=f"Look into {paths.log}.",
                path=str(paths.log),
            )
        await asyncio.sleep(_POLL_S)
    try:
        monitor = await Monitor.open(paths.control_sock, timeout_s=max(0.1, ends_at_s - time.monotonic()))
        await monitor.close()
    except DaemonError as error:
        raise DaemonStartError(
            f"qemu-storage-daemon started but does not answer: {error.message}", remedy=f"Look into {paths.log}."
        ) from None


def _last_line(log: Path, start: int) -> str:
    """The last thing the daemon said since byte `start`, without its own name and the final dot."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].removeprefix("qemu-storage-daemon: ").rstrip(".")
    return ""


def _is_ours(paths: DaemonPaths, pid: int) -> bool:
    """Whether `pid` is alive and was started for these paths. Asks the process alone: it removes its pidfile before it
    has ended."""
    process = Path("/proc") / str(pid)
    try:
        # The name in parentheses may hold anything; the state follows the last one.
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        arguments = (process / "cmdline").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return False
    if state in "ZX" or b"--pidfile" not in arguments[:-1]:
        return False
    named = Path(os.fsdecode(arguments[arguments.index(b"--pidfile") + 1]))
    if named == paths.pidfile:
        return True
    # The same directory by another path, a symlink in it, is still ours.
    with contextlib.suppress(OSError):
        return named.name == paths.pidfile.name and named.parent.samefile(paths.directory)
    return False


def worked_s(pid: int | None) -> float | None:
    """How long a daemon's event loop has worked since it began, in seconds of processor time; None: it cannot be told.

    Every request of every client goes through that thread, whatever kind of storage it ends at, and a daemon of
    which nobody wants anything hardly works, so this tells of guests what `query-blockstats` does not.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def _listener(paths: DaemonPaths) -> int | None:
    """The pid of a living daemon of ours that listens on the control socket, whatever became of its pidfile."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.setblocking(False)
            probe.connect(str(paths.control_sock))
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return None
    # Seen with QEMU's io_uring: for milliseconds after SIGKILL the kernel still accepts for a process that is gone.
    return pid if _is_ours(paths, pid) else None


def _pidfd(paths: DaemonPaths, pid: int) -> contextlib.AbstractContextManager[int | None]:
    """A handle on our daemon, or None when `pid` is not ours (any more)."""
    return handle_on(pid, lambda: _is_ours(paths, pid))


def _signal(paths: DaemonPaths, pid: int, number: signal.Signals) -> bool:
    with _pidfd(paths, pid) as process:
        if process is None:
            return False
        try:
            signal.pidfd_send_signal(process, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise DaemonError(
                f"The daemon (pid {pid}) belongs to another user.", remedy="Run the command as that user, or as root."
            ) from None
        return True
