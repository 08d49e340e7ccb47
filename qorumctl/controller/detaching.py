"""`copy detach`: takes a copy out of a running set, with a record of what it misses from then on.

    the mark, on disk           from here on no start takes the copy for current
    the others' sidecars        a generation without it: the same, should all local state be lost
    the record is begun         drained: every earlier write has reached the copy
    the copy is flushed         ... and is stored there: it may be switched off next
    the mark says so            whether the record tells all that the copy lacks; it may leave now
    it leaves                   drained; then its nodes are closed, so that its storage can be unmounted

Killed anywhere, the same command goes on from where it was. Up to the last step the copy still gets every write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qorumctl import identity
from qorumctl.controller import absences, suspects
from qorumctl.controller.context import SetContext
from qorumctl.copies.nbd import NbdCopy
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.chronicle import Entry
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import GraphState, QuorumSet
from qorumctl.errors import CopyUnavailableError, DaemonGoneError, DaemonStalledError, RefusedError, UsageError
from qorumctl.model.spec import FileSource, SetSpec
from qorumctl.model.status import CopyResult
from qorumctl.store import Store
from qorumctl.store.absent import Absence

DETACHED = "detached"
REWRITTEN = "taken out to write anew what it cannot read"
_FORCED = "it was detached by force, with writes under way"
_SILENT, _UNREADABLE = "does not answer", "cannot be read"
_NOT_YET = "its detaching was not brought to its end"


async def detach(context: SetContext, spec: SetSpec, name: str, *, force: bool) -> CopyResult:
    """Under the set's lock; the set runs. With `force` also a copy that does not answer, as far as QEMU allows."""
    check_known(spec, name)
    try:
        async with context.scrub_monitor() as monitor:
            quorum = context.quorum(spec, monitor)
            return await take_out(context, spec, quorum, name, force=force)
    except DaemonStalledError as error:
        raise _hung(context, spec, name) from error


async def take_out(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    name: str,
    *,
    force: bool = False,
    rewrite: Sequence[Range] = (),
) -> CopyResult:
    """`rewrite`: what is to be written anew before the copy comes back; a scrub then finishes what was interrupted."""
    state = await assembled(context, quorum)
    with context.store() as store:
        marks = store.absences()
        mark = marks.get(name)
        if mark is not None and mark.rewrite and not rewrite:
            # Whoever detaches it means it to stay away.
            mark = replace(mark, why=DETACHED, rewrite=())
        if name not in state.copies:
            if mark is None or not mark.left:
                # Somebody else took it out: nobody knows since when.
                mark = replace(
                    mark or _mark(spec, name, ()), left=True, kept=False, lost="it left the quorum unrecorded"
                )
                store.note_absence(mark, Entry.FOUND_OUTSIDE)
            else:
                store.note_absence(mark, Entry.DETACHED)
            return _result(spec, mark, changed=await quorum.children.close(name))
        for copy in state.copies:
            # Killed between the end of its export and its leaving, or as it came back.
            await quorum.children.export(copy)
        await asyncio.to_thread(refuse_unfit, context, spec, state, store, name, marks)
        if not force:
            await asyncio.to_thread(_ask_for_a_sign_of_life, context, spec, name)
        await quorum.sweep()
        mark = mark or _mark(spec, name, rewrite)
        # A copy that is half back keeps its record: nothing that stands in it is dropped before it is all proven.
        mark = replace(mark, kept=mark.kept and mark.left)
        store.note_absence(mark, _entry(mark, force=force))
        _leave_the_sidecars(spec, name, marks.keys() | {name})
        mark = await _leave(context, spec, quorum, store, mark, force=force)
    return _result(spec, mark, changed=True)


async def _leave(
    context: SetContext, spec: SetSpec, quorum: QuorumSet, store: Store, mark: Absence, *, force: bool
) -> Absence:
    name = mark.copy
    if not any(record.recording for record in await quorum.missed.of(name)):
        # While it is out for what it has lost, another may have lost something near to what guests write.
        await quorum.missed.begin(name, drain=not force, by_sectors=bool(mark.rewrite))
    lost = _FORCED if force else await _why_lost(context, spec, store, name)
    if mark.left and not mark.kept:
        lost = lost or mark.lost
    generation = None if force else _generation(spec, name)
    mark = replace(mark, left=True, kept=not lost, lost=lost, daemon=context.pid(), generation=generation)
    store.note_absence(mark, _entry(mark, force=force))
    await quorum.children.take_out(name)
    await quorum.children.close(name)
    return mark


def _entry(mark: Absence, *, force: bool) -> Entry | None:
    """A scrub's doing for a moment is no part of the copy's history: the findings are."""
    return None if mark.rewrite else Entry.FORCED_OUT if force else Entry.DETACHED


async def _why_lost(context: SetContext, spec: SetSpec, store: Store, name: str) -> str:
    """Why a record that is begun now does not tell all that the copy lacks; nothing where it does."""
    if not await asyncio.to_thread(flush, context, copy_node(name)):
        return "it did not confirm its last flush"
    if name in suspects.missed(store, spec):
        return "it had missed a write before it left"
    if context.uncompared(store):
        return "it was not compared after an unclean stop before it left"
    return ""


def _leave_the_sidecars(spec: SetSpec, name: str, away: frozenset[str] | set[str]) -> None:
    who = identity.judge(identity.read_all(spec, without=away), spec, identity.this_host().id)
    identity.begin_generation(spec, who, without=away)


def _generation(spec: SetSpec, name: str) -> int | None:
    source = spec.copy_named(name).source
    sidecar = identity.read(source.path) if isinstance(source, FileSource) else None
    return None if sidecar is None else sidecar.reached


def _mark(spec: SetSpec, name: str, rewrite: Sequence[Range]) -> Absence:
    why, places = REWRITTEN if rewrite else DETACHED, tuple((r.offset, r.length) for r in rewrite)
    return replace(absences.mark(spec, name, why, left=False, lost=_NOT_YET), rewrite=places)


def refuse_unfit(
    context: SetContext, spec: SetSpec, state: GraphState, store: Store, name: str, marks: Mapping[str, Absence]
) -> None:
    """RefusedError where fewer than `threshold` current copies would remain without this one, or where one of them
    hangs. Asks each: not in the event loop's thread."""
    unfit = _unfit(context, spec, state, store, name, marks)
    _refuse_too_few(spec, name, unfit)
    _refuse_silent(spec, name, unfit)


def _unfit(
    context: SetContext, spec: SetSpec, state: GraphState, store: Store, name: str, marks: Mapping[str, Absence]
) -> dict[str, str]:
    """Which of the other copies cannot be relied on once this one has left, each with words that say why. One that died
    without a guest's having written since is on no record: so each is asked."""
    missed = suspects.missed(store, spec)
    found: dict[str, str] = {}
    for copy in spec.copy_names:
        if copy == name:
            continue
        if copy in marks or copy not in state.copies:
            found[copy] = f"copy {copy} is away"
        elif copy in missed:
            found[copy] = f"copy {copy} has missed a write"
        elif ails := _ails(context, spec, copy):
            found[copy] = f"copy {copy} {ails}"
    return found


def _ails(context: SetContext, spec: SetSpec, copy: str) -> str | None:
    """A bad sector alone is nothing: `status` looks at the same three."""
    try:
        reader = NbdCopy(copy, context.runtime.nbd_sock, copy_node(copy), timeout_s=context.timeouts.monitor_s)
        try:
            last = spec.size // SECTOR_BYTES - 1
            probes = [Range(sector * SECTOR_BYTES, SECTOR_BYTES) for sector in (0, last // 2, last)]
            return _UNREADABLE if all(reader.observe(probe).unreadable for probe in probes) else None
        finally:
            reader.close()
    except CopyUnavailableError:
        return _SILENT


def _refuse_too_few(spec: SetSpec, name: str, unfit: Mapping[str, str]) -> None:
    left = len(spec.copies) - 1 - len(unfit)
    if left < spec.threshold:
        why = f" ({', '.join(unfit.values())})" if unfit else ""
        copies = "copy" if left == 1 else "copies"
        raise RefusedError(
            f"Copy {name} cannot leave {spec.name}: {left} current {copies} would remain{why}, and {spec.threshold} "
            "are needed.",
            remedy=f"Nothing was changed. Bring another copy up to date first: see 'qorumctl status {spec.name}'."
            if unfit
            else "Nothing was changed.",
            set_name=spec.name,
            copy=name,
        )


def _refuse_silent(spec: SetSpec, name: str, unfit: Mapping[str, str]) -> None:
    """QEMU takes a copy out only when every other has answered; until then guests would wait, too."""
    for copy, why in unfit.items():
        if why.endswith(_SILENT):
            raise RefusedError(
                f"Copy {copy} of {spec.name} does not answer: while it hangs, copy {name} cannot be taken out.",
                remedy=f"Nothing was changed. Look at the storage of copy {copy}, or kill its own server.",
                set_name=spec.name,
                copy=copy,
            )


def _ask_for_a_sign_of_life(context: SetContext, spec: SetSpec, leaving: str) -> None:
    """Every drain waits for every copy. An error is an answer."""
    try:
        reader = NbdCopy(leaving, context.runtime.nbd_sock, copy_node(leaving), timeout_s=context.timeouts.monitor_s)
        try:
            reader.observe(Range(0, SECTOR_BYTES))
        finally:
            reader.close()
    except CopyUnavailableError as error:
        raise RefusedError(
            f"Copy {leaving} of {spec.name} does not answer: {error.message}",
            remedy=f"Nothing was changed. If it hangs, use --force: 'qorumctl copy detach {spec.name} {leaving} "
            "--force'.",
            set_name=spec.name,
            copy=leaving,
        ) from None


def flush(context: SetContext, export: str) -> bool:
    """Whether what is behind an export of the set has confirmed a flush."""
    try:
        link = NbdLink(context.runtime.nbd_sock, export, who="The set", timeout_s=context.timeouts.copy_s)
    except CopyUnavailableError:
        return False
    try:
        return link.flush()
    except CopyUnavailableError:
        return False
    finally:
        link.close()


def check_known(spec: SetSpec, name: str) -> None:
    if name not in spec.copy_names:
        raise UsageError(
            f"{spec.name} has no copy '{name}'.",
            remedy=f"Its copies: {', '.join(spec.copy_names)}.",
            set_name=spec.name,
        )


async def assembled(context: SetContext, quorum: QuorumSet) -> GraphState:
    """What stands in the daemon. Raises DaemonGoneError for a set that does not serve its volume."""
    state = await quorum.describe()
    if not (state.assembled and state.volume_exported):
        raise DaemonGoneError(
            f"The volume of {context.name} is not exported: an earlier command did not finish.",
            remedy=f"Run 'qorumctl start {context.name}'.",
            set_name=context.name,
        )
    if state.doubled:
        copy = state.doubled[0]
        raise RefusedError(
            f"Two images stand for copy {copy} of {context.name}: the record of the set was lost while the copy was "
            "being replaced.",
            remedy=f"Nothing was changed. Run 'qorumctl restart {context.name}': the image that the definition names "
            "stays.",
            set_name=context.name,
            copy=copy,
        )
    return state


def _hung(context: SetContext, spec: SetSpec, name: str) -> DaemonStalledError:
    with context.store(read_only=True) as store:
        noted = name in store.absences()
    label = spec.copy_named(name).source.label
    what = "It is on record as away. " if noted else "Nothing was changed. "
    return DaemonStalledError(
        f"The daemon of {spec.name} waits for a copy that hangs, and could not take out copy {name} ({label}).",
        remedy=f"{what}Kill the copy's own server, or force its file system off ('umount -f'): an error frees all. "
        f"Then run 'qorumctl copy detach {spec.name} {name} --force' again.",
        set_name=spec.name,
        copy=name,
    )


def _result(spec: SetSpec, mark: Absence, *, changed: bool) -> CopyResult:
    return CopyResult(
        set=spec.name,
        copy_=mark.copy,
        command="detach",
        changed=changed,
        full=not mark.kept,
        reason=None if mark.kept else mark.lost or absences.RECORD_LOST,
    )
