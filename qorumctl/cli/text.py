"""Words: counts, times, percentages, and text that a terminal can be given."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from qorumctl.units import format_duration

# A path or a message of QEMU's may hold escape sequences; a terminal must not obey them.
_CONTROLS = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    return text.translate(_CONTROLS)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 finding`, `3 findings`, `12,574 sectors`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last


def percent(part: int, whole: int) -> str:
    """Rounded down: 100 % is said only of what is complete."""
    return f"{part * 100 // whole if whole else 100} %"


def moment(timestamp: str) -> str:
    """RFC 3339 -> `2026-11-23 06:14:08 UTC`."""
    return f"{datetime.fromisoformat(timestamp).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def taken(started: str, finished: str | None) -> str | None:
    """How long it took; None for what has not ended, and where the clock was set back meanwhile."""
    if finished is None:
        return None
    seconds = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    return None if seconds < 0 else format_duration(seconds)
