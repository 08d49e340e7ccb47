"""An image that lacks something is brought up to date under the guests' writes, and into the quorum: a copy that comes
back, or a newcomer that is to take a copy's place.

    resync      outside the quorum: what it lacks is copied to it, pass by pass (resync.py)
    bring in    drained: from here on it gets every write
    settle      what was written between the last pass and that is healed, and proven (settling.py)

At any instant each range that the image lacks is marked in a record that stands; a record goes when all that is in it
is stored. Where settling fails the image is taken out again: what lacks writes must not vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial

from qorumctl.controller import detaching, suspects
from qorumctl.controller.absences import RECORD_LOST
from qorumctl.controller.fenced_work import Bench
from qorumctl.controller.resync import Resync
from qorumctl.controller.settling import Settlement, settle
from qorumctl.copies.nbd_link import ALLOCATION, NbdLink
from qorumctl.core.ranges import Range, coalesce, intersect, split, subtract, total_bytes
from qorumctl.core.vote import strict_majority
from qorumctl.daemon.graph import copy_node
from qorumctl.errors import CopyError, DaemonStalledError, QorumError, RefusedError
from qorumctl.model.spec import CopySpec
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Watch
from qorumctl.store.absent import Absence
from qorumctl.store.records import now
from qorumctl.units import MIB, format_size

_MOST_PASSES = 8
_LITTLE_BYTES = MIB
"""What is left to be healed once the image is in, at best."""
_PART_BLOCKS = 1 << 16
"""So much of a record is looked at together: with every other block marked, that is some 20 MiB of ranges."""
_SHRINKS = 0.75
_TURNS = 5
"""Where nothing may be rewritten, an image that came in lacking something leaves again: this often."""
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Words:
    """How the image is spoken of. `who` begins a sentence, `cannot` goes on with it. `stays`, `out`: where things are
    after a failure, the second once it was in the quorum. `mend`: what to do about copies that do not agree. `copy`:
    the one that it is about."""

    copy: str
    who: str
    cannot: str
    stays: str
    out: str
    mend: str


class CatchUp:
    """`copy`: named as the daemon's nodes of it are. `mark`: what is on record of what it lacks, and `save` puts it
    there."""

    def __init__(
        self, bench: Bench, copy: CopySpec, mark: Absence, save: Callable[[Absence], None], words: Words, *, full: bool
    ) -> None:
        self._context = bench.context
        self._spec = bench.spec
        self._quorum = bench.quorum
        self._store = bench.store
        self._fence = bench.fence
        self._teller = bench.teller
        self._bench = bench
        self._copy = copy
        self._name = copy.name
        self._save = save
        self._words = words
        self._asked_for_all = full
        # What it does not hold though it was written anew, and what of that guests have written since it left.
        self._broken: list[Range] = []
        self.lacking: list[Range] = []
        self.mark = mark
        self.full = False
        self.reason: str | None = None
        self.figures: Counter[str] = Counter()

    # -- its nodes

    def open(self, generation: int | None) -> None:
        """Opens its nodes, which are closed. `generation`: that of its sidecar."""
        try:
            self._fence.run(self._quorum.children.open(self._copy, read_only=False, exported=False))
            self._fence.run(self._quorum.children.check_length(self._copy))
            self._prepare_record(generation)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        # A daemon that hangs would make this wait, too; the next command closes what is left.
        with suppress(QorumError):
            self._fence.run(self._quorum.children.close(self._name))

    # -- what it lacks

    def _prepare_record(self, generation: int | None) -> None:
        """Decides whether the record tells all that the copy lacks; if not, begins another before all is compared."""
        mark, pid = self.mark, self._context.pid()
        records = self._fence.run(self._quorum.missed.of(self._name))
        stands = mark.daemon == pid and any(record.recording for record in records)
        same = mark.generation == generation
        reason = ""
        if self._asked_for_all:
            reason = "it was asked for"
        elif not mark.kept:
            reason = mark.lost or RECORD_LOST
        elif not stands:
            reason = RECORD_LOST
        elif not same:
            reason = "its image is not the one that left"
        elif self.missed_since_begin():
            reason = "it had missed a write before it left"
        if not reason:
            return
        self.full, self.reason = True, reason
        serials = {s.key: s.serial for s in self._store.suspicions() if s.copy == self._name}
        if mark.cursor_bytes is not None and stands and same:
            # In no quorum since the comparison began: what has failed was written by us, and is not behind the cursor.
            self._note(replace(mark, serials=serials))
            return
        self._fence.run(self._quorum.missed.begin(self._name))
        self._fence.run(self._quorum.missed.drop([record.name for record in records]))
        self._note(
            replace(
                mark, left=True, kept=False, lost=reason, daemon=pid, generation=generation, cursor_bytes=0,
                serials=serials,
            )
        )  # fmt: skip

    def missed_since_begin(self) -> bool:
        """A write of the copy failed, and no comparison that was begun since is going to settle that."""
        return any(
            s.copy == self._name and s.missed and self.mark.serials.get(s.key) != s.serial
            for s in self._store.suspicions()
        )

    def _note(self, mark: Absence) -> None:
        self._save(mark)
        self.mark = mark

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

    def _storable(self, ranges: list[Range]) -> list[Range]:
        """A sector that it cannot store is no reason to keep all else of it away: it was so before it left."""
        self.lacking = [*self.lacking, *intersect(ranges, self._broken)]
        return subtract(ranges, self._broken)

    def _marked_bytes(self, names: Sequence[str]) -> int:
        """At most: what stands in two records is counted twice."""
        records = self._fence.run(self._quorum.missed.of(self._name))
        return min(self._spec.size, sum(record.count_bytes for record in records if record.name in names))

    # -- outside the quorum

    def _resync(self) -> None:
        """On return the copy lacks only what the one record that stands holds, usually little."""
        export = self._fence.run(self._quorum.children.export_for_resync(self._name))
        socket, limit_s = self._context.runtime.nbd_sock, self._context.timeouts.copy_s
        connect = partial(NbdLink, socket, export, who=self._words.who, timeout_s=limit_s, copy=self._words.copy)
        try:
            with ExitStack() as stack:
                link = stack.enter_context(closing(connect()))
                status = stack.enter_context(closing(connect(meta_context=ALLOCATION)))
                state = self._fence.run(self._quorum.describe())
                others = [self._bench.reader(stack, name) for name in state.copies]
                work = Resync(self._words.who, others, self._fence, link, status, self._teller)
                try:
                    self._rewrite(work)
                    if not self.mark.kept:
                        self._compare_all(work)
                    self._passes(work)
                finally:
                    self.figures.update(
                        compared_bytes=work.compared_bytes,
                        copied_bytes=work.copied_bytes,
                        verified_bytes=work.verified_bytes,
                    )
        finally:
            with suppress(DaemonStalledError):
                self._fence.run(self._quorum.children.end_exports(self._name))

    def _rewrite(self, work: Resync) -> None:
        ranges = intersect(self.mark.rewritten, [Range(0, self._spec.size)])
        if ranges:
            self._teller.begin("writing anew what it cannot read", total_bytes(ranges), 0)
            work.rewrite(ranges, self._spec.size)
            self._broken = work.broken
            self.lacking = [] if self.mark.kept else work.broken

    def _compare_all(self, work: Resync) -> None:
        cursor = self.mark.cursor_bytes or 0
        self._teller.begin("comparing all of it", self._spec.size, cursor, takes_long=True)
        unknown = work.compare(
            cursor,
            self._spec.size,
            self._teller.moved,
            lambda at: self._note(replace(self.mark, cursor_bytes=at)),
        )
        self._refuse_unknown(unknown)
        # Every write since it began is in the record: from here on that tells all that is lacking.
        self._note(replace(self.mark, kept=True, lost="", cursor_bytes=None))

    def _passes(self, work: Resync) -> None:
        before: int | None = None
        for _ in range(_MOST_PASSES):
            ended = self._fence.run(self._quorum.missed.rotate(self._name))
            if most := self._marked_bytes(ended):
                self._teller.begin("copying what it missed", most, 0)
            size, unknown = 0, list[Range]()
            with closing(self._marked(ended)) as parts:
                for ranges in map(self._storable, parts):
                    unknown += work.copy(ranges, partial(self._teller.moved, after_bytes=size))
                    size += total_bytes(ranges)
            self._refuse_unknown(unknown)
            self._fence.run(self._quorum.missed.drop(ended))
            self.figures.update(passes=1)
            if size <= _LITTLE_BYTES or (before is not None and size > _SHRINKS * before):
                # Guests write as fast as this copies: another pass would leave as much.
                return
            before = size

    def _refuse_unknown(self, unknown: Sequence[Range]) -> None:
        """What the others do not agree on cannot be copied; and what the copy holds there must not decide it."""
        if unknown:
            words = self._words
            raise self._error(
                RefusedError,
                f"{words.cannot}: the other copies of {self._spec.name} do not agree on "
                f"{format_size(total_bytes(unknown))} that it lacks, {_places(unknown)}.",
                f"{words.stays} {words.mend}",
            )

    # -- inside the quorum

    def bring_in(self, *, inside: bool = False, enter: Callable[[], None] = lambda: None) -> Settlement:
        """On return it is in the quorum and holds all that the volume holds. `enter` is called just before it goes
        in, and just after that."""
        for turn in range(_TURNS):
            try:
                if not inside:
                    self._resync()
                    enter()
                    self._fence.run(self._quorum.children.bring_in(self._copy))
            except BaseException:
                self.close()
                raise
            inside = True
            try:
                enter()
                found = self._settle()
                failure = self._failure(found)
            except DaemonStalledError:
                raise
            except QorumError:
                self.take_out()
                self.close()
                raise
            if failure is None:
                return found
            inside = False
            self.take_out()
            if found.undecided or self._rewriting or turn == _TURNS - 1:
                self.close()
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
        state = self._fence.run(self._quorum.describe())
        names = [*state.copies, *state.further]
        plan = ScrubPlan(
            size_bytes=self._spec.size,
            # Of a further child, too: where as many hold something else, QEMU may take that for the winner.
            threshold=max(self._spec.threshold, strict_majority(len(names))),
            repair=self._rewriting,
            rewriting=self._rewriting,
            within=Range(0, self._spec.size),
            now=now,
            stale=suspects.stale(self._store, self._spec),
        )
        with ExitStack() as stack:
            readers = [self._bench.reader(stack, name) for name in names]
            parts = stack.enter_context(closing(self._marked(ended)))
            ranges = (r for part in parts for r in self._storable(part))
            found = settle(self._name, readers, self._fence, plan, ranges, self._teller.moved)
        self.figures.update(healed_bytes=found.healed_bytes, verified_bytes=found.verified_bytes)
        return found

    def _failure(self, found: Settlement) -> QorumError | None:
        """Why the copy has to leave again. It is asked to flush before it counts: a power failure is to find it
        current."""
        words = self._words
        again = f"{words.out} Look at its storage, then repeat the command."
        if found.undecided:
            return self._undecided(found.undecided)
        if found.wrong and self._rewriting:
            return self._error(CopyError, f"does not take what it lacks, {_places(found.wrong)}.", again)
        if found.wrong:
            return self._error(
                RefusedError,
                f'{words.cannot}: guests write too much to {self._spec.name}, and with policy "report" nothing can be '
                "healed once it is in.",
                f"{words.stays} What was copied is kept. Pause the guests (as 'virsh suspend' does), repeat the "
                "command, which then takes a moment, and let them go on.",
            )
        if not detaching.flush(self._context, copy_node(self._name)):
            return self._error(CopyError, "does not confirm a flush.", again)
        if self.missed_since_begin():
            return self._error(CopyError, "missed a write while it was being brought in.", again)
        return None

    def _undecided(self, ranges: Sequence[Range]) -> QorumError:
        words = self._words
        if idle := self._uncounted():
            return self._error(
                RefusedError,
                f"{words.cannot}: copy {', '.join(idle)} has missed a write and does not count, so nothing proves what "
                f"is right {_places(ranges)}.",
                f"{words.out} Run 'qorumctl scrub {self._spec.name}', then repeat the command.",
            )
        return self._error(
            RefusedError,
            f"{words.cannot}: the other copies of {self._spec.name} do not agree, {_places(ranges)}.",
            f"{words.out} {words.mend}",
        )

    def _uncounted(self) -> list[str]:
        """Of the other copies of the quorum."""
        return sorted(suspects.stale(self._store, self._spec) - self._store.absences().keys() - {self._name})

    def _error(self, kind: type[QorumError], words: str, remedy: str) -> QorumError:
        who = f"{self._words.who} {words}"
        return kind(who, remedy=remedy, set_name=self._spec.name, copy=self._words.copy)

    def take_out(self) -> None:
        """Out of the quorum again, with everything on record that it lacks: what stood is kept, and a new record is
        begun while it still gets every write."""
        self._fence.close()
        self._fence.run(self._quorum.missed.begin(self._name))
        stored = detaching.flush(self._context, copy_node(self._name))
        if not stored or self.missed_since_begin():
            lost = "it missed a write" if stored else "it did not confirm a flush"
            self._note(replace(self.mark, kept=False, lost=lost, cursor_bytes=None))
        self._fence.run(self._quorum.children.take_out(self._name))


def _places(ranges: Sequence[Range]) -> str:
    named = ", ".join(f"{r.offset}:{r.length}" for r in ranges[:_MOST_NAMED])
    more = f" and {len(ranges) - _MOST_NAMED} more" if len(ranges) > _MOST_NAMED else ""
    return f"at {named}{more}"
