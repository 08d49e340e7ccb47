"""How a caller follows and steers a scrub: what it is told, and how it asks the run to stop. Thread-safe."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from typing import Protocol

from qorumctl.scrub.ports import StopReason

__all__ = ["Observer", "ScrubControl", "ScrubPosition", "ScrubStart", "Silent", "StopReason"]


@dataclass(frozen=True, slots=True)
class ScrubStart:
    """Told once per run. `size_bytes`: what the run looks at, a range or the disk. `resumed_at_bytes`: where in it an
    unfinished run goes on, None for a fresh one. `recovery`: the set was not stopped cleanly, and is scrubbed before
    its volume is exported. `work`: what is done, where it is no scrub."""

    set_name: str
    run: int
    mode: str
    size_bytes: int
    resumed_at_bytes: int | None
    recovery: bool
    work: str | None = None


@dataclass(frozen=True, slots=True)
class ScrubPosition:
    """Told several times a second. `position_bytes`: from the beginning of what the run looks at. `read_bytes`: of each
    copy, by this process. `findings`: on record in this run; None: nothing is looked for.
    `held_back`: guests work, and it gives way."""

    position_bytes: int
    size_bytes: int
    read_bytes: int
    rate_bytes_per_s: float | None
    eta_s: float | None
    findings: int | None
    held_back: bool = False


class Observer(Protocol):
    """Called from the engine's thread: hand over and return at once."""

    def started(self, start: ScrubStart) -> None: ...

    def moved(self, position: ScrubPosition) -> None: ...


class Silent:
    """Watches nothing."""

    def started(self, start: ScrubStart) -> None: ...

    def moved(self, position: ScrubPosition) -> None: ...


class ScrubControl:
    """Asks a running scrub to stop or to suspend; usable from signal handlers and other threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: StopReason | None = None
        self._suspend = False

    def stop(self, reason: StopReason) -> None:
        """The first reason stays."""
        with self._lock:
            self._reason = self._reason or reason

    def suspend(self) -> None:
        """Ctrl-Z: the process stops itself (SIGSTOP) once nothing of the engine's is outstanding."""
        self._suspend = True

    @property
    def reason(self) -> StopReason | None:
        return self._reason

    @property
    def suspend_requested(self) -> bool:
        return self._suspend

    def stop_here(self) -> None:
        """By the engine's thread, with nothing of its own outstanding: stops the process, and forgets the request.

        The signal goes to this very thread, which takes it before it goes on. Sent to the process, any thread may take
        it, and this one goes on for a moment (seen 2 times in 400 on a busy machine): long enough to ask for a
        megabyte that nobody then reads, which holds up every drain (seen).
        """
        self._suspend = False
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
