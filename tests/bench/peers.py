"""QEMU's own vote: a daemon of its own over a set's images, with glibc's thresholds as they are, or as ours has them.

The images are opened as the set's daemon opens them (O_DIRECT), read-only and without locks, for that one has them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from tests.bench.bed import Bed
from tests.bench.measure import Measured, Sample, cpu_s, proven, run
from tests.live import wait_for

Aio = Literal["native", "threads"]
_JOB = "vote"
_NUMBERS = itertools.count(1)
_VOTE_S = 600.0


class Peer:
    def __init__(self, bed: Bed, *, tuned: bool, aio: Aio = "native") -> None:
        self._bed = bed
        base = bed.runtime.directory.parent / f"peer-{next(_NUMBERS)}"
        self._nbd, self._qmp, self._pidfile = (Path(f"{base}.{kind}") for kind in ("nbd", "qmp", "pid"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        if tuned:
            environment |= process.TUNING
        with Path(f"{base}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [process.find_binary(), *self._arguments(aio)], env=environment, stdin=subprocess.DEVNULL, stderr=log
            )
        try:
            wait_for(lambda: self._pidfile.exists() or self._process.poll() is not None, "a peer")
            proven(self._process.poll() is None, "the peer's daemon did not start")
            self._prove_that_it_serves_the_copies()
        except BaseException:
            self.end()
            raise

    def _arguments(self, aio: Aio) -> list[str]:
        words = []
        for number, image in enumerate(self._bed.images):
            file = {
                "driver": "file",
                "filename": str(image),
                "locking": "off",
                "cache": {"direct": True},
                "aio": aio,
                "read-only": True,
            }
            words += ["--blockdev", json.dumps({"driver": "raw", "node-name": f"n{number}", "file": file} | _READ_ONLY)]
        children = [f"n{number}" for number in range(len(self._bed.images))]
        quorum = {"driver": "quorum", "node-name": "quorum", "vote-threshold": len(children) // 2 + 1}
        words += ["--blockdev", json.dumps(quorum | {"children": children} | _READ_ONLY)]
        words += ["--nbd-server", f"addr.type=unix,addr.path={self._nbd},max-connections=0"]
        words += ["--export", "type=nbd,id=quorum,node-name=quorum,name=quorum,writable=off"]
        words += ["--chardev", f"socket,id=qmp,path={self._qmp},server=on,wait=off", "--monitor", "chardev=qmp"]
        return [*words, "--pidfile", str(self._pidfile)]

    def _prove_that_it_serves_the_copies(self) -> None:
        link = NbdLink(self._nbd, "quorum", who="The peer", timeout_s=30)
        try:
            proven(link.size_bytes == self._bed.size_bytes, "the peer serves another size")
            with self._bed.images[0].open("rb") as image:
                for at in {0, link.size_bytes // 2 & -4096, link.size_bytes - 4096}:
                    image.seek(at)
                    proven(link.read(Range(at, 4096)) == image.read(4096), "the peer serves other data")
        finally:
            link.close()

    async def vote(self) -> Sample:
        """`blockdev-backup` of the quorum node to null-co: every byte is read from each copy and voted upon."""
        self._bed.forget_pages()
        size = self._bed.size_bytes
        async with await Monitor.open(self._qmp) as monitor:
            await monitor.execute("blockdev-add", {"driver": "null-co", "node-name": "null", "size": size})
            wants = {"job-id": _JOB, "device": "quorum", "target": "null", "sync": "full", "auto-dismiss": False}
            before_s, began_s = cpu_s(self._process.pid), time.perf_counter()
            events = monitor.listen("JOB_STATUS_CHANGE")
            await monitor.execute("blockdev-backup", wants)
            async with asyncio.timeout(_VOTE_S):
                async for event in events.read():
                    if event["data"] == {"id": _JOB, "status": "concluded"}:
                        break
            wall_s = time.perf_counter() - began_s
            spent_s = cpu_s(self._process.pid) - before_s
            (job,) = [job for job in await monitor.execute("query-jobs") if job["id"] == _JOB]
            await monitor.execute("job-dismiss", {"id": _JOB})
            await monitor.execute("blockdev-del", {"node-name": "null"})
        proven("error" not in job and job["current-progress"] == job["total-progress"] == size, f"the vote: {job}")
        return Sample(wall_s, spent_s)

    async def copy(self) -> Sample:
        """`nbdcopy` of the quorum's export to null:."""
        self._bed.forget_pages()
        before_s = cpu_s(self._process.pid)
        done = run(["nbdcopy", f"nbd+unix:///quorum?socket={self._nbd}", "null:"])
        spent_s = cpu_s(self._process.pid) - before_s
        # The least that reading and voting upon so much can take: 50 GB/s. A run that read nothing takes none.
        proven(self._bed.size_bytes < 1 << 28 or spent_s > self._bed.size_bytes / 50e9, "nbdcopy read nothing")
        return Sample(done.wall_s, done.cpu_s + spent_s)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def fresh(bed: Bed, what: Callable[[Peer], Awaitable[Sample]], *, tuned: bool = True, aio: Aio = "native") -> Measured:
    """Each time in a daemon that has just been started.

    glibc raises its thresholds by itself with what it frees: of five votes on 512 MiB in a stock daemon the first took
    0.92 s of processor time, the last 0.27 s, as each in a tuned one. What others did before would be measured.
    """

    async def measure() -> Sample:
        peer = Peer(bed, tuned=tuned, aio=aio)
        try:
            return await what(peer)
        finally:
            peer.end()

    return measure


_READ_ONLY = {"read-only": True}
