"""A copy of which nothing can be read is no damaged copy: its storage is gone, and a scrub waits until it is back."""

from __future__ import annotations

from qorumctl.copies.base import CopyReader
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.errors import CopyUnavailableError
from qorumctl.scrub.plan import ScrubPlan


def give_up_if_dead(reader: CopyReader, plan: ScrubPlan, failed_at_bytes: int) -> None:
    """Reads sectors spread over the disk until one can be read. Raises CopyUnavailableError when none can."""
    probes = plan.tuning.failing_probes
    spread = [plan.size_bytes * n // probes // SECTOR_BYTES * SECTOR_BYTES for n in range(probes)]
    if all(reader.observe(Range(at, SECTOR_BYTES)).unreadable for at in spread):
        raise CopyUnavailableError(
            f"Copy {reader.name} cannot read anything: every read fails, from offset {failed_at_bytes} on.",
            remedy="Bring its storage back (a server that answers again is found within 16 s), then scrub again: the "
            "run resumes where it was.",
            copy=reader.name,
        )
