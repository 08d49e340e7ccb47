"""`resolve --undo`: each copy gets again what it held before, and that is not the same for all of them.

So they are written one after the other, each outside the quorum meanwhile: QEMU lets nobody write to a child of it. No
guest is there, so a copy misses nothing while it is out. What the copies hold at this moment is saved first, like
before a decision: an undo can be undone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any, BinaryIO, Protocol, TypeVar

from qorumctl.controller import looking, maintenance
from qorumctl.controller.context import SetContext
from qorumctl.controller.live import reached
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.ranges import SECTOR_BYTES, Range, split, subtract, total_bytes
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import CopyError, CopyWriteError, RefusedError, StoreError, UsageError
from qorumctl.model.evidence import Manifest, ResolvedCopy, ResolveReport, SavedCopy
from qorumctl.model.spec import SetSpec
from qorumctl.store import Store, saved
from qorumctl.store.records import now

T = TypeVar("T")


class Run(Protocol):
    """Carries out a call of the control plane for a thread."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


def manifest_of(context: SetContext, spec: SetSpec, saved_id: int) -> Manifest:
    """UsageError where there is none. RefusedError where it is of another set, or of other images. StoreError where a
    file of it is damaged."""
    manifest = saved.load(context.state_dir, saved_id)
    if manifest is None:
        there = ", ".join(str(n) for n in saved.ids(context.state_dir)) or "none"
        raise UsageError(
            f"{context.name} has nothing saved as {saved_id}.",
            remedy=f"What is saved lies in {context.state_dir / saved.DIRECTORY}: {there}.",
            set_name=context.name,
        )
    if manifest.uuid != str(spec.uuid) or manifest.offset + manifest.length > spec.size:
        raise _refused(context, f"What is saved as {saved_id} is of another set that had this name.")
    for name, one in manifest.copies.items():
        if name not in spec.copy_names or spec.copy_named(name).source.label != one.source:
            raise _refused(
                context, f"Copy {name} of {context.name} was {one.source} when it was saved, and is not any more."
            )
    saved.check_whole(context.state_dir, manifest)
    return manifest


def is_resolved_by(context: SetContext, manifest: Manifest) -> bool:
    """Whether the finding is resolved after what the manifest tells of."""
    resolved = True
    while manifest.command == "undo":
        resolved = not resolved
        earlier = None if manifest.restores is None else saved.load(context.state_dir, manifest.restores)
        if earlier is None or earlier.id >= manifest.id:
            return False
        manifest = earlier
    return resolved


def note_undone(context: SetContext, manifest: Manifest) -> None:
    """Of an undo that is through: what it has undone is undone, and what that had undone is not any more."""
    if manifest.restores is None or (undone := saved.load(context.state_dir, manifest.restores)) is None:
        return
    saved.note_undone(context.state_dir, undone, manifest.id)
    if undone.restores is not None and (earlier := saved.load(context.state_dir, undone.restores)) is not None:
        saved.note_undone(context.state_dir, earlier, None)


# -- the command


def check_possible(context: SetContext, spec: SetSpec, manifest: Manifest, names: Sequence[str]) -> None:
    """RefusedError where it cannot be done now, whatever the copies hold."""
    if manifest.undone_by is not None:
        raise _refused(
            context,
            f"What is saved as {manifest.id} was restored already.",
            f"'qorumctl resolve {context.name} --undo {manifest.undone_by}' undoes that.",
        )
    if away := [name for name in spec.copy_names if name not in names]:
        raise _refused(context, f"Copy {', '.join(away)} of {context.name} is away.", "Bring it back first.")
    if set(names) != set(manifest.copies):
        missing = ", ".join(name for name in names if name not in manifest.copies)
        raise _refused(context, f"Of copy {missing} nothing was saved: it was away.", "Decide anew with --with.")
    if context.replacements():
        raise _refused(context, f"A copy of {context.name} is being replaced.", "Finish that first, or cancel it.")
    if len(names) - 1 < spec.threshold:
        raise _refused(
            context,
            f"Copies of {context.name} are written one by one, and without one of them too few would remain.",
            "Write the saved contents by hand while the set is stopped, or decide anew with --with.",
        )


def plan(context: SetContext, manifest: Manifest, names: Sequence[str], saved_id: int | None = None) -> ResolveReport:
    """What an undo would write, by what the copies hold now. In a thread."""
    at = Range(manifest.offset, manifest.length)
    before, after = {name: sha256() for name in names}, {name: sha256() for name in names}
    changed = dict.fromkeys(names, 0)
    with _saved_files(context, manifest) as files, looking.readers_of(context, names) as readers:
        for part in split([at], looking.PIECE_BYTES):
            for reader in readers:
                held, wanted = bytes(reader.observe(part).data), bytearray()
                name = reader.name
                wanted += held
                for piece in _within(restored_ranges(manifest, name), part):
                    wanted[_slice(piece, part)] = _read(files[name], manifest, piece)
                before[name].update(held)
                after[name].update(wanted)
                changed[name] += _differing_sectors(held, bytes(wanted))
    path = None if saved_id is None else saved.directory(context.state_dir, saved_id)
    copies = [
        ResolvedCopy(
            name=name,
            before=before[name].hexdigest(),
            after=after[name].hexdigest(),
            changed_sectors=changed[name],
            saved=None if path is None else str(path / f"copy-{name}.bin"),
        )
        for name in names
    ]
    told = [str(manifest.id), *(f"{copy.name} {copy.before} {copy.after}" for copy in copies)]
    written = [Range(r.offset, r.length) for r in manifest.written]
    return ResolveReport(
        set=context.name,
        command="undo",
        dry_run=saved_id is None,
        id=saved_id,
        undone=manifest.id,
        finding=manifest.finding,
        decision=f"undo={manifest.id}",
        offset=manifest.offset,
        length=manifest.length,
        written=manifest.written,
        written_bytes=total_bytes(written),
        copies=copies,
        saved=None if path is None else str(path),
        plan=sha256("\n".join(told).encode()).hexdigest(),
        warnings=_warnings(context, manifest),
    )


def undo(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    names: Sequence[str],
    manifest: Manifest,
    loop: asyncio.AbstractEventLoop,
    conclude: Callable[[SetContext, Store, Manifest], bool],
    *,
    expected: str | None,
    force: bool,
) -> ResolveReport:
    """In a thread, under the set's lock. RefusedError where guests have written the range since, unless `force`."""
    with context.store() as store, reached(context, spec, quorum, loop) as (fence, _):
        fence.run(maintenance.withdraw(context, quorum, store, force=force))
        try:
            lost = forced(context, manifest, names) if force else []
            if not force:
                check_untouched(context, manifest, names)
            planned = plan(context, manifest, names)
            if expected is not None and planned.plan != expected:
                raise _refused(context, f"What the copies of {context.name} hold has changed since it was shown.")
            mine = _save(context, spec, names, manifest)
            report = plan(context, manifest, names, mine.id)
            maintenance.put(store, maintenance.Note("writing", mine.id))
            found = write_back(context, spec, quorum, fence.run, store, mine, conclude)
        finally:
            fence.run(maintenance.come_back(context, spec, quorum, store))
    told = report.model_copy(update={"warnings": [*lost, *report.warnings]})
    return told if found else told.model_copy(update={"finding": None})


def _save(context: SetContext, spec: SetSpec, names: Sequence[str], undone: Manifest) -> Manifest:
    at = Range(undone.offset, undone.length)
    sources = {name: spec.copy_named(name).source.label for name in names}
    saving = saved.Saving(context.state_dir, sources, chosen=False)
    try:
        with looking.readers_of(context, names) as readers:
            for part in split([at], looking.PIECE_BYTES):
                seen = {reader.name: reader.observe(part) for reader in readers}
                by = part.offset - at.offset
                lost = {name: [r.shifted(by) for r in one.unreadable] for name, one in seen.items()}
                saving.add({name: bytes(one.data) for name, one in seen.items()}, lost, None)
        return saving.finish(
            Manifest(
                id=saving.id,
                set=spec.name,
                uuid=str(spec.uuid),
                made=now(),
                command="undo",
                decision=f"undo={undone.id}",
                finding=undone.finding,
                offset=at.offset,
                length=at.length,
                written=undone.written,
                copies={},
                restores=undone.id,
            )
        )
    except BaseException:
        saving.discard()
        raise


# -- what copies are to hold


def target(context: SetContext, manifest: Manifest) -> Manifest:
    """The manifest whose copies' files are what an undo writes. StoreError where it is gone."""
    found = None if manifest.restores is None else saved.load(context.state_dir, manifest.restores)
    if found is None:
        raise StoreError(
            f"What 'resolve' number {manifest.id} of {context.name} was to restore is gone.",
            remedy="Nothing was written.",
            set_name=context.name,
        )
    return found


def restored_ranges(manifest: Manifest, name: str) -> list[Range]:
    """Of the range what was written over, and of which it is known what the copy held."""
    lost = [Range(r.offset + manifest.offset, r.length) for r in manifest.copies[name].unreadable]
    return subtract([Range(r.offset, r.length) for r in manifest.written], lost)


def check_untouched(context: SetContext, manifest: Manifest, names: Sequence[str]) -> None:
    """RefusedError where guests have written since."""
    if (at := written_since(context, manifest, names)) is not None:
        raise _refused(
            context,
            f"Guests have written since, at offset {at} of {context.name}: that would be lost.",
            "With --force it is: what the copies hold now is saved, too.",
        )


def forced(context: SetContext, manifest: Manifest, names: Sequence[str]) -> list[str]:
    """What is to be said where nobody asks `check_untouched`: --force cuts off guests, too, and may be meant so."""
    at = written_since(context, manifest, names)
    words = f"Guests have written since, at offset {at}: that is lost. What the copies hold now is saved, too."
    return [] if at is None else [words]


def written_since(context: SetContext, manifest: Manifest, names: Sequence[str]) -> int | None:
    """Where a sector of a copy holds neither what it held before nor what was written to it. One that cannot be read
    says nothing."""
    with ExitStack() as stack:
        before = stack.enter_context(_saved_files(context, manifest))
        if manifest.chosen is not None:
            file = stack.enter_context(_open(context, manifest, manifest.chosen))
            after = dict.fromkeys(names, file)
        else:
            after = stack.enter_context(_saved_files(context, target(context, manifest)))
        readers = stack.enter_context(looking.readers_of(context, [name for name in names if name in before]))
        for part in split([Range(r.offset, r.length) for r in manifest.written], looking.PIECE_BYTES):
            for reader in readers:
                seen = reader.observe(part)
                old = _read(before[reader.name], manifest, part)
                new = _read(after[reader.name], manifest, part)
                for sector in split([Range(0, part.length)], SECTOR_BYTES):
                    held = bytes(seen.data[sector.offset : sector.end])
                    known = (old[sector.offset : sector.end], new[sector.offset : sector.end])
                    if held not in known and not any(r.overlaps(sector) for r in seen.unreadable):
                        return part.offset + sector.offset
    return None


def write_back(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    run: Run,
    store: Store,
    manifest: Manifest,
    conclude: Callable[[SetContext, Store, Manifest], bool],
) -> bool:
    """Whether the finding is on record still. It is open from before the first copy is written, whatever fails then:
    one that is called resolved must be."""
    # Once more: where this finishes what was killed, nobody has looked at them since.
    saved.check_whole(context.state_dir, target(context, manifest))
    if not is_resolved_by(context, manifest):
        conclude(context, store, manifest)
    with marked(store):
        write_each(context, spec, quorum, run, manifest)
    note_undone(context, manifest)
    return conclude(context, store, manifest)


@contextmanager
def marked(store: Store) -> Iterator[None]:
    """A copy that has failed a write or a flush which no guest has made is told of by no event; it may have lost what
    guests had written before, too (invariant 8)."""
    try:
        yield
    except CopyWriteError as error:
        if error.copy is not None:
            store.suspect([error.copy], missed=True, why="a write of 'resolve' failed", failed=True)
        raise


def write_each(context: SetContext, spec: SetSpec, quorum: QuorumSet, run: Run, manifest: Manifest) -> None:
    """To each copy what it held, flushed and read back, outside the quorum."""
    wanted = target(context, manifest)
    with _saved_files(context, wanted) as files:
        for name in manifest.copies:
            ranges = list(split(restored_ranges(wanted, name), looking.PIECE_BYTES))
            if not ranges:
                # Nothing of it could be read when it was saved.
                continue
            run(quorum.children.take_out(name))
            export = run(quorum.children.export_for_resync(name))
            link = NbdLink(
                context.runtime.nbd_sock, export, who=f"Copy {name}", timeout_s=context.timeouts.copy_s, copy=name
            )
            try:
                for part in ranges:
                    if not link.write(part.offset, _read(files[name], wanted, part)):
                        raise _not_held(context, manifest, name, part, CopyWriteError)
                if not link.flush():
                    raise _not_held(context, manifest, name, ranges[0], CopyWriteError)
                for part in ranges:
                    held = link.read(part)
                    if held is None or bytes(held) != _read(files[name], wanted, part):
                        raise _not_held(context, manifest, name, part)
            finally:
                link.close()
            run(quorum.children.bring_in(spec.copy_named(name)))
            run(quorum.children.export(name))


# -- details


@contextmanager
def _saved_files(context: SetContext, manifest: Manifest) -> Iterator[dict[str, BinaryIO]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(_open(context, manifest, one)) for name, one in manifest.copies.items()}


@contextmanager
def _open(context: SetContext, manifest: Manifest, one: SavedCopy) -> Iterator[BinaryIO]:
    with saved.open_saved(saved.directory(context.state_dir, manifest.id) / one.file) as file:
        yield file


def _read(file: BinaryIO, manifest: Manifest, part: Range) -> bytes:
    file.seek(part.offset - manifest.offset)
    return file.read(part.length)


def _differing_sectors(left: bytes, right: bytes) -> int:
    step = SECTOR_BYTES
    return sum(left[i : i + step] != right[i : i + step] for i in range(0, len(left), step))


def _within(ranges: Sequence[Range], part: Range) -> Iterator[Range]:
    for r in ranges:
        if r.overlaps(part):
            start, end = max(r.offset, part.offset), min(r.end, part.end)
            yield Range(start, end - start)


def _slice(piece: Range, part: Range) -> slice:
    return slice(piece.offset - part.offset, piece.end - part.offset)


def _warnings(context: SetContext, manifest: Manifest) -> list[str]:
    lost = {name: total_bytes(Range(r.offset, r.length) for r in c.unreadable) for name, c in manifest.copies.items()}
    return [
        f"{size} bytes of copy {name} could not be read when it was saved: there it keeps what it holds."
        for name, size in lost.items()
        if size
    ]


def _refused(context: SetContext, message: str, remedy: str = "Look at it again.") -> RefusedError:
    return RefusedError(message, remedy=f"Nothing was written. {remedy}", set_name=context.name)


def _not_held(
    context: SetContext, manifest: Manifest, name: str, at: Range, kind: type[CopyError] = CopyError
) -> CopyError:
    return kind(
        f"Copy {name} does not hold what was written to it at offset {at.offset}.",
        remedy=f"Look at its storage, and repeat the command. What every copy held is saved as {manifest.id}.",
        set_name=context.name,
        copy=name,
    )
