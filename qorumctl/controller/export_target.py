"""The file that an export writes: vetted, made beside its place under another name, put into place at the end.

The note `exporting.json` in the set's state directory says what is being made, before it is; `settle`, by which every
command on the set begins, removes what a killed export left: its file, its sink, its job in the set's daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from qorumctl import identity, image_use, images
from qorumctl.controller import intent
from qorumctl.controller.background import in_thread
from qorumctl.controller.context import SetContext
from qorumctl.controller.serving import end_leftover, is_up
from qorumctl.daemon import jobs, sink
from qorumctl.daemon.client import Monitor
from qorumctl.errors import CommandError, QorumError, RefusedError, UsageError
from qorumctl.explain import reason_of
from qorumctl.files import read_bounded, reason, sync_directory
from qorumctl.model.spec import CopySpec, FileSource, SetSpec
from qorumctl.units import format_size

_NAME = "exporting.json"
_MOST_BYTES = 1 << 16
_REMOVED_S = 5.0
"""For a stat and an unlink, where it also may hang."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
"""What link(2) says where the file system has none: a share of a file server, say."""


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
    try:
        str(path).encode()
        as_copy = CopySpec(name="export", source=FileSource(path=str(path)))
    except ValueError as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeError) else reason_of(error)
        raise UsageError(f"This cannot name an export: {why}.", remedy="Choose another name.") from None
    if _note_path(context).exists():
        raise _refused(
            path,
            f"An export of {spec.name} that was killed has left something behind that cannot be removed yet.",
            f"Its file's storage, or the set's daemon, does not answer; {_note_path(context)} names the file.",
        )
    directory = path.parent
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        raise _refused(path, f"{directory} is no directory that this user can write to.", "Name another place.")
    own = (context.directories.config, context.state_dir, context.runtime.directory)
    if any(directory.resolve().is_relative_to(place.resolve()) for place in own):
        raise _refused(path, f"{directory} is where qorumctl keeps its own files.", "Name another place.")
    if os.path.lexists(path):
        _vet_existing(target)
    # Also where the image is gone: its set would take the export for it.
    for image in {path, path.with_suffix("") if path.suffix == ".qorum" else path}:
        if (sidecar := identity.read(image)) is not None:
            raise _refused(path, f"{image} is copy {sidecar.copy_} of set '{sidecar.set}'.", "Name another.")
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
    descriptor = None
    try:
        descriptor = images.create_exclusive(str(target.temporary), size_bytes, target.format)
        _note(context, target, size_bytes, os.fstat(descriptor).st_ino)
    except BaseException:
        if descriptor is not None:
            remove(target, descriptor)
            os.close(descriptor)
        conclude(context)
        raise
    return descriptor


def put_in_place(target: Target, descriptor: int) -> None:
    """In one step, and on stable storage. Raises RefusedError where another file has come to be there."""
    try:
        os.fsync(descriptor)
        if target.overwrite:
            target.temporary.rename(target.path)
        else:
            _link(target)
        sync_directory(target.path.parent)
    except OSError as error:
        raise _refused(
            target.path, f"The export cannot be put at {target.path}: {reason(error)}.", "Name another place."
        ) from None


def _link(target: Target) -> None:
    """Unlike a rename, a link never replaces what is there. Raises OSError."""
    try:
        os.link(target.temporary, target.path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target.path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        target.temporary.rename(target.path)
    else:
        target.temporary.unlink()


async def settle(context: SetContext) -> None:
    """Removes what an export left that was killed; under the set's lock. Where its storage, or the set's daemon, does
    not answer, that is left to the next command, and the note stays: `stop`, above all, must not fail of it. Raises
    StoreError."""
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
    await sink.end(sink.SinkPaths(context.runtime.directory))
    if context.pid() is not None:
        try:
            if await is_up(context):
                async with context.scrub_monitor() as monitor:
                    await drop_job(context, monitor)
            else:
                # That of a set at rest.
                await end_leftover(context)
        except QorumError:
            return
    if temporary is not None:
        source = FileSource(path=str(temporary), format="qcow2" if fmt == "qcow2" else "raw")
        try:
            await asyncio.wait_for(in_thread(partial(_remove_left, source, inode, size)), _REMOVED_S)
        except TimeoutError:
            return
    conclude(context)


def _remove_left(source: FileSource, inode: int | None, size_bytes: int) -> None:
    path = Path(source.path)
    with contextlib.suppress(OSError):
        facts = path.lstat()
        mine = facts.st_ino == inode if inode is not None else image_use.is_blank(source, size_bytes)
        if stat.S_ISREG(facts.st_mode) and mine:
            path.unlink()


async def drop_job(context: SetContext, monitor: Monitor) -> None:
    """In the set's own daemon. Idempotent."""
    timeout_s = context.timeouts.drain_s
    await jobs.drop_all(monitor, timeout_s=timeout_s)
    with contextlib.suppress(CommandError):
        await monitor.execute("blockdev-del", {"node-name": sink.TARGET}, timeout_s=timeout_s)


def conclude(context: SetContext) -> None:
    """Nothing of it is left. Idempotent; raises StoreError."""
    intent.conclude(_note_path(context))


def remove(target: Target, descriptor: int) -> None:
    with contextlib.suppress(QorumError):
        images.remove_created(descriptor, str(target.temporary))


def _note(context: SetContext, target: Target, size_bytes: int, inode: int | None) -> None:
    note = {"temporary": str(target.temporary), "format": target.format, "size": size_bytes, "inode": inode}
    intent.write(_note_path(context), note)


def _note_path(context: SetContext) -> Path:
    return context.state_dir / _NAME


def _refused(path: Path, message: str, remedy: str) -> RefusedError:
    return RefusedError(message, remedy=f"Nothing was changed. {remedy}", path=str(path))
