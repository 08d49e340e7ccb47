"""Everybody who reads all of three copies, in one round after the other. Each is proven to have done so."""

from __future__ import annotations

from pathlib import Path

from qorumctl.copies import blkio
from tests.bench.bed import Bed, bed
from tests.bench.measure import Measured, Row, Sample, interleaved, proven, run
from tests.bench.peers import Peer, fresh
from tests.bench.scrubber import scrub

SHM, NBD = "scrub, shared memory", "scrub, NBD"
COPY, COPY_STOCK = "nbdcopy of the quorum", "nbdcopy of the quorum, stock malloc"
VOTE, VOTE_STOCK = "QEMU's vote", "QEMU's vote, stock malloc"
VOTE_THREADS = "QEMU's vote, aio=threads"
COMPARE, CAT, DIRECT = "qemu-img compare a b, a c", "cat a b c", "dd iflag=direct of a, b, c"
TRANSPORTS = {SHM: "shm", NBD: "nbd"}


def clean_scrub(made: Bed, transport: str, *, expected_bytes: int | None = None) -> Measured:
    """A scrub that reads every byte and finds nothing."""
    expected = made.size_bytes if expected_bytes is None else expected_bytes

    async def measure() -> Sample:
        done, daemon_s = scrub(made, transport=transport, rate="max")
        proven(done.outcome == "clean" and not done.parts, f"a scrub of equal copies: {done.outcome}, {done.parts[:3]}")
        proven(len(done.read_bytes) == made.count, f"it read {done.read_bytes}")
        proven(all(read == expected for read in done.read_bytes.values()), f"it read {done.read_bytes}")
        return done.sample(daemon_s)

    return measure


def cat(made: Bed) -> Measured:
    return _reading(made, 'exec cat "$@" >/dev/null')


def direct(made: Bed) -> Measured:
    """On a disk `cat` has the page cache to pay for."""
    return _reading(made, 'for file; do dd if="$file" of=/dev/null bs=4M iflag=direct status=none || exit 1; done')


def _reading(made: Bed, script: str) -> Measured:
    async def measure() -> Sample:
        made.forget_pages()
        done = run(["sh", "-c", script, "sh", *made.images])
        proven(done.read_bytes >= made.count * made.size_bytes, f"{script}: read {done.read_bytes} bytes")
        return Sample(done.wall_s, done.cpu_s)

    return measure


def compare(made: Bed) -> Measured:
    """The first copy with each of the others: what one does who has no vote."""

    async def measure() -> Sample:
        made.forget_pages()
        first, *others = made.images
        wall_s = spent_s = 0.0
        for other in others:
            done = run(["qemu-img", "compare", "-U", "-T", "none", "-f", "raw", "-F", "raw", first, other])
            proven("Images are identical." in done.output, f"qemu-img compare: {done.output}")
            wall_s, spent_s = wall_s + done.wall_s, spent_s + done.cpu_s
        return Sample(wall_s, spent_s)

    return measure


def scrubs(made: Bed, group: str, **options: int) -> list[tuple[Row, Measured]]:
    """Over every transport that there is."""
    found = []
    for name, transport in TRANSPORTS.items():
        if transport == "nbd" or blkio.why_not() is None:
            found.append((Row(group, name, made.size_bytes), clean_scrub(made, transport, **options)))
    return found


def skipped(group: str) -> list[Row]:
    """What cannot be measured here, and why."""
    why_not = blkio.why_not()
    return [] if why_not is None else [Row(group, SHM, skipped=why_not)]


async def side_by_side(group: str, where: Path, size_bytes: int, rounds: int, *, stock: bool) -> list[Row]:
    """`stock`: also daemons with glibc's thresholds as they are, and with another way to read."""
    async with bed(where, size_bytes) as made:
        wanted = [(COPY, fresh(made, Peer.copy)), (VOTE, fresh(made, Peer.vote))]
        if stock:
            wanted += [
                (COPY_STOCK, fresh(made, Peer.copy, tuned=False)),
                (VOTE_STOCK, fresh(made, Peer.vote, tuned=False)),
                (VOTE_THREADS, fresh(made, Peer.vote, aio="threads")),
            ]
        else:
            wanted.append((DIRECT, direct(made)))
        wanted += [(COMPARE, compare(made)), (CAT, cat(made))]
        rows = [(Row(group, name, size_bytes), measure) for name, measure in wanted]
        return [*await interleaved(rounds, [*scrubs(made, group), *rows]), *skipped(group)]
