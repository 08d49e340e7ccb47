"""What one run of the engine is to do, and the numbers that bound it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qorumctl.core.findings import Cause, Checkpoint, Finding
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.units import GIB, KIB, MIB


@dataclass(frozen=True, slots=True)
class Tuning:
    """Bounds of one run. Every queue, batch and retry of the engine is here."""

    segment_bytes: int = 256 * MIB
    """Scanned between two checkpoints: at 1 GB/s one fsync of the state database in a quarter of a second."""
    segment_s: float = 2.0
    """... or as much as a slow or rate-limited set yields in this time: what a crash costs to repeat."""
    confirm_bytes: int = 4 * MIB
    """Suspect bytes that end a segment early, per copy: they are held in memory until they are confirmed."""
    confirm_ranges: int = 2048
    """Suspect ranges that end a segment early: the longer a confirmation reads, the more of it guests write again."""
    gap_bytes: int = 16 * KIB
    """Suspects nearer than this are re-read with one request; a round trip costs more than 16 KiB."""
    busy_rounds: int = 3
    """Confirmations of a range that guests keep writing before it is put off to the end of the run."""
    final_busy_rounds: int = 8
    put_off_ranges: int = 4096
    """Ranges that guests kept writing, or repairs that these kept from being proven, which are put off: with more of
    them the run does not wait for its end. They are in memory, with their evidence."""
    repair_rounds: int = 8
    """Verifications of a healed range that guests keep writing."""
    heal_bytes: tuple[int, ...] = (64 * KIB, 4 * KIB, SECTOR_BYTES)
    """The largest fenced read of the first, second, ... attempt; after the last one a repair has failed (rewrite errors
    are silent in QEMU). Not larger: every overlapping guest write overtakes a waiting fenced read. Smaller when it did
    not work: one sector that a copy cannot write fails the rewrite of the whole request."""
    large_heal_bytes: int = MIB
    """The first attempt at a range that is wrong throughout, until one fails: 2.4 times as fast as in 64 KiB (1 MiB
    after the other of a copy that is wrong everywhere)."""
    zero_window_bytes: int = GIB
    zero_least_bytes: int = 64 * KIB
    """Holes smaller than this are read: cutting the stream costs more."""
    sample_bytes: int = 4 * KIB
    """Of each version kept as evidence."""
    failing_chunks: int = 4
    """So many chunks in a row that a copy failed to read raise the question whether it can read anything."""
    failing_probes: int = 16
    """... answered by reading this many sectors spread over the disk."""


@dataclass(frozen=True, slots=True)
class ScrubPlan:
    """`repair`: heal what is outvoted. `rewriting`: the daemon itself repairs what guests read (policy `repair`).

    `stale` copies are compared and never counted. `checkpoint`, `pending`, `settled`: what an interrupted run left:
    where it was, findings whose repair was under way, and ranges beyond the cursor that are on record already.
    `now`: RFC 3339 in UTC.
    """

    size_bytes: int
    threshold: int
    repair: bool
    rewriting: bool
    within: Range
    now: Callable[[], str]
    thorough: bool = False
    rate_bytes_per_s: int | None = None
    stale: frozenset[str] = frozenset()
    cause: Cause | None = None
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    pending: Sequence[tuple[int, Finding]] = ()
    settled: Sequence[Range] = ()
    tuning: Tuning = field(default_factory=Tuning)
