"""The comparison that `create` makes of existing images: the engine in report mode, over copies that nobody writes."""

from __future__ import annotations

from collections.abc import Sequence

from qorumctl.controller.bridge import QuietFence
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import Observer, ScrubControl, ScrubPosition, ScrubStart
from qorumctl.controller.returning import WallClock
from qorumctl.copies.nbd import NbdCopy
from qorumctl.core.findings import Checkpoint, Finding, FindingVerdict
from qorumctl.core.progress import Progress
from qorumctl.core.ranges import Range
from qorumctl.core.vote import strict_majority
from qorumctl.daemon.graph import copy_node
from qorumctl.errors import QorumError, RefusedError
from qorumctl.model.spec import SetSpec
from qorumctl.scrub.engine import Scrub
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import StopReason
from qorumctl.store.records import now
from qorumctl.units import format_size


def compare(context: SetContext, spec: SetSpec, observer: Observer, control: ScrubControl) -> None:
    """The engine in report mode over copies that nobody writes. Raises RefusedError where any sector differs."""
    found = differences(context, spec, spec.copy_names, observer, control)
    if (first := found.first) is not None:
        raise RefusedError(
            f"The images are not equal: they differ in {format_size(found.length_bytes)}, "
            f"first at offset {first.range.offset}, {first.range.length} bytes ({_who(first)}).",
            remedy="Nothing was changed. Copy the right image over the others, then create the set.",
            set_name=spec.name,
        )


def differences(
    context: SetContext,
    spec: SetSpec,
    names: Sequence[str],
    observer: Observer,
    control: ScrubControl,
    *,
    work: str | None = None,
) -> Differences:
    """Compares everything that is exported as `copy-NAME`. Raises QorumError where `control` stops it."""
    socket = context.runtime.nbd_sock
    readers = [NbdCopy(name, socket, copy_node(name), timeout_s=context.timeouts.copy_s) for name in names]
    found = Differences()
    try:
        plan = ScrubPlan(
            size_bytes=spec.size,
            threshold=strict_majority(len(names)),
            repair=False,
            rewriting=False,
            within=Range(0, spec.size),
            now=now,
        )
        observer.started(ScrubStart(spec.name, 0, "report", spec.size, None, recovery=False, work=work))
        reason = Scrub(readers, QuietFence(), found, _Onlooker(spec, observer, control), WallClock(), plan).run()
    finally:
        for reader in readers:
            reader.close()
    if reason is not None:
        raise interrupted(spec)
    return found


def interrupted(spec: SetSpec) -> QorumError:
    return QorumError("Interrupted: no set was created and no image was changed.", set_name=spec.name)


def _who(finding: Finding) -> str:
    if finding.verdict is FindingVerdict.NO_MAJORITY:
        return "no two copies agree"
    return f"at fault: {', '.join(finding.copies)}"


class Differences:
    """A journal that only counts: there is no set yet to keep findings for."""

    def __init__(self) -> None:
        self.length_bytes = 0
        self.first: Finding | None = None

    def begin_repair(self, findings: Sequence[Finding]) -> list[int]:
        raise AssertionError("a comparison repairs nothing")

    def conclude(
        self, settled: Sequence[tuple[int, Finding]], findings: Sequence[Finding], checkpoint: Checkpoint
    ) -> None:
        self.length_bytes += sum(f.range.length for f in findings)
        if findings and self.first is None:
            self.first = findings[0]


class _Onlooker:
    """A supervisor for a comparison: nothing is on record, only the caller can stop it."""

    def __init__(self, spec: SetSpec, observer: Observer, control: ScrubControl) -> None:
        self._observer = observer
        self._control = control
        self._progress = Progress(spec.size)
        self._clock = WallClock()
        self._read_bytes = 0

    def stop_requested(self) -> StopReason | None:
        return self._control.reason

    def suspend_if_requested(self) -> None:
        return

    def wants_quiet(self) -> bool:
        return self._control.reason is not None

    def recovered(self, copy: str, reads: int) -> None:
        return

    def moved(self, position_bytes: int, read_bytes: int, suspects: int) -> None:
        self._read_bytes += read_bytes
        self._progress.advance(max(position_bytes, self._progress.position_bytes), self._clock.now_s())
        progress = self._progress
        self._observer.moved(
            ScrubPosition(
                progress.position_bytes,
                progress.size_bytes,
                self._read_bytes,
                progress.rate_bytes_per_s,
                progress.eta_s,
                suspects,
            )
        )
