"""What a scrub finds and how far it has come: plain values that the engine makes and the store keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import assert_never

from qorumctl.core.diagnosis import Diagnosis
from qorumctl.core.ranges import Range


class FindingVerdict(StrEnum):
    OUTVOTED = "outvoted"
    UNREADABLE = "unreadable"
    NO_MAJORITY = "no-majority"


class Action(StrEnum):
    PENDING = "pending"
    """Durably recorded, repair under way. Never the last word: a resumed run settles it first."""
    REPAIRED = "repaired"
    LEFT = "left"
    FAILED = "failed"
    RESOLVED = "resolved"
    """Without a majority, and written since as an operator has decided. It can be undone: then it is `left` again."""


class Source(StrEnum):
    SCRUB = "scrub"
    GUEST_READ = "guest-read"


class Cause(StrEnum):
    UNCLEAN_SHUTDOWN = "unclean-shutdown"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a range: `digest` is the SHA-256 of all of it, `sample` its first bytes (guest data: stays in
    the state database)."""

    digest: str
    copies: tuple[str, ...]
    sample: bytes = b""


@dataclass(frozen=True, slots=True)
class Finding:
    """One run of sectors on which the copies were proven to differ, or that a copy cannot read.

    `copies`: the names at fault: every copy outside the group that won, all of them where none did, and none of them
    where `cause` explains the difference. `versions`: who held what, sorted by number of votes.
    """

    range: Range
    verdict: FindingVerdict
    copies: tuple[str, ...]
    versions: tuple[Version, ...]
    action: Action
    diagnosis: Diagnosis
    confirmed_at: str
    """RFC 3339, UTC."""
    source: Source = Source.SCRUB
    cause: Cause | None = None

    def settled(self, action: Action) -> Finding:
        return replace(self, action=action)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a run has come: all before `cursor_bytes` is done but for `busy`, which is looked at again at the end."""

    cursor_bytes: int = 0
    scanned_bytes: int = 0
    skipped_bytes: int = 0
    read_bytes: Mapping[str, int] = field(default_factory=dict)
    suspects: int = 0
    busy: tuple[Range, ...] = ()


def is_lost(verdict: FindingVerdict, action: Action) -> bool:
    """Whether a fenced read cannot mend it: nothing can be read there, or what the daemon rewrote did not stay."""
    if verdict is FindingVerdict.UNREADABLE:
        return action in {Action.LEFT, Action.FAILED}
    return verdict is FindingVerdict.OUTVOTED and action is Action.FAILED


class Fate(IntEnum):
    """What became of the damage of a finding, in one word. The higher, the worse."""

    REPAIRED = 1
    RESOLVED = 2
    """Without a majority, and written as an operator has decided."""
    PENDING = 3
    LEFT = 4
    """A majority spoke against the copy, and it is as it was."""
    TIED = 5
    """No majority, and nothing was written."""


def fate_of(verdict: FindingVerdict, action: Action) -> Fate:
    match action:
        case Action.REPAIRED:
            return Fate.REPAIRED
        case Action.RESOLVED:
            return Fate.RESOLVED
        case Action.PENDING:
            return Fate.PENDING
        case Action.LEFT | Action.FAILED:
            return Fate.TIED if verdict is FindingVerdict.NO_MAJORITY else Fate.LEFT
        case _:
            assert_never(action)
