"""One scrub in a process of its own: `python -m tests.bench.scrubber '{"config": ..., "transport": "shm"}'`.

Prints one JSON document. What it takes to begin such a process is left out: a row of its own measures that. Peak memory
is that of the whole process, Python and its modules included.
"""

from __future__ import annotations

import asyncio
import json
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qorumctl.controller.bridge import LiveFence
from qorumctl.controller.observer import ScrubControl, ScrubPosition, Silent, StopReason
from qorumctl.controller.options import ScrubOptions
from qorumctl.controller.sets import QuorumSets
from qorumctl.paths import Directories
from qorumctl.scrub import confirm
from qorumctl.units import parse_rate
from tests.bench.bed import NAME, Bed
from tests.bench.measure import Sample, Wrong, cpu_s, peak_rss_bytes, proven


@dataclass(frozen=True)
class Scrubbed:
    """What the process says. `parts`: (offset, length, action) of each finding; `confirmations`: (suspects, seconds,
    of them in drains) of each. `runs`: how many scrubs it was; outcome and findings are those of the last one."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    outcome: str
    scanned_bytes: int
    read_bytes: dict[str, int]
    parts: list[tuple[int, int, str]]
    confirmations: list[tuple[int, float, float]]
    runs: int = 1

    def sample(self, daemon_s: float, **figures: float) -> Sample:
        return Sample(self.wall_s, self.cpu_s + daemon_s, {"rss_bytes": self.peak_rss_bytes, **figures})


def command(bed: Bed, **wants: Any) -> list[str]:
    d = bed.directories
    wants |= {"config": str(d.config), "state": str(d.state), "runtime": str(d.runtime)}
    return [sys.executable, "-m", "tests.bench.scrubber", json.dumps(wants)]


def scrub(bed: Bed, **wants: Any) -> tuple[Scrubbed, float]:
    """And the processor time of the set's daemon meanwhile. Wrong when it fails."""
    bed.forget_pages()
    before_s = cpu_s(bed.pid)
    with begun(bed, **wants) as process:
        said, complaint = process.communicate(timeout=900)
    proven(process.returncode == 0, f"the scrub failed: {complaint[-500:]}")
    return told(said), cpu_s(bed.pid) - before_s


@contextmanager
def begun(bed: Bed, **wants: Any) -> Iterator[subprocess.Popen[str]]:
    """Beside others: with `again` until its standard input ends. It says `begun` when it has begun to read."""
    process = subprocess.Popen(
        command(bed, **wants), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def told(said: str) -> Scrubbed:
    return Scrubbed(**json.loads(said.splitlines()[-1]))


# --- in the process ---------------------------------------------------------------------------------------------------


def pace(rate: str | None) -> dict[str, Any]:
    """`max`: as fast as it goes; a rate: that; None: what a scrub does by itself."""
    if rate is None:
        return {}
    if rate == "max":
        return {"full_speed": True}
    return {"rate_bytes_per_s": parse_rate(rate)}


class _Confirmations:
    """Notes how long each confirmation takes, from before its first drain to after its last, and the two that guests
    wait for: the one as a watch is opened, and the one as it is frozen."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, float]] = []
        self._drained_s = 0.0
        for name in ("open_watch", "freeze"):
            self._note_drains(name)
        original = confirm.Confirmer.confirm

        def timed(itself: Any, suspects: Any, **options: Any) -> Any:
            self._drained_s, began_s = 0.0, time.perf_counter()
            found = original(itself, suspects, **options)
            self.seen.append((len(suspects), time.perf_counter() - began_s, self._drained_s))
            return found

        confirm.Confirmer.confirm = timed  # type: ignore[method-assign]

    def _note_drains(self, name: str) -> None:
        original = getattr(LiveFence, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began_s = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self._drained_s += time.perf_counter() - began_s

        setattr(LiveFence, name, timed)


class _SaysThatItReads(Silent):
    """One line, once: from then on it is beside whoever waited for that."""

    said = False

    def moved(self, position: ScrubPosition) -> None:
        if position.read_bytes and not _SaysThatItReads.said:
            _SaysThatItReads.said = True
            print("begun", flush=True)


async def _scrub(wants: Mapping[str, Any]) -> Scrubbed:
    sets = QuorumSets(Directories(*(Path(wants[key]) for key in ("config", "state", "runtime"))))
    confirmations = _Confirmations()
    options = ScrubOptions(
        mode=wants.get("mode"), transport=wants.get("transport", "auto"), fresh=True, **pace(wants.get("rate"))
    )
    control = ScrubControl()
    if wants.get("again"):
        threading.Thread(target=_stop_at_the_end_of_input, args=(control,), daemon=True).start()
    before_s, began_s, runs, read = _spent_s(), time.perf_counter(), 0, 0
    while True:
        report = await sets.scrub(NAME, options, control=control, observer=_SaysThatItReads())
        runs, read = runs + 1, read + sum(report.read_bytes.values())
        if not wants.get("again") or control.reason is not None or report.outcome != "clean":
            break
    wall_s = time.perf_counter() - began_s
    for thread in threading.enumerate():
        # Only when the reader's daemon has been reaped its time is on our account.
        if thread.name.startswith("reap-qsd-"):
            thread.join(10)
    return Scrubbed(
        wall_s,
        _spent_s() - before_s,
        peak_rss_bytes(),
        report.outcome,
        report.scanned_bytes,
        {"all": read} if wants.get("again") else report.read_bytes,
        [(finding.offset, finding.length, str(finding.action)) for finding in report.findings],
        confirmations.seen,
        runs,
    )


def _stop_at_the_end_of_input(control: ScrubControl) -> None:
    select.select([sys.stdin], [], [])
    control.stop(StopReason.CANCELLED)


def _spent_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    try:
        print(json.dumps(asyncio.run(_scrub(json.loads(sys.argv[1]))).__dict__))
    except Wrong as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
