"""`resolve`: an operator's decision is written over a range without a majority; and what was there, again, by --undo.

    withdrawn   no guest is connected (maintenance.py)
    saved       what every copy holds, on stable storage, with what it is to hold (store/saved.py)
    written     a decision through the fence, to all copies alike, as a guest's write: records of what copies miss, and
                marks of writes that fail, come about by themselves. An undo to one copy after the other, each outside
                the quorum meanwhile, since each gets something else
    proven      flushed, then read directly from every copy
    settled     the finding's action; then the volume comes back

Killed before `saved`: nothing was written. After it, the next command writes the same once more (`complete`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import uuid4

from qorumctl.controller import looking, maintenance, restoring, suspects
from qorumctl.controller.context import SetContext
from qorumctl.controller.deciding import Decision, Draft, content_of
from qorumctl.controller.detaching import flush
from qorumctl.controller.live import in_a_thread, reached
from qorumctl.controller.observer import ScrubControl
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.findings import Action, FindingVerdict
from qorumctl.core.ranges import Range, split, total_bytes
from qorumctl.daemon import graph
from qorumctl.daemon.children import RESYNC_PREFIX
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import CopyError, CopyWriteError, QorumError, RefusedError
from qorumctl.model.evidence import Manifest, ResolveReport
from qorumctl.model.report import FindingDocument, RangeDocument
from qorumctl.model.spec import SetSpec
from qorumctl.store import Store, saved
from qorumctl.store.records import now
from qorumctl.units import MIB


def plan(
    context: SetContext, spec: SetSpec, names: Sequence[str], finding_id: int, decision: Decision, control: ScrubControl
) -> ResolveReport:
    """What would be written, by what the copies hold now. In a thread; needs no lock, and changes nothing."""
    finding = _undecided(context, finding_id)
    with looking.readers_of(context, names) as readers, context.store(read_only=True) as store:
        stale = suspects.stale(store, spec)
        with content_of(decision, finding.length) as file:
            draft = Draft(spec.name, _range(finding), decision, names, stale, file)
            for piece in looking.pieces(readers, _range(finding), spec.threshold, stale, _heeding(context, control)):
                draft.add(piece)
    return _report(context, finding, decision, draft, None)


def resolve(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    names: Sequence[str],
    finding_id: int,
    decision: Decision,
    loop: asyncio.AbstractEventLoop,
    *,
    expected: str | None,
    force: bool,
    heeded: ScrubControl,
) -> ResolveReport:
    """In a thread, under the set's lock. `expected`: the plan that was agreed to; RefusedError where it has become
    another one. CopyError where a copy does not hold what was written: what was there is saved, the volume is back."""
    finding = _undecided(context, finding_id)
    # Refused before guests are sent away.
    _check_plan(context, plan(context, spec, names, finding_id, decision, heeded), expected)
    with context.store() as store, reached(context, spec, quorum, loop) as (fence, _):
        fence.run(maintenance.withdraw(context, quorum, store, force=force))
        try:
            manifest, report = _save(context, spec, names, finding, decision, store, expected, heeded)
            maintenance.put(store, maintenance.Note("writing", manifest.id))
            with restoring.marked(store):
                write_alike(context, spec, quorum, fence.run, names, manifest)
            conclude(context, store, manifest)
        finally:
            fence.run(maintenance.come_back(context, spec, quorum, store))
    return report


def _save(
    context: SetContext,
    spec: SetSpec,
    names: Sequence[str],
    finding: FindingDocument,
    decision: Decision,
    store: Store,
    expected: str | None,
    control: ScrubControl,
) -> tuple[Manifest, ResolveReport]:
    """On return all is on stable storage; whatever fails, nothing was written."""
    at, stale = _range(finding), suspects.stale(store, spec)
    with looking.readers_of(context, names) as readers, content_of(decision, finding.length) as file:
        draft = Draft(spec.name, at, decision, names, stale, file)
        sources = {name: spec.copy_named(name).source.label for name in names}
        saving = saved.Saving(context.state_dir, sources, chosen=True)
        try:
            for piece in looking.pieces(readers, at, spec.threshold, stale, _heeding(context, control)):
                chosen = draft.add(piece)
                held = {name: bytes(seen.data) for name, seen in piece.seen.items()}
                saving.add(held, piece.unreadable(at.offset), chosen)
            report = _report(context, finding, decision, draft, saving.id)
            _check_plan(context, report, expected)
            manifest = saving.finish(
                Manifest(
                    id=saving.id,
                    set=spec.name,
                    uuid=str(spec.uuid),
                    made=now(),
                    command="resolve",
                    decision=str(decision),
                    finding=finding.id,
                    offset=at.offset,
                    length=at.length,
                    written=report.written,
                    copies={},
                )
            )
        except BaseException:
            saving.discard()
            raise
    return manifest, report


# -- writing


def write_alike(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    run: restoring.Run,
    names: Sequence[str],
    manifest: Manifest,
) -> None:
    """The chosen contents, through the fence, to all copies; then flushed, and read back from each."""
    export = f"{RESYNC_PREFIX}.{uuid4().hex}"
    run(
        quorum.monitor.execute(
            "block-export-add", graph.export(export, graph.FENCE, writable=True), timeout_s=context.timeouts.drain_s
        )
    )
    limit_s = context.timeouts.copy_s
    assert manifest.chosen is not None
    path = saved.directory(context.state_dir, manifest.id) / manifest.chosen.file
    link = NbdLink(context.runtime.nbd_sock, export, who="The set", timeout_s=limit_s)
    try:
        with saved.open_saved(path) as file:
            for part in split(ranges_of(manifest), MIB):
                file.seek(part.offset - manifest.offset)
                if not link.write(part.offset, file.read(part.length)):
                    raise _not_held(context, manifest, None, part)
    finally:
        link.close()
        run(quorum.children.end_exports())
    for name in names:
        if not flush(context, graph.copy_node(name)):
            raise _not_held(context, manifest, name, ranges_of(manifest)[0], CopyWriteError)
    with looking.readers_of(context, names) as readers, saved.open_saved(path) as file:
        for part in split(ranges_of(manifest), looking.PIECE_BYTES):
            file.seek(part.offset - manifest.offset)
            wanted = file.read(part.length)
            for reader in readers:
                seen = reader.observe(part)
                if seen.unreadable or bytes(seen.data) != wanted:
                    raise _not_held(context, manifest, reader.name, part)


def conclude(context: SetContext, store: Store, manifest: Manifest) -> bool:
    """Whether the finding is on record still; it has its action then."""
    if manifest.finding is None:
        return False
    action = Action.RESOLVED if restoring.is_resolved_by(context, manifest) else Action.LEFT
    return store.settle_by_decision(manifest.finding, Range(manifest.offset, manifest.length), action)


async def complete(context: SetContext, spec: SetSpec, quorum: QuorumSet, store: Store, saved_id: int) -> str:
    """What a command that was killed was writing is written once more. Returns what came of it, in words."""
    loop = asyncio.get_running_loop()
    try:
        manifest = restoring.manifest_of(context, spec, saved_id)
        # Interrupted, the lock is kept until nothing is written any more.
        await in_a_thread(ScrubControl(), _complete, context, spec, quorum, store, manifest, loop)
    except QorumError as error:
        return (
            f"what a 'resolve' that was killed was writing was not finished: {error.message} The volume is back; "
            f"'qorumctl resolve {context.name} --undo {saved_id}' restores what the copies held before."
        )
    return f"a '{manifest.command}' of finding {manifest.finding} that was killed is finished, and the volume is back."


def _complete(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    store: Store,
    manifest: Manifest,
    loop: asyncio.AbstractEventLoop,
) -> None:
    with reached(context, spec, quorum, loop) as (fence, _):
        # An undo may have left a copy outside.
        fence.run(maintenance.bring_all_in(spec, quorum, store))
        names = fence.run(quorum.describe()).copies
        restoring.check_untouched(context, manifest, names)
        if manifest.command == "undo":
            restoring.write_back(context, spec, quorum, fence.run, store, manifest, conclude)
            return
        with restoring.marked(store):
            write_alike(context, spec, quorum, fence.run, names, manifest)
        conclude(context, store, manifest)


# -- details


def ranges_of(manifest: Manifest) -> list[Range]:
    return [Range(r.offset, r.length) for r in manifest.written]


def _range(finding: FindingDocument) -> Range:
    return Range(finding.offset, finding.length)


def _undecided(context: SetContext, finding_id: int) -> FindingDocument:
    _, finding = looking.finding_of(context, finding_id)
    if finding.verdict is not FindingVerdict.NO_MAJORITY:
        raise RefusedError(
            f"Finding {finding_id} of {context.name} has a majority: there is nothing to decide.",
            remedy=f"'qorumctl scrub {context.name}' repairs it.",
            set_name=context.name,
        )
    if finding.action is Action.RESOLVED:
        raise RefusedError(
            f"Finding {finding_id} of {context.name} is resolved already.",
            remedy=f"'qorumctl resolve {context.name} --undo ID' restores what was there before; the IDs are the "
            f"directories in {context.state_dir / saved.DIRECTORY}.",
            set_name=context.name,
        )
    return finding


def _check_plan(context: SetContext, found: ResolveReport, expected: str | None) -> None:
    if not found.written:
        raise RefusedError(
            f"No sector of finding {found.finding} of {context.name} is without a majority any more.",
            remedy=f"Nothing was written. 'qorumctl scrub {context.name}' looks at it again.",
            set_name=context.name,
        )
    if expected is not None and found.plan != expected:
        raise RefusedError(
            f"What the copies of {context.name} hold has changed since it was shown.",
            remedy="Nothing was written. Look at it again, and repeat the command.",
            set_name=context.name,
        )


def _report(
    context: SetContext, finding: FindingDocument, decision: Decision, draft: Draft, saved_id: int | None
) -> ResolveReport:
    path = None if saved_id is None else saved.directory(context.state_dir, saved_id)
    copies = draft.copies()
    if path is not None:
        copies = [copy.model_copy(update={"saved": str(path / f"copy-{copy.name}.bin")}) for copy in copies]
    return ResolveReport(
        set=context.name,
        command="resolve",
        dry_run=saved_id is None,
        id=saved_id,
        finding=finding.id,
        decision=str(decision),
        offset=finding.offset,
        length=finding.length,
        written=[RangeDocument(offset=r.offset, length=r.length) for r in draft.written],
        written_bytes=total_bytes(draft.written),
        copies=copies,
        saved=None if path is None else str(path),
        plan=draft.plan(),
        warnings=draft.warnings(),
    )


def _heeding(context: SetContext, control: ScrubControl) -> Callable[[], None]:
    def heed() -> None:
        if control.reason is not None:
            raise QorumError("Interrupted: nothing was written.", set_name=context.name)

    return heed


def _not_held(
    context: SetContext, manifest: Manifest, name: str | None, at: Range, kind: type[CopyError] = CopyError
) -> CopyError:
    who = "The set" if name is None else f"Copy {name}"
    return kind(
        f"{who} does not hold what was written to it at offset {at.offset}.",
        remedy=f"Look at its storage. What every copy held before is saved: 'qorumctl resolve {context.name} --undo "
        f"{manifest.id}' restores it, and a scrub tells how the copies are now.",
        set_name=context.name,
        copy=name,
    )
