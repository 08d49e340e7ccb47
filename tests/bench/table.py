"""From rows to what people read: the targets, met or missed, and a table for each group."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import contenders as c
from tests.bench import situations as s
from tests.bench.measure import Row

BEGINS, ENDS = "<!-- make bench BENCH_ARGS='--write docs/performance.md' -->", "<!-- end of the figures -->"
MIB = 1 << 20
Rows = dict[tuple[str, str], Row]


@dataclass(frozen=True)
class Verdict:
    """`figure` None: not measured in this run. `met` None too."""

    target: str
    limit: str
    figure: float | None
    shown: str
    met: bool | None


@dataclass(frozen=True)
class _Target:
    what: str
    limit: float
    figure: Callable[[Rows], float | None]
    unit: str = "x"
    at_least: bool = False


def _ratio(group: str, above: str, below: str) -> Callable[[Rows], float | None]:
    """The median of what the rounds say, each by itself: its two samples were taken one after the other."""

    def figure(rows: Rows) -> float | None:
        one, other = rows.get((group, above)), rows.get((group, below))
        if one is None or other is None or not one.samples or not other.samples:
            return None
        return statistics.median(a / b for a, b in zip(one.walls(), other.walls(), strict=True))

    return figure


def _least(*figures: Callable[[Rows], float | None]) -> Callable[[Rows], float | None]:
    def figure(rows: Rows) -> float | None:
        return min((value for one in figures if (value := one(rows)) is not None), default=None)

    return figure


def _seconds(group: str, name: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows[group, name].wall_s() if (group, name) in rows else None


def _resident(rows: Rows) -> float | None:
    most = max((value for row in rows.values() if (value := row.most("rss_bytes")) is not None), default=None)
    return None if most is None else most / MIB


MEMORY, DISK = "in memory", "on disk"
TARGETS = (
    _Target("QEMU's vote / scrub over shared memory", 1.0, _least(
        _ratio(MEMORY, c.VOTE, c.SHM), _ratio(MEMORY, c.VOTE_THREADS, c.SHM)), at_least=True),
    _Target("nbdcopy of the quorum / scrub over shared memory", 3.0, _ratio(MEMORY, c.COPY, c.SHM), at_least=True),
    _Target("scrub over shared memory / cat of the three files", 1.5, _ratio(MEMORY, c.SHM, c.CAT)),
    _Target("scrub over NBD / nbdcopy of the quorum", 1.0, _ratio(MEMORY, c.NBD, c.COPY)),
    _Target("stock malloc / tuned, nbdcopy", 1.0, _ratio(MEMORY, c.COPY_STOCK, c.COPY), at_least=True),
    _Target("stock malloc / tuned, QEMU's vote", 1.0, _ratio(MEMORY, c.VOTE_STOCK, c.VOTE), at_least=True),
    _Target("peak resident memory of any scrub", 150.0, _resident, unit=" MiB"),
    _Target("sparse set of 1024 times the size / full one, shared memory", 1.5,
        _ratio("sparse", f"{s.SPARSE}: {c.SHM}", f"{s.DENSE}: {c.SHM}")),
    _Target("sparse set of 1024 times the size / full one, NBD", 1.5,
        _ratio("sparse", f"{s.SPARSE}: {c.NBD}", f"{s.DENSE}: {c.NBD}")),
    _Target("`status`", 0.3, _seconds("commands", s.STATUS), unit=" s"),
    _Target("`--help`", 0.2, _seconds("commands", s.HELP), unit=" s"),
    _Target("confirmation of a batch", 0.1, _seconds("confirmation", s.IDLE), unit=" s"),
    _Target("guest's p99 beside a scrub as it comes / without", 1.2, _ratio("guest", s.BY_ITSELF, s.ALONE)),
)  # fmt: skip


def judged(rows: Sequence[Row]) -> list[Verdict]:
    """By medians as they are: no allowance is made for noise, which the tables show."""
    known = {(row.group, row.name): row for row in rows if row.samples}
    found = []
    for target in TARGETS:
        figure = target.figure(known)
        limit = f"{'>=' if target.at_least else '<='} {target.limit:g}{target.unit}"
        if figure is None:
            found.append(Verdict(target.what, limit, None, "-", None))
            continue
        met = figure >= target.limit if target.at_least else figure <= target.limit
        found.append(Verdict(target.what, limit, figure, f"{figure:.3g}{target.unit}", met))
    return found


def markdown(document: dict[str, Any], rows: Sequence[Row]) -> str:
    parts = [_introduction(document), _targets(judged(rows))]
    groups = list(dict.fromkeys(row.group for row in rows))
    parts += [_GROUPS.get(group, _timed)(group, [row for row in rows if row.group == group]) for group in groups]
    return "\n\n".join(parts) + "\n"


def _introduction(document: dict[str, Any]) -> str:
    machine = ", ".join(f"{value}" for value in document["machine"].values())
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    noise = document["noise"]
    return (
        f"{document['date']}: {machine}; {versions}. {document['rounds']} rounds, medians; *spread* lies between the "
        f"fastest round and the slowest. `cat` took {noise['cat_before_s']:.3f} s before everything and "
        f"{noise['cat_after_s']:.3f} s after it; load average {noise['load_before']:.1f} and {noise['load_after']:.1f}."
    )


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---", *("---:" for _ in heads[1:])], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _targets(verdicts: Sequence[Verdict]) -> str:
    words = {True: "met", False: "**missed**", None: "not measured"}
    return _table(["target", "limit", "measured", ""], [[v.target, v.limit, v.shown, words[v.met]] for v in verdicts])


def _shown(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else format(value / scale, form)


def _missing(row: Row, width: int) -> list[str]:
    return [f"{row.name}: {row.skipped}", *["-"] * (width - 1)]


def _read(group: str, rows: Sequence[Row]) -> str:
    """Rates and processor time are per byte of the set, each of which is read from all copies."""
    heads = ["seconds", "GiB/s", "CPU s/GiB", "spread", "resident MiB"]
    size = next((row.size_bytes for row in rows if row.size_bytes), 0) or 0
    lines = []
    for row in rows:
        if not row.samples:
            lines.append(_missing(row, 6))
            continue
        rate = row.size_bytes / row.wall_s() / (1 << 30) if row.size_bytes else None
        lines.append([
            row.name, f"{row.wall_s():.3f}", _shown(rate, ".2f"), _shown(row.cpu_s_per_gib(), ".2f"),
            f"{row.spread():.0%}", _shown(row.most("rss_bytes"), ".0f", MIB),
        ])  # fmt: skip
    return _table([f"{group}, {size / MIB:.0f} MiB of data", *heads], lines)


def _timed(group: str, rows: Sequence[Row]) -> str:
    lines = [[row.name, f"{row.wall_s():.3f}", f"{row.spread():.0%}"] for row in rows if row.samples]
    return _table([group, "seconds", "spread"], lines)


def _confirmed(group: str, rows: Sequence[Row]) -> str:
    lines = [
        [row.name, _shown(row.figure("suspects"), ".0f"), f"{row.wall_s():.3f}", f"{row.spread():.0%}",
         _shown(row.figure("drains_s"), ".1f", 1e-3)]
        for row in rows if row.samples
    ]  # fmt: skip
    return _table([group, "suspects", "seconds", "spread", "of it both drains, ms"], lines)


def _guest(group: str, rows: Sequence[Row]) -> str:
    lines = [
        [row.name, _shown(row.figure("iops"), ".0f"), _shown(row.figure("p50_s"), ".0f", 1e-6),
         _shown(row.figure("p99_s"), ".0f", 1e-6), f"{row.spread():.0%}",
         _shown(row.figure("scrub_bytes_per_s"), ".0f", MIB)]
        for row in rows if row.samples
    ]  # fmt: skip
    heads = [group, "IOPS", "median, us", "p99, us", "spread of p99", "scrub, MiB/s and copy"]
    return _table(heads, lines)


_GROUPS = {
    **dict.fromkeys((MEMORY, DISK, "damage", "sparse", "five copies"), _read),
    "guest": _guest,
    "confirmation": _confirmed,
}


def write(path: Path, text: str) -> None:
    """Between the two marks. ValueError when they are not there."""
    before, begins, rest = path.read_text().partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    if not begins or not ends:
        raise ValueError(f"{path} has no place for the figures: the lines {BEGINS} and {ENDS}")
    path.write_text(f"{before}{BEGINS}\n\n{text}\n{ENDS}{after}")
