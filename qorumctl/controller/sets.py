"""QuorumSets: every command on sets, typed and asynchronous. The command line is one caller of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qorumctl import definitions
from qorumctl.controller.attach import GUEST_MEMORY_BYTES, attachment
from qorumctl.controller.context import SetContext
from qorumctl.controller.deferred import Deferred
from qorumctl.controller.observer import Observer, ScrubControl, Silent
from qorumctl.controller.options import (
    CreateOptions,
    ExportOptions,
    ReplaceOptions,
    ResolveRequest,
    ScrubOptions,
    Timeouts,
)
from qorumctl.daemon.front import FrontOptions
from qorumctl.errors import DaemonGoneError, LockedError, QorumError, RefusedError, UsageError
from qorumctl.model.evidence import Evidence, ResolveReport
from qorumctl.model.export import ExportReport
from qorumctl.model.report import FindingDocument, History, ScrubReport
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import (
    AttachReport,
    CheckReport,
    CopyResult,
    FrontReport,
    ListReport,
    QmpReport,
    Result,
    ShowReport,
    StatusReport,
)
from qorumctl.paths import Directories, check_ours, directories
from qorumctl.store import SetLock

if TYPE_CHECKING:
    from qorumctl.controller import (
        creation,
        decisions,
        deletion,
        detaching,
        dossier,
        enabling,
        evidence,
        export_target,
        exporting,
        fronting,
        growing,
        inspection,
        interrupted,
        record,
        rejoining,
        replacing,
        schedule,
        scrub_commands,
        serving,
        starting,
        stopping,
        succession,
        textfile,
        vetting,
        watching,
    )
    from qorumctl.controller.hooks import Hooks
    from qorumctl.controller.ledger import Ledger
else:
    # Each is imported when it is first used: of all this a command needs a part: 0.1 s of processor time.
    for _name in (
        "creation", "decisions", "deletion", "detaching", "dossier", "enabling", "evidence", "export_target",
        "exporting", "fronting", "growing", "inspection",        "interrupted", "record", "rejoining", "replacing", "schedule", "scrub_commands", "serving", "starting",
        "stopping", "succession", "textfile", "vetting", "watching",
    ):  # fmt: skip
        globals()[_name] = Deferred(f"qorumctl.controller.{_name}")


class QuorumSets:
    """All sets of one user. What it returns are the documents that `--json` prints: pydantic models, frozen; bytes as
    integers, times as RFC 3339 strings in UTC.

    Each method raises QorumError alone, with `message`, `remedy`, `code` and, where one is at fault, `set_name`, `copy`
    and `path`. A name that no definition has is a DefinitionError, a word that cannot be understood a UsageError: in
    both cases nothing was touched. Commands that change a set hold its lock, and end with it in whatever way they do:
    LockedError, after 0.2 s, names who has it. A daemon that is begun belongs to nobody: it outlives the caller.

    Where an `observer` is taken it is told of the work from another thread; `control.stop(StopReason.INTERRUPTED)`,
    from any thread, ends that work in order. Cancelling the task does the same before CancelledError is raised.
    Methods that are not `async` read files for some milliseconds; `enable` and `disable` wait for systemctl.
    """

    def __init__(self, directories_: Directories | None = None, *, timeouts: Timeouts | None = None) -> None:
        """Directories and deadlines are those of the command line, its variables (QORUM_...) included, unless given.
        Raises UsageError where a variable makes no sense."""
        self._directories = directories_ or directories()
        self._timeouts = timeouts or Timeouts.from_environment()

    def names(self) -> list[str]:
        """All that are defined, sorted."""
        return definitions.names(self._directories.config)

    # -- their life

    async def create(
        self,
        name: str,
        sources: Sequence[str],
        options: CreateOptions,
        *,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> Result:
        """Makes images, or adopts equal ones (`observer` follows the comparison), and writes the definition.

        `sources`: 3, 5, 7 or 9 absolute paths, devices, or NBD URIs; the copies are called a, b, c ... in this order.
        The same request again is no error: `changed` is false. RefusedError where another set of this name is defined,
        where some images exist and some do not, are in use, belong to a set, or differ.
        """
        context = self._context(name)
        async with _at_work(context, "create") as lock:
            try:
                return await creation.create(context, sources, options, observer or Silent(), control or ScrubControl())
            except RefusedError:
                lock.remove_if_alone()
                raise

    async def start(
        self,
        name: str,
        *,
        now: bool = False,
        takeover: bool = False,
        degraded: bool = False,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> Result:
        """Starts and assembles. After an unclean stop the copies are compared first, unless `now`: that takes as long
        as a scrub, and `recovery` is the run's number. `degraded`: without the copies that are away, stale or cannot be
        opened, as long as enough are left. `takeover`: from a host that did not stop it and is certainly down.

        A set that runs is left as it is: `changed` is false. RefusedError, naming the copy, where an image is missing,
        in use, of another length or stale; DaemonStartError. Whatever fails, no daemon is left.
        """
        context = self._defined(name)
        try:
            lock = context.lock("start")
        except LockedError:
            # A scrub holds the lock for hours, and says nothing about whether guests are served.
            if not await serving.is_up(context):
                raise
            result = await starting.already_up(context)
        else:
            async with textfile.published(context):
                with lock:
                    await _settle(context)
                    result = await starting.start(
                        context,
                        now=now,
                        takeover=takeover,
                        degraded=degraded,
                        observer=observer or Silent(),
                        control=control or ScrubControl(),
                    )
        return result.model_copy(update={"state": (await inspection.status(context)).state})

    async def stop(self, name: str, *, force: bool = False, keep_front: bool = False) -> Result:
        """Flushes every copy and ends the daemon. A set that does not run is left as it is: `changed` is false.

        RefusedError while a guest is connected or a front runs, unless `force`. CopyUnavailableError and
        DaemonStalledError where a copy hangs; with `force` the daemon is killed then, and the next start compares the
        copies. `keep_front`: with `force`, a front goes on, for a start that follows at once.
        """
        context = self._context(name)
        if context.pid() is None:
            context.spec()
        alone = nullcontext() if force and keep_front else fronting.absent(context, "stop", force=force)
        async with _at_work(context, "stop"), alone:
            return await stopping.stop(context, force=force)

    async def restart(
        self,
        name: str,
        *,
        force: bool = False,
        now: bool = False,
        takeover: bool = False,
        degraded: bool = False,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> Result:
        """Stop, then start, under one hold of the lock; refused before the stop where `start` would refuse. With
        `force` a front goes on, and connects again as other guests do."""
        context = self._defined(name)
        alone = nullcontext() if force else fronting.absent(context, "restart")
        async with _at_work(context, "restart"), alone:
            with suppress(QorumError):
                # What hinders that, `stop` tells; what is settled may be what would be refused.
                await succession.settle_leftovers(context)
            vetting.vet_restart(context, context.spec(), takeover=takeover, degraded=degraded)
            stopped = await stopping.stop(context, force=force)
            started = await starting.start(
                context,
                now=now,
                takeover=takeover,
                degraded=degraded,
                observer=observer or Silent(),
                control=control or ScrubControl(),
            )
        state = (await inspection.status(context)).state
        update = {"command": "restart", "state": state, "warnings": [*stopped.warnings, *started.warnings]}
        return started.model_copy(update=update)

    async def delete(self, name: str, *, images: bool = False) -> Result:
        """Forgets a stopped set; with `images`, removes its image files too. There is no way back: ask before."""
        context = self._context(name)
        if context.is_defined() or not interrupted.is_pending(context):
            context.spec()
        with context.lock("delete"):
            async with fronting.absent(context, "delete"):
                await export_target.settle(context)
                return await deletion.delete(context, images_too=images)

    async def watch(self, name: str, audience: watching.Audience, *, detached: bool = False) -> None:
        """Tells `audience` of errors of the copies (EventDocument) until it is cancelled or the set is deleted; over
        ends of the daemon. `detached`: as the one that `start` begins, which ends where another listens."""
        await watching.watch(self._defined(name), audience, detached=detached)

    # -- vhost-user-blk

    async def front(self, name: str, *, num_queues: int = 1, config_wce_off: bool = False) -> FrontReport:
        """A second daemon, for one guest that speaks vhost-user-blk. `config_wce_off`: your word that the guest's
        device has `config-wce=off`, so that it sends flushes; otherwise each write is durable when acknowledged.

        One that runs so is left as it is: `changed` is false. RefusedError for other options, DaemonGoneError where the
        set does not run, DaemonStartError.
        """
        context = self._defined(name)
        with context.front_lock("front"):
            return await fronting.begin(context, FrontOptions(num_queues, config_wce_off))

    async def stop_front(self, name: str, *, force: bool = False) -> FrontReport:
        """Ends it; what it has taken from its guest is completed first. RefusedError while one is connected, unless
        `force`."""
        context = self._defined(name)
        with context.front_lock("front --stop"):
            return await fronting.stop(context, force=force)

    # -- systemd

    def enable(
        self,
        name: str,
        when: str = "monthly",
        *,
        budget: str | None = None,
        systemd: enabling.Systemd | None = None,
    ) -> Result:
        """Has systemd run the set from boot to shutdown and scrub it. `when`: nightly, daily, weekly, monthly, or what
        OnCalendar= takes. `budget`: how long a scrub goes on before it pauses, such as 4h; "0": without end. What does
        not run yet is in `warnings`. The same again is no error: `changed` is false.

        For root. UsageError for a schedule or budget that cannot be taken; RefusedError where systemd does not run, its
        units are not installed, or the state is not that of the user qorum; QorumError where systemctl fails: what was
        changed is undone.
        """
        systemd = systemd or enabling.Systemd()
        systemd.check("enable")
        return enabling.enable(self._context(name), schedule.parse_schedule(when, budget), systemd)

    def disable(self, name: str, *, systemd: enabling.Systemd | None = None) -> Result:
        """Takes back what `enable` did. A set that runs goes on; one that is not enabled is no error: `changed` is
        false. Errors as of `enable`."""
        return enabling.disable(self._context(name), systemd or enabling.Systemd())

    # -- looking

    async def list(self) -> ListReport:
        """All sets, with their states: one that cannot be told has an `error`."""
        contexts = [self._context(name) for name in self.names()]
        return ListReport(sets=await asyncio.gather(*map(inspection.listing, contexts)))

    async def status(self, names: Sequence[str] = ()) -> StatusReport:
        """Of the named sets; of all where none is named: one that cannot be told is then reported as failed. Takes no
        lock, and no longer than about 2 * `timeouts.status_s`: a set that does not answer is `stalled`, no error."""
        contexts = [self._context(name) for name in names or self.names()]
        look = inspection.status if names else inspection.status_at_all_costs
        return StatusReport(sets=await asyncio.gather(*map(look, contexts)))

    async def metrics(self, names: Sequence[str] = ()) -> str:
        """What Prometheus reads, in its text format; of the named sets, or of all. One that cannot be told is `failed`:
        only a name that nothing is defined for raises DefinitionError."""
        from qorumctl.controller import metrics

        contexts = [self._context(name) for name in names or self.names()]
        for context in contexts:
            if not context.is_defined():
                context.spec()
        return metrics.text(await asyncio.gather(*map(metrics.observe, contexts)))

    async def write_metrics(self, path: Path, names: Sequence[str] = ()) -> None:
        """Replaces `path` (absolute) by them. Raises StoreError as well."""
        if path.parent == self._directories.textfile:
            raise UsageError(
                f"{path.parent} is QORUM_TEXTFILE_DIR, where each set has a file already.",
                remedy="Use one of the two: node_exporter refuses metrics that it meets twice.",
                path=str(path),
            )
        text = await self.metrics(names)
        textfile.write(path, text)

    def show(self, name: str) -> ShowReport:
        """The definition as it stands in its file, and where the set's files are."""
        context = self._context(name)
        return ShowReport(
            definition=context.spec(),
            definition_path=str(context.definition_path),
            state_directory=str(context.state_dir),
            runtime_directory=str(context.runtime.directory),
        )

    async def check(self, name: str) -> CheckReport:
        """What `start` would refuse, without starting: `ok`, and an item for each thing looked at. Takes no lock."""
        return inspection.check(self._context(name))

    async def attach(self, name: str, *, memory_bytes: int = GUEST_MEMORY_BYTES) -> AttachReport:
        """How a guest uses the volume: a URI, arguments of QEMU, a libvirt disk. The set need not run for that.
        `memory_bytes`: of a guest of the front, which shares it."""
        context = self._defined(name)
        check_ours(context.runtime.directory)
        return attachment(name, context.runtime.nbd_sock, fronting.guest_arguments(context, memory_bytes))

    def history(self, name: str) -> History:
        """Past runs, the newest first, without their findings; and what has happened to each copy. StoreError."""
        context = self._defined(name)
        with context.store(read_only=True) as store:
            return store.history()

    def report(self, name: str, run: int | None = None) -> ScrubReport:
        """One run with its findings, those of the newest where none is named. StoreError where there is no such run.
        All of them are in memory, 5 KB each: where there may be very many, see `findings`."""
        context = self._defined(name)
        with context.store(read_only=True) as store:
            return store.scrub_report(dossier.run_of(store, name, run))

    def findings(self, name: str, run: int | None = None) -> Iterator[FindingDocument]:
        """Those of a run by offset, one after the other, in flat memory. StoreError as `report`."""
        return self.ledger(name, run).findings()

    def ledger(self, name: str, run: int | None = None) -> Ledger:
        """A run of however many findings, bit by bit. As `dossier`, it is for the command line."""
        from qorumctl.controller.ledger import Ledger

        return Ledger(self._defined(name), run)

    async def evidence(self, name: str, finding: int, *, most_rows: int = 16, from_bytes: int = 0) -> Evidence:
        """What the copies hold of a finding's range now, beside what is on record, and their bitwise majority. Its
        `rows` are data of guests. Of a running set without its lock; CopyError where too few copies can be read."""
        return await evidence.evidence(self._defined(name), finding, most_rows=most_rows, from_bytes=from_bytes)

    async def resolve(
        self, name: str, request: ResolveRequest, *, control: ScrubControl | None = None
    ) -> ResolveReport:
        """Writes an operator's decision over a finding without a majority, or undoes one, with the volume withdrawn
        from guests. What every copy held is saved before. RefusedError while a guest is connected, unless `force`, and
        where there is nothing to decide; CopyError where a copy does not hold what was written: it is saved, too."""
        return await decisions.carry_out(self._defined(name), request, control or ScrubControl())

    async def dossier(self, name: str, run: int | None, wanted: dossier.Wanted) -> dossier.Dossier:
        """All that a page about one run tells, of however many findings. Raises what `report` does. What it returns is
        for the command line, and not promised to other programs."""
        return await dossier.compile_(self._defined(name), run, wanted)

    # -- scrubbing

    async def scrub(
        self,
        name: str,
        options: ScrubOptions,
        *,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
        with_findings: bool = True,
    ) -> ScrubReport:
        """Resumes an unfinished run of the same kind, or begins a new one. Returns its report, finished or not: damage
        is in `outcome` and `findings`, never an exception. Without `with_findings` they stay on record, to be had one
        after the other from `findings`: a report holds all of them in memory.

        RefusedError where something would have to be repaired and may not be (the set is stopped, or its policy is
        "report"); CopyError, DaemonError, StoreError where the run could not go on: it is on record as failed, and the
        next call resumes it.
        """
        context = self._defined(name)
        async with _at_work(context, "scrub"):
            report = await scrub_commands.scrub(context, options, observer or Silent(), control or ScrubControl())
            return self.report(name, report.run) if with_findings else report

    async def pause(self, name: str, *, with_findings: bool = True) -> ScrubReport:
        """Asks a running scrub to stop, and waits until it has, at most `timeouts.stop_s`. The next scrub resumes it.
        RefusedError where none runs."""
        report = await scrub_commands.ask(self._defined(name), "pause")
        return self.report(name, report.run) if with_findings else report

    async def cancel(self, name: str, *, with_findings: bool = True) -> ScrubReport:
        """Like `pause`, and also for a paused one: it is not resumed."""
        report = await scrub_commands.ask(self._defined(name), "cancel")
        return self.report(name, report.run) if with_findings else report

    # -- copies

    async def detach(self, name: str, copy: str, *, force: bool = False) -> CopyResult:
        """Takes a copy out of a running set. `force`: one that hangs, as far as QEMU allows. One that is out already is
        no error: `changed` is false. RefusedError where fewer than `threshold` current copies would remain."""
        context = self._defined(name)
        async with _at_work(context, "copy detach"):
            await succession.settle_leftovers(context)
            spec = self._running(context)
            record.secure_aloud(context, spec, None)
            result = await detaching.detach(context, spec, copy, force=force)
        return result.model_copy(update={"state": (await inspection.status(context)).state})

    async def rejoin(
        self,
        name: str,
        copy: str,
        *,
        full: bool = False,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> CopyResult:
        """Brings a copy that is away up to date and back. `full`: compares all of it, whatever is on record. One
        that is in its place is no error: `changed` is false. CopyError, RefusedError: it stays away; call again to go
        on."""
        context = self._defined(name)
        async with _at_work(context, "copy rejoin"):
            await succession.settle_leftovers(context)
            spec = self._running(context)
            record.secure_aloud(context, spec, None)
            result = await rejoining.rejoin(
                context,
                spec,
                copy,
                full=full,
                observer=observer or Silent(),
                control=control or ScrubControl(),
            )
        return result.model_copy(update={"state": (await inspection.status(context)).state})

    async def replace(
        self,
        name: str,
        copy: str,
        source: str | None = None,
        options: ReplaceOptions | None = None,
        *,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> CopyResult:
        """Another image takes a copy's place while the set runs. Without `source`: goes on with an unfinished one. One
        that has this source already is no error: `changed` is false. CopyError, RefusedError: the old image keeps its
        place; call again to go on, or with `options.cancel` to give up."""
        context, options = self._defined(name), options or ReplaceOptions()
        async with _at_work(context, "copy replace"):
            finished = await succession.settle_leftovers(context)
            if options.cancel:
                spec = serving.spec_in_force(context) if context.pid() is not None else context.spec()
                result = await replacing.cancel(context, spec, copy, finished)
            else:
                spec = self._running(context)
                record.secure_aloud(context, spec, None)
                args = (observer or Silent(), control or ScrubControl())
                result = await replacing.replace_copy(context, spec, copy, source, options, finished, *args)
        return result.model_copy(update={"state": (await inspection.status(context)).state})

    def _running(self, context: SetContext) -> SetSpec:
        if context.pid() is None:
            raise DaemonGoneError(
                f"{context.name} is not running.", remedy=f"Run 'qorumctl start {context.name}'.", set_name=context.name
            )
        return serving.spec_in_force(context)

    # -- data in and out

    async def export(
        self,
        name: str,
        path: Path,
        options: ExportOptions | None = None,
        *,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> ExportReport:
        """Writes the voted content to `path` (absolute). Where something has no majority `exported` is false, unless
        `options.partial`. RefusedError, CopyError: nothing was exported, and nothing is left."""
        context, options = self._defined(name), options or ExportOptions()
        target = export_target.Target(path, options.format, options.overwrite)
        async with _at_work(context, "export"):
            await succession.settle_leftovers(context)
            return await exporting.export(context, target, options, observer or Silent(), control or ScrubControl())

    async def grow(
        self,
        name: str,
        size_bytes: int,
        *,
        thin: bool = False,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> Result:
        """Makes a stopped set larger: all copies or none. Devices and exports must have the new length already. `thin`:
        though the space may not do. One of that size is left as it is: `changed` is false. RefusedError, CopyError."""
        context = self._defined(name)
        async with _at_work(context, "grow"):
            return await growing.grow(
                context, size_bytes, thin=thin, observer=observer or Silent(), control=control or ScrubControl()
            )

    # -- hooks

    @property
    def hooks(self) -> Hooks:
        """Programs that are told of events: which there are, and whether they work."""
        from qorumctl.controller.hooks import Hooks

        return Hooks(self._directories, self._defined)

    # -- the expert's door

    async def qmp(self, name: str, command: str, arguments: Mapping[str, object] | None = None) -> QmpReport:
        """One QMP command under the set's lock; `result` is whatever QEMU returns. It can do anything, also harm: see
        QEMU's own documentation. CommandError where QEMU refuses it."""
        context = self._defined(name)
        with context.lock("qmp"):
            self._running(context)
            async with context.scrub_monitor() as monitor:
                result = await monitor.execute(command, arguments, timeout_s=self._timeouts.drain_s)
        return QmpReport(set=name, command=command, result=result)

    # -- details

    def _context(self, name: str) -> SetContext:
        self._directories.definition_path(name)
        return SetContext(name, self._directories, self._timeouts)

    def _defined(self, name: str) -> SetContext:
        """Raises DefinitionError before anything is made for a name that no definition has."""
        context = self._context(name)
        context.spec()
        return context


async def _settle(context: SetContext) -> None:
    """What commands that were killed have left, and nobody else looks for."""
    await export_target.settle(context)
    await growing.settle(context)


@asynccontextmanager
async def _at_work(context: SetContext, purpose: str) -> AsyncIterator[SetLock]:
    """Under the set's lock; its metrics are written anew once it is free."""
    async with textfile.published(context):
        with context.lock(purpose) as lock:
            await _settle(context)
            yield lock
