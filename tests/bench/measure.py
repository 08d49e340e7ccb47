"""Processes, what they take, and what is kept of it."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GIB = 1 << 30
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Wrong(Exception):
    """A contender has not done what it is measured for: its figure would mean nothing."""


def proven(holds: object, what: str) -> None:
    """Not an assert: it has to hold under `python -O` too."""
    if not holds:
        raise Wrong(what)


@dataclass(frozen=True)
class Sample:
    """One measurement. `cpu_s`: user and system time of everybody who took part. `figures`: name -> what else."""

    wall_s: float
    cpu_s: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Row:
    """The samples of one contender. `size_bytes`: of the set, where a rate means something."""

    group: str
    name: str
    size_bytes: int | None = None
    samples: list[Sample] = field(default_factory=list)
    skipped: str | None = None

    def walls(self) -> list[float]:
        return [sample.wall_s for sample in self.samples]

    def wall_s(self) -> float:
        return statistics.median(self.walls())

    def spread(self) -> float:
        """Between the fastest and the slowest round, as a part of the median."""
        return (max(self.walls()) - min(self.walls())) / self.wall_s()

    def cpu_s_per_gib(self) -> float | None:
        spent = [sample.cpu_s for sample in self.samples if sample.cpu_s is not None]
        return statistics.median(spent) / (self.size_bytes / GIB) if spent and self.size_bytes else None

    def figure(self, name: str) -> float | None:
        """The median of what else was measured."""
        found = [sample.figures[name] for sample in self.samples if name in sample.figures]
        return statistics.median(found) if found else None

    def most(self, name: str) -> float | None:
        return max((sample.figures[name] for sample in self.samples if name in sample.figures), default=None)


Measured = Callable[[], Awaitable[Sample]]


async def interleaved(rounds: int, contenders: Sequence[tuple[Row, Measured]]) -> list[Row]:
    """ABCABC...: what else the machine does meanwhile meets all of them alike."""
    for number in range(rounds):
        for row, measure in contenders:
            sample = await measure()
            row.samples.append(sample)
            tell(f"{row.group}: {row.name}, round {number + 1} of {rounds}: {sample.wall_s:.3f} s")
    return [row for row, _ in contenders]


def tell(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Finished:
    """`read_bytes`: what it took in by read(2) and its like; io_submit and recv do not count."""

    wall_s: float
    cpu_s: float
    output: str
    read_bytes: int


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, deadline_s: float = 600) -> Finished:
    """Runs a program to its end; Wrong unless it succeeds. One at a time: all children's processor time counts."""
    before_s = _children_s()
    with tempfile.TemporaryFile() as output:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            ["timeout", "--foreground", f"{deadline_s:g}", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if env is None else dict(env),
        )
        # Its account in /proc lasts until it is reaped, and then holds its children's too.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall_s = time.perf_counter() - began_s
        read_bytes = _read_bytes(process.pid)
        code = process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace")
    proven(code == 0, f"{' '.join(map(str, command))} ended with {code}: {said[-500:]}")
    return Finished(wall_s, _children_s() - before_s, said, read_bytes)


def _read_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    return 0


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_s(pid: int) -> float:
    """Of a process that runs, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def peak_rss_bytes(pid: int | str = "self") -> int:
    """VmHWM. (ru_maxrss of a child begins at what its parent had.)"""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise Wrong(f"/proc/{pid}/status has no VmHWM")
