"""What Prometheus is told of sets: what `status` says, and the sums of their history, in its text format.

Labels are set, copy, state and verdict: none grows with the data. docs/metrics.md has the same list for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qorumctl.controller import inspection
from qorumctl.controller.context import SetContext
from qorumctl.core.findings import FindingVerdict
from qorumctl.errors import QorumError
from qorumctl.model.status import CopyState, CopyStatus, SetState, SetStatus
from qorumctl.store.totals import ScrubTotals


@dataclass(frozen=True, slots=True)
class Observation:
    """One set, looked at `at_s` seconds after 1970. `totals`: None where its history cannot be read.

    Of a set that cannot be told, `status` has a state and neither identity nor copies.
    """

    status: SetStatus
    totals: ScrubTotals | None
    at_s: float

    @property
    def told(self) -> bool:
        return bool(self.status.uuid)


async def observe(context: SetContext) -> Observation:
    """Never raises QorumError: a set that cannot be told is `failed`. Has the deadlines of `status`."""
    at_s = time.time()
    status = await inspection.status_at_all_costs(context)
    try:
        with context.store(read_only=True) as store:
            totals = store.scrub_totals()
    except QorumError:
        return Observation(status, None, at_s)
    return Observation(status, totals, at_s)


Sample = tuple[tuple[str, ...], float]
"""The values of a family's labels, and its own."""


@dataclass(frozen=True, slots=True)
class Family:
    """`samples` has none where a value is not known: absent is better than wrong."""

    name: str
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Observation], Iterable[Sample]]

    def metric(self, observations: Sequence[Observation]) -> Metric:
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        metric = kind(self.name, self.help, labels=self.labels)
        for seen in observations:
            for labels, value in self.samples(seen):
                metric.add_metric(labels, value)
        return metric


def text(observations: Sequence[Observation]) -> str:
    """The text format. Families of which nothing is known are left out."""
    # One of its own: the client's default one tells of the process that asks.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(observations))
    return generate_latest(registry).decode()


class _Told(Collector):
    def __init__(self, observations: Sequence[Observation]) -> None:
        self._observations = observations

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            metric = family.metric(self._observations)
            if metric.samples:
                yield metric


def _of_set(value: Callable[[SetStatus], float | None]) -> Callable[[Observation], Iterator[Sample]]:
    def samples(seen: Observation) -> Iterator[Sample]:
        if seen.told and (found := value(seen.status)) is not None:
            yield (seen.status.set,), float(found)

    return samples


def _of_totals(value: Callable[[ScrubTotals], float]) -> Callable[[Observation], Iterator[Sample]]:
    def samples(seen: Observation) -> Iterator[Sample]:
        if seen.told and seen.totals is not None:
            yield (seen.status.set,), float(value(seen.totals))

    return samples


def _of_copies(value: Callable[[CopyStatus], float | None]) -> Callable[[Observation], Iterator[Sample]]:
    def samples(seen: Observation) -> Iterator[Sample]:
        for copy in seen.status.copies:
            if (found := value(copy)) is not None:
                yield (seen.status.set, copy.name), float(found)

    return samples


def _set_state(seen: Observation) -> Iterator[Sample]:
    for state in SetState:
        yield (seen.status.set, state), float(seen.status.state is state)


def _copy_state(seen: Observation) -> Iterator[Sample]:
    for copy in seen.status.copies:
        for state in CopyState:
            yield (seen.status.set, copy.name, state), float(copy.state is state)


def _findings(seen: Observation) -> Iterator[Sample]:
    for copy in seen.status.copies:
        yield (seen.status.set, copy.name, FindingVerdict.OUTVOTED), float(copy.outvoted)
        yield (seen.status.set, copy.name, FindingVerdict.UNREADABLE), float(copy.unreadable)
    if seen.told and seen.totals is not None:
        for verdict, found in seen.totals.of_no_copy.items():
            yield (seen.status.set, "", verdict), float(found.number)


def _repaired(seen: Observation) -> Iterator[Sample]:
    for copy in seen.status.copies:
        yield (seen.status.set, copy.name), float(copy.repaired)
    if seen.told and seen.totals is not None:
        yield (seen.status.set, ""), float(sum(found.repaired for found in seen.totals.of_no_copy.values()))


def _missed_bytes(copy: CopyStatus) -> float | None:
    return 0.0 if copy.away_since is None and copy.state is not CopyState.MISSING else copy.missed_bytes


_SET, _COPY = ("set",), ("set", "copy")

FAMILIES = (
    Family(
        "qorum_set_state", "State of the set: 1 for the one it is in, 0 for the others.", ("set", "state"), _set_state
    ),
    Family(
        "qorum_set_observed_timestamp_seconds",
        "When these metrics of the set were collected.",
        _SET,
        lambda seen: [((seen.status.set,), seen.at_s)],
    ),
    Family("qorum_set_size_bytes", "Size of the disk.", _SET, _of_set(lambda status: status.size)),
    Family(
        "qorum_set_watcher_listening",
        "Whether a watcher hears of write errors, while the set runs.",
        _SET,
        _of_set(lambda status: status.watched),
    ),
    Family(
        "qorum_set_unrepaired_findings",
        "Damaged ranges that are still open.",
        _SET,
        _of_set(lambda status: status.unrepaired),
    ),
    Family(
        "qorum_copy_state",
        "State of the copy: 1 for the one it is in, 0 for the others.",
        ("set", "copy", "state"),
        _copy_state,
    ),
    Family(
        "qorum_copy_missed_writes",
        "Whether a write of the copy has failed, so that it has no vote.",
        _COPY,
        _of_copies(lambda copy: copy.missed_writes),
    ),
    Family(
        "qorum_copy_missed_bytes",
        "Bytes written since the copy left the set, where they are on record.",
        _COPY,
        _of_copies(_missed_bytes),
    ),
    Family(
        "qorum_copy_failing",
        "Whether the copy has lost more than a scrub writes anew.",
        _COPY,
        _of_copies(lambda copy: copy.failing),
    ),
    Family(
        "qorum_copy_blamed",
        "Whether the copy was at fault in scrub after scrub, as no other was.",
        _COPY,
        _of_copies(lambda copy: copy.blame is not None),
    ),
    Family(
        "qorum_scrub_last_completed_timestamp_seconds",
        "When a scrub of the whole disk last came to its end; 0 where none has.",
        _SET,
        _of_totals(lambda totals: totals.last_completed_s or 0.0),
    ),
    Family(
        "qorum_scrub_running", "Whether a scrub is at work.", _SET, _of_set(lambda status: status.scrub is not None)
    ),
    Family(
        "qorum_scrub_position_bytes",
        "How far on the disk the scrub at work has come.",
        _SET,
        _of_set(lambda status: None if status.scrub is None else status.scrub.position),
    ),
    Family(
        "qorum_scrub_scanned_bytes_total",
        "Bytes of the disk that scrubs have compared.",
        _SET,
        _of_totals(lambda totals: totals.scanned_bytes),
    ),
    Family(
        "qorum_scrub_skipped_bytes_total",
        "Bytes of the disk that scrubs have left out, zero in every copy.",
        _SET,
        _of_totals(lambda totals: totals.skipped_bytes),
    ),
    Family(
        "qorum_scrub_findings_total",
        "Damaged ranges found, by the copy at fault; with an empty copy those that no copy is at fault for.",
        ("set", "copy", "verdict"),
        _findings,
    ),
    Family("qorum_scrub_repaired_findings_total", "Damaged ranges repaired, by the copy at fault.", _COPY, _repaired),
)
