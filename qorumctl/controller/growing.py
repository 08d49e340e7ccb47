"""`grow`: a stopped set becomes larger, all of its copies or none.

    vet       every copy can have the new size, devices and exports have it already
    note      what is begun is on record, `growing.json` in the set's state directory
    resize    image files; what lies behind the old end of devices and exports is zeroed
    prove     opened anew, each copy has the new length, and reads as zero behind the old end
    define    the definition says the new size, in one atomic step: from here on the set is larger
    conclude  the note goes

A copy that is longer than the definition says is accepted only while the note is there. The next command on the set
(`settle`) does the rest, or, where that does not work, brings the image files back to their old length: nothing can
have been written behind it, for no command lets a guest in before.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qorumctl import definitions, image_use, images
from qorumctl.controller import intent, vetting
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import Observer, ScrubControl, Silent
from qorumctl.controller.returning import Interrupted, Teller
from qorumctl.controller.serving import end_leftover, is_up, prepare_directories, rolled_back
from qorumctl.copies.base import CHUNK_BYTES
from qorumctl.copies.nbd import NbdCopy
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.ranges import Range, between, split, subtract
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import CommandError, CopyError, QorumError, RefusedError, StoreError
from qorumctl.files import read_bounded, reason
from qorumctl.logbook import warn
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, SetSpec
from qorumctl.model.status import Result
from qorumctl.units import GIB, MIB, format_exact_size, format_size

_SCHEMA = "qorum.growing/1"
_MOST_BYTES = 1 << 16
_ZERO_BYTES = 32 * MIB
"""At once: an answer must come within the deadline of a copy, also where it is written as data."""
_FLUSH_EVERY = 256 * MIB
_ZEROS = bytes(CHUNK_BYTES)
_log = logging.getLogger("qorumctl.sets")


@dataclass(frozen=True, slots=True)
class _Note:
    """`uuid`: of the set."""

    uuid: str
    old_bytes: int
    new_bytes: int


async def grow(
    context: SetContext, size_bytes: int, *, thin: bool, observer: Observer, control: ScrubControl
) -> Result:
    """Under the set's lock, with nothing of an earlier one left. Whatever fails, all copies have their old length."""
    spec = context.spec()
    if context.pid() is not None:
        raise RefusedError(
            f"{spec.name} is running.",
            remedy=f"Run 'qorumctl stop {spec.name}' first; nothing was changed.",
            set_name=spec.name,
        )
    if size_bytes == spec.size:
        return Result(set=spec.name, command="grow", changed=False)
    if size_bytes < spec.size:
        raise RefusedError(
            f"{spec.name} has {format_exact_size(spec.size)}, and a set never becomes smaller.",
            remedy="Nothing was changed. For a smaller disk, copy what is in it to another set.",
            set_name=spec.name,
        )
    note = _Note(str(spec.uuid), spec.size, size_bytes)
    _vet(context, spec, note, begun=False)
    if not thin:
        _vet_space(spec, note)
    await end_leftover(context)
    await _vet_exports(context, spec, note)
    _write(context, note)
    await _carry_out(context, spec, note, observer, control)
    return Result(set=spec.name, command="grow", changed=True)


async def settle(context: SetContext) -> None:
    """Brings one that was killed to its end, or takes it back; under the set's lock. Raises where neither works."""
    if (note := _read(context)) is None or not context.is_defined() or await is_up(context):
        return
    spec = context.spec()
    if note.uuid != str(spec.uuid) or spec.size == note.new_bytes:
        # Another set has this name now; or only the last step is missing.
        _conclude(context)
        return
    if spec.size != note.old_bytes:
        raise RefusedError(
            f"{spec.name} was being enlarged from {note.old_bytes} to {note.new_bytes} bytes, and its definition says "
            f"{spec.size} now.",
            remedy=f"Undo that in {context.definition_path}, then repeat the command.",
            set_name=spec.name,
        )
    await end_leftover(context)
    try:
        _vet(context, spec, note, begun=True)
    except QorumError as error:
        await _take_back(context, spec, note)
        warn(_log, f"The enlargement of {spec.name} was taken back: {error.message}", set_name=spec.name)
        return
    await _carry_out(context, spec, note, Silent(), ScrubControl())
    warn(_log, f"The enlargement of {spec.name} was brought to its end.", set_name=spec.name)


# -- before anything is changed


def _vet(context: SetContext, spec: SetSpec, note: _Note, *, begun: bool) -> None:
    """As `start` does, but for lengths. Raises RefusedError."""
    if note.new_bytes % 512:
        raise RefusedError(f"Size {note.new_bytes} is not a multiple of 512.", remedy="Choose one that is.")
    if context.replacements():
        raise RefusedError(
            f"A copy of {spec.name} is being replaced.",
            remedy="Finish that first: 'qorumctl status' tells how. Nothing was changed.",
            set_name=spec.name,
        )
    vetting.refuse_away(spec, context.absences(), running=False)
    vetting.distinct(context, spec.copies)
    for copy in spec.copies:
        unit = images.alignment(copy.source) if copy.cache == "none" else 512
        if note.new_bytes % unit:
            raise _about(
                copy,
                f"Size {note.new_bytes} is not a multiple of {unit}, the block size under it.",
                "Choose one that is.",
            )
        if isinstance(copy.source, FileSource):
            found = images.inspect(copy.source)
            allowed = {note.old_bytes, note.new_bytes} if begun else {note.old_bytes}
            if not found.exists or found.size_bytes not in allowed:
                raise _about(copy, f"It has {found.size_bytes} bytes, the set {note.old_bytes}.", "Restore its length.")
            if image_use.is_used(copy.source.path, writers_only=True):
                raise _about(copy, "It is in use by another process.", "Stop what uses it.")
        elif isinstance(copy.source, DeviceSource):
            _vet_length(copy, images.device_size(copy.source.path), note)
    vetting.refuse_doubtful_identity(spec)


def _vet_length(copy: CopySpec, length_bytes: int | None, note: _Note) -> None:
    if length_bytes != note.new_bytes:
        raise _about(
            copy,
            f"It has {length_bytes} bytes, and is to have {note.new_bytes}; qorumctl cannot enlarge it.",
            "Enlarge it to exactly that, then repeat the command.",
        )


def _vet_space(spec: SetSpec, note: _Note) -> None:
    more = note.new_bytes - note.old_bytes
    needed: dict[int, int] = {}
    for copy in spec.copies:
        if isinstance(copy.source, FileSource):
            device = Path(copy.source.path).stat().st_dev
            needed[device] = needed.get(device, 0) + more
            usage = os.statvfs(copy.source.path)
            if (free := usage.f_bavail * usage.f_frsize) < needed[device]:
                raise _about(
                    copy,
                    f"Its file system has {format_size(free)} free, and needs {format_size(needed[device])} more.",
                    "Free some space; --thin enlarges it all the same.",
                )


async def _vet_exports(context: SetContext, spec: SetSpec, note: _Note) -> None:
    """What only the daemon can measure."""
    remote = [copy for copy in spec.copies if not isinstance(copy.source, FileSource | DeviceSource)]
    if not remote:
        return
    prepare_directories(context)
    async with rolled_back(context) as monitor:
        quorum = context.quorum(spec, monitor)
        for copy in remote:
            await quorum.children.open(copy, read_only=True, exported=False)
            _vet_length(copy, await quorum.children.length(copy.name), note)
    await end_leftover(context)


# -- the work


async def _carry_out(
    context: SetContext, spec: SetSpec, note: _Note, observer: Observer, control: ScrubControl
) -> None:
    """All that follows the note; taken back where it fails."""
    larger = spec.model_copy(update={"size": note.new_bytes})
    teller = Teller(
        spec, f"growing to {format_exact_size(note.new_bytes)}", "grow", "nothing was changed", observer, control
    )
    prepare_directories(context)
    try:
        async with rolled_back(context) as monitor:
            await _enlarge(context, spec, note, context.quorum(spec, monitor), monitor, teller)
            await _prove(context, larger, note, context.quorum(larger, monitor), teller)
        await end_leftover(context)
        _sync(spec)
        definitions.save(context.definition_path, larger)
    except BaseException as error:
        if context.spec().size != note.new_bytes:
            await asyncio.shield(_take_back(context, spec, note))
        else:
            _conclude(context)
        if isinstance(error, Interrupted):
            error.remedy = "Repeat the command to begin anew."
        raise
    _conclude(context)


async def _enlarge(
    context: SetContext, spec: SetSpec, note: _Note, quorum: QuorumSet, monitor: Monitor, teller: Teller
) -> None:
    added = between(note.old_bytes, note.new_bytes)
    for copy in spec.copies:
        await quorum.children.open(copy, read_only=False, exported=False)
        if isinstance(copy.source, FileSource):
            await _resize(monitor, copy, note.new_bytes)
        else:
            export = await quorum.children.export_for_resync(copy.name)
            await asyncio.to_thread(_zero, context, copy, export, added, teller)
        await quorum.children.close(copy.name)


async def _resize(monitor: Monitor, copy: CopySpec, size_bytes: int) -> None:
    try:
        await monitor.execute("block_resize", {"node-name": copy_node(copy.name), "size": size_bytes})
    except CommandError as error:
        raise CopyError(
            f"Copy {copy.name} ({copy.source.label}) cannot be made {size_bytes} bytes long: {error.description}.",
            remedy="Look at its storage. The copies have their old length.",
            copy=copy.name,
            path=copy.source.label,
        ) from None


def _zero(context: SetContext, copy: CopySpec, export: str, added: Range, teller: Teller) -> None:
    """Bytes of old that lie behind the end would be data that the copies do not agree on."""
    teller.begin(f"zeroing copy {copy.name}", added.length, 0)
    socket, timeout_s = context.runtime.nbd_sock, context.timeouts.copy_s
    with closing(NbdLink(socket, export, who=f"Copy {copy.name}", timeout_s=timeout_s, copy=copy.name)) as link:
        for part in split([added], _ZERO_BYTES):
            teller.pause()
            # A flush has the deadline of one answer, too, and a server may keep gigabytes in memory.
            at_once = part.end % _FLUSH_EVERY < part.length or part.end == added.end
            if not link.zero(part) or (at_once and not link.flush()):
                raise _unwritten(copy)
            teller.moved(part.end - added.offset)


async def _prove(context: SetContext, larger: SetSpec, note: _Note, quorum: QuorumSet, teller: Teller) -> None:
    await quorum.open_copies(read_only=True)
    await quorum.check_lengths()
    added = between(note.old_bytes, note.new_bytes)
    for copy in larger.copies:
        await asyncio.to_thread(_refuse_content, context, copy, added, teller)


def _refuse_content(context: SetContext, copy: CopySpec, added: Range, teller: Teller) -> None:
    teller.begin(f"looking at copy {copy.name}", added.length, 0)
    socket, timeout_s = context.runtime.nbd_sock, context.timeouts.copy_s
    with closing(NbdCopy(copy.name, socket, copy_node(copy.name), timeout_s=timeout_s)) as reader:
        # Block status has a deadline as a whole; past it all would have to be read.
        for window in split([added], GIB):
            teller.pause()
            for part in split(subtract([window], reader.zero_ranges(window)), CHUNK_BYTES):
                teller.pause()
                seen = reader.observe(part)
                if seen.unreadable or seen.data != _ZEROS[: part.length]:
                    raise CopyError(
                        f"Copy {copy.name} ({copy.source.label}) does not read as zero behind its old end, at offset "
                        f"{part.offset}.",
                        remedy="Look at its storage. The image files have their old length.",
                        copy=copy.name,
                        path=copy.source.label,
                    )
            teller.moved(window.end - added.offset)


def _sync(spec: SetSpec) -> None:
    for copy in spec.copies:
        if isinstance(copy.source, FileSource):
            try:
                descriptor = os.open(copy.source.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise _about(copy, f"It could not be stored: {reason(error)}.", "Look at its storage.") from None


async def _take_back(context: SetContext, spec: SetSpec, note: _Note) -> None:
    """Image files have their old length again; one that is not there is passed over: it is refused by its length when
    it comes back. Raises QorumError; the note stays then."""
    prepare_directories(context)
    await end_leftover(context)
    async with rolled_back(context) as monitor:
        quorum = context.quorum(spec, monitor)
        for copy in spec.copies:
            if isinstance(copy.source, FileSource) and _has(copy.source, note.new_bytes):
                await quorum.children.open(copy, read_only=False, exported=False)
                await _resize(monitor, copy, note.old_bytes)
                await quorum.children.close(copy.name)
    await end_leftover(context)
    _conclude(context)


def _has(source: FileSource, size_bytes: int) -> bool:
    try:
        return images.inspect(source).size_bytes == size_bytes
    except RefusedError:
        return False


# -- the note


def _write(context: SetContext, note: _Note) -> None:
    content = {"schema": _SCHEMA, "uuid": note.uuid, "from": note.old_bytes, "to": note.new_bytes}
    intent.write(_path(context), content)


def _read(context: SetContext) -> _Note | None:
    path = _path(context)
    try:
        content, _ = read_bounded(path, _MOST_BYTES, follow=False)
        values = json.loads(content)
        if values["schema"] != _SCHEMA:
            raise ValueError
        return _Note(str(values["uuid"]), int(values["from"]), int(values["to"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise StoreError(
            f"{path} says that {context.name} is being enlarged, and cannot be understood.",
            remedy="Another version of qorumctl wrote it: use that one. Or compare the lengths of the copies with the "
            "definition's size, and remove it.",
            set_name=context.name,
            path=str(path),
        ) from None
    except OSError as error:
        raise intent.failed(path, error) from error


def _conclude(context: SetContext) -> None:
    intent.conclude(_path(context))


def _path(context: SetContext) -> Path:
    return context.state_dir / vetting.GROWING


def _unwritten(copy: CopySpec) -> CopyError:
    return CopyError(
        f"Copy {copy.name} ({copy.source.label}) cannot be written behind its old end.",
        remedy="Look at its storage. The image files have their old length.",
        copy=copy.name,
        path=copy.source.label,
    )


def _about(copy: CopySpec, message: str, remedy: str) -> RefusedError:
    return RefusedError(
        f"Copy {copy.name} ({copy.source.label}) cannot grow. {message}",
        remedy=f"Nothing was changed. {remedy}",
        copy=copy.name,
        path=copy.source.label,
    )
