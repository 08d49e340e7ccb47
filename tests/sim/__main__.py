"""`python -m tests.sim --seed 17` replays one run; `--seeds 10000` makes many. Exit code 1 on a violation."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from tests.sim.run import Simulation
from tests.sim.scenario import MODES, mode_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one and print what happened")
    parser.add_argument("--mode", choices=MODES, help="default: the seed's own")
    parser.add_argument("--seeds", type=int, default=1000, help="how many to run (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: 0)")
    arguments = parser.parse_args()
    seeds = (
        [arguments.seed] if arguments.seed is not None else range(arguments.first, arguments.first + arguments.seeds)
    )
    failed = attempts = findings = 0
    tally: Counter[str] = Counter()
    started_s = time.monotonic()
    for seed in seeds:
        mode = arguments.mode or mode_of(seed)
        simulation = Simulation(seed, mode)
        try:
            simulation.run()
        except Exception as error:  # a failure of any kind is a finding of the simulator
            failed += 1
            print(f"{type(error).__name__}: {error}\n    replay: {replay_command(seed, mode)}", flush=True)
            if arguments.seed is not None:
                traceback.print_exc()
        attempts, findings = attempts + simulation.attempts, findings + simulation.findings
        tally.update(simulation.tally)
        if arguments.seed is not None:
            print("\n".join(simulation.log))
    print("happened: " + ", ".join(f"{n:,} {what}" for what, n in sorted(tally.items())))
    print(
        f"{len(seeds):,} runs in {time.monotonic() - started_s:.1f} s: {attempts:,} engines, {findings:,} findings,"
        f" {failed} failed"
    )
    return 1 if failed else 0


def replay_command(seed: int, mode: str) -> str:
    return f".venv/bin/python -m tests.sim --seed {seed} --mode {mode}"


if __name__ == "__main__":
    sys.exit(main())
