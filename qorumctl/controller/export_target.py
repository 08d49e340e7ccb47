"""The file that an export writes: vetted, made beside its place under another name, put into place at the end.

The note `exporting.json` in the set's state directory says what is being made, before it is; `settle`, by which every
command on the set begins, removes what a killed export left: its file, its sink, its job in the set's daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qorumctl import identity, image_use, images
from qorumctl.controller.context import SetContext
from qorumctl.controller.serving import end_leftover, is_up
from qorumctl.daemon import jobs, sink
from qorumctl.daemon.client import Monitor
from qorumctl.errors import CommandError, DaemonError, QorumError, RefusedError, StoreError, UsageError
from qorumctl.files import read_bounded, reason, sync_directory, write_atomically
from qorumctl.model.spec import CopySpec, FileSource, SetSpec
from qorumctl.units import format_size

_NAME = "exporting.json"
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Target:
    """`path`: where the export is to be; `temporary`: where it is made."""

    path: Path
    format: Literal["raw", "qcow2"]
    overwrite: bool

    @property
    def temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.qorum-export")


def vet(context: SetContext, spec: SetSpec, target: Target, *, thin: bool) -> None:
    """Every refusal that can be known before anything is made. Raises RefusedError, UsageError."""
    path = target.path
    if not path.is_absolute():
        raise UsageError(f"'{path}' is not an absolute path.", remedy=f"Write {path.absolute()}.")
    directory = path.parent
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        raise _refused(path, f"{directory} is no directory that this user can write to.", "Name another place.")
    own = (context.directories.config, context.state_dir, context.runtime.directory)
    if any(directory.resolve().is_relative_to(place.resolve()) for place in own):
        raise _refused(path, f"{directory} is where qorumctl keeps its own files.", "Name another place.")
    if os.path.lexists(path):
        _vet_existing(target)
    as_copy = CopySpec(name="export", source=FileSource(path=str(path)))
    for copy in spec.copies:
        try:
            images.distinct([copy, as_copy])
        except RefusedError:
            raise _refused(
                path, f"{path} is copy {copy.name} of the set, or its identity file.", "Name another."
            ) from None
    if not thin:
        _vet_space(spec, directory)


def _vet_existing(target: Target) -> None:
    path = target.path
    if not stat.S_ISREG(path.lstat().st_mode):
        raise _refused(path, f"{path} exists and is no regular file.", "Name another.")
    if not target.overwrite:
        raise _refused(path, f"{path} exists already.", "Name another, or say --overwrite: what it holds is lost.")
    if image_use.is_used(path):
        raise _refused(path, f"{path} is in use by another process.", "Stop what uses it, or name another.")
    if (sidecar := identity.read(path)) is not None:
        raise _refused(path, f"{path} is copy {sidecar.copy_} of set '{sidecar.set}'.", "Name another.")


def _vet_space(spec: SetSpec, directory: Path) -> None:
    """By what the smallest copy takes: an export takes no more, but for the tables of a qcow2."""
    taken = []
    for copy in spec.copies:
        if isinstance(copy.source, FileSource):
            with contextlib.suppress(OSError):
                taken.append(Path(copy.source.path).stat().st_blocks * 512)
    needed = min([*taken, spec.size])
    usage = os.statvfs(directory)
    if (free := usage.f_bavail * usage.f_frsize) < needed:
        raise _refused(
            directory,
            f"{directory} has {format_size(free)} free, and the export needs about {format_size(needed)}.",
            "Free some space, or name another place; --thin tries it all the same.",
        )


def make(context: SetContext, target: Target, size_bytes: int) -> int:
    """The file, empty, noted before. Returns its descriptor, which the caller closes. RefusedError, StoreError."""
    _note(context, target, size_bytes, None)
    try:
        descriptor = images.create_exclusive(str(target.temporary), size_bytes, target.format)
        _note(context, target, size_bytes, os.fstat(descriptor).st_ino)
    except BaseException:
        _note_path(context).unlink(missing_ok=True)
        raise
    return descriptor


def put_in_place(target: Target, descriptor: int) -> None:
    """In one step, and on stable storage. Raises RefusedError where another file has come to be there."""
    try:
        os.fsync(descriptor)
        if target.overwrite:
            target.temporary.rename(target.path)
        else:
            # Unlike a rename, a link never replaces what is there.
            os.link(target.temporary, target.path, follow_symlinks=False)
            target.temporary.unlink()
        sync_directory(target.path.parent)
    except OSError as error:
        raise _refused(
            target.path, f"The export cannot be put at {target.path}: {reason(error)}.", "Name another place."
        ) from None


async def settle(context: SetContext) -> None:
    """Removes what an export left that was killed; under the set's lock. A daemon that does not answer keeps its job
    until the next command: the note stays. Raises StoreError."""
    path = _note_path(context)
    if not path.exists():
        return
    try:
        content, _ = read_bounded(path, _MOST_BYTES, follow=False)
        note = json.loads(content)
        temporary, inode, fmt, size = Path(note["temporary"]), note["inode"], note["format"], int(note["size"])
    except (OSError, ValueError, TypeError, KeyError):
        # Another version's, or a torn disk's: nothing is removed on a guess.
        temporary = None
    if temporary is not None:
        source = FileSource(path=str(temporary), format="qcow2" if fmt == "qcow2" else "raw")
        with contextlib.suppress(OSError):
            facts = temporary.lstat()
            mine = facts.st_ino == inode if inode is not None else image_use.is_blank(source, size)
            if stat.S_ISREG(facts.st_mode) and mine:
                temporary.unlink()
    await sink.end(sink.SinkPaths(context.runtime.directory))
    if context.pid() is not None:
        try:
            if await is_up(context):
                async with context.scrub_monitor() as monitor:
                    await drop_job(context, monitor)
            else:
                # That of a set at rest.
                await end_leftover(context)
        except DaemonError:
            return
    conclude(context)


async def drop_job(context: SetContext, monitor: Monitor) -> None:
    """In the set's own daemon. Idempotent."""
    timeout_s = context.timeouts.drain_s
    await jobs.drop_all(monitor, timeout_s=timeout_s)
    with contextlib.suppress(CommandError):
        await monitor.execute("blockdev-del", {"node-name": sink.TARGET}, timeout_s=timeout_s)


def conclude(context: SetContext) -> None:
    """Nothing of it is left. Idempotent; raises StoreError."""
    path = _note_path(context)
    try:
        path.unlink(missing_ok=True)
        sync_directory(context.state_dir)
    except OSError as error:
        raise StoreError(f"{path} cannot be removed: {reason(error)}.", remedy="Remove it.", path=str(path)) from None


def remove(target: Target, descriptor: int) -> None:
    with contextlib.suppress(QorumError):
        images.remove_created(descriptor, str(target.temporary))


def _note(context: SetContext, target: Target, size_bytes: int, inode: int | None) -> None:
    path = _note_path(context)
    note = {"temporary": str(target.temporary), "format": target.format, "size": size_bytes, "inode": inode}
    try:
        write_atomically(path, json.dumps(note).encode(), 0o600)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {reason(error)}.", remedy="Check it.", path=str(path)) from None


def _note_path(context: SetContext) -> Path:
    return context.state_dir / _NAME


def _refused(path: Path, message: str, remedy: str) -> RefusedError:
    return RefusedError(message, remedy=f"Nothing was changed. {remedy}", path=str(path))
