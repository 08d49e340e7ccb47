"""What can happen to a copy: the kinds under which a set's history counts it, in the order in which they are told."""

from __future__ import annotations

from enum import StrEnum


class Entry(StrEnum):
    OUTVOTED = "outvoted"
    UNREADABLE = "unreadable"
    REPAIRED = "repaired"
    RECURRING = "recurring"
    """A range that had been repaired in it was damaged anew."""
    WRITE_ERROR = "write-error"
    """The daemon told of a write or flush that failed; of several within a second, of the last."""
    MISSED_WRITE = "missed-write"
    """It came to be known that it lacks a write: from then on it has no vote."""
    MAY_HAVE_MISSED = "may-have-missed"
    """It became suspect without a known error: nobody listened for a time, or a record was lost."""
    DETACHED = "detached"
    FORCED_OUT = "forced-out"
    """Detached with --force."""
    LEFT_OUT = "left-out"
    """The set was started without it."""
    FOUND_OUTSIDE = "found-outside"
    """It was not in the quorum, and nothing was on record of its leaving."""
    REJOINED = "rejoined"
    CLEARED = "cleared"
    """A scrub found or made it equal to the others: it is suspect no more."""
    REPLACED = "replaced"
    """Another medium stands in its place: what was found before is none of this one's."""


FROM_FINDINGS = frozenset({Entry.OUTVOTED, Entry.UNREADABLE, Entry.REPAIRED, Entry.RECURRING})
"""Counted from the findings themselves; the others are counted as they happen."""
