"""What programs read about scrubs: versioned documents. Sizes are integers in bytes, times RFC 3339 UTC."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qorumctl.core.chronicle import Entry
from qorumctl.core.diagnosis import Kind
from qorumctl.core.findings import Action, Cause, FindingVerdict, Source

Outcome = Literal["clean", "repaired", "damaged", "no-majority", "unfinished", "failed"]
Mode = Literal["report", "repair"]


class Document(BaseModel):
    """`schema` names the document and its version. Fields are added within a version, never changed or removed."""

    # `schema` shadows a deprecated BaseModel method; the name is the contract, so the field carries an alias.
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


class DiagnosisDocument(Document):
    kind: Kind
    flipped_bits: int | None = None
    fill_byte: int | None = None
    torn_at_bytes: int | None = Field(None, description="where the winner's prefix ends, from the finding's offset")


class FindingDocument(Document):
    id: int
    offset: int
    length: int
    verdict: FindingVerdict
    copies: list[str] = Field(description="the names at fault; empty where `cause` explains the difference")
    votes: dict[str, list[str]] = Field(description="SHA-256 of the whole range -> the copies that held it")
    action: Action
    cause: Cause | None = None
    source: Source = Source.SCRUB
    diagnosis: DiagnosisDocument
    confirmed: str
    recurring: int = Field(0, description="earlier findings of the same copy in this place that were repaired")
    last_repaired: str | None = Field(None, description="when the last of them was found")


class RangeDocument(Document):
    offset: int
    length: int


class ScrubReport(Document):
    """One run. `scanned_bytes + skipped_bytes` is what the run has covered; `read_bytes` what it read of each copy."""

    schema_: Literal["qorum.scrub-report/1"] = Field("qorum.scrub-report/1", alias="schema")
    set: str
    run: int
    mode: Mode
    started: str
    finished: str | None
    outcome: Outcome
    size: int
    scanned_bytes: int
    skipped_bytes: int
    read_bytes: dict[str, int]
    suspects: int
    busy_bytes: int
    resumable: bool = False
    range: RangeDocument | None = Field(None, description="null: the whole disk")
    thorough: bool = Field(False, description="holes were read too")
    message: str | None = Field(None, description="why the run failed, or that its time was used up")
    uncounted: list[str] = Field(
        default_factory=list,
        description="copies that had missed writes, and so did not vote (or not from some point on)",
    )
    recovered_reads: dict[str, int] = Field(
        default_factory=dict,
        description="copy -> reads of it that failed and succeeded when they were made again: no finding, but a sign",
    )
    failing_copies: list[str] = Field(
        default_factory=list,
        description="copies that have lost more than a scrub writes anew: to be replaced",
    )
    left_because: dict[str, str] = Field(
        default_factory=dict,
        description="copy -> why what it cannot read, or does not take, was not written anew",
    )
    findings: list[FindingDocument]


class RunSummary(Document):
    """A line of `history`: a run without its findings."""

    run: int
    mode: Mode
    started: str
    finished: str | None
    outcome: Outcome
    size: int
    scanned_bytes: int
    skipped_bytes: int
    busy_bytes: int
    resumable: bool
    range: RangeDocument | None = Field(None, description="null: the whole disk")
    message: str | None = Field(None, description="why the run failed, or that its time was used up")
    findings: dict[Action, int]


class CopyEntry(Document):
    """What happened to a copy, however often."""

    kind: Entry
    number: int
    first: str
    last: str
    run: int | None = Field(None, description="the last run in which it happened, where it happens in runs")
    detail: str | None = Field(None, description="of the last time")


class CopyHistory(Document):
    name: str
    entries: list[CopyEntry]


class History(Document):
    schema_: Literal["qorum.history/1"] = Field("qorum.history/1", alias="schema")
    set: str
    runs: list[RunSummary]
    copies: list[CopyHistory] = Field(
        default_factory=list, description="copies of which anything is on record, also those that the set had once"
    )
