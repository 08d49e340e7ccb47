"""Create: takes images that are all missing, or all there and equal; never a mix: one fenced read
of a set made of one good image and two blank ones would overwrite the good one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from uuid import uuid4

from qorumctl import definitions, identity, image_use, images
from qorumctl.controller import importing, interrupted, record
from qorumctl.controller.comparison import compare
from qorumctl.controller.context import SetContext
from qorumctl.controller.deletion import forget_history
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.options import CreateOptions
from qorumctl.controller.serving import end_leftover, is_up, prepare_directories, rolled_back
from qorumctl.controller.sources import parse_source
from qorumctl.core.vote import strict_majority
from qorumctl.daemon.formatting import format_image
from qorumctl.errors import RefusedError, UsageError
from qorumctl.files import reason
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, SetSpec
from qorumctl.model.status import Result
from qorumctl.paths import make_directories

_NAMES = "abcdefghi"


async def create(
    context: SetContext, sources: Sequence[str], options: CreateOptions, observer: Observer, control: ScrubControl
) -> Result:
    """Makes or adopts the images and writes the definition; under the set's lock."""
    copies = _copies(sources, options)
    if context.is_defined():
        return _same_again(context, copies, options)
    await _refuse_living(context)
    await end_leftover(context)
    interrupted.take_back(context)
    context.runtime.check()
    images.distinct(copies, own_socket=context.runtime.nbd_sock)
    if options.import_from is not None:
        _prepare_config(context)
        specify = partial(_spec, context, copies, options)
        return await importing.fill(context, copies, options, specify, observer, control)
    existing = _existing(copies)
    _prepare_config(context)
    if not existing:
        await _make(context, copies, options)
    else:
        await _adopt(context, copies, options, observer, control)
    return Result(set=context.name, command="create", changed=True)


async def _refuse_living(context: SetContext) -> None:
    """A definition can be lost, or removed by hand, while guests are at work."""
    if await is_up(context):
        raise RefusedError(
            f"A set {context.name} runs (pid {context.pid()}), though its definition is gone.",
            remedy=f"Nothing was changed. Bring {context.definition_path} back, or run 'qorumctl stop {context.name}'.",
            set_name=context.name,
            path=str(context.definition_path),
        )


def _prepare_config(context: SetContext) -> None:
    """Before any image is made: a definition that cannot be written at the end would have cost a full comparison."""
    directory = context.directories.config
    try:
        make_directories(directory)
    except OSError as error:
        raise RefusedError(
            f"The directory {directory} cannot be made: {reason(error)}.",
            remedy="Make it, or choose another with QORUM_CONFIG_DIR.",
            path=str(directory),
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise RefusedError(
            f"The definition cannot be written to {directory}: this user may not.",
            remedy="Run this as its owner, or choose another with QORUM_CONFIG_DIR.",
            path=str(directory),
        )


def _copies(sources: Sequence[str], options: CreateOptions) -> tuple[CopySpec, ...]:
    if len(sources) < 3 or len(sources) % 2 == 0 or len(sources) > len(_NAMES):
        raise UsageError(
            f"A set has 3, 5, 7 or 9 copies, not {len(sources)}.", remedy="With an even number a vote can be tied."
        )
    majority = strict_majority(len(sources))
    if options.threshold is not None and not majority <= options.threshold <= len(sources):
        raise UsageError(
            f"Threshold {options.threshold} is no strict majority of {len(sources)} copies.",
            remedy=f"Use {majority} to {len(sources)}.",
        )
    return tuple(
        CopySpec(name=name, source=parse_source(text, options.format), cache=options.cache)
        for name, text in zip(_NAMES, sources, strict=False)
    )


def _existing(copies: Sequence[CopySpec]) -> bool:
    """Whether the images are there: all of them or none. Raises RefusedError for a mix, and for images in use."""
    there: list[CopySpec] = []
    absent: list[CopySpec] = []
    for copy in copies:
        if isinstance(copy.source, DeviceSource):
            # Said of the device itself: it is there, or this refuses.
            images.device_size(copy.source.path)
        present = not isinstance(copy.source, FileSource) or images.inspect(copy.source).exists
        (there if present else absent).append(copy)
    if there and absent:
        raise RefusedError(
            f"{there[0].source.label} exists and {absent[0].source.label} does not.",
            remedy="Nothing was changed. Name images that all exist and hold the same data, or none that exists.",
            copy=absent[0].name,
            path=absent[0].source.label,
        )
    for copy in copies:
        if not isinstance(copy.source, FileSource):
            continue
        if image_use.is_used(copy.source.path, writers_only=True):
            raise RefusedError(
                f"{copy.source.path} is in use by another process.",
                remedy="Nothing was changed. Stop what uses it: another set, a virtual machine, or qemu-nbd.",
                copy=copy.name,
                path=copy.source.path,
            )
        if (sidecar := identity.read(copy.source.path)) is not None:
            path = identity.sidecar_path(copy.source.path)
            raise RefusedError(
                f"{copy.source.path} belongs to set '{sidecar.set}'.",
                remedy=f"Nothing was changed. Delete that set, or, if it is gone for good, remove {path}.",
                copy=copy.name,
                path=copy.source.path,
            )
    return bool(there)


def _spec(context: SetContext, copies: tuple[CopySpec, ...], options: CreateOptions, size_bytes: int) -> SetSpec:
    if size_bytes <= 0:
        raise UsageError("A disk of no size holds nothing.", remedy="Choose a size, a multiple of 512.")
    if size_bytes % 512:
        raise UsageError(f"Size {size_bytes} is not a multiple of 512.", remedy="Choose one that is.")
    for copy in copies:
        unit = images.alignment(copy.source) if copy.cache == "none" else 512
        if size_bytes % unit:
            raise RefusedError(
                f"Size {size_bytes} is not a multiple of {unit}, the block size under {copy.source.label}.",
                remedy="Choose one that is, or use --cache writeback.",
                copy=copy.name,
                path=copy.source.label,
            )
    return SetSpec(
        name=context.name,
        uuid=uuid4(),
        size=size_bytes,
        threshold=options.threshold or strict_majority(len(copies)),
        policy=options.policy,
        copies=copies,
    )


def _same_again(context: SetContext, copies: tuple[CopySpec, ...], options: CreateOptions) -> Result:
    """Idempotence: the same request again finds its work done; another one is refused."""
    spec = context.spec()
    same = (
        [copy.source for copy in spec.copies] == [copy.source for copy in copies]
        and options.size_bytes in {None, spec.size}
        and options.policy == spec.policy
        and options.threshold in {None, spec.threshold}
        and all(copy.cache == options.cache for copy in spec.copies)
        and (options.import_from is None or importing.is_from(context, options))
    )
    if not same:
        raise RefusedError(
            f"There is a set {context.name} already, defined otherwise in {context.definition_path}.",
            remedy=f"Nothing was changed. See 'qorumctl show {context.name}', or choose another name.",
            set_name=context.name,
            path=str(context.definition_path),
        )
    return Result(set=context.name, command="create", changed=False)


async def _make(context: SetContext, copies: tuple[CopySpec, ...], options: CreateOptions) -> None:
    if options.size_bytes is None:
        raise UsageError(
            "The images do not exist yet, and no size was given.", remedy="Add --size, such as --size 20GiB."
        )
    spec = _spec(context, copies, options, options.size_bytes)
    sources = [copy.source for copy in copies]
    if not options.thin:
        images.check_free_space(sources, spec.size)
    files = [source for source in sources if isinstance(source, FileSource)]
    made: list[tuple[int, str]] = []
    forget_history(context)
    interrupted.announce(context, spec, makes_images=True)
    with ExitStack() as stack:
        try:
            for source in files:
                descriptor = images.create_exclusive(source.path, spec.size, source.format)
                stack.callback(os.close, descriptor)
                made.append((descriptor, source.path))
            await _format(context, made, files, spec.size)
            identity.found(spec, identity.this_host())
            record.begin(context, spec)
            definitions.save(context.definition_path, spec)
        except BaseException:
            for descriptor, path in made:
                if images.remove_created(descriptor, path):
                    identity.remove(path)
            forget_history(context)
            interrupted.conclude(context)
            raise
    interrupted.conclude(context)


async def _format(
    context: SetContext, made: Sequence[tuple[int, str]], files: Sequence[FileSource], size_bytes: int
) -> None:
    """Formats on the inodes that we made: a path in a shared directory may lead elsewhere a moment later."""
    if all(source.format == "raw" for source in files):
        return
    prepare_directories(context)
    async with rolled_back(context) as monitor:
        for (descriptor, path), source in zip(made, files, strict=True):
            inode = f"/proc/{os.getpid()}/fd/{descriptor}"
            await format_image(monitor, inode, source.format, size_bytes, label=path)
    await end_leftover(context)


async def _adopt(
    context: SetContext, copies: tuple[CopySpec, ...], options: CreateOptions, observer: Observer, control: ScrubControl
) -> None:
    """Takes existing images: of one length, and equal in every byte."""
    prepare_directories(context)
    # The length is not known before the daemon has opened them; 512 only stands in for it.
    provisional = _spec(context, copies, options, 1 << 20)
    async with rolled_back(context) as monitor:
        lengths = await context.quorum(provisional, monitor).open_copies(read_only=True)
        size = options.size_bytes or lengths[copies[0].name]
        for copy in copies:
            _check_whole_sectors(copy, lengths[copy.name])
            if lengths[copy.name] != size:
                raise RefusedError(
                    f"{copy.source.label} has {lengths[copy.name]} bytes, "
                    + (f"--size says {size}." if options.size_bytes else f"{copies[0].source.label} has {size}."),
                    remedy="Nothing was changed. All copies must have one length.",
                    copy=copy.name,
                    path=copy.source.label,
                )
        spec = _spec(context, copies, options, size)
        await asyncio.to_thread(compare, context, spec, observer, control)
    await end_leftover(context)
    forget_history(context)
    interrupted.announce(context, spec, makes_images=False)
    try:
        identity.found(spec, identity.this_host())
        record.begin(context, spec)
        definitions.save(context.definition_path, spec)
    except BaseException:
        for copy in spec.copies:
            if isinstance(copy.source, FileSource):
                identity.remove(copy.source.path)
        forget_history(context)
        interrupted.conclude(context)
        raise
    interrupted.conclude(context)


def _check_whole_sectors(copy: CopySpec, length_bytes: int) -> None:
    """QEMU rounds a raw file's length up."""
    if isinstance(copy.source, FileSource) and (said := images.inspect(copy.source).size_bytes) != length_bytes:
        raise RefusedError(
            f"{copy.source.label} has {said} bytes, which is no multiple of 512.",
            remedy="Nothing was changed. Bring the image to its right length.",
            copy=copy.name,
            path=copy.source.label,
        )
