"""`python -m tests.bench`: runs the benchmark, writes build/bench.json, prints the tables. Exit code 1: a contender did
not do what it was measured for."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qorumctl import __version__
from qorumctl.copies.nbd_link import libnbd_version
from qorumctl.daemon.process import find_binary
from qorumctl.errors import QorumError, UsageError
from qorumctl.units import parse_size
from tests.bench import situations, table
from tests.bench.bed import MEMORY, Bed, bed
from tests.bench.contenders import cat, side_by_side
from tests.bench.measure import GIB, Row, Wrong, tell

ROOT = Path(__file__).resolve().parents[2]
_MIB = 1 << 20
Part = Callable[[argparse.Namespace, Bed], Awaitable[list[Row]]]

# In this order: what comes last leaves a history behind. Sizes follow --size; the rounds of what takes long are fewer.
# The bed is a set of a quarter of that size, which all share that need no other.
PARTS: dict[str, Part] = {
    "scrub": lambda a, _: side_by_side(table.MEMORY, MEMORY, a.size, a.rounds, stock=True),
    "disk": lambda a, _: side_by_side(table.DISK, a.disk, a.size // 2, min(a.rounds, 3), stock=False),
    "sparse": lambda a, _: situations.sparse(a.size // 2, min(a.rounds, 3)),
    "five": lambda a, _: situations.five(a.size // 2, min(a.rounds, 3)),
    "commands": lambda a, shared: situations.commands(shared, 2 * a.rounds),
    "guest": lambda a, shared: situations.guests(shared, a.rounds, a.seconds),
    "rejoin": lambda a, shared: situations.rejoin(shared, min(a.rounds, 3)),
    "confirmation": lambda a, shared: situations.confirmation(shared, a.rounds),
    "damage": lambda a, _: _damage(a.size // 8, min(a.rounds, 2)),
}


async def _damage(size_bytes: int, rounds: int) -> list[Row]:
    async with bed(MEMORY, size_bytes) as made:
        return await situations.damage(made, rounds)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures scrubs beside their peers.")
    parser.add_argument("--size", type=_size, default=2 * GIB, help="of the set in memory (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="each run of a guest lasts so long")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas: %(default)s")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a directory that lies on a disk")
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench.json", help="where all samples go")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into it, between its two marks")
    found = parser.parse_args(words)
    found.only = found.only.split(",")
    if unknown := set(found.only) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if found.size % (16 * _MIB) or found.size < 64 * _MIB or found.rounds < 1:
        parser.error("--size is a multiple of 16 MiB and at least 64 MiB, --rounds at least 1")
    for where, needed in ((MEMORY, 4 * found.size), (found.disk, 2 * found.size)):
        if shutil.disk_usage(where).free < needed:
            parser.error(f"{where} has less than the {needed >> 20} MiB that this takes: choose a smaller --size")
    if "disk" in found.only and not _takes_o_direct(found.disk):
        parser.error(f"{found.disk} refuses O_DIRECT: name another directory with --disk, or leave the part out")
    return found


def _takes_o_direct(directory: Path) -> bool:
    """Asked before anything is measured: it would come out in the middle."""
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        try:
            os.close(os.open(file.name, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            return False
    return True


async def measured(wanted: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and what they say of the machine."""
    began_s, load_before = time.monotonic(), os.getloadavg()[0]
    rows: list[Row] = []
    async with bed(MEMORY, wanted.size // 4) as shared:
        before_s = await _calibrated(shared)
        for name in (name for name in PARTS if name in wanted.only):
            tell(f"--- {name}, {time.monotonic() - began_s:.0f} s after the beginning")
            rows += await PARTS[name](wanted, shared)
        after_s = await _calibrated(shared)
    noise = {"cat_before_s": before_s, "cat_after_s": after_s}
    noise |= {"load_before": load_before, "load_after": os.getloadavg()[0]}
    tell(f"--- done after {time.monotonic() - began_s:.0f} s")
    return rows, {
        "schema": "qorum.bench/1",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "size": wanted.size,
        "rounds": wanted.rounds,
        "machine": _machine(),
        "versions": _versions(),
        "noise": noise,
        "targets": [asdict(verdict) for verdict in table.judged(rows)],
        "rows": [asdict(row) for row in rows],
    }


async def _calibrated(made: Bed) -> float:
    """The same work at the beginning and at the end: whether the machine was the same machine."""
    return statistics.median([(await cat(made)()).wall_s for _ in range(5)])


def _machine() -> dict[str, str]:
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {
        "processor": model,
        "processors": f"{len(os.sched_getaffinity(0))} processors",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"Linux {platform.release()}",
    }


def _versions() -> dict[str, str]:
    said = subprocess.run([find_binary(), "--version"], check=True, capture_output=True, text=True).stdout
    return {
        "qorumctl": __version__,
        "QEMU": said.split("version ")[1].split()[0],
        "libnbd": libnbd_version(),
        "Python": platform.python_version(),
    }


def main(words: Sequence[str] | None = None) -> int:
    wanted = arguments(words)
    try:
        rows, document = asyncio.run(measured(wanted))
    except (Wrong, QorumError, TimeoutError) as error:
        tell(f"no figures: {error}")
        return 1
    wanted.json.parent.mkdir(exist_ok=True)
    wanted.json.write_text(json.dumps(document, indent=1) + "\n")
    text = table.markdown(document, rows)
    print(text)
    if wanted.write is not None:
        table.write(wanted.write, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
