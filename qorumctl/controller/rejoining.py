"""`copy rejoin`: brings a copy that is away up to date under the guests' writes, and back into the quorum.

    vet         its image, before anything is changed
    catch up    what a scrub took it out for is written anew, what it missed is copied; it goes in, the rest is healed
                and proven (catching_up.py)
    admit       flush, sidecars, marks; the mark that it is away goes last

Killed anywhere, the same command goes on.
"""

from __future__ import annotations

import asyncio

from qorumctl import identity
from qorumctl.controller import absences, detaching, watcher
from qorumctl.controller.catching_up import CatchUp, Words
from qorumctl.controller.context import SetContext
from qorumctl.controller.fenced_work import Bench, carry_out, work_here
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.returning import Teller
from qorumctl.controller.settling import Settlement
from qorumctl.controller.vet_return import vet_return
from qorumctl.core.chronicle import Entry
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import CopyResult


async def rejoin(
    context: SetContext, spec: SetSpec, name: str, *, full: bool, observer: Observer, control: ScrubControl
) -> CopyResult:
    """Under the set's lock; the set runs."""
    detaching.check_known(spec, name)
    # What the daemon holds back of a write that failed a moment ago is a reason to compare everything.
    await watcher.outlast_throttle(context)
    teller = teller_of(spec, name, observer, control)
    async with context.scrub_monitor() as monitor:
        quorum = context.quorum(spec, monitor)
        await detaching.assembled(context, quorum)
        return await carry_out(
            context, spec, quorum, teller, control, lambda bench: _Rejoin(bench, name, full=full).run()
        )


def teller_of(spec: SetSpec, name: str, observer: Observer, control: ScrubControl, *, brief: bool = False) -> Teller:
    standing = f"copy {name} of {spec.name} is still away"
    return Teller(spec, f"copy {name}", "rejoin", standing, observer, control, brief=brief)


def bring_back(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    name: str,
    teller: Teller,
    loop: asyncio.AbstractEventLoop,
) -> CopyResult:
    """As `rejoin`, in a thread of the caller's own; QMP runs in `loop`."""
    return work_here(context, spec, quorum, teller, loop, lambda bench: _Rejoin(bench, name, full=False).run())


class _Rejoin:
    def __init__(self, bench: Bench, name: str, *, full: bool) -> None:
        self._bench = bench
        self._spec = bench.spec
        self._quorum = bench.quorum
        self._store = bench.store
        self._fence = bench.fence
        self._name = name
        self._full = full

    def run(self) -> CopyResult:
        name, children = self._name, self._quorum.children
        self._fence.run(self._quorum.sweep())
        state = self._fence.run(self._quorum.describe())
        marks = self._store.absences()
        self._fence.run(absences.drop_unneeded(marks, self._quorum, state))
        inside = name in state.copies
        mark = marks.get(name)
        if mark is None and inside:
            return CopyResult(set=self._spec.name, copy_=name, command="rejoin", changed=False)
        if mark is None:
            mark = absences.mark(self._spec, name, "not in the quorum", left=True, lost="it left unrecorded")
            self._store.note_absence(mark, Entry.FOUND_OUTSIDE)
        words = Words(
            copy=name,
            who=f"Copy {name}",
            cannot="cannot come back",
            stays="It stays away.",
            out="It was taken out again.",
            mend="Write these ranges anew through the volume, from a backup; then repeat the command.",
        )
        copy = self._spec.copy_named(name)
        catch_up = CatchUp(self._bench, copy, mark, self._store.note_absence, words, full=self._full)
        if inside and not mark.left:
            # A detach was killed before it had come to anything: the copy has every write.
            self._fence.run(children.export(name))
            return self._admit(catch_up, Settlement())
        if inside and not mark.kept:
            # Killed as it left, lacking more than the record tells.
            catch_up.take_out()
            inside = False
        if not inside:
            # Whatever a killed command left of its nodes is closed before its image is looked at.
            catch_up.close()
            catch_up.open(vet_return(self._bench.context, self._spec, copy, self._store, full=self._full))
        return self._admit(catch_up, catch_up.bring_in(inside=inside))

    # -- the end

    def _admit(self, catch_up: CatchUp, found: Settlement) -> CopyResult:
        name = self._name
        warnings = flush_others(self._bench, name) + outvoted_words(self._spec, found)
        away = frozenset(self._store.absences()) - {name}
        identity.admit(self._spec, name, identity.this_host(), without=away)
        if catch_up.mark.kept and catch_up.mark.serials:
            self._store.clear_suspicions(catch_up.mark.serials)
        if catch_up.lacking:
            # As when a write fails while it is in the quorum.
            self._store.suspect([name], missed=True, why="it does not store what is written to it", known=True)
        how = None if catch_up.mark.rewrite else Entry.REJOINED
        self._store.forget_absence(name, how, detail=catch_up.reason or "")
        records = self._fence.run(self._quorum.missed.of(name))
        self._fence.run(self._quorum.missed.drop([record.name for record in records]))
        return CopyResult(
            set=self._spec.name,
            copy_=name,
            command="rejoin",
            changed=True,
            full=catch_up.full,
            reason=catch_up.reason,
            warnings=warnings,
            **catch_up.figures,
        )


def flush_others(bench: Bench, name: str) -> list[str]:
    """Warnings about copies that do not confirm a flush."""
    state = bench.fence.run(bench.quorum.describe())
    return [
        f"Copy {other} did not confirm a flush: look at its storage."
        for other in state.copies
        if other != name and not detaching.flush(bench.context, copy_node(other))
    ]


def outvoted_words(spec: SetSpec, found: Settlement) -> list[str]:
    if not found.others:
        return []
    names = ", ".join(sorted(found.others))
    return [f"Copy {names} was outvoted or unreadable on the way: run 'qorumctl scrub {spec.name}'."]
