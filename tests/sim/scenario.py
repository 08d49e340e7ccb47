"""From one integer to a world with its damage, its guests, and the plan of a scrub."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.scrub.plan import Tuning
from tests.sim.truth import Activity, Fault, range_of
from tests.sim.world import World

Mode = Literal["A", "B", "C"]
MODES: tuple[Mode, ...] = get_args(Mode)


def mode_of(seed: int) -> Mode:
    return MODES[seed % len(MODES)]


@dataclass(frozen=True, slots=True)
class Scenario:
    world: World
    mode: Mode
    within: Range
    tuning: Tuning
    thorough: bool
    rate_bytes_per_s: int | None
    chunk_bytes: int
    read_ahead: int


def build(seed: int, mode: Mode) -> Scenario:
    dice = Random(f"{mode} {seed}")
    copies = dice.choice([3, 3, 3, 5])
    threshold = copies // 2 + 1 + (1 if copies == 5 and dice.random() < 0.25 else 0)
    sectors = dice.choice([24, 40, 64])
    world = World(dice, "abcde"[:copies], sectors, threshold, rewriting=mode != "C" or dice.random() < 0.5)
    _fill(world)
    _make_stale(world)
    if mode == "B":
        _doom(world)
    _rot(world)
    _let_guests_in(world)
    _tempt_fate(world)
    start, end = 0, sectors
    if dice.random() < 0.15:
        start, end = sorted(dice.sample(range(sectors + 1), 2))
    return Scenario(
        world,
        mode,
        range_of(start, end),
        _tuning(dice),
        thorough=dice.random() < 0.3,
        rate_bytes_per_s=dice.choice([None, None, 20_000]),
        chunk_bytes=SECTOR_BYTES * dice.choice([1, 4, 8, 16]),
        read_ahead=dice.choice([1, 2, 4]),
    )


def _fill(world: World) -> None:
    """Noise, zeros and holes: some holes in every copy, some in one where the others hold zeros."""
    dice, at = world.dice, 0
    while at < world.sectors:
        end = min(world.sectors, at + dice.randrange(1, 9))
        kind = dice.choice(["noise", "noise", "zeros", "hole", "hole in one"])
        if kind == "noise":
            world.shadow[at * SECTOR_BYTES : end * SECTOR_BYTES] = dice.randbytes((end - at) * SECTOR_BYTES)
        elif kind == "hole":
            for copy in world.copies.values():
                copy.holes.update(range(at, end))
        elif kind == "hole in one":
            world.copies[dice.choice(sorted(world.copies))].holes.update(range(at, end))
        at = end
    for copy in world.copies.values():
        copy.data[:] = world.shadow


def _make_stale(world: World) -> None:
    """Copies that missed writes before the scrub, and are known to: they all hold the same old data."""
    dice = world.dice
    spare = len(world.copies) - world.threshold
    if dice.random() < 0.75:
        return
    world.stale = frozenset(dice.sample(sorted(world.copies), dice.randrange(1, spare + 1)))
    for sector in dice.sample(range(world.sectors), dice.randrange(5)):
        _set_back(world, sector, sorted(world.stale), dice.randbytes(SECTOR_BYTES))


def _set_back(world: World, sector: int, names: list[str], old: bytes) -> None:
    for name in names:
        copy = world.copies[name]
        copy.data[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = old
        copy.holes.discard(sector)
        world.add_fault(Fault(sector, name, "missed write", early=True))


def _doom(world: World) -> None:
    """Sectors in which no version has `threshold` current copies behind it. Where copies are stale, perhaps the very
    version that the stale copies hold: there the daemon alone would vote for the old data."""
    dice = world.dice
    clean = [sector for sector in range(world.sectors) if not world.wrong(sector)]
    current = sorted(set(world.copies) - world.stale)
    for sector in dice.sample(clean, min(len(clean), dice.randrange(1, 5))):
        least = len(current) - world.threshold + 1
        victims = dice.sample(current, dice.randrange(least, len(current) + 1))
        old = dice.randbytes(SECTOR_BYTES) if world.stale and dice.random() < 0.7 else None
        if old is not None:
            victims = [*victims[:least], *sorted(world.stale)]
        for name in victims:
            copy = world.copies[name]
            copy.holes.discard(sector)
            if old is None and dice.random() < 0.3:
                copy.unreadable.add(sector)
            else:
                copy.data[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = old or dice.randbytes(SECTOR_BYTES)
        world.doom(sector, late=False)


def _rot(world: World) -> None:
    """What the engine finds when it starts: no sector loses its majority of current copies."""
    dice = world.dice
    spare = len(world.copies) - len(world.stale) - world.threshold
    current = sorted(set(world.copies) - world.stale)
    clean = [sector for sector in range(world.sectors) if not world.wrong(sector)]
    for sector in dice.sample(clean, min(len(clean), dice.randrange(8))):
        names = dice.sample(current, dice.randrange(1, spare + 1)) if spare else []
        # Neighbours on one copy, now and then, so that runs of damage form.
        for near in (sector, sector + 1) if dice.random() < 0.3 else (sector,):
            if near in clean and not world.wrong(near):
                for name in names:
                    world.damage(near, name, early=True)


def _let_guests_in(world: World) -> None:
    dice = world.dice
    start = dice.randrange(world.sectors)
    world.hot = list(range(start, min(world.sectors, start + dice.choice([2, 6, 12]))))
    if dice.random() < 0.2:
        world.hot = list(range(world.sectors))
    world.activity = dice.choice(
        [Activity(), Activity(30, 10, 4), Activity(100, 30, 8), Activity(300, 0, 4), Activity(0, 60, 8)]
    )


def _tempt_fate(world: World) -> None:
    """What befalls some worlds and spares the others: copies that hang, lose their caches, or misread; and a watcher
    that hears which copy has missed a write."""
    dice = world.dice
    world.activity.hangs = dice.choice([0, 0, 0, 1, 2])
    world.activity.transients = dice.choice([0, 0, 2, 6])
    if dice.random() < 0.4:
        world.activity.power_cuts = dice.choice([0, 2, 5])
        for copy in world.copies.values():
            copy.volatile = dice.random() < 0.7
    world.tells = dice.random() < 0.4


def _tuning(dice: Random) -> Tuning:
    return Tuning(
        segment_bytes=SECTOR_BYTES * dice.choice([3, 8, 16, 100]),
        segment_s=dice.choice([0.05, 1000.0]),
        confirm_bytes=SECTOR_BYTES * dice.choice([1, 4, 100]),
        confirm_ranges=dice.choice([1, 3, 100]),
        gap_bytes=SECTOR_BYTES * dice.choice([0, 2, 8]),
        busy_rounds=dice.choice([1, 3]),
        final_busy_rounds=dice.choice([1, 2, 4]),
        repair_rounds=8,
        heal_bytes=(SECTOR_BYTES * dice.choice([1, 2, 8]), SECTOR_BYTES, SECTOR_BYTES),
        zero_window_bytes=SECTOR_BYTES * dice.choice([4, 16, 100]),
        zero_least_bytes=SECTOR_BYTES * dice.choice([1, 2]),
        sample_bytes=16,
        put_off_ranges=dice.choice([1, 3, 1000]),
        large_heal_bytes=SECTOR_BYTES * dice.choice([2, 4, 16]),
    )
