"""Looking at sets: nothing here changes one, but for what a QMP command does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qorumctl.controller.attach import GUEST_MEMORY_BYTES, attachment
from qorumctl.controller.set_access import SetAccess
from qorumctl.errors import UsageError
from qorumctl.model.evidence import Evidence
from qorumctl.model.report import FindingDocument, History, ScrubReport
from qorumctl.model.status import (
    AttachReport,
    CheckReport,
    ListReport,
    QmpReport,
    ShowReport,
    StatusReport,
)
from qorumctl.paths import check_ours

if TYPE_CHECKING:
    from qorumctl.controller import dossier
    from qorumctl.controller.hooks import Hooks
    from qorumctl.controller.ledger import Ledger


class Looks(SetAccess):
    """A part of QuorumSets."""

    async def list(self) -> ListReport:
        """All sets, with their states: one that cannot be told has an `error`."""
        from qorumctl.controller import inspection

        contexts = [self._context(name) for name in self.names()]
        return ListReport(sets=await asyncio.gather(*map(inspection.listing, contexts)))

    async def status(self, names: Sequence[str] = ()) -> StatusReport:
        """Of the named sets; of all where none is named: one that cannot be told is then reported as failed. Takes no
        lock, and no longer than about 2 * `timeouts.status_s`: a set that does not answer is `stalled`, no error."""
        from qorumctl.controller import inspection

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
        from qorumctl.controller import textfile

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
        from qorumctl.controller import inspection

        return inspection.check(self._context(name))

    async def attach(self, name: str, *, memory_bytes: int = GUEST_MEMORY_BYTES) -> AttachReport:
        """How a guest uses the volume: a URI, arguments of QEMU, a libvirt disk. The set need not run for that.
        `memory_bytes`: of a guest of the front, which shares it."""
        from qorumctl.controller import fronting

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
        from qorumctl.controller import dossier

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
        from qorumctl.controller import evidence

        return await evidence.evidence(self._defined(name), finding, most_rows=most_rows, from_bytes=from_bytes)

    async def dossier(self, name: str, run: int | None, wanted: dossier.Wanted) -> dossier.Dossier:
        """All that a page about one run tells, of however many findings. Raises what `report` does. What it returns is
        for the command line, and not promised to other programs."""
        from qorumctl.controller import dossier

        return await dossier.compile_(self._defined(name), run, wanted)

    @property
    def hooks(self) -> Hooks:
        """Programs that are told of events: which there are, and whether they work."""
        from qorumctl.controller.hooks import Hooks

        return Hooks(self._directories, self._defined)

    async def qmp(self, name: str, command: str, arguments: Mapping[str, object] | None = None) -> QmpReport:
        """One QMP command under the set's lock; `result` is whatever QEMU returns. It can do anything, also harm: see
        QEMU's own documentation. CommandError where QEMU refuses it."""
        context = self._defined(name)
        with context.lock("qmp"):
            self._running(context)
            async with context.scrub_monitor() as monitor:
                result = await monitor.execute(command, arguments, timeout_s=self._timeouts.drain_s)
        return QmpReport(set=name, command=command, result=result)
