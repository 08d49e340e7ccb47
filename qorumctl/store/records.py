"""Runs and findings as values, and as rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, cast, get_args

from qorumctl.core.diagnosis import Diagnosis, Kind
from qorumctl.core.findings import Action, Cause, Checkpoint, Finding, FindingVerdict, Source, Version
from qorumctl.core.ranges import Range, between, subtract
from qorumctl.model.report import Mode, Outcome

Request = Literal["pause", "cancel"]


class RunState(StrEnum):
    RUNNING = "running"
    """Somebody began it and has not said how it ended: at work, or dead. The set's lock tells which."""
    SUSPENDED = "suspended"
    FAILED = "failed"
    FINISHED = "finished"
    ABANDONED = "abandoned"


RESUMABLE = (RunState.RUNNING, RunState.SUSPENDED, RunState.FAILED)


@dataclass(frozen=True)
class RunRecord:
    """Everything about a run but its findings. `within`: the range it was asked to scrub; None is the whole disk.

    `checkpoint` is what a resumed run continues from. `position_bytes` is fresher, for display only.
    `message`: why it failed. `parameters`: what the command line asked for, kept for whoever began it.
    """

    id: int
    mode: Mode
    state: RunState
    started: str
    finished: str | None
    size_bytes: int
    within: Range | None
    thorough: bool
    cause: Cause | None
    checkpoint: Checkpoint
    position_bytes: int
    outcome: Outcome | None = None
    """What the run found, once it is finished; see `Store.outcome_of` for what to tell people."""
    message: str | None = None
    request: Request | None = None
    pid: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resumable(self) -> bool:
        return self.state in RESUMABLE

    def looked_at(self) -> list[Range]:
        """The ranges whose every difference this run has confirmed or dismissed: not what stayed busy to the end."""
        first = self.within.offset if self.within else 0
        end = self.within.end if self.within else self.size_bytes
        if self.state is not RunState.FINISHED:
            end = min(end, self.checkpoint.cursor_bytes)
        return subtract([between(first, end)], self.checkpoint.busy) if first < end else []


def now() -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ranges_to_json(ranges: Iterable[Range]) -> str:
    return json.dumps([[r.offset, r.length] for r in ranges], separators=(",", ":"))


def names_from_json(text: str) -> list[str]:
    """ValueError for anything but a list of texts."""
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("no list of names")
    return names


def _counts_from_json(text: str) -> dict[str, int]:
    counts = json.loads(text)
    if not isinstance(counts, dict) or not all(type(n) is int for n in counts.values()):
        raise ValueError("no counts")
    return counts


def _parameters_from_json(text: str) -> dict[str, Any]:
    parameters = json.loads(text)
    if isinstance(parameters, dict) and isinstance(parameters.get("suspicions", {}), dict):
        names_from_json(json.dumps(parameters.get("uncounted", [])))
        names_from_json(json.dumps(parameters.get("failing", [])))
        names_from_json(json.dumps(list(parameters.get("left", {}).values())))
        _counts_from_json(json.dumps(parameters.get("recovered", {})))
        return parameters
    raise ValueError("no parameters")


def _one_of(value: Any, alternatives: Any) -> Any:
    if value is not None and value not in get_args(alternatives):
        raise ValueError("none of what can stand here")
    return value


def run_from_row(row: sqlite3.Row) -> RunRecord:
    """ValueError, TypeError and their like for a row that was never written so."""
    within = None if row["within_offset"] is None else Range(row["within_offset"], row["within_length"])
    place = within or Range(0, row["size"])
    if not place.offset <= row["cursor"] <= place.end <= row["size"] or min(row["scanned"], row["skipped"]) < 0:
        # Where a resumed run goes on: behind it nothing is looked at again.
        raise ValueError("a cursor outside of its run")
    return RunRecord(
        id=row["id"],
        mode=_one_of(row["mode"], Mode),
        state=RunState(row["state"]),
        started=row["started"],
        finished=row["finished"],
        size_bytes=row["size"],
        within=within,
        thorough=bool(row["thorough"]),
        cause=None if row["cause"] is None else Cause(row["cause"]),
        checkpoint=Checkpoint(
            cursor_bytes=row["cursor"],
            scanned_bytes=row["scanned"],
            skipped_bytes=row["skipped"],
            read_bytes=_counts_from_json(row["read_bytes"]),
            suspects=row["suspects"],
            busy=tuple(Range(*pair) for pair in json.loads(row["busy"])),
        ),
        position_bytes=row["position"],
        outcome=_one_of(row["outcome"], Outcome),
        message=row["message"],
        request=_one_of(row["request"], Request),
        pid=row["pid"],
        parameters=_parameters_from_json(row["parameters"]),
    )


CHECKPOINT_COLUMNS = "cursor=?, scanned=?, skipped=?, read_bytes=?, suspects=?, busy=?, position=max(position, ?)"


def checkpoint_values(checkpoint: Checkpoint) -> tuple[Any, ...]:
    return (
        checkpoint.cursor_bytes,
        checkpoint.scanned_bytes,
        checkpoint.skipped_bytes,
        json.dumps(dict(checkpoint.read_bytes)),
        checkpoint.suspects,
        ranges_to_json(checkpoint.busy),
        checkpoint.cursor_bytes,
    )


FINDING_COLUMNS = ("start", "length", "verdict", "copies", "action", "diagnosis", "confirmed", "source", "cause")


def finding_values(finding: Finding) -> tuple[Any, ...]:
    diagnosis = {
        "kind": finding.diagnosis.kind,
        "flipped_bits": finding.diagnosis.flipped_bits,
        "fill_byte": finding.diagnosis.fill_byte,
        "torn_at_bytes": finding.diagnosis.torn_at_bytes,
    }
    return (
        finding.range.offset,
        finding.range.length,
        finding.verdict,
        json.dumps(finding.copies),
        finding.action,
        json.dumps({key: value for key, value in diagnosis.items() if value is not None}),
        finding.confirmed_at,
        finding.source,
        finding.cause,
    )


def finding_from_rows(row: sqlite3.Row, versions: Iterable[sqlite3.Row]) -> Finding:
    diagnosis = json.loads(row["diagnosis"])
    return Finding(
        range=Range(row["start"], row["length"]),
        verdict=FindingVerdict(row["verdict"]),
        copies=tuple(names_from_json(row["copies"])),
        versions=tuple(Version(v["digest"], tuple(names_from_json(v["copies"])), v["sample"]) for v in versions),
        action=Action(row["action"]),
        diagnosis=Diagnosis(**(diagnosis | {"kind": Kind(diagnosis["kind"])})),
        confirmed_at=row["confirmed"],
        source=Source(row["source"]),
        cause=None if row["cause"] is None else Cause(row["cause"]),
    )


_WORST_FIRST: tuple[Outcome, ...] = ("no-majority", "damaged", "repaired", "clean")


def outcome_of_group(verdict: str, action: str) -> Outcome:
    """What findings with this verdict and action make of a run."""
    if action in {Action.REPAIRED, Action.RESOLVED}:
        return "repaired"
    return "no-majority" if verdict == FindingVerdict.NO_MAJORITY else "damaged"


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    return cast(Outcome, min(outcomes, key=_WORST_FIRST.index, default="clean"))
