"""Where a scrub stands, how fast it goes, when it will be done. Fed with times, never asks for one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_WINDOW_S = 20.0
"""The rate is that of the last 20 s: long enough to be steady, short enough to follow a guest that begins to work."""


@dataclass(slots=True)
class Progress:
    """Positions on a disk of `size_bytes`. `position_bytes`: all behind the cursor, skipped holes included."""

    size_bytes: int
    position_bytes: int = 0
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def advance(self, position_bytes: int, now_s: float) -> None:
        self.position_bytes = position_bytes
        self._marks.append((now_s, position_bytes))
        while len(self._marks) > 2 and now_s - self._marks[0][0] > _WINDOW_S:
            self._marks.popleft()

    @property
    def fraction(self) -> float:
        return self.position_bytes / self.size_bytes if self.size_bytes else 1.0

    @property
    def rate_bytes_per_s(self) -> float | None:
        """None until there are two marks apart in time."""
        if len(self._marks) < 2:
            return None
        (start_s, start), (end_s, end) = self._marks[0], self._marks[-1]
        return (end - start) / (end_s - start_s) if end_s > start_s else None

    @property
    def eta_s(self) -> float | None:
        rate = self.rate_bytes_per_s
        return (self.size_bytes - self.position_bytes) / rate if rate else None
