"""When a copy has lost too much to be mended sector by sector: the storage behind it is failing."""

from __future__ import annotations

from qorumctl.units import MIB, format_size

MOST_RANGES = 64
MOST_BYTES = MIB
"""So much of one copy a scrub writes anew, each time. A disk that is sound remaps a sector now and then; one that loses
more is on its way out, and each range keeps the copy out of the quorum for longer: a flush, and what a bad sector takes
to be given up."""


def is_failing(ranges: int, size_bytes: int) -> bool:
    return ranges > MOST_RANGES or size_bytes > MOST_BYTES


def replacement(set_name: str, copy: str) -> str:
    return f"'qorumctl copy replace {set_name} {copy} SOURCE'"


BOUND = f"{MOST_RANGES} ranges or {format_size(MOST_BYTES)}"
