"""When a set is scrubbed: a word, or an expression of systemd's OnCalendar=."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from qorumctl.errors import UsageError
from qorumctl.units import parse_budget

_LOOK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """`on_calendar`, spread over `delay` so that many sets do not hit one appliance together. `budget_s`: a scrub
    pauses when it has taken so long, and the next one goes on there; 0: as long as it takes."""

    on_calendar: str
    delay: str
    budget_s: int = 0


WORDS = {
    "nightly": Schedule("*-*-* 01:00:00", "30min", 4 * 3600),
    "daily": Schedule("*-*-* 01:00:00", "1h"),
    "weekly": Schedule("weekly", "6h"),
    "monthly": Schedule("monthly", "1d"),
}
_DELAY = "15min"
"""Of an expression: who names an hour means it."""


def parse_schedule(text: str, budget: str | None = None) -> Schedule:
    """Raises UsageError. An expression is put to systemd-analyze."""
    chosen = WORDS.get(text)
    if chosen is None:
        _check_calendar(text)
        chosen = Schedule(text, _DELAY)
    return chosen if budget is None else Schedule(chosen.on_calendar, chosen.delay, parse_budget(budget))


def _check_calendar(text: str) -> None:
    remedy = f"Use {', '.join(WORDS)}, or an expression such as 'Sat 03:00': see systemd.time(7)."
    wrong = UsageError(f"'{text}' is not a schedule.", remedy=remedy)
    if not text.isprintable():
        raise wrong
    command = ["systemd-analyze", "calendar", "--", text]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LOOK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        raise UsageError(
            f"Whether '{text}' is a schedule cannot be told: systemd-analyze does not run.",
            remedy=f"Use one of {', '.join(WORDS)}.",
        ) from None
    if done.returncode != 0:
        raise wrong
