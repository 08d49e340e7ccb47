"""`create --from`: a new set is filled from an existing image, by QEMU's mirror jobs, one for each copy.

    vet         the source, and that nothing stands where a copy is to be made
    announce    what will be made is on record; then the files, their sidecars, and their inodes on record, too
    copy        source -> each copy, side by side; what is zero stays a hole
    reopen      all is closed, opened again read-only, and compared in full: the source with each copy
    define      the definition is written last

Until the definition stands there is no set: nothing can start it, and a killed import leaves a note (interrupted.py) by
which the next `create` begins anew and `delete` removes what was made.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from qorumctl import definitions, identity, images
from qorumctl.controller import import_source, interrupted, record
from qorumctl.controller.comparison import differences
from qorumctl.controller.context import SetContext
from qorumctl.controller.deletion import forget_history
from qorumctl.controller.import_source import SOURCE
from qorumctl.controller.observer import Observer, ScrubControl, ScrubPosition, ScrubStart
from qorumctl.controller.options import CreateOptions, ImportFormat
from qorumctl.controller.returning import WallClock
from qorumctl.controller.serving import end_leftover, prepare_directories, rolled_back
from qorumctl.core.progress import Progress
from qorumctl.daemon import jobs
from qorumctl.daemon.formatting import format_image
from qorumctl.daemon.graph import QmpArguments, copy_node
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import CopyError, QorumError, RefusedError, UsageError
from qorumctl.files import reason
from qorumctl.model.spec import CopySpec, FileSource, SetSpec
from qorumctl.model.status import Imported, Result
from qorumctl.units import format_size

_IMPORTED = "imported"
_SPARSE: QmpArguments = {"discard": "unmap", "detect-zeroes": "unmap"}
"""Zeros become holes, those too of a source that does not say where it has none (VHDX)."""


async def fill(
    context: SetContext,
    copies: tuple[CopySpec, ...],
    options: CreateOptions,
    specify: Callable[[int], SetSpec],
    observer: Observer,
    control: ScrubControl,
) -> Result:
    """Under the set's lock. `specify`: the definition, for a size; it refuses one that a copy cannot have. Whatever
    fails, no set and no image that was made is left."""
    source = import_source.parse(options)
    fmt = options.import_format or "raw"
    _vet(context, source, copies, fmt, options)
    prepare_directories(context)
    made: list[tuple[int, str]] = []
    with ExitStack() as stack:
        try:
            async with rolled_back(context) as monitor:
                # The length is not known before the daemon has opened it; 1 MiB only stands in for it.
                quorum = context.quorum(specify(1 << 20), monitor)
                size = await _open_source(quorum, source, fmt)
                spec = specify(size)
                quorum = context.quorum(spec, monitor)
                await _check_room(quorum, spec, options)
                forget_history(context)
                interrupted.announce(context, spec, makes_images=True)
                await _make(context, quorum, spec, stack, made)
                await _copy(context, quorum, spec, source, fmt, observer, control)
                await _verify(context, quorum, spec, source, fmt, observer, control)
            await end_leftover(context)
            _sync(made)
            record.begin(context, spec)
            with context.store() as store:
                store.set_meta(_IMPORTED, _what(fmt, source))
            definitions.save(context.definition_path, spec)
        except BaseException:
            for descriptor, path in made:
                if images.remove_created(descriptor, path):
                    identity.remove(path)
            forget_history(context)
            interrupted.conclude(context)
            raise
    interrupted.conclude(context)
    imported = Imported(source=source.source.label, format=fmt, size=size)
    warnings = import_source.doubts(source, fmt)
    return Result(set=spec.name, command="create", changed=True, imported=imported, warnings=warnings)


def is_from(context: SetContext, options: CreateOptions) -> bool:
    """Whether the set was filled from what `options` name: then an import that is repeated has nothing to do."""
    with context.store(read_only=True) as store:
        wanted = _what(options.import_format or "raw", import_source.parse(options))
        return store.meta(_IMPORTED) == wanted


def _what(fmt: ImportFormat, source: CopySpec) -> str:
    return f"{fmt} {source.source.label}"


def _vet(
    context: SetContext, source: CopySpec, copies: Sequence[CopySpec], fmt: ImportFormat, options: CreateOptions
) -> None:
    import_source.vet(source, copies, fmt, context.runtime.nbd_sock)
    for copy in copies:
        if not isinstance(copy.source, FileSource):
            if not options.overwrite:
                raise RefusedError(
                    f"Importing writes over all of {copy.source.label}.",
                    remedy="Nothing was changed. If nobody needs what it holds, say --overwrite.",
                    copy=copy.name,
                    path=copy.source.label,
                )
            continue
        path = copy.source.path
        if images.inspect(copy.source).exists or (identity.read(path) is not None):
            raise RefusedError(
                f"{path} exists already, or its identity file does.",
                remedy="Nothing was changed. An import makes its images: name paths where nothing is.",
                copy=copy.name,
                path=path,
            )


async def _open_source(quorum: QuorumSet, source: CopySpec, fmt: ImportFormat) -> int:
    """Returns its length in bytes. Raises CopyError."""
    try:
        await quorum.children.open(source, read_only=True, more=import_source.node_options(fmt))
    except CopyError as error:
        raise RefusedError(
            error.message.replace("Copy source", f"The {fmt} image to import", 1),
            remedy="Nothing was changed. Check the image, its format and its rights.",
            path=source.source.label,
        ) from None
    size = await quorum.children.length(SOURCE)
    if not size:
        raise UsageError(f"{source.source.label} is empty.", remedy="Name the image to import, and its true format.")
    return size


async def _check_room(quorum: QuorumSet, spec: SetSpec, options: CreateOptions) -> None:
    """Space for files; the length of devices and exports, which must be that of the source."""
    if not options.thin:
        images.check_free_space([copy.source for copy in spec.copies], spec.size)
    for copy in spec.copies:
        if not isinstance(copy.source, FileSource):
            await quorum.children.open(copy, read_only=True, exported=False)
            length = await quorum.children.length(copy.name)
            await quorum.children.close(copy.name)
            if length != spec.size:
                raise RefusedError(
                    f"{copy.source.label} has {length} bytes, the image to import {spec.size}.",
                    remedy="Nothing was changed. All must have one length.",
                    copy=copy.name,
                    path=copy.source.label,
                )


async def _make(
    context: SetContext, quorum: QuorumSet, spec: SetSpec, stack: ExitStack, made: list[tuple[int, str]]
) -> None:
    """The files, empty; then whose they are, and which, before the first byte."""
    for copy in spec.copies:
        if isinstance(copy.source, FileSource):
            descriptor = images.create_exclusive(copy.source.path, spec.size, copy.source.format)
            stack.callback(os.close, descriptor)
            made.append((descriptor, copy.source.path))
            inode = f"/proc/{os.getpid()}/fd/{descriptor}"
            await format_image(quorum.monitor, inode, copy.source.format, spec.size, label=copy.source.path)
    identity.found(spec, identity.this_host())
    inodes = {path: os.fstat(descriptor).st_ino for descriptor, path in made}
    interrupted.announce(context, spec, makes_images=True, inodes=inodes)


async def _copy(
    context: SetContext,
    quorum: QuorumSet,
    spec: SetSpec,
    source: CopySpec,
    fmt: ImportFormat,
    observer: Observer,
    control: ScrubControl,
) -> None:
    """Each copy has a source node of its own: one node serves one job. Raises CopyError, and where it is stopped."""
    timeout_s = context.timeouts.drain_s
    work = f"importing {source.source.label}"
    observer.started(ScrubStart(spec.name, 0, "report", spec.size, None, recovery=False, work=work))
    for number, copy in enumerate(spec.copies):
        origin = source.model_copy(update={"name": SOURCE if number == 0 else f"{SOURCE}-{number + 1}"})
        if number:
            await quorum.children.open(origin, read_only=True, exported=False, more=import_source.node_options(fmt))
        await quorum.children.open(copy, read_only=False, exported=False, more=_SPARSE)
        await jobs.begin(quorum.monitor, copy.name, copy_node(origin.name), copy_node(copy.name), timeout_s=timeout_s)
    progress, clock = Progress(spec.size), WallClock()
    while True:
        states = await jobs.look(quorum.monitor, timeout_s=timeout_s)
        for copy in spec.copies:
            state = states.get(copy.name)
            if state is None or state.ended:
                raise _broken(copy, source, (state and state.failure) or "the job ended early")
        done = int(spec.size * min(states[copy.name].fraction for copy in spec.copies))
        progress.advance(max(done, progress.position_bytes), clock.now_s())
        observer.moved(ScrubPosition(done, spec.size, done, progress.rate_bytes_per_s, progress.eta_s, None))
        if all(states[copy.name].ready for copy in spec.copies):
            break
        if control.reason is not None:
            raise _stopped(spec)
        if control.suspend_requested:
            control.stop_here()
        await asyncio.sleep(jobs.POLL_S)
    for copy in spec.copies:
        if (failure := await jobs.finish(quorum.monitor, copy.name, timeout_s=timeout_s)) is not None:
            raise _broken(copy, source, failure)
    await quorum.dissolve()


async def _verify(
    context: SetContext,
    quorum: QuorumSet,
    spec: SetSpec,
    source: CopySpec,
    fmt: ImportFormat,
    observer: Observer,
    control: ScrubControl,
) -> None:
    """What is on the medium, opened anew, is what the source holds. Raises CopyError naming the copy."""
    await quorum.children.open(source, read_only=True, more=import_source.node_options(fmt))
    if (length := await quorum.children.length(SOURCE)) != spec.size:
        # What was appended has no place in the copies to be missed in: a download that goes on, say.
        raise CopyError(
            f"{source.source.label} has {length} bytes now, and had {spec.size} when its import began.",
            remedy="No set was created. Wait until nobody writes to it any more; then repeat the command.",
            path=source.source.label,
        )
    await quorum.open_copies(read_only=True)
    work = f"comparing with {source.source.label}"
    names = (*spec.copy_names, SOURCE)
    try:
        found = await asyncio.to_thread(differences, context, spec, names, observer, control, work=work)
    except QorumError:
        if control.reason is None:
            raise
        raise _stopped(spec) from None
    if (first := found.first) is not None:
        who = ", ".join(name for name in first.copies if name != SOURCE)
        raise CopyError(
            f"What was imported into {spec.name} is not what {source.source.label} holds: "
            f"{format_size(found.length_bytes)} differ, first at offset {first.range.offset} "
            f"(at fault: {who or SOURCE}).",
            remedy="No set was created. Look at the storage, and that nobody writes to the source; then repeat it.",
            set_name=spec.name,
        )


def _sync(made: Sequence[tuple[int, str]]) -> None:
    for descriptor, path in made:
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise CopyError(
                f"{path} could not be stored: {reason(error)}.", remedy="Check its file system.", path=path
            ) from None


def _stopped(spec: SetSpec) -> QorumError:
    return QorumError(
        "Interrupted: no set was created, and the images that were being filled are gone.",
        remedy="Repeat the command to begin anew.",
        set_name=spec.name,
    )


def _broken(copy: CopySpec, source: CopySpec, said: str | None) -> CopyError:
    return CopyError(
        f"Copying {source.source.label} to copy {copy.name} ({copy.source.label}) failed: {said}.",
        remedy="No set was created. Check both, and the free space; then repeat it.",
        copy=copy.name,
        path=copy.source.label,
    )
