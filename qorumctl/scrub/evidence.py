"""From what the copies said to what goes on record: runs with their versions, and findings made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import assert_never

from qorumctl.core.diagnosis import Diagnosis, Kind, diagnose
from qorumctl.core.findings import Action, Finding, FindingVerdict, Source, Version
from qorumctl.core.ranges import Range
from qorumctl.core.vote import NoMajority, Observation, Outvoted, Verdict, vote
from qorumctl.scrub.plan import ScrubPlan


@dataclass(frozen=True, slots=True)
class ObservedRun:
    """A run of sectors on which the copies did not all say the same. `versions`: readable copy -> all of its bytes."""

    range: Range
    verdict: Verdict
    versions: Mapping[str, bytes]


def examine(at: Range, observations: Mapping[str, Observation], plan: ScrubPlan) -> list[ObservedRun]:
    """Votes on what was read of `at`; the runs that are not unanimous, with absolute ranges."""
    found = []
    for run in vote(observations, plan.threshold, stale=plan.stale):
        versions: dict[str, bytes] = {}
        for name, observation in observations.items():
            if name not in run.verdict.unreadable:
                data = bytes(observation.data[run.range.offset : run.range.end])
                # Copies that agree share one object: a batch is held in memory until it is confirmed.
                versions[name] = next((known for known in versions.values() if known == data), data)
        found.append(ObservedRun(run.range.shifted(at.offset), run.verdict, versions))
    return found


def cut(run: ObservedRun, to: Iterable[Range]) -> list[ObservedRun]:
    """A run cut to parts of its range."""
    return [run if part == run.range else _part(run, part) for part in to]


def _part(run: ObservedRun, part: Range) -> ObservedRun:
    start, end = part.offset - run.range.offset, part.end - run.range.offset
    return ObservedRun(part, run.verdict, {name: data[start:end] for name, data in run.versions.items()})


def findings_of(run: ObservedRun, plan: ScrubPlan, *, source: Source = Source.SCRUB) -> list[Finding]:
    """One finding, or two where one copy is outvoted and another unreadable: they end differently."""
    verdict = run.verdict
    match verdict:
        case Outvoted(_, losers, unreadable):
            found = []
            if losers:
                action = (
                    Action.REPAIRED if source is Source.GUEST_READ else Action.PENDING if plan.repair else Action.LEFT
                )
                diagnosis = _diagnose(run, verdict)
                found.append(_finding(run, FindingVerdict.OUTVOTED, losers, action, diagnosis, plan, source))
            if unreadable:
                diagnosis = Diagnosis(Kind.UNREADABLE)
                found.append(_finding(run, FindingVerdict.UNREADABLE, unreadable, Action.LEFT, diagnosis, plan, source))
            return found
        case NoMajority(groups, unreadable):
            everyone = frozenset().union(*groups) | unreadable
            diagnosis = Diagnosis(Kind.UNKNOWN)
            return [_finding(run, FindingVerdict.NO_MAJORITY, everyone, Action.LEFT, diagnosis, plan, source)]
        case _:
            assert_never(verdict)


def _finding(
    run: ObservedRun,
    verdict: FindingVerdict,
    at_fault: frozenset[str],
    action: Action,
    diagnosis: Diagnosis,
    plan: ScrubPlan,
    source: Source,
) -> Finding:
    by_data: dict[bytes, list[str]] = {}
    for name, data in run.versions.items():
        by_data.setdefault(data, []).append(name)
    versions = [
        Version(sha256(data).hexdigest(), tuple(sorted(names)), data[: plan.tuning.sample_bytes])
        for data, names in by_data.items()
    ]
    return Finding(
        range=run.range,
        verdict=verdict,
        # After an unclean stop the copies differ in writes that were never acknowledged: nobody is at fault.
        copies=() if plan.cause else tuple(sorted(at_fault)),
        versions=tuple(sorted(versions, key=lambda v: (-len(v.copies), v.copies))),
        action=action,
        diagnosis=diagnosis,
        confirmed_at=plan.now(),
        source=source,
        cause=plan.cause,
    )


def _diagnose(run: ObservedRun, verdict: Outvoted) -> Diagnosis:
    """Of several losers that show different damage nothing can be said in one word."""
    winner = next(run.versions[name] for name in verdict.winners)
    kinds = {diagnose(winner, run.versions[name]) for name in verdict.losers}
    return kinds.pop() if len(kinds) == 1 else Diagnosis(Kind.UNKNOWN)
