"""A set in memory for tests of the engine's parts: copies, a fence that votes and rewrites, a supervisor, a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range, intersect
from qorumctl.scrub.plan import ScrubPlan, Tuning
from qorumctl.scrub.ports import StopReason, Watch


def sectors(first: int, count: int = 1) -> Range:
    return Range(first * SECTOR_BYTES, count * SECTOR_BYTES)


def plan_of(size_bytes: int, *, tuning: Tuning | None = None, rate_bytes_per_s: int | None = None) -> ScrubPlan:
    return ScrubPlan(
        size_bytes=size_bytes,
        threshold=2,
        repair=True,
        rewriting=True,
        within=Range(0, size_bytes),
        now=lambda: "2026-01-01T00:00:00Z",
        rate_bytes_per_s=rate_bytes_per_s,
        tuning=tuning or Tuning(),
    )


class VotingFence:
    """Heals at once. `written` gives what guests are said to have written, one entry for each watch that is asked."""

    def __init__(self, copies: Sequence[MemoryCopy]) -> None:
        self.healed: list[Range] = []
        self.open: set[Watch] = set()
        self.written_next: list[list[Range]] = []
        self.on_heal: Callable[[Range], None] = lambda at: None
        self._copies = copies

    def open_watch(self, *, drain: bool) -> Watch:
        self.open.add(Watch("watch"))
        return Watch("watch")

    def freeze(self, watches: Sequence[Watch]) -> None:
        return

    def written(self, watch: Watch, within: Sequence[Range]) -> list[Range]:
        return intersect(self.written_next.pop(0), within) if self.written_next else []

    def forget(self, watches: Iterable[Watch]) -> None:
        self.open.difference_update(watches)

    def heal(self, at: Range) -> bool:
        self.healed.append(at)
        said = [bytes(copy.data[at.offset : at.end]) for copy in self._copies]
        winner = max(said, key=said.count)
        for copy in self._copies:
            copy.write(at.offset, winner)
        self.on_heal(at)
        return True


class Steered:
    """A supervisor that does what the test says."""

    def __init__(self) -> None:
        self.stop: StopReason | None = None

    def stop_requested(self) -> StopReason | None:
        return self.stop

    def suspend_if_requested(self) -> None:
        return

    def wants_quiet(self) -> bool:
        return self.stop is not None

    def moved(self, position_bytes: int, read_bytes: int, suspects: int) -> None:
        return

    def recovered(self, copy: str, reads: int) -> None:
        return


class FakeClock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds
