"""`doctor`: can this machine run sets? Tried out rather than asked about, and nothing is left behind.

A daemon of our own is started in a private temporary directory and ended again; beside that, one temporary file is
written in the directory that is to hold images. Every look has a deadline.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from qorumctl.controller.background import in_thread
from qorumctl.controller.drain_probe import DRAIN, WATCH, probe, temporary_daemon
from qorumctl.controller.storage_probe import examine_storage
from qorumctl.copies import blkio
from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.features import missing_features
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.errors import QorumError, RefusedError
from qorumctl.files import reason
from qorumctl.model.status import CheckItem, DoctorReport
from qorumctl.paths import Directories

_DAEMON = "qemu-storage-daemon"
_DRIVERS = "block drivers"
_COMMANDS = "QMP commands"
_LOOK_TIMEOUT_S = 10.0
_DAEMON_TIMEOUT_S = 60.0
"""Start, features and probe together take a second; each of their steps has a shorter deadline of its own."""
_VERSION = re.compile(r"version (\d+)\.(\d+)(\S*)")
_OLDEST_VERSION = (7, 2)
_ENOUGH_DESCRIPTORS = 256
"""The daemon inherits the limit. A set takes about twenty, a guest's connection one."""
_LONGEST_NAME = 32


async def examine(directories: Directories, *, path: Path | None) -> DoctorReport:
    """`path`: where images lie or are to lie; by default the state directory, or what it will be made in.

    Raises nothing of its own: what cannot be looked at is an item that is not ok, and each of those says what to do.
    """
    items = [
        *await _daemon_items(),
        await _look("libnbd", _libnbd),
        await _look("shared memory", _shared_memory),
        *await _looks("storage", lambda: examine_storage(path or _existing(directories.state))),
        await _look("file descriptors", _descriptors),
        await _look("definitions", lambda: _directory("definitions", directories.config, "QORUM_CONFIG_DIR")),
        await _look("state", lambda: _directory("state", directories.state, "QORUM_STATE_DIR")),
        await _look("sockets", lambda: _directory("sockets", directories.runtime, "QORUM_RUNTIME_DIR")),
        _socket_paths(directories.runtime),
        _tools(),
    ]
    return DoctorReport(ok=all(item.ok for item in items), items=items)


async def _looks(subject: str, look: Callable[[], Sequence[CheckItem]]) -> Sequence[CheckItem]:
    try:
        async with asyncio.timeout(_LOOK_TIMEOUT_S):
            return await in_thread(look)
    except TimeoutError:
        detail = f"no answer within {_LOOK_TIMEOUT_S:g} s"
        return [_bad(subject, detail, "A file system hangs: look at the mounts of the directories above.")]
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return [_bad(subject, f"{reason(error)}{where}", "Check the path and its rights.")]


async def _look(subject: str, look: Callable[[], CheckItem]) -> CheckItem:
    return (await _looks(subject, lambda: [look()]))[0]


# --- the daemon


async def _daemon_items() -> list[CheckItem]:
    program = await _look(_DAEMON, _program)
    if not program.ok:
        remedy = f"Settle {_DAEMON} first."
        return [program, *(_bad(subject, "not examined", remedy) for subject in (_DRIVERS, _COMMANDS, DRAIN, WATCH))]
    items = [program]
    try:
        async with asyncio.timeout(_DAEMON_TIMEOUT_S):
            async with temporary_daemon() as paths, await Monitor.open(paths.control_sock) as monitor:
                items += _feature_items(await missing_features(monitor))
                items += await probe(monitor, paths)
    except (QorumError, TimeoutError) as error:
        said = error.message if isinstance(error, QorumError) else f"no answer within {_DAEMON_TIMEOUT_S:g} s"
        found = {item.subject for item in items}
        remedy = "See that this program runs here, or name another one in QORUM_QSD."
        items += [_bad(s, said.rstrip("."), remedy) for s in (_DRIVERS, _COMMANDS, DRAIN, WATCH) if s not in found]
    return items


def _program() -> CheckItem:
    try:
        binary = process.find_binary()
    except QorumError as error:
        return _bad(_DAEMON, error.message.rstrip("."), error.remedy or "Install it.")
    try:
        ran = subprocess.run(
            [binary, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOOK_TIMEOUT_S / 2,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _bad(_DAEMON, f"{binary} --version does not end", "Name another one in QORUM_QSD, or install it anew.")
    except OSError as error:
        return _bad(_DAEMON, f"{binary} cannot be run: {reason(error)}", "Install it anew, or correct QORUM_QSD.")
    version = _VERSION.search(ran.stdout.decode(errors="replace"))
    if ran.returncode or version is None:
        said = (ran.stderr or ran.stdout).decode(errors="replace").strip().partition("\n")[
            0
        ] or f"exit {ran.returncode}"
        return _bad(_DAEMON, f"{binary} --version: {said}", f"Name {_DAEMON} itself in QORUM_QSD, or install it anew.")
    detail = f"{binary}, version {version[1]}.{version[2]}{version[3]}"
    if (int(version[1]), int(version[2])) < _OLDEST_VERSION:
        return _bad(_DAEMON, detail, "Install QEMU 7.2 or newer: older ones were never tested.")
    return CheckItem(subject=_DAEMON, ok=True, detail=detail)


def _feature_items(missing: Sequence[str]) -> list[CheckItem]:
    items = []
    for subject, prefix in ((_DRIVERS, "block driver "), (_COMMANDS, "command ")):
        names = [name.removeprefix(prefix) for name in missing if name.startswith(prefix)]
        if names:
            remedy = "Use a qemu-storage-daemon that has them, such as Debian's; name it in QORUM_QSD."
            items.append(_bad(subject, f"missing: {', '.join(names)}", remedy))
        else:
            items.append(CheckItem(subject=subject, ok=True, detail="all that a set needs are there"))
    return items


# --- this machine


def _libnbd() -> CheckItem:
    try:
        from qorumctl.copies.nbd_link import libnbd_version

        version = libnbd_version()
    except ImportError as error:
        remedy = (
            "Install python3-libnbd; it is built for the distribution's own python3, so a virtual environment has to"
            " be made of that one, with --system-site-packages."
        )
        return _bad("libnbd", f"Python's nbd module cannot be loaded: {error}", remedy)
    return CheckItem(subject="libnbd", ok=True, detail=f"version {version}")


def _shared_memory() -> CheckItem:
    """Scrubs do without it, slower."""
    why_not = blkio.why_not()
    detail = (
        "libblkio is there: scrubs read the copies through memory that the daemon shares"
        if why_not is None
        else f"{why_not}: scrubs read the copies over NBD; docs/performance.md tells how to make them faster"
    )
    return CheckItem(subject="shared memory", ok=True, detail=detail)


def _descriptors() -> CheckItem:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _ENOUGH_DESCRIPTORS:
        remedy = f"Raise the limit: ulimit -n 1024 (at least {_ENOUGH_DESCRIPTORS})."
        return _bad("file descriptors", f"a process may have {soft} open", remedy)
    return CheckItem(subject="file descriptors", ok=True, detail=f"a process may have {soft} open")


def _directory(subject: str, path: Path, variable: str) -> CheckItem:
    """Could `path` serve: is it, or can it be made, a directory of ours that nobody else can write to?"""
    elsewhere = f"or choose another directory with {variable}."
    try:
        facts = path.stat()
    except FileNotFoundError:
        return _missing_directory(subject, path, elsewhere)
    if not stat.S_ISDIR(facts.st_mode):
        return _bad(subject, f"{path} is not a directory", f"Move it away, {elsewhere}")
    owner, mode = _user_name(facts.st_uid), stat.S_IMODE(facts.st_mode)
    detail = f"{path} (mode {mode:04o}, owner {owner})"
    if facts.st_uid not in {0, os.geteuid()}:
        return _bad(subject, f"{detail} belongs to another user", f"Give it to {_user_name(os.geteuid())}, {elsewhere}")
    if mode & 0o022 and not mode & stat.S_ISVTX:
        return _bad(subject, f"{detail} can be written by other users", f"Run chmod go-w {path}, {elsewhere}")
    if not _may_write(path):
        return _bad(
            subject, f"{detail} cannot be written by {_user_name(os.geteuid())}", f"Run this as {owner}, {elsewhere}"
        )
    return CheckItem(subject=subject, ok=True, detail=detail)


def _missing_directory(subject: str, path: Path, elsewhere: str) -> CheckItem:
    if path.is_symlink():
        return _bad(subject, f"{path} is a symbolic link to nowhere", f"Remove it, {elsewhere}")
    above = _existing(path.parent)
    if not above.is_dir() or not _may_write(above):
        who = _user_name(os.geteuid())
        return _bad(subject, f"{path} does not exist, and {who} cannot make it in {above}", f"Make it, {elsewhere}")
    return CheckItem(subject=subject, ok=True, detail=f"{path} will be made in {above}")


def _existing(path: Path) -> Path:
    """`path`, or the nearest place above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _may_write(directory: Path) -> bool:
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _socket_paths(runtime: Path) -> CheckItem:
    subject = "socket paths"
    for length in range(_LONGEST_NAME, 0, -1):
        try:
            RuntimePaths(runtime / ("x" * length)).check()
        except RefusedError:
            continue
        if length == _LONGEST_NAME:
            return CheckItem(subject=subject, ok=True, detail=f"short enough under {runtime} for every set's name")
        remedy = "Keep names shorter than that, or choose a shorter directory with QORUM_RUNTIME_DIR."
        return _bad(subject, f"under {runtime} a set's name may have {length} letters at most", remedy)
    return _bad(subject, f"{runtime} is too long for a socket in it", "Choose a shorter one with QORUM_RUNTIME_DIR.")


def _tools() -> CheckItem:
    """Nothing of ours needs them."""
    missing = [tool for tool in ("nbdinfo", "nbdcopy") if shutil.which(tool) is None]
    if missing:
        detail = f"{', '.join(missing)} not installed; handy for looking at a volume, and in Debian's libnbd-bin"
        return CheckItem(subject="NBD tools", ok=True, detail=detail)
    return CheckItem(subject="NBD tools", ok=True, detail="nbdinfo and nbdcopy are installed")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _bad(subject: str, detail: str, remedy: str) -> CheckItem:
    return CheckItem(subject=subject, ok=False, detail=detail, remedy=remedy)
