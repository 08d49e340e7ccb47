"""`export`: the voted content of a set as an image file, never silently wrong, and compared before it is put in place.

A stopped set is read copy by copy, with our own vote; so what has no majority is known to the sector.
Of a running set a mirror job of QEMU makes a copy of one moment while guests write: it ends when both are alike. It
votes as QEMU does for guests, and counts every copy: so there is no export while any copy is in doubt, and the file is
then compared with our own vote on what guests did not write since. A mirror job, not a backup job: that one copies
what a guest is about to overwrite first, and where it cannot, the guest's write fails.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import closing

from qorumctl.controller import absences, export_target, record, serving, suspects, vetting, watcher
from qorumctl.controller.bridge import LiveFence
from qorumctl.controller.comparing_export import Checker
from qorumctl.controller.context import SetContext
from qorumctl.controller.export_target import Target
from qorumctl.controller.live import at_rest, in_a_thread, reached
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.options import ExportOptions
from qorumctl.controller.returning import Interrupted, Teller
from qorumctl.controller.voted import Voted
from qorumctl.copies.base import CHUNK_BYTES
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.ranges import Range, total_bytes
from qorumctl.daemon import jobs, sink
from qorumctl.daemon.graph import FENCE
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.daemon.sink import Sink, SinkPaths
from qorumctl.errors import CopyError, DaemonGoneError, QorumError, RefusedError
from qorumctl.model.export import ExportReport
from qorumctl.model.report import RangeDocument
from qorumctl.model.spec import SetSpec
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.store.records import now
from qorumctl.units import format_size

_ZEROS = bytes(CHUNK_BYTES)
_AT_ONCE = 8
"""Writes in flight: 8 MiB."""
_FLUSH_BYTES = 64 << 20
"""A flush has the deadline of one answer, and the page cache may hold gigabytes that a disk takes minutes for."""


async def export(
    context: SetContext, target: Target, options: ExportOptions, observer: Observer, control: ScrubControl
) -> ExportReport:
    """Under the set's lock, with nothing of an earlier export left. Nothing is left of one that fails."""
    running = context.pid() is not None
    spec = serving.spec_in_force(context) if running else context.spec()
    export_target.vet(context, spec, target, thin=options.thin)
    job = _Job(
        context,
        spec,
        target,
        options,
        Teller(spec, f"exporting to {target.path}", "export", "nothing was exported", observer, control),
    )
    if running:
        if options.partial:
            raise RefusedError(
                f"{spec.name} is running: what has no majority cannot be filled in while guests write.",
                remedy=f"Leave --partial out, or stop it first: 'qorumctl stop {spec.name}'.",
                set_name=spec.name,
            )
        return await job.of_running(control)
    return await job.of_stopped(control)


class _Job:
    """One export."""

    def __init__(
        self, context: SetContext, spec: SetSpec, target: Target, options: ExportOptions, teller: Teller
    ) -> None:
        self._context = context
        self._spec = spec
        self._target = target
        self._options = options
        self._teller = teller
        self._warnings: list[str] = []
        self._present: frozenset[str] = frozenset()
        """Copies in the quorum, of a running set."""
        self._job_is_left = False
        """The set's daemon did not let go of it: the note stays, for the next command."""

    # -- stopped

    async def of_stopped(self, control: ScrubControl) -> ExportReport:
        context, spec = self._context, self._spec
        who = vetting.vet(context, spec, takeover=False)
        if (lost := record.secure(context, spec, who)) is not None:
            self._warnings.append(lost)
        with context.store() as store:
            stale = suspects.stale(store, spec)
            if doubted := sorted({s.copy for s in store.suspicions()}.intersection(spec.copy_names) - stale):
                self._warnings.append(
                    f"Copy {', '.join(doubted)} may have missed a write, and voted all the same: a scrub of the "
                    "running set tells."
                )
            if who.unclean or context.uncompared(store) or context.died(store):
                self._warnings.append(
                    "The set was not stopped in order: what was being written then may be in the export, or not."
                )
        serving.prepare_directories(context)
        async with serving.rolled_back(context) as monitor:
            quorum = context.quorum(spec, monitor)
            await quorum.open_copies(read_only=True)
            await quorum.check_lengths()
            report = await self._made(lambda file: self._from_rest(file, stale, control))
        await serving.end_leftover(context)
        return report

    async def _from_rest(self, file: Sink, stale: frozenset[str], control: ScrubControl) -> list[Range]:
        loop = asyncio.get_running_loop()

        def write() -> list[Range]:
            with at_rest(self._context, self._spec, loop, self._spec.copy_names) as (_, readers):
                voted = Voted(readers, self._plan(stale), self._teller.pause)
                self._write(voted, file)
                return voted.lost

        def check() -> None:
            with at_rest(self._context, self._spec, loop, self._spec.copy_names) as (_, readers):
                voted = Voted(readers, self._plan(stale), self._teller.pause)
                self._check(voted, file)

        lost = await in_a_thread(control, write)
        if lost and not self._options.partial:
            return lost
        await file.reopen()
        await in_a_thread(control, check)
        return lost

    def _write(self, voted: Voted, file: Sink) -> None:
        """Into a file that reads as zero."""
        self._teller.begin("writing", self._spec.size, 0)
        done = unflushed = 0
        with closing(self._link(file)) as link, closing(voted.pieces()) as pieces:
            flying = []
            for at, data in pieces:
                done += at.length
                self._teller.moved(done)
                if data is None or data == _ZEROS[: at.length]:
                    continue
                if voted.lost and not self._options.partial:
                    # It is only read on to tell all that has no majority.
                    continue
                flying.append(link.submit_write(at.offset, bytes(data)))
                if len(flying) >= _AT_ONCE and not link.complete(flying.pop(0)):
                    raise self._unwritten()
                unflushed += at.length
                if unflushed >= _FLUSH_BYTES:
                    unflushed = 0
                    if not link.flush():
                        raise self._unwritten()
            if not all(link.complete(ticket) for ticket in flying) or not link.flush():
                raise self._unwritten()

    def _check(self, voted: Voted, file: Sink) -> None:
        self._teller.begin("comparing it with the copies", self._spec.size, 0)
        with closing(self._checker(file)) as checker:
            wrong = checker.compare(voted, self._teller.moved)
        if wrong:
            raise self._unlike(wrong)

    # -- running

    async def of_running(self, control: ScrubControl) -> ExportReport:
        context, spec = self._context, self._spec
        pid = context.pid()
        async with context.scrub_monitor() as monitor:
            quorum = context.quorum(spec, monitor)
            await quorum.sweep()
            state = await quorum.describe()
            if not state.assembled or pid is None:
                raise DaemonGoneError(
                    f"The daemon of {spec.name} is not assembled: an earlier command did not finish.",
                    remedy=f"Run 'qorumctl start {spec.name}'.",
                    set_name=spec.name,
                )
            record.secure_aloud(context, spec, None)
            absences.note_unmarked(context, spec, frozenset(spec.copy_names).difference(state.copies))
            self._present = frozenset(state.copies)
            self._refuse_doubt(pid, state.further or state.doubled)
            for name in state.copies:
                await quorum.children.export(name)
            return await self._made(lambda file: self._from_guests(file, quorum, state.copies, pid, control))

    async def _from_guests(
        self, file: Sink, quorum: QuorumSet, names: tuple[str, ...], pid: int, control: ScrubControl
    ) -> list[Range]:
        loop = asyncio.get_running_loop()

        def work() -> None:
            with reached(self._context, self._spec, quorum, loop, names) as (fence, readers):
                # Whoever hangs is found out before anything drains.
                for reader in readers:
                    reader.observe(Range(0, 512))
                fence.run(quorum.monitor.execute("blockdev-add", sink.target_node(file.paths)))
                try:
                    fence.run(jobs.begin(quorum.monitor, "export", FENCE, sink.TARGET, timeout_s=self._timeout_s))
                    self._until_alike(fence, quorum)
                    # A drain waits for what the job has begun to write: a file that hangs must not be met by one.
                    with closing(self._link(file)) as link:
                        if not link.flush():
                            raise self._unwritten()
                    watch = fence.open_watch(drain=True)
                    try:
                        failure = fence.run(jobs.finish(quorum.monitor, "export", timeout_s=self._timeout_s))
                        if failure is not None:
                            raise self._unread(failure)
                        fence.run(quorum.monitor.execute("blockdev-del", {"node-name": sink.TARGET}))
                        fence.run(file.reopen())
                        voted = Voted(readers, self._plan(frozenset()), self._teller.pause)
                        self._teller.begin("comparing it with the copies", self._spec.size, 0)
                        with closing(self._checker(file)) as checker:
                            wrong = checker.compare(voted, self._teller.moved)
                        fence.freeze([watch])
                        written = fence.written(watch, wrong) if wrong else []
                    finally:
                        fence.forget([watch])
                except BaseException:
                    # First: the job waits for what it has begun to write.
                    fence.run(sink.end(file.paths))
                    raise
                finally:
                    try:
                        fence.run(export_target.drop_job(self._context, quorum.monitor))
                    except QorumError:
                        self._job_is_left = True
            if unlike := Checker.unexplained(wrong, written):
                raise self._unlike(unlike)

        await in_a_thread(control, work)
        # What a copy missed before that moment is on record by now, but for what the daemon holds back.
        await watcher.outlast_throttle(self._context)
        self._refuse_doubt(pid, ())
        return []

    def _until_alike(self, fence: LiveFence, quorum: QuorumSet) -> None:
        self._teller.begin("copying", self._spec.size, 0)
        while True:
            state = fence.run(jobs.look(quorum.monitor, timeout_s=self._timeout_s)).get("export")
            if state is None or state.ended:
                raise self._unread((state and state.failure) or "the job ended early")
            self._teller.moved(int(self._spec.size * state.fraction))
            if state.ready:
                return
            self._teller.pause()
            fence.run(asyncio.sleep(jobs.POLL_S))

    def _refuse_doubt(self, pid: int, further: tuple[str, ...]) -> None:
        """QEMU's vote counts every copy that is in the quorum. RefusedError where one is not known to be current."""
        context, spec = self._context, self._spec
        scrub = (
            f"Run 'qorumctl scrub {spec.name}' first, or stop the set: an export of a stopped set counts only copies "
            "that have missed nothing."
        )
        with context.store(read_only=True) as store:
            doubted = sorted({s.copy for s in store.suspicions() if s.copy in self._present})
            half_back = suspects.stale(store, spec, count_suspects=True) & self._present
            uncompared = context.uncompared(store)
        why = None
        if doubted:
            why = f"Copy {', '.join(doubted)} of {spec.name} missed a write, or may have"
        elif half_back or further:
            why = f"A copy of {spec.name} is just coming or going"
        elif uncompared:
            why = f"{spec.name} was not stopped in order, and its copies were not compared since"
        elif not watcher.listens(context, pid):
            why = f"Nobody hears of write errors of {spec.name}"
            scrub = f"Run 'qorumctl start {spec.name}', which brings its watcher back, then scrub it."
        if why is not None:
            raise RefusedError(
                f"{why}: while it runs its copies all vote, and the export could be wrong. Nothing was exported.",
                remedy=scrub,
                set_name=spec.name,
            )

    # -- both

    async def _made(self, fill: Callable[[Sink], Awaitable[list[Range]]]) -> ExportReport:
        """The file, filled, compared and in its place; nothing of it where that fails."""
        context, spec, target = self._context, self._spec, self._target
        descriptor = export_target.make(context, target, spec.size)
        file = Sink(
            SinkPaths(context.runtime.directory),
            f"/proc/{os.getpid()}/fd/{descriptor}",
            target.format,
            str(target.path),
        )
        try:
            await sink.end(file.paths)
            await file.begin(spec.size)
            lost = await fill(file)
            await sink.end(file.paths, in_order=True)
            exported = not lost or self._options.partial
            if exported:
                export_target.put_in_place(target, descriptor)
            else:
                export_target.remove(target, descriptor)
        except BaseException as error:
            await asyncio.shield(sink.end(file.paths))
            export_target.remove(target, descriptor)
            if isinstance(error, Interrupted):
                error.remedy = "Repeat the command to begin anew."
            raise
        finally:
            os.close(descriptor)
            if not self._job_is_left:
                export_target.conclude(context)
        return self._report(lost, exported=exported)

    def _report(self, lost: list[Range], *, exported: bool) -> ExportReport:
        return ExportReport(
            set=self._spec.name,
            path=str(self._target.path),
            format=self._target.format,
            size=self._spec.size,
            running=bool(self._present),
            exported=exported,
            no_majority=[RangeDocument(offset=r.offset, length=r.length) for r in lost],
            no_majority_bytes=total_bytes(lost),
            warnings=self._warnings,
        )

    def _plan(self, stale: frozenset[str]) -> ScrubPlan:
        return ScrubPlan(
            size_bytes=self._spec.size,
            threshold=self._spec.threshold,
            repair=False,
            rewriting=False,
            within=Range(0, self._spec.size),
            now=now,
            stale=stale,
        )

    @property
    def _timeout_s(self) -> float:
        return self._context.timeouts.drain_s

    def _link(self, file: Sink) -> NbdLink:
        return NbdLink(file.paths.server, sink.NODE, who="The export's file", timeout_s=self._context.timeouts.copy_s)

    def _checker(self, file: Sink) -> Checker:
        return Checker(file.paths.server, timeout_s=self._context.timeouts.copy_s)

    # -- what can go wrong

    def _unwritten(self) -> CopyError:
        path = self._target.path
        return CopyError(
            f"{path} could not be written.",
            remedy="Nothing was exported. Look at the free space and the storage there.",
            path=str(path),
        )

    def _unread(self, said: str) -> QorumError:
        """QEMU does not say whether it was the reading or the writing."""
        name = self._spec.name
        return QorumError(
            f"The volume of {name} could not be copied to {self._target.path}: {said}. Nothing was exported.",
            remedy=f"Look at the free space there; then run 'qorumctl scrub {name}': QEMU cannot read what has no "
            "majority, nor two copies that are damaged near to each other. An export of the stopped set tells which.",
            set_name=name,
        )

    def _unlike(self, wrong: list[Range]) -> CopyError:
        return CopyError(
            f"What was written to {self._target.path} is not what {self._spec.name} holds: "
            f"{format_size(total_bytes(wrong))} differ, first at offset {wrong[0].offset}. Nothing was exported.",
            remedy="Look at its storage and at that of the copies ('qorumctl scrub'), then repeat it.",
            path=str(self._target.path),
        )
