"""What a front costs against NBD: `python -m tests.bench.front`. Not a test: it judges nothing.

Both ways are driven by a client in Python (libnbd; tests/vhost_user.py), which takes its share of each request, on both
about the same; images lie in memory, so that it is the daemons that are measured. Of many short rounds the fastest
counts: what else the machine does meanwhile is left out as far as it can be.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbd

from tests.integration.harness import NAME, LiveSet
from tests.live import MIB
from tests.vhost_user import SLOT_BYTES, Disk

SIZE = 64 * MIB
COUNT, ROUNDS, DEPTH, STREAM = 40, 100, 16, 4 * MIB
BLOCK = bytes(4096)


def seconds(work: Callable[[], object]) -> float:
    took = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        work()
        took.append(time.perf_counter() - began_s)
    return min(took)


def in_a_row(step: Callable[[int], object]) -> float:
    """Microseconds for each of COUNT requests of 4 KiB, one after the other."""

    def work() -> None:
        for n in range(COUNT):
            step(n * 7919 % (SIZE // 4096) * 4096)

    return seconds(work) / COUNT * 1e6


def nbd_depth(handle: nbd.NBD) -> float:
    def work() -> None:
        buffers, flying, at = [nbd.Buffer(SLOT_BYTES) for _ in range(DEPTH)], [], 0
        free = list(range(DEPTH))
        while at < STREAM or flying:
            while free and at < STREAM:
                slot = free.pop()
                flying.append((handle.aio_pread(buffers[slot], at), slot))
                at += SLOT_BYTES
            handle.poll(-1)
            done = [(cookie, slot) for cookie, slot in flying if handle.aio_command_completed(cookie)]
            flying = [one for one in flying if one not in done]
            free += [slot for _, slot in done]

    return STREAM / seconds(work) / MIB


def front_depth(disk: Disk) -> float:
    def work() -> None:
        free, at, flying = list(range(DEPTH)), 0, 0
        while at < STREAM or flying:
            while free and at < STREAM:
                disk.submit_read(free.pop(), at)
                at, flying = at + SLOT_BYTES, flying + 1
            done = disk.wait()
            free += list(done)
            flying -= len(done)

    return STREAM / seconds(work) / MIB


def row(what: str, read: float, cached: float | None, durable: float, throughput: float) -> str:
    shown = "-" if cached is None else f"{cached:.0f}"
    return f"| {what} | {read:.0f} | {shown} | {durable:.0f} | {throughput:.0f} |"


async def main() -> None:
    directory, images = Path(tempfile.mkdtemp(prefix="q", dir="/tmp")), Path(tempfile.mkdtemp(dir="/dev/shm"))
    live = LiveSet(directory, images, size_bytes=SIZE)
    try:
        await live.create()
        await live.start()
        live.fill()
        print("| | read 4 KiB, us | write 4 KiB, us | durable write 4 KiB, us | read 64 KiB, 16 at once, MiB/s |")
        print("|---|---|---|---|---|")
        handle = nbd.NBD()
        handle.connect_uri(f"nbd+unix:///volume?socket={live.runtime.nbd_sock}")
        read = in_a_row(lambda at: handle.pread(4096, at))
        cached = in_a_row(lambda at: handle.pwrite(BLOCK, at))
        durable = in_a_row(lambda at: handle.pwrite(BLOCK, at, nbd.CMD_FLAG_FUA))
        print(row("NBD", read, cached, durable, nbd_depth(handle)))
        handle.shutdown()
        for config_wce_off in (False, True):
            await live.sets.front(NAME, config_wce_off=config_wce_off)
            disk = Disk(live.front.server)
            read = in_a_row(lambda at, disk=disk: disk.read(at, 4096))
            if config_wce_off:
                cached = in_a_row(lambda at, disk=disk: disk.write(at, BLOCK))
                durable = in_a_row(lambda at, disk=disk: disk.write(at, BLOCK) and disk.flush())
                print(row("front, `--config-wce-off`", read, cached, durable, front_depth(disk)))
            else:
                durable = in_a_row(lambda at, disk=disk: disk.write(at, BLOCK))
                print(row("front", read, None, durable, front_depth(disk)))
            disk.close()
            await live.sets.stop_front(NAME, force=True)
    finally:
        live.end()
        shutil.rmtree(images)
        shutil.rmtree(directory)


if __name__ == "__main__":
    asyncio.run(main())
