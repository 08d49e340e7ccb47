"""Work on the copies and on what they hold: scrubs, decisions, exchanges, exports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qorumctl.controller.observer import Observer, ScrubControl, Silent
from qorumctl.controller.options import (
    ExportOptions,
    ReplaceOptions,
    ResolveRequest,
    ScrubOptions,
)
from qorumctl.controller.set_access import at_work
from qorumctl.controller.sets_looks import Looks
from qorumctl.model.evidence import ResolveReport
from qorumctl.model.export import ExportReport
from qorumctl.model.report import ScrubReport
from qorumctl.model.status import (
    CopyResult,
)

if TYPE_CHECKING:
    pass


class Work(Looks):
    """A part of QuorumSets."""

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
        from qorumctl.controller import scrub_commands

        context = self._defined(name)
        async with at_work(context, "scrub"):
            report = await scrub_commands.scrub(context, options, observer or Silent(), control or ScrubControl())
            return self.report(name, report.run) if with_findings else report

    async def pause(self, name: str, *, with_findings: bool = True) -> ScrubReport:
        """Asks a running scrub to stop, and waits until it has, at most `timeouts.stop_s`. The next scrub resumes it.
        RefusedError where none runs."""
        from qorumctl.controller import scrub_commands

        report = await scrub_commands.ask(self._defined(name), "pause")
        return self.report(name, report.run) if with_findings else report

    async def cancel(self, name: str, *, with_findings: bool = True) -> ScrubReport:
        """Like `pause`, and also for a paused one: it is not resumed."""
        from qorumctl.controller import scrub_commands

        report = await scrub_commands.ask(self._defined(name), "cancel")
        return self.report(name, report.run) if with_findings else report

    async def resolve(
        self, name: str, request: ResolveRequest, *, control: ScrubControl | None = None
    ) -> ResolveReport:
        """Writes an operator's decision over a finding without a majority, or undoes one, with the volume withdrawn
        from guests. What every copy held is saved before. RefusedError while a guest is connected, unless `force`, and
        where there is nothing to decide; CopyError where a copy does not hold what was written: it is saved, too."""
        from qorumctl.controller import decisions

        return await decisions.carry_out(self._defined(name), request, control or ScrubControl())

    async def detach(self, name: str, copy: str, *, force: bool = False) -> CopyResult:
        """Takes a copy out of a running set. `force`: one that hangs, as far as QEMU allows. One that is out already is
        no error: `changed` is false. RefusedError where fewer than `threshold` current copies would remain."""
        from qorumctl.controller import detaching, inspection, record, succession

        context = self._defined(name)
        async with at_work(context, "copy detach"):
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
        from qorumctl.controller import inspection, record, rejoining, succession

        context = self._defined(name)
        async with at_work(context, "copy rejoin"):
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
        from qorumctl.controller import inspection, record, replacing, serving, succession

        context, options = self._defined(name), options or ReplaceOptions()
        async with at_work(context, "copy replace"):
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
        from qorumctl.controller import export_target, exporting, succession

        context, options = self._defined(name), options or ExportOptions()
        target = export_target.Target(path, options.format, options.overwrite)
        async with at_work(context, "export"):
            await succession.settle_leftovers(context)
            return await exporting.export(context, target, options, observer or Silent(), control or ScrubControl())
