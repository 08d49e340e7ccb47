"""All that is known about one run and its set, for a page that is kept: bounded, however many findings there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from qorumctl.controller import inspection
from qorumctl.controller.context import SetContext
from qorumctl.core.disk_map import DiskMap
from qorumctl.core.findings import Fate, Finding
from qorumctl.core.tally import Tally
from qorumctl.errors import StoreError
from qorumctl.model import digest
from qorumctl.model.report import FindingDocument, History, ScrubReport
from qorumctl.model.status import SetStatus
from qorumctl.store import Store
from qorumctl.store.records import now
from qorumctl.store.totals import FatesByRun


@dataclass(frozen=True, slots=True)
class Wanted:
    """`cells`: of the maps, one for each number. `most_data`: of so many findings the samples; 0 is none at all."""

    cells: Sequence[int]
    most_findings: int
    most_runs: int
    most_data: int = 0


@dataclass(frozen=True, slots=True)
class Dossier:
    """`report` comes without its findings: `tally` and `maps` are of all of them, `findings` those that ended worst, by
    offset. `data`: id -> a finding with samples of guest data, and only where that was asked for."""

    made: str
    status: SetStatus
    report: ScrubReport
    tally: Tally
    maps: tuple[DiskMap, ...]
    findings: list[FindingDocument]
    history: History
    fates: FatesByRun
    newest_run: int
    data: dict[int, Finding] = field(default_factory=dict)


def run_of(store: Store, set_name: str, run: int | None) -> int:
    """The one that is asked for, or the newest. StoreError where there is none."""
    if run is not None:
        return run
    newest = store.runs(1)
    if not newest:
        raise StoreError(
            f"{set_name} has never been scrubbed.", remedy=f"Run 'qorumctl scrub {set_name}'.", set_name=set_name
        )
    return newest[0].id


async def compile_(context: SetContext, run: int | None, wanted: Wanted) -> Dossier:
    """Takes no lock, and changes nothing."""
    status = await inspection.status_at_all_costs(context)
    with context.store(read_only=True) as store:
        run = run_of(store, context.name, run)
        report = store.scrub_report(run, with_findings=False)
        compared = digest.compared(report, [copy.name for copy in status.copies])
        maps = tuple(DiskMap(report.size, compared, cells) for cells in wanted.cells)
        tally, kept = _read(store, run, maps, wanted.most_findings)
        history = store.history(wanted.most_runs)
        return Dossier(
            made=now(),
            status=status,
            report=report,
            tally=tally,
            maps=maps,
            findings=kept,
            history=history,
            fates=store.fates_by_run(wanted.most_runs),
            newest_run=max((one.run for one in history.runs), default=run),
            data=_data(store, kept[: wanted.most_data]),
        )


def _read(store: Store, run: int, maps: Sequence[DiskMap], most: int) -> tuple[Tally, list[FindingDocument]]:
    """Once through the findings; kept are the first of each fate, as many as may be needed."""
    tally = Tally()
    kept: dict[Fate, list[FindingDocument]] = {fate: [] for fate in Fate}
    for one in store.findings(run):
        digest.add(tally, one)
        for made in maps:
            made.add(digest.mark(one))
        if len(of_fate := kept[digest.fate(one)]) < most:
            of_fate.append(one)
    return tally, list(islice(chain.from_iterable(kept[fate] for fate in reversed(Fate)), most))


def _data(store: Store, findings: Sequence[FindingDocument]) -> dict[int, Finding]:
    found = ((one.id, store.finding(one.id)) for one in findings)
    return {number: finding for number, finding in found if finding is not None}
