"""What programs read about a range without a majority: what each copy holds, and what an operator has made of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qorumctl.core.bitwise import Likelihood
from qorumctl.core.diagnosis import Kind
from qorumctl.model.report import Document, FindingDocument, RangeDocument
from qorumctl.model.status import SetState


class CopyEvidence(Document):
    """What a copy holds of the range now."""

    name: str
    digest: str = Field(description="SHA-256 of the whole range; a sector that cannot be read counts as zeros")
    recorded: str | None = Field(None, description="the digest on record; null: the copy could not be read then")
    changed: bool = Field(description="it holds something else than what is on record")
    counts: bool = Field(True, description="false: it has missed writes, so it has no vote")
    unreadable_bytes: int = 0
    bits: int | None = Field(None, description="that differ from the bitwise majority; null where there is none")
    sectors: int = Field(0, description="of 512 bytes in which it does")
    kinds: dict[Kind, int] = Field(default_factory=dict, description="what they look like beside it, and how many")


class Bitwise(Document):
    """The bitwise majority of the copies that count, over the sectors that have none as a whole."""

    likelihood: Likelihood = Field(description="of its being what was written")
    why: str
    tied_bits: int = Field(0, description="in which as many copies say 0 as 1: with these it cannot be used")
    chance_of_coincidence: float = Field(
        0.0, description="at most so likely have independent flips met in one bit, where it is wrong"
    )
    crowded_sectors: int = Field(0, description="in which flips lie closer together than chance would have it")


class Row(Document):
    """16 bytes of the disk in which the copies differ, as hexadecimal digits. These are data of guests."""

    offset: int
    data: dict[str, str | None] = Field(description="copy -> what it holds; null: unreadable")
    bitwise: str | None


class Evidence(Document):
    """A finding beside what the copies hold now. `sectors`: of 512 bytes, by what a vote says of them now."""

    schema_: Literal["qorum.evidence/1"] = Field("qorum.evidence/1", alias="schema")
    set: str
    run: int
    finding: FindingDocument
    read_at: str
    state: SetState = Field(description="stopped: nobody could write meanwhile")
    copies: list[CopyEvidence]
    away: list[str] = Field(default_factory=list, description="copies that are not in the quorum, and were not read")
    agree: list[list[str]] = Field(description="who holds the same in all of the range")
    sectors: int
    equal_sectors: int
    voted_sectors: int = Field(description="with a majority, and a copy that differs: a scrub repairs these")
    tied_sectors: int = Field(description="without a majority")
    bitwise: Bitwise
    rows: list[Row]
    more_rows: int = Field(description="further rows that differ, from `next_offset` on")
    next_offset: int | None = None


class ResolvedCopy(Document):
    name: str
    before: str = Field(description="SHA-256 of what it held in the range")
    after: str = Field(description="SHA-256 of what it holds then")
    changed_sectors: int = Field(description="of 512 bytes, in which the two differ")
    saved: str | None = Field(None, description="the file with what it held; null with --dry-run")


class ResolveReport(Document):
    """The answer of `resolve`. With `dry_run` nothing was written, and `id` and `saved` are null."""

    schema_: Literal["qorum.resolve/1"] = Field("qorum.resolve/1", alias="schema")
    set: str
    command: Literal["resolve", "undo"]
    dry_run: bool
    id: int | None = Field(None, description="what --undo takes")
    undone: int | None = Field(None, description="undo: the id of what was undone")
    finding: int | None = Field(description="null: what is undone is on record no more")
    decision: str = Field(description="`copy=NAME`, `bitwise`, `file`; of an undo, `undo=ID`")
    offset: int
    length: int
    written: list[RangeDocument] = Field(description="the parts that are written: those without a majority")
    written_bytes: int
    copies: list[ResolvedCopy]
    saved: str | None = Field(None, description="the directory with what every copy held before")
    plan: str = Field(description="digest of what would be written, and of what it would be written over")
    state: SetState | None = None
    warnings: list[str] = Field(default_factory=list)


class SavedCopy(Document):
    """Of one copy. Its file holds the whole range, as it was before; what could not be read stands there as zeros."""

    file: str
    sha256: str
    source: str
    unreadable: list[RangeDocument] = Field(default_factory=list)


class Manifest(Document):
    """`manifest.json` of a directory `saved/ID`, written after all else in it is on stable storage: without it nothing
    was written to any copy."""

    schema_: Literal["qorum.saved/1"] = Field("qorum.saved/1", alias="schema")
    id: int = Field(gt=0)
    set: str
    uuid: str
    made: str
    command: Literal["resolve", "undo"]
    decision: str
    finding: int | None
    offset: int = Field(ge=0)
    length: int = Field(gt=0)
    written: list[RangeDocument]
    copies: dict[str, SavedCopy]
    chosen: SavedCopy | None = Field(None, description="resolve: what every copy was to hold")
    restores: int | None = Field(None, description="undo: the id of the contents that every copy was to hold again")
    undone_by: int | None = None
