"""What else is measured: damage, sparse sets, five copies, commands, confirmation, a guest beside a scrub, rejoin."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from tests.bench import guest
from tests.bench.bed import MEMORY, NAME, SECTOR, Bed, bed, scattered
from tests.bench.contenders import cat, scrubs, skipped
from tests.bench.measure import Measured, Row, Sample, interleaved, peak_rss_bytes, proven, run
from tests.bench.scrubber import begun, scrub, told
from tests.live import MIB

SPARSE, DENSE = "as much in a sparse set", "a set that is full"
STATUS, HELP, BEGIN = "status", "--help", "scrub of one sector"
IDLE, WRITTEN = "confirmation", "confirmation beside a guest"
ALONE, FULL, BY_ITSELF, PACED = "no scrub", "scrub at full speed", "scrub as it comes", "scrub at 100MiB/s"
SHARES = {"none": 0.0, "0.01 %": 0.0001, "1 %": 0.01, "100 %": 1.0}
Ways = Mapping[str, Mapping[str, str] | None]
WAYS: Ways = {ALONE: None, FULL: {"rate": "max"}, BY_ITSELF: {}, PACED: {"rate": "100MiB/s"}}
_BATCH = 2000
"""Suspects; a segment of the engine's ends at 2048."""


# --- damage -----------------------------------------------------------------------------------------------------------


async def damage(made: Bed, rounds: int, shares: Mapping[str, float] = SHARES) -> list[Row]:
    """Sectors of one copy, scattered; all are found, and repaired, in each round."""
    sectors = made.size_bytes // SECTOR
    wanted = []
    for name, share in shares.items():
        hit = scattered(round(share * sectors), sectors)
        row = Row("damage", f"{name} of the sectors of one copy", made.size_bytes)
        wanted.append((row, _repairing(made, hit)))
    return await interleaved(rounds, wanted)


def _repairing(made: Bed, hit: Sequence[int]) -> Measured:
    async def measure() -> Sample:
        made.damage("b", hit)
        done, daemon_s = scrub(made, mode="repair", rate="max")
        proven(done.outcome == ("repaired" if hit else "clean"), f"{len(hit)} sectors damaged: {done.outcome}")
        proven(all(action == "repaired" for *_, action in done.parts), "a finding was not repaired")
        found = sum(length for _, length, _ in done.parts)
        proven(found == len(hit) * SECTOR, f"{len(hit) * SECTOR} bytes damaged, {found} found")
        made.prove_equal()
        return done.sample(daemon_s, findings=len(done.parts), daemon_rss_bytes=peak_rss_bytes(made.pid))

    return measure


# --- sizes and shapes -------------------------------------------------------------------------------------------------


async def sparse(data_bytes: int, rounds: int) -> list[Row]:
    """The same data in a set 1024 times as large, in 64 places, and in one that is full of it."""
    group, size = "sparse", 1024 * data_bytes
    piece = data_bytes // 64
    async with (
        bed(MEMORY, size, data=[(n * (size // 64), piece) for n in range(64)]) as thin,
        bed(MEMORY, data_bytes) as full,
    ):
        found = []
        for name, made in ((DENSE, full), (SPARSE, thin)):
            for row, measure in scrubs(made, group, expected_bytes=data_bytes):
                found.append((Row(group, f"{name}: {row.name}", data_bytes), measure))
        return await interleaved(rounds, found)


async def five(size_bytes: int, rounds: int) -> list[Row]:
    group = "five copies"
    async with bed(MEMORY, size_bytes, count=5) as made:
        wanted = [*scrubs(made, group), (Row(group, "cat of all five", size_bytes), cat(made))]
        return [*await interleaved(rounds, wanted), *skipped(group)]


# --- commands ---------------------------------------------------------------------------------------------------------


async def commands(made: Bed, rounds: int) -> list[Row]:
    """Whole processes: Python, imports and all."""

    def command(name: str, *words: str, says: str) -> tuple[Row, Measured]:
        async def measure() -> Sample:
            done = run([sys.executable, "-m", "qorumctl.cli.main", *words], env=made.environment)
            proven(says in done.output, f"{name} said: {done.output[:500]}")
            return Sample(done.wall_s, done.cpu_s)

        return Row("commands", name), measure

    return await interleaved(
        rounds,
        [
            command(STATUS, "status", NAME, says="healthy"),
            command(HELP, "--help", says="scrub"),
            command(BEGIN, "--json", "scrub", NAME, "--range", "0:512", says='"outcome": "clean"'),
        ],
    )


async def confirmation(made: Bed, rounds: int) -> list[Row]:
    """One batch of scattered suspects, from before its first drain to after its last."""
    half = made.size_bytes // 2
    hit = scattered(min(_BATCH, half // SECTOR // 4), min(half, 128 * MIB) // SECTOR)

    async def idle() -> Sample:
        done, _ = scrub(made, mode="report", rate="max")
        proven(sum(length for _, length, _ in done.parts) == len(hit) * SECTOR, "the damage was not found")
        proven(done.confirmations, "nothing was confirmed")
        suspects, took_s, drained_s = max(done.confirmations)
        return Sample(took_s, figures={"suspects": suspects, "drains_s": drained_s})

    async def written() -> Sample:
        # It writes to the other half: what it wrote over would be damaged no more.
        with guest.beside(made.runtime.nbd_sock, first_byte=half) as load:
            sample = await idle()
            proven(load.poll() is None, "the guest ended before the scrub")
        return sample

    made.damage("c", hit)
    rows = await interleaved(rounds, [(Row("confirmation", IDLE), idle), (Row("confirmation", WRITTEN), written)])
    # Once more, and each byte is what it was.
    made.damage("c", hit)
    made.prove_equal()
    return rows


# --- a guest ----------------------------------------------------------------------------------------------------------


async def guests(
    made: Bed, rounds: int, seconds: float, ways: Ways = WAYS, *, warm_up_s: float = guest.WARM_UP_S
) -> list[Row]:
    """4 KiB requests, 4 at once, beside a scrub that goes on all the time."""
    wanted = [(Row("guest", name), _beside(made, wants, seconds, warm_up_s)) for name, wants in ways.items()]
    rows = await interleaved(rounds, wanted)
    made.prove_equal()
    return rows


def _beside(made: Bed, wants: Mapping[str, str] | None, seconds: float, warm_up_s: float) -> Measured:
    async def measure() -> Sample:
        command = guest.command(made.runtime.nbd_sock, seconds=seconds, warm_up_s=warm_up_s)
        if wants is None:
            return guest.sample(run(command).output)
        with begun(made, again=True, **wants) as process:
            proven(process.stdout and process.stdout.readline() == "begun\n", "the scrub did not begin")
            found = guest.sample(run(command).output)
            proven(process.poll() is None, "the scrub ended before the guest")
            said, complaint = process.communicate(timeout=120)
        proven(process.returncode == 0, f"the scrub failed: {complaint[-500:]}")
        done = told(said)
        proven(done.outcome in {"clean", "unfinished"} and not done.parts, f"the scrub: {done.outcome}")
        read = done.read_bytes["all"] / made.count
        proven(read > 0, "the scrub read nothing")
        return Sample(found.wall_s, figures={**found.figures, "scrub_bytes_per_s": read / done.wall_s})

    return measure


# --- a copy comes back ------------------------------------------------------------------------------------------------


async def rejoin(made: Bed, rounds: int) -> list[Row]:
    """Against the bytes that it missed: 1 MiB each, spread over the disk."""
    missed = sorted({0, *(made.size_bytes // part // MIB * MIB for part in (16, 4, 2))})
    wanted = [(Row("rejoin", f"{many // MIB} MiB missed"), _missing(made, many)) for many in missed]
    rows = await interleaved(rounds, wanted)
    made.prove_equal()
    return rows


def _missing(made: Bed, many: int) -> Measured:
    async def measure() -> Sample:
        await made.sets.detach(NAME, "b")
        link = made.link()
        try:
            step = made.size_bytes // max(1, many // MIB) // MIB * MIB
            data = bytes([int(time.monotonic()) % 256]) * MIB
            for n in range(many // MIB):
                proven(link.write(n * step, data), "a write of the guest failed")
            proven(link.flush(), "a flush of the guest failed")
        finally:
            link.close()
        began_s = time.perf_counter()
        result = await made.sets.rejoin(NAME, "b")
        took_s = time.perf_counter() - began_s
        proven(result.changed and not result.full, f"rejoin: {result}")
        proven(result.copied_bytes == many, f"{many} bytes missed, {result.copied_bytes} copied")
        return Sample(took_s, figures={"bytes": many})

    return measure
