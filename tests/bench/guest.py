"""A guest's load: `python -m tests.bench.guest '{"socket": ..., "seconds": 3, "first_byte": 0}'`.

4 KiB at random places, 7 reads to 3 writes, 4 at once.

Prints one JSON document. Python takes its share of each request, in all rounds the same: what counts is how the figures
differ, not how high they are.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd

from tests.bench.measure import Sample, Wrong, proven

BLOCK_BYTES, DEPTH, READS = 4096, 4, 0.7
_FEWEST = 500
WARM_UP_S = 2.5
"""Left out: a scrub hears of a guest within a second, and by then has a segment under way."""


def command(socket: Path, *, seconds: float | None = None, warm_up_s: float = 0.0, first_byte: int = 0) -> list[str]:
    """Without `seconds` until its standard input ends."""
    wants = {"socket": str(socket), "seconds": seconds, "warm_up_s": warm_up_s, "first_byte": first_byte}
    return [sys.executable, "-m", "tests.bench.guest", json.dumps(wants)]


@contextmanager
def beside(socket: Path, *, first_byte: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A guest that is at work for as long as the block lasts. Wrong when it fails."""
    words = command(socket, first_byte=first_byte)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            proven(process.stdout and process.stdout.readline() == "begun\n", "the guest did not begin")
            yield process
            said, _ = process.communicate(timeout=60)
            proven(process.returncode == 0 and sample(said), "the guest failed")
        finally:
            process.kill()


def sample(said: str) -> Sample:
    """A guest's run, as its output tells."""
    figures = json.loads(said.splitlines()[-1])
    return Sample(figures["p99_s"], figures=figures)


# --- in the process ---------------------------------------------------------------------------------------------------


def load(socket: str, first_byte: int, warm_up_s: float, goes_on: Callable[[], bool]) -> dict[str, float]:
    """Latencies in seconds, from `warm_up_s` on; there are never too few to tell anything.
    Wrong when a request fails."""
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///volume?socket={socket}")
    first, end = first_byte // BLOCK_BYTES, handle.get_size() // BLOCK_BYTES
    dice, data = random.Random(5), nbd.Buffer.from_bytearray(bytearray(os.urandom(BLOCK_BYTES)))
    free = [nbd.Buffer(BLOCK_BYTES) for _ in range(DEPTH)]
    flying: list[tuple[int, float, nbd.Buffer]] = []
    latencies: list[float] = []
    print("begun", flush=True)
    counts_from_s = time.perf_counter() + warm_up_s
    try:
        while (more := goes_on() or len(latencies) < _FEWEST) or flying:
            while free and more:
                at, buffer, sent_s = dice.randrange(first, end) * BLOCK_BYTES, free.pop(), time.perf_counter()
                reads = dice.random() < READS
                cookie = handle.aio_pread(buffer, at) if reads else handle.aio_pwrite(data, at)
                flying.append((cookie, sent_s, buffer))
            handle.poll(-1)
            now_s, still = time.perf_counter(), []
            for cookie, sent_s, buffer in flying:
                if handle.aio_command_completed(cookie):
                    if sent_s >= counts_from_s:
                        latencies.append(now_s - sent_s)
                    free.append(buffer)
                else:
                    still.append((cookie, sent_s, buffer))
            flying = still
        handle.shutdown()
    except nbd.Error as error:
        raise Wrong(f"a guest's request failed: {error.string}") from None
    return _figures(latencies, time.perf_counter() - counts_from_s)


def _figures(latencies: list[float], took_s: float) -> dict[str, float]:
    ordered = sorted(latencies)
    p99 = ordered[-1 - len(ordered) // 100]
    return {"iops": len(latencies) / took_s, "p50_s": ordered[len(ordered) // 2], "p99_s": p99}


def main() -> None:
    wants = json.loads(sys.argv[1])
    ended = threading.Event()
    if wants["seconds"] is None:
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    ends_s = time.perf_counter() + wants["warm_up_s"] + (wants["seconds"] or float("inf"))
    try:
        print(
            json.dumps(
                load(
                    wants["socket"],
                    wants["first_byte"],
                    wants["warm_up_s"],
                    lambda: time.perf_counter() < ends_s and not ended.is_set(),
                )
            )
        )
    except Wrong as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
