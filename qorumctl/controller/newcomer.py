"""The image that is to take a copy's place: looked at before anything is changed, made, and removed again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qorumctl import identity, image_use, images
from qorumctl.controller.context import SetContext
from qorumctl.controller.fenced_work import Bench
from qorumctl.controller.options import ReplaceOptions
from qorumctl.controller.sources import parse_source
from qorumctl.copies.nbd_link import ALLOCATION, ALLOCATION_ZERO, NbdLink
from qorumctl.core.ranges import Range, split, subtract
from qorumctl.daemon.formatting import format_image
from qorumctl.errors import QorumError, RefusedError, UsageError
from qorumctl.files import reason
from qorumctl.identity import Sidecar
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, SetSpec, Source
from qorumctl.store.replacing import Replacement
from qorumctl.units import GIB, MIB

_READ_BYTES = MIB
NEW = "it is new"


def source_of(text: str, options: ReplaceOptions) -> Source:
    """As `create` takes it. Raises UsageError."""
    return parse_source(text, options.format or "raw")


def succeeded_spec(spec: SetSpec, note: Replacement) -> SetSpec:
    """The set with the newcomer in the copy's place."""
    copies = [
        copy.model_copy(update={"source": note.source}) if copy.name == note.copy else copy for copy in spec.copies
    ]
    return spec.model_copy(update={"copies": tuple(copies)})


def as_copy(spec: SetSpec, note: Replacement) -> CopySpec:
    """Named by its key, as the daemon's nodes of it are."""
    return spec.copy_named(note.copy).model_copy(update={"name": note.key, "source": note.source})


def vet(context: SetContext, spec: SetSpec, name: str, source: Source, options: ReplaceOptions) -> bool:
    """Every refusal that needs no daemon, before anything is changed. Returns whether the image is still to be made.
    Raises RefusedError."""
    copy = spec.copy_named(name).model_copy(update={"source": source})
    # A copy that is being replaced can have gone from the definition since.
    notes = [note for note in context.replacements().values() if note.copy != name and note.copy in spec.copy_names]
    others = [as_copy(spec, note) for note in notes]
    for other in (*spec.copies, *others):
        images.distinct([other, copy.model_copy(update={"name": "the new one"})], own_socket=context.runtime.nbd_sock)
    unit = images.alignment(source) if copy.cache == "none" else 512
    if spec.size % unit:
        raise _refused(
            spec,
            name,
            source,
            f"The size of {spec.name}, {spec.size} bytes, is not a multiple of {unit}, the block size under "
            f"{source.label}.",
            "Nothing was changed. Name another image.",
        )
    if isinstance(source, DeviceSource):
        _check_length(spec, name, source, images.device_size(source.path))
    if not isinstance(source, FileSource):
        return False
    info, sidecar = images.inspect(source), identity.read(source.path)
    if sidecar is not None and not is_ours(spec, name, sidecar):
        raise _refused(
            spec,
            name,
            source,
            f"{source.path} belongs to set '{sidecar.set}', as copy {sidecar.copy_}.",
            "Nothing was changed. Name another path; or, if nobody needs it, remove it and "
            f"{identity.sidecar_path(source.path)}.",
        )
    if not info.exists:
        if not options.thin:
            images.check_free_space([source], spec.size)
        return True
    if image_use.is_used(source.path):
        raise _refused(
            spec,
            name,
            source,
            f"{source.path} is in use by another process.",
            "Nothing was changed. Stop what uses it.",
        )
    _check_length(spec, name, source, info.size_bytes)
    if sidecar is None and not image_use.holds_nothing(source):
        raise _refused(
            spec,
            name,
            source,
            f"{source.path} exists, and something was written to it.",
            "Nothing was changed. Name another path, or remove it if nobody needs what is in it.",
        )
    return False


def is_ours(spec: SetSpec, name: str, sidecar: Sidecar) -> bool:
    """Whether it says that the image is a newcomer of ours: no image of a set that was ever started is of generation
    0."""
    return sidecar.uuid == str(spec.uuid) and sidecar.copy_ == name and sidecar.generation == 0


def clear_half_made(spec: SetSpec, note: Replacement) -> None:
    """An image that a killed command of ours was making: it has no sidecar yet, and nothing is in it."""
    source = note.source
    if not isinstance(source, FileSource) or not note.created or identity.read(source.path) is not None:
        return
    if image_use.is_blank(source, spec.size):
        _unlink(source.path)


def make(bench: Bench, note: Replacement) -> Replacement:
    """Makes the image, if it is still to be made, and says beside it whose it is. Raises RefusedError, CopyError."""
    source, spec = note.source, bench.spec
    if not isinstance(source, FileSource):
        return note
    exists = images.inspect(source).exists
    fresh = not exists or identity.read(source.path) is None
    if fresh:
        # Whatever is on record of what was copied to it is of another image.
        mark = replace(note.mark, kept=False, lost=NEW, cursor_bytes=None)
        note = replace(note, mark=mark, created=note.created or not exists)
        bench.store.note_replacement(note)
    if fresh and note.created:
        descriptor = images.create_exclusive(source.path, spec.size, source.format)
        try:
            inode = f"/proc/{os.getpid()}/fd/{descriptor}"
            formatting = format_image(bench.quorum.monitor, inode, source.format, spec.size, label=source.path)
            bench.fence.run(formatting)
            say_whose(spec, note)
        except BaseException:
            if images.remove_created(descriptor, source.path):
                identity.remove(source.path)
            raise
        finally:
            os.close(descriptor)
    say_whose(spec, note)
    return note


def say_whose(spec: SetSpec, note: Replacement) -> None:
    """Its sidecar: of this set, and lacking everything. So no start takes it for current."""
    if isinstance(note.source, FileSource):
        identity.found_stale(succeeded_spec(spec, note), note.copy, identity.this_host())


def take_away(spec: SetSpec, note: Replacement) -> None:
    """Its sidecar, and the image if we made it: both only while they say that they are ours."""
    if not isinstance(note.source, FileSource):
        return
    path = note.source.path
    sidecar = identity.read(path)
    ours = sidecar is not None and is_ours(spec, note.copy, sidecar)
    if sidecar is not None and not ours:
        return
    if note.created and (ours or image_use.is_blank(note.source, spec.size)) and not Path(path).is_symlink():
        _unlink(path)
    identity.remove(path)


def _unlink(path: str) -> None:
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise RefusedError(
            f"{path} cannot be removed: {reason(error)}.", remedy="Remove it, then repeat the command.", path=path
        ) from None


def refuse_content(bench: Bench, note: Replacement, pause: Callable[[], None]) -> None:
    """RefusedError where a device or an export, whose nodes are open, holds anything. All of it is read that does not
    say that it is zero."""
    children, timeout_s = bench.quorum.children, bench.context.timeouts.copy_s
    export = bench.fence.run(children.export_for_resync(note.key))
    socket = bench.context.runtime.nbd_sock
    try:
        link = NbdLink(socket, export, who="The new image", timeout_s=timeout_s)
        status = NbdLink(socket, export, who="The new image", timeout_s=timeout_s, meta_context=ALLOCATION)
        try:
            for window in split([Range(0, bench.spec.size)], GIB):
                flags = status.status(window) if status.has_status() else []
                zero = [r for r, flag in flags if flag & ALLOCATION_ZERO]
                for piece in split(subtract([window], zero), _READ_BYTES):
                    pause()
                    held = link.read(piece)
                    if held is None or any(held):
                        raise _refused(
                            bench.spec,
                            note.copy,
                            note.source,
                            f"{note.source.label} is not blank: something stands at offset {piece.offset}.",
                            "Nothing was changed. If nobody needs what it holds, say --overwrite: all of it is lost.",
                        )
        finally:
            link.close()
            status.close()
    finally:
        bench.fence.run(children.end_exports(note.key))


def _check_length(spec: SetSpec, name: str, source: Source, size_bytes: int | None) -> None:
    if size_bytes != spec.size:
        raise _refused(
            spec,
            name,
            source,
            f"{source.label} has {size_bytes} bytes, the set {spec.size}.",
            "Nothing was changed. Name an image of that length, or one that does not exist yet.",
        )


def _refused(spec: SetSpec, name: str, source: Source, message: str, remedy: str) -> RefusedError:
    return RefusedError(message, remedy=remedy, set_name=spec.name, copy=name, path=source.label)


def unknown_source(spec: SetSpec, name: str) -> QorumError:
    return UsageError(
        f"No replacement of copy {name} of {spec.name} is unfinished, and no new image was named.",
        remedy=f"Name it: 'qorumctl copy replace {spec.name} {name} SOURCE'.",
        set_name=spec.name,
    )
