"""Shows how far a scrub is: a bar on a terminal, a few plain lines anywhere else. Standard error, never output.

An observer is called from the engine's thread and must return at once: it only notes what it is told. Threads of our
own do the printing, so that a terminal that is held (Ctrl-S) or a log that nobody reads holds up no scrub.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from qorumctl.cli import render_progress
from qorumctl.cli.outlet import Outlet

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qorumctl.controller.observer import ScrubPosition, ScrubStart

_BARS_PER_S = 8
_LINE_AFTER_S = 10.0
_LINE_AFTER_FRACTION = 0.1
_LINE_AT_LATEST_S = 600.0
"""A scrub of a day still says every ten minutes that it lives."""
_JOIN_S = 2.0


class Display(Protocol):
    """An Observer that can be told to leave the screen alone for a while (Ctrl-Z)."""

    def started(self, start: ScrubStart) -> None: ...

    def moved(self, position: ScrubPosition) -> None: ...

    def hide(self) -> None: ...

    def unhide(self) -> None: ...


@contextmanager
def display(outlet: Outlet) -> Iterator[Display]:
    """Shows one run after the other, until the context ends."""
    shown: _Bar | _Lines = _Bar(outlet) if outlet.err.is_terminal else _Lines(outlet)
    try:
        yield shown
    finally:
        shown.close()


class _Bar:
    """Rich asks for the bar several times a second, in its own thread."""

    def __init__(self, outlet: Outlet) -> None:
        from rich.live import Live

        self._start: ScrubStart | None = None
        self._position: ScrubPosition | None = None
        # Rich would send standard output through its console while the bar stands: results go there untouched.
        self._live = Live(
            get_renderable=self._renderable,
            console=outlet.err,
            refresh_per_second=_BARS_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def started(self, start: ScrubStart) -> None:
        self._start, self._position = start, None
        # Nothing is drawn for a command that scrubs nothing. Idempotent.
        self._live.start()

    def moved(self, position: ScrubPosition) -> None:
        self._position = position

    def hide(self) -> None:
        self._live.stop()

    def unhide(self) -> None:
        if self._start is not None:
            self._live.start(refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _renderable(self) -> RenderableType:
        if self._start is None:
            return ""
        return render_progress.progress_bar(self._start, self._position)


class _Lines:
    """One line at the start, one at the end, and between them at most one in 10 s, every 10 %. In the journal only what
    is between: the others are news that it has (controller/telling.py)."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._start: ScrubStart | None = None
        self._position: ScrubPosition | None = None
        self._began_s = self._printed_s = 0.0
        self._printed_fraction = 0.0
        self._pending: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._printer = threading.Thread(target=self._print, name="progress", daemon=True)
        self._printer.start()

    def started(self, start: ScrubStart) -> None:
        self._end()
        self._start, self._position = start, None
        self._began_s = self._printed_s = time.monotonic()
        self._printed_fraction = (start.resumed_at_bytes or 0) / max(1, start.size_bytes)
        if self._outlet.journal is None:
            self._pending.put(render_progress.opening_line(start))

    def moved(self, position: ScrubPosition) -> None:
        self._position = position
        now_s = time.monotonic()
        fraction = position.position_bytes / max(1, position.size_bytes)
        if self._start is not None and line_is_due(now_s - self._printed_s, fraction - self._printed_fraction):
            self._printed_s, self._printed_fraction = now_s, fraction
            self._pending.put(render_progress.progress_line(self._start, position))

    def hide(self) -> None:
        pass

    def unhide(self) -> None:
        pass

    def close(self) -> None:
        self._end()
        self._pending.put(None)
        self._printer.join(_JOIN_S)

    def _end(self) -> None:
        if self._start is not None:
            seconds = time.monotonic() - self._began_s
            if self._outlet.journal is None:
                self._pending.put(render_progress.closing_line(self._start, self._position, seconds))
            self._start = None

    def _print(self) -> None:
        while (line := self._pending.get()) is not None:
            self._outlet.note(line)


def line_is_due(since_s: float, advanced: float) -> bool:
    """`since_s`: since the last line; `advanced`: as a fraction of the disk."""
    return since_s >= _LINE_AFTER_S and (advanced >= _LINE_AFTER_FRACTION or since_s >= _LINE_AT_LATEST_S)
