"""`copy rejoin`: brings a copy that is away up to date under the guests' writes, and back into the quorum.

    vet         its image, before anything is changed
    resync      outside the quorum: what it missed is copied to it, pass by pass (resync.py)
    bring in    drained: from here on it gets every write
    settle      what was written between the last pass and that is healed, and proven (settling.py)
    admit       flush, sidecars, marks; the mark that it is away goes last

At any instant each range that the copy lacks is marked in a record that stands; a record goes when all that is in it is
stored on the copy. So killed anywhere, the same command goes on. Where settling fails the copy is taken out again: what
lacks writes must not vote.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial

from qorumctl import identity
from qorumctl.controller import absences, detaching, suspects, watcher
from qorumctl.controller.bridge import LiveFence
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import Observer, ScrubControl, StopReason
from qorumctl.controller.resync import Resync
from qorumctl.controller.returning import Teller
from qorumctl.controller.settling import Settlement, settle
from qorumctl.controller.vet_return import vet_return
from qorumctl.copies.nbd import NbdCopy
from qorumctl.copies.nbd_link import ALLOCATION, NbdLink
from qorumctl.core.chronicle import Entry
from qorumctl.core.ranges import SECTOR_BYTES, Range, coalesce, split, total_bytes
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import CopyError, DaemonStalledError, QorumError, RefusedError
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import CopyResult
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Watch
from qorumctl.store import Store
from qorumctl.store.absent import Absence
from qorumctl.store.records import now
from qorumctl.units import MIB, format_size

_MOST_PASSES = 8
_LITTLE_BYTES = MIB
"""What is left to be healed once the copy is back, at best."""
_PART_BLOCKS = 1 << 16
"""So much of a record is looked at together: with every other block marked, that is some 20 MiB of ranges."""
_SHRINKS = 0.75
_TURNS = 5
"""Where nothing may be rewritten, a copy that came back lacking something leaves again: this often."""
_MOST_NAMED = 3


async def rejoin(
    context: SetContext, spec: SetSpec, name: str, *, full: bool, observer: Observer, control: ScrubControl
) -> CopyResult:
    """Under the set's lock; the set runs."""
    detaching.check_known(spec, name)
    # What the daemon holds back of a write that failed a moment ago is a reason to compare everything.
    await watcher.outlast_throttle(context)
    async with context.scrub_monitor() as monitor:
        quorum = context.quorum(spec, monitor)
        await detaching.assembled(context, quorum)
        loop = asyncio.get_running_loop()
        working = asyncio.ensure_future(
            asyncio.to_thread(_run, context, spec, quorum, name, full, observer, control, loop)
        )
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            # The thread goes on whatever happens here: it must end before the caller lets go of lock and monitor.
            control.stop(StopReason.INTERRUPTED)
            # Whatever it ends with: asyncio would print an error that nobody has asked for.
            await asyncio.gather(working, return_exceptions=True)
            raise


def _run(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    name: str,
    full: bool,
    observer: Observer,
    control: ScrubControl,
    loop: asyncio.AbstractEventLoop,
) -> CopyResult:
    readers: list[NbdCopy] = []

    def hang_up() -> None:
        for reader in readers:
            reader.close()

    def sign_of_life() -> None:
        for reader in readers:
            reader.observe(Range(0, SECTOR_BYTES))

    socket = context.runtime.nbd_sock
    fence = LiveFence(quorum, loop, socket, context.timeouts, spec.size, hang_up, sign_of_life)
    try:
        with context.store() as store:
            teller = Teller(spec, name, observer, control)
            return _Rejoin(context, spec, quorum, name, full, store, fence, readers, teller).run()
    finally:
        fence.close()


class _Rejoin:
    def __init__(
        self,
        context: SetContext,
        spec: SetSpec,
        quorum: QuorumSet,
        name: str,
        full: bool,
        store: Store,
        fence: LiveFence,
        readers: list[NbdCopy],
        teller: Teller,
    ) -> None:
        self._context = context
        self._spec = spec
        self._copy = spec.copy_named(name)
        self._quorum = quorum
        self._name = name
        self._asked_for_all = full
        self._store = store
        self._fence = fence
        self._readers = readers
        self._teller = teller
        self._mark = absences.mark(spec, name, "not in the quorum", left=True, lost="it left unrecorded")
        self._result = CopyResult(set=spec.name, copy_=name, command="rejoin", changed=True)

    def run(self) -> CopyResult:
        self._fence.run(self._quorum.sweep())
        state = self._fence.run(self._quorum.describe())
        marks = self._store.absences()
        # A command that was killed right after it had taken a mark away.
        self._fence.run(self._quorum.missed.drop(r.name for r in state.missed if r.copy not in marks))
        inside = self._name in state.copies
        if self._name in marks:
            self._mark = marks[self._name]
        elif inside:
            return self._result.model_copy(update={"changed": False})
        else:
            self._store.note_absence(self._mark, Entry.FOUND_OUTSIDE)
        if inside and not self._mark.left:
            # A detach was killed before it had come to anything: the copy has every write.
            self._fence.run(self._quorum.children.export(self._name))
            return self._admit(Settlement())
        if inside and not self._mark.kept:
            # Killed as it left, lacking more than the record tells.
            self._take_out()
            inside = False
        if not inside:
            self._open()
        return self._admit(self._bring_in(inside))

    # -- the copy's nodes

    def _open(self) -> None:
        """The image is looked at, and its nodes opened; whatever a killed command left of them is closed first."""
        self._fence.run(self._quorum.children.close(self._name))
        generation = vet_return(self._context, self._spec, self._copy, self._store, full=self._asked_for_all)
        try:
            self._fence.run(self._quorum.children.open(self._copy, read_only=False, exported=False))
            self._fence.run(self._quorum.children.check_length(self._copy))
            self._prepare_record(generation)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        # A daemon that hangs would make this wait, too; the next command closes what is left.
        with suppress(QorumError):
            self._fence.run(self._quorum.children.close(self._name))

    def _away(self) -> frozenset[str]:
        return frozenset(self._store.absences()) - {self._name}

    # -- what it missed

    def _prepare_record(self, generation: int | None) -> None:
        """Decides whether the record tells all that the copy lacks; if not, begins another before all is compared."""
        mark, pid = self._mark, self._context.pid()
        records = self._fence.run(self._quorum.missed.of(self._name))
        stands = mark.daemon == pid and any(record.recording for record in records)
        same = mark.generation == generation
        reason = ""
        if self._asked_for_all:
            reason = "it was asked for"
        elif not mark.kept:
            reason = mark.lost or absences.RECORD_LOST
        elif not stands:
            reason = absences.RECORD_LOST
        elif not same:
            reason = "its image is not the one that left"
        elif self._missed_since_begin():
            reason = "it had missed a write before it left"
        if not reason:
            return
        self._result = self._result.model_copy(update={"full": True, "reason": reason})
        if mark.cursor_bytes is not None and stands and same:
            return
        self._fence.run(self._quorum.missed.begin(self._name))
        self._fence.run(self._quorum.missed.drop([record.name for record in records]))
        serials = {s.key: s.serial for s in self._store.suspicions() if s.copy == self._name}
        self._note(
            replace(
                mark, left=True, kept=False, lost=reason, daemon=pid, generation=generation, cursor_bytes=0,
                serials=serials,
            )
        )  # fmt: skip

    def _missed_since_begin(self) -> bool:
        """A write of the copy failed, and no comparison that was begun since is going to settle that."""
        return any(
            s.copy == self._name and s.missed and self._mark.serials.get(s.key) != s.serial
            for s in self._store.suspicions()
        )

    def _note(self, mark: Absence) -> None:
        self._store.note_absence(mark)
        self._mark = mark

    def _marked(self, names: Sequence[str]) -> Generator[list[Range], None, None]:
        """What stands in records that have ended, one part of the disk after the other: it may be millions of ranges.
        To be closed."""
        try:
            with ExitStack() as stack:
                records = [stack.enter_context(self._fence.asking(Watch(name))) for name in names]
                part_bytes = _PART_BLOCKS * self._quorum.missed.granularity_bytes
                for part in split([Range(0, self._spec.size)] if records else [], part_bytes):
                    if found := coalesce(r for ask in records for r in ask([part])):
                        yield found
        finally:
            self._fence.run(self._quorum.missed.unpublish(names))

    def _marked_bytes(self, names: Sequence[str]) -> int:
        """At most: what stands in two records is counted twice."""
        records = self._fence.run(self._quorum.missed.of(self._name))
        return min(self._spec.size, sum(record.count_bytes for record in records if record.name in names))

    # -- outside the quorum

    def _resync(self) -> None:
        """On return the copy lacks only what the one record that stands holds, usually little."""
        export = self._fence.run(self._quorum.children.export_for_resync(self._name))
        socket, limit_s = self._context.runtime.nbd_sock, self._context.timeouts.copy_s
        who = f"Copy {self._name}"
        try:
            with ExitStack() as stack:
                keys = {"who": who, "timeout_s": limit_s, "copy": self._name}
                link = stack.enter_context(closing(NbdLink(socket, export, **keys)))  # type: ignore[arg-type]
                status = stack.enter_context(
                    closing(NbdLink(socket, export, meta_context=ALLOCATION, **keys))  # type: ignore[arg-type]
                )
                state = self._fence.run(self._quorum.describe())
                others = [self._reader(stack, name) for name in state.copies]
                work = Resync(self._name, others, self._fence, link, status, self._teller.pause)
                try:
                    if not self._mark.kept:
                        self._compare_all(work)
                    self._passes(work)
                finally:
                    self._count(
                        compared_bytes=work.compared_bytes,
                        copied_bytes=work.copied_bytes,
                        verified_bytes=work.verified_bytes,
                    )
        finally:
            with suppress(DaemonStalledError):
                self._fence.run(self._quorum.children.end_exports(self._name))

    def _compare_all(self, work: Resync) -> None:
        cursor = self._mark.cursor_bytes or 0
        self._teller.begin("comparing all of it", self._spec.size, cursor)
        unknown = work.compare(
            cursor,
            self._spec.size,
            self._teller.moved,
            lambda at: self._note(replace(self._mark, cursor_bytes=at)),
        )
        self._refuse_unknown(unknown)
        # Every write since it began is in the record: from here on that tells all that is lacking.
        self._note(replace(self._mark, kept=True, lost="", cursor_bytes=None))

    def _passes(self, work: Resync) -> None:
        before: int | None = None
        for _ in range(_MOST_PASSES):
            ended = self._fence.run(self._quorum.missed.rotate(self._name))
            if most := self._marked_bytes(ended):
                self._teller.begin("copying what it missed", most, 0)
            size, unknown = 0, list[Range]()
            with closing(self._marked(ended)) as parts:
                for ranges in parts:
                    unknown += work.copy(ranges, partial(self._teller.moved, after_bytes=size))
                    size += total_bytes(ranges)
            self._refuse_unknown(unknown)
            self._fence.run(self._quorum.missed.drop(ended))
            self._count(passes=1)
            if size <= _LITTLE_BYTES or (before is not None and size > _SHRINKS * before):
                # Guests write as fast as this copies: another pass would leave as much.
                return
            before = size

    def _refuse_unknown(self, unknown: Sequence[Range]) -> None:
        """What the others do not agree on cannot be copied; and what the copy holds there must not decide it."""
        if unknown:
            raise RefusedError(
                f"Copy {self._name} cannot come back: the other copies of {self._spec.name} do not agree on "
                f"{format_size(total_bytes(unknown))} that it lacks, {_places(unknown)}.",
                remedy="It stays away. Write these ranges anew through the volume, from a backup; then repeat the "
                "command.",
                set_name=self._spec.name,
                copy=self._name,
            )

    # -- inside the quorum

    def _bring_in(self, inside: bool) -> Settlement:
        for turn in range(_TURNS):
            try:
                if not inside:
                    self._resync()
                    self._fence.run(self._quorum.children.bring_in(self._copy))
            except BaseException:
                self._close()
                raise
            inside = True
            try:
                found = self._settle()
                failure = self._failure(found)
            except DaemonStalledError:
                raise
            except QorumError:
                self._take_out()
                self._close()
                raise
            if failure is None:
                return found
            inside = False
            self._take_out()
            if found.undecided or self._rewriting or turn == _TURNS - 1:
                self._close()
                raise failure
        raise AssertionError("unreachable")

    @property
    def _rewriting(self) -> bool:
        return self._spec.policy == "repair"

    def _settle(self) -> Settlement:
        self._fence.run(self._quorum.children.export(self._name))
        ended = self._fence.run(self._quorum.missed.end(self._name))
        size = self._marked_bytes(ended)
        if not size:
            return Settlement()
        self._teller.begin("healing the rest", size, 0, stoppable=False)
        plan = ScrubPlan(
            size_bytes=self._spec.size,
            threshold=self._spec.threshold,
            repair=self._rewriting,
            rewriting=self._rewriting,
            within=Range(0, self._spec.size),
            now=now,
            stale=suspects.stale(self._store, self._spec) | {self._name},
        )
        state = self._fence.run(self._quorum.describe())
        with ExitStack() as stack:
            readers = [self._reader(stack, name) for name in state.copies]
            parts = stack.enter_context(closing(self._marked(ended)))
            ranges = (r for part in parts for r in part)
            found = settle(self._name, readers, self._fence, plan, ranges, self._teller.moved)
        self._count(healed_bytes=found.healed_bytes, verified_bytes=found.verified_bytes)
        return found

    def _failure(self, found: Settlement) -> QorumError | None:
        """Why the copy has to leave again. It is asked to flush before it counts: a power failure is to find it
        current."""
        if found.undecided:
            return self._undecided(found.undecided)
        if found.wrong and self._rewriting:
            return CopyError(
                f"Copy {self._name} does not take what it lacks, {_places(found.wrong)}.",
                remedy="It was taken out again. Look at its storage, then repeat the command.",
                set_name=self._spec.name,
                copy=self._name,
            )
        if found.wrong:
            return RefusedError(
                f"Guests write too much to {self._spec.name} for copy {self._name} to catch up: with policy "
                '"report" nothing can be healed once it is back.',
                remedy="It stays away, and what was copied is kept. Pause the guests (as 'virsh suspend' does), repeat "
                "the command, which then takes a moment, and let them go on.",
                set_name=self._spec.name,
                copy=self._name,
            )
        if not detaching.flush(self._context, copy_node(self._name)):
            return CopyError(
                f"Copy {self._name} does not confirm a flush.",
                remedy="It was taken out again. Look at its storage, then repeat the command.",
                set_name=self._spec.name,
                copy=self._name,
            )
        if self._missed_since_begin():
            return CopyError(
                f"Copy {self._name} missed a write while it was being brought back.",
                remedy="It was taken out again. Look at its storage, then repeat the command.",
                set_name=self._spec.name,
                copy=self._name,
            )
        return None

    def _undecided(self, ranges: Sequence[Range]) -> RefusedError:
        if idle := self._uncounted():
            return RefusedError(
                f"Copy {self._name} cannot come back: copy {', '.join(idle)} has missed a write and does not count, so "
                f"nothing proves what is right {_places(ranges)}.",
                remedy=f"It was taken out again. Run 'qorumctl scrub {self._spec.name}', then repeat the command.",
                set_name=self._spec.name,
                copy=self._name,
            )
        return RefusedError(
            f"Copy {self._name} cannot come back: the other copies of {self._spec.name} do not agree, "
            f"{_places(ranges)}.",
            remedy="It was taken out again. Write these ranges anew through the volume, from a backup; then repeat "
            "the command.",
            set_name=self._spec.name,
            copy=self._name,
        )

    def _uncounted(self) -> list[str]:
        """Of the other copies of the quorum."""
        return sorted(suspects.stale(self._store, self._spec) - self._away() - {self._name})

    def _take_out(self) -> None:
        """Out of the quorum again, with everything on record that it lacks: what stood is kept, and a new record is
        begun while it still gets every write."""
        self._fence.close()
        self._fence.run(self._quorum.missed.begin(self._name))
        stored = detaching.flush(self._context, copy_node(self._name))
        if not stored or self._missed_since_begin():
            lost = "it missed a write" if stored else "it did not confirm a flush"
            self._note(replace(self._mark, kept=False, lost=lost, cursor_bytes=None))
        self._fence.run(self._quorum.children.take_out(self._name))

    def _reader(self, stack: ExitStack, name: str) -> NbdCopy:
        socket = self._context.runtime.nbd_sock
        reader = NbdCopy(name, socket, copy_node(name), timeout_s=self._context.timeouts.copy_s)
        stack.enter_context(closing(reader))
        self._readers.append(reader)
        stack.callback(self._readers.remove, reader)
        return reader

    # -- the end

    def _admit(self, found: Settlement) -> CopyResult:
        spec, warnings = self._spec, list[str]()
        state = self._fence.run(self._quorum.describe())
        for other in state.copies:
            if other != self._name and not detaching.flush(self._context, copy_node(other)):
                warnings.append(f"Copy {other} did not confirm a flush: look at its storage.")
        if found.others:
            warnings.append(
                f"Copy {', '.join(sorted(found.others))} was outvoted or unreadable on the way: run "
                f"'qorumctl scrub {spec.name}'."
            )
        identity.admit(spec, self._name, identity.this_host(), without=self._away())
        if self._mark.kept and self._mark.serials:
            self._store.clear_suspicions(self._mark.serials)
        self._store.forget_absence(self._name, detail=self._result.reason or "")
        records = self._fence.run(self._quorum.missed.of(self._name))
        self._fence.run(self._quorum.missed.drop([record.name for record in records]))
        return self._result.model_copy(update={"warnings": warnings})

    def _count(self, **figures: int) -> None:
        before = self._result.model_dump()
        self._result = self._result.model_copy(update={key: before[key] + n for key, n in figures.items()})


def _places(ranges: Sequence[Range]) -> str:
    named = ", ".join(f"{r.offset}:{r.length}" for r in ranges[:_MOST_NAMED])
    more = f" and {len(ranges) - _MOST_NAMED} more" if len(ranges) > _MOST_NAMED else ""
    return f"at {named}{more}"
