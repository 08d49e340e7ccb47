"""`python -m tests.soak --minutes 10`: runs every attack for its share of the time; prints the table of docs/safety.md.

Exit code 1 when a promise was broken. Each soak begins at seeds of its own; `--first` repeats one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attack import FIRST, TALLY, UNIT_S

TABLE_BEGINS, TABLE_ENDS = "<!-- attacks: make soak SOAK_ARGS=--write -->", "<!-- end of attacks -->"
ROOT = Path(__file__).resolve().parents[1]
_SLACK_S = 600
"""A round that was begun is ended: it may run past its time, and a hang must still end."""


@dataclass(frozen=True)
class Row:
    """`test`: `FILE::FUNCTION`, without parameters. `weight`: the sum over its parameters."""

    promise: str
    attack: str
    test: str
    weight: float

    @property
    def command(self) -> str:
        return f"make soak SOAK_ARGS='{self.test}'"


class _Collector:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        found: dict[str, Row] = {}
        for item in items:
            if (mark := item.get_closest_marker("attack")) is not None:
                test = item.nodeid.partition("[")[0]
                promise, attack = mark.args
                weight = float(mark.kwargs.get("weight", 1)) + (found[test].weight if test in found else 0)
                found[test] = Row(promise, attack, test, weight)
        self.rows = list(found.values())


def rows(chosen: Sequence[str] = ()) -> list[Row]:
    """The attacks that are marked in the tests, in their order there."""
    collector = _Collector()
    arguments = ["--collect-only", "-qq", "-m", "attack", "--rootdir", str(ROOT), *chosen]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = pytest.main(arguments, plugins=[collector])
    if status not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        print(said.getvalue(), file=sys.stderr)
    return collector.rows


def table(rows: Sequence[Row], tally: Sequence[Mapping[str, object]]) -> str:
    """Markdown; a row without figures was not run."""
    lines = ["| promise | attack | runs | result | command |", "|---|---|---|---|---|"]
    for row in rows:
        runs = [line for line in tally if str(line["test"]).partition("[")[0] == row.test]
        counts: Counter[str] = Counter()
        for line in runs:
            counts.update({key: n for key, n in line.items() if isinstance(n, int) and key not in {"passed", "first"}})
        rounds = counts.pop("rounds", 0)
        figures = ", ".join(f"{n:,} {key.replace('_', ' ')}" for key, n in counts.items())
        result = "not run" if not runs else "held" if all(line["passed"] for line in runs) else "BROKEN"
        done = f"{rounds:,}" + (f" ({figures})" if figures else "")
        lines.append(f"| {row.promise} | {row.attack} | {done} | {result} | `{row.command}` |")
    return "\n".join(lines)


def _write(result: str) -> None:
    path = ROOT / "docs" / "safety.md"
    before, begins, rest = path.read_text().partition(TABLE_BEGINS)
    _, ends, after = rest.partition(TABLE_ENDS)
    path.write_text(f"{before}{begins}\n{result}\n{ends}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("tests", nargs="*", help="only these: FILE::FUNCTION (default: every attack)")
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="how many at once")
    parser.add_argument("--write", action="store_true", help="also put the table into docs/safety.md")
    parser.add_argument("--first", type=int, default=int(time.time()) % 1_000_000 * 100, help="the first seed")
    arguments = parser.parse_args()
    chosen = rows(arguments.tests)
    if not chosen:
        print("No attack has this name.", file=sys.stderr)
        return 2
    jobs = min(arguments.jobs, len(chosen))
    unit_s = arguments.minutes * 60 * jobs / sum(row.weight for row in chosen)
    print(
        f"{len(chosen)} attacks, {arguments.minutes:g} minutes, {jobs} at once, seeds from {arguments.first}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="soak") as directory:
        tally_path = Path(directory) / "tally"
        tally_path.touch()
        environment = {**os.environ, UNIT_S: str(unit_s), FIRST: str(arguments.first), TALLY: str(tally_path)}
        limit_s = max(row.weight for row in chosen) * unit_s + _SLACK_S
        command = [sys.executable, "-m", "pytest", "-q", "-m", "attack", f"--timeout={limit_s:.0f}"]
        command += [*(["-n", str(jobs), "--dist=worksteal"] if jobs > 1 else []), *arguments.tests]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        tally = [json.loads(line) for line in tally_path.read_text().splitlines()]
    result = table(chosen, tally)
    print("\n" + result)
    if arguments.write:
        _write(result)
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
