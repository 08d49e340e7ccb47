"""Exit codes, from documents alone (docs: `qorumctl scrub --help`).

scrub   0 nothing found   1 it could not be done   2 usage   3 damage found, all repaired   4 damage found and left
        5 ranges without a majority   6 unfinished (paused, cancelled, SIGTERM, out of time)   130 Ctrl-C
status  0 healthy   4 degraded   5 damaged   1 stopped, stalled or failed
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qorumctl.core.findings import Fate

if TYPE_CHECKING:
    from qorumctl.core.tally import Tally
    from qorumctl.model.report import ScrubReport
    from qorumctl.model.status import SetState

FINE = 0
FAILED = 1
USAGE = 2
REPAIRED = 3
LEFT = 4
NO_MAJORITY = 5
UNFINISHED = 6
INTERRUPTED = 130

_WORST_FIRST = (INTERRUPTED, USAGE, FAILED, NO_MAJORITY, LEFT, UNFINISHED, REPAIRED, FINE)
"""What could not be done at all goes first: nobody knows what it would have found. Then the worst news."""

_OF_OUTCOME = {
    "clean": FINE,
    "repaired": REPAIRED,
    "damaged": LEFT,
    "no-majority": NO_MAJORITY,
    "unfinished": UNFINISHED,
    "failed": FAILED,
}

_OF_FATE = {
    Fate.REPAIRED: REPAIRED,
    Fate.RESOLVED: REPAIRED,
    # A repair that was begun and not yet verified: the run goes on there.
    Fate.PENDING: UNFINISHED,
    Fate.LEFT: LEFT,
    Fate.TIED: NO_MAJORITY,
}

_OF_STATE = {"healthy": FINE, "degraded": LEFT, "damaged": NO_MAJORITY, "stopped": 1, "stalled": 1, "failed": 1}
# For several sets: data that nobody can read outranks a set that is down, and a set that somebody stopped is no news.
_WORST_STATE_FIRST = ("damaged", "failed", "stalled", "degraded", "stopped", "healthy")


def of_scrub(report: ScrubReport, *, tally: Tally | None = None, interrupted: bool = False) -> int:
    """`tally`: of a report that comes without its findings. `interrupted`: Ctrl-C was pressed. A run that had reached
    its end all the same is told as it ended."""
    unfinished = report.outcome in {"unfinished", "failed"}
    if interrupted and unfinished:
        return INTERRUPTED
    if tally is None:
        from qorumctl.model.digest import tally_of

        tally = tally_of(report.findings)
    fates = tally.by_fate
    return worst([_OF_OUTCOME[report.outcome], *(_OF_FATE[fate] for fate, found in fates.items() if found.number)])


def of_states(states: Iterable[SetState]) -> int:
    """No set at all is fine."""
    return _OF_STATE[min(map(str, states), key=_WORST_STATE_FIRST.index, default="healthy")]


def of_signal(number: int) -> int:
    """As a shell tells it."""
    return 128 + number


def worst(codes: Iterable[int]) -> int:
    return min(codes, key=_WORST_FIRST.index, default=FINE)
