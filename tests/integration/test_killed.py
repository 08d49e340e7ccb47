"""qorumctl killed at any instant: the same command again reaches the same end, and nothing is removed by hand."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from qorumctl import identity
from qorumctl.controller import watcher
from qorumctl.controller.options import CreateOptions
from qorumctl.daemon import process
from qorumctl.errors import QorumError, RefusedError
from qorumctl.files import temporary_of
from qorumctl.model.status import SetStatus
from tests.attack import Attack
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.integration.picture import daemon_picture, listing, status_of
from tests.live import MIB, end_watcher, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
KILLS = 4
"""For each command, in the short form."""
PROMISE = "qorumctl killed at any instant harms nothing, and leaves nothing behind"


class Killer:
    """Runs qorumctl, and kills it at an instant between the first thing it does and its end."""

    def __init__(self, live: LiveSet, seed: int) -> None:
        self._live = live
        self._dice = random.Random(seed)
        self._longest_s = 0.0
        self.kills = 0

    def rounds(self, attack: Attack) -> Iterator[int]:
        """Seeds; the instants of a round come from its own."""
        for seed in attack.rounds(KILLS):
            self._dice, self.kills = random.Random(seed), 0
            yield seed
            attack.count(kills=self.kills)

    def complete(self, *arguments: str, codes: Collection[int] = (0,)) -> None:
        began_s = time.monotonic()
        done = self._live.cli(*arguments, stderr=subprocess.PIPE)
        _, said = done.communicate(timeout=60)
        assert done.returncode in codes, said.decode()
        self._longest_s = max(self._longest_s, time.monotonic() - began_s)

    def cut(self, *arguments: str) -> bool:
        """Whether it was killed before it had ended. Most of its time goes into loading: skip half of that."""
        victim = self._live.cli(*arguments)
        try:
            victim.wait(self._longest_s * self._dice.uniform(0.3, 1.0))
        except subprocess.TimeoutExpired:
            victim.kill()
        victim.communicate()
        self.kills += victim.returncode == -9
        return victim.returncode == -9


def why(live: LiveSet, now: SetStatus) -> str:
    """What is said of a set that should be healthy, and what its watchers heard."""
    with live.sets._context(NAME).store(read_only=True) as store:
        events = [(event.time, event.kind, event.copy, event.detail) for event in store.events(5)]
    notes = [(copy.name, copy.state.value, copy.note) for copy in now.copies]
    return f"{now.reason}\n{notes}\n{events}\n{(live.runtime.directory / watcher.LOG_NAME).read_text()}"


def leftovers(live: LiveSet) -> set[str]:
    return {path.name for path in live.images_dir.iterdir()}


def made_of(*letters: str) -> set[str]:
    return {name for letter in letters for name in (f"{letter}.img", f"{letter}.img.qorum")}


@pytest.mark.attack(PROMISE, "kill -9 of create and of delete")
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_create_and_delete(live_set: LiveSets, fmt: str, attack: Attack) -> None:
    live = live_set(size_bytes=4 * MIB)
    killer = Killer(live, seed=11)
    live.sources = live.paths()
    create = ("create", NAME, *live.sources, "--size", "4MiB", "--format", fmt)
    delete = ("delete", NAME, "--images", "--yes")
    killer.complete(*create)
    killer.complete(*delete)
    for _ in killer.rounds(attack):
        killer.cut(*create)
        killer.complete(*create)
        assert leftovers(live) == made_of("a", "b", "c")
        assert process.running_pid(live.runtime) is None
        if killer.cut(*delete) and live.directories.definition_path(NAME).exists():
            killer.complete(*delete)
        assert leftovers(live) == set()


@pytest.mark.attack(PROMISE, "kill -9 of create, and then delete")
async def test_create_that_was_killed_is_deleted_without_a_trace(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=4 * MIB)
    killer = Killer(live, seed=12)
    create = ("create", NAME, *live.paths(), "--size", "4MiB", "--format", "qcow2")
    killer.complete(*create)
    killer.complete("delete", NAME, "--images", "--yes")
    for _ in killer.rounds(attack):
        killer.cut(*create)
        if leftovers(live) or live.directories.definition_path(NAME).exists():
            await live.sets.delete(NAME, images=True)
        assert leftovers(live) == set()


@pytest.mark.attack(PROMISE, "kill -9 of start and of stop", weight=2)
async def test_start_and_stop(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=4 * MIB)
    await live.create()
    killer = Killer(live, seed=13)
    killer.complete("start", NAME)
    shadow = live.fill()
    killer.complete("stop", NAME)
    stopped = listing(live)
    # A stop leaves its locks, as any command does.
    killer.complete("start", NAME)
    await status_of(live.sets)
    running = await daemon_picture(live)
    killer.complete("stop", NAME)
    for n in killer.rounds(attack):
        killer.cut("start", NAME)
        if n % 2:
            killer.complete("stop", NAME)
        killer.complete("start", NAME)
        now = await status_of(live.sets)
        assert now.state == "healthy", f"round {n}: {why(live, now)}"
        assert await daemon_picture(live) == running
        killer.cut("stop", NAME)
        killer.complete("stop", NAME)
        assert listing(live) == stopped
        assert process.running_pid(live.runtime) is None
        assert all(live.equal_to(shadow).values())


@pytest.mark.attack(PROMISE, "kill -9 of a start that repairs what a dead daemon left", weight=2)
async def test_recovery(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=64 * MIB)
    await live.create()
    killer = Killer(live, seed=14)
    killer.complete("start", NAME)
    shadow = live.fill()
    await status_of(live.sets)
    running = await daemon_picture(live)
    for number, n in enumerate(killer.rounds(attack)):
        live.end()
        live.poke("abc"[n % 3], n % 1000 * 100 * SECTOR, b"lost" * 100)
        if number == 0:
            killer.complete("start", NAME)
        else:
            killer.cut("start", NAME)
            killer.complete("start", NAME)
        assert (await status_of(live.sets)).state == "healthy"
        assert await daemon_picture(live) == running
        assert all(live.equal_to(shadow).values())
        assert {(c.outvoted, c.repaired) for c in (await status_of(live.sets)).copies} == {(0, 0)}


@pytest.mark.attack(PROMISE, "kill -9 of a scrub that repairs", weight=2)
async def test_scrub_and_repair(live_set: LiveSets, attack: Attack) -> None:
    """No finding is lost, and none is counted twice."""
    live = live_set(size_bytes=16 * MIB)
    await live.create()
    killer = Killer(live, seed=15)
    killer.complete("start", NAME)
    shadow = live.fill()
    killer.complete("scrub", NAME)
    await status_of(live.sets)
    running, flips = await daemon_picture(live), 0
    for seed in killer.rounds(attack):
        dice = random.Random(seed)
        # Apart from each other: neighbours are one finding.
        for sector in dice.sample(range(0, 16 * MIB // SECTOR, 2), 60):
            live.flip(dice.choice("abc"), sector * SECTOR)
        flips += 60
        killer.cut("scrub", NAME)
        killer.complete("scrub", NAME, codes=(0, 3))
        now = await status_of(live.sets)
        assert now.state == "healthy", f"seed {seed}: {why(live, now)}"
        assert sum(copy.outvoted for copy in now.copies) == flips
        assert sum(copy.repaired for copy in now.copies) == flips
        assert await daemon_picture(live) == running
        assert all(live.equal_to(shadow).values())
        attack.count(flips=60)


# -- who listened, when a command was killed half-way


async def test_a_start_killed_before_guests_came_in_leaves_no_copy_suspect(live_set: LiveSets) -> None:
    """It died while its watcher was not there yet; the stop that follows finds a set that nobody watches."""
    live = live_set(size_bytes=4 * MIB)
    await live.create()
    live.dies_at("watcher:ensure", "start", NAME)
    assert (await live.sets.stop(NAME)).changed
    await live.start()
    assert (await status_of(live.sets)).state == "healthy"


async def served_unwatched_until_a_killed_stop(live: LiveSet) -> None:
    await live.create()
    await live.start()
    end_watcher(live.directories.state_dir(NAME))
    live.fill()
    live.dies_at("watcher:outlast_throttle", "stop", NAME)
    assert "volume" not in (await asyncio.to_thread(live.leftovers))["exports"]


async def test_what_a_killed_stop_had_withdrawn_counts_as_served(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    await served_unwatched_until_a_killed_stop(live)
    await live.sets.stop(NAME)
    await live.start()
    assert {copy.state for copy in (await status_of(live.sets)).copies} == {"suspect"}


async def test_a_watcher_that_comes_after_a_killed_stop_has_not_heard_all(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    await served_unwatched_until_a_killed_stop(live)
    by_hand = live.cli("watch", NAME)
    try:
        pid = process.running_pid(live.runtime)
        assert pid is not None
        wait_for(lambda: watcher.is_watched(live.sets._context(NAME), pid), "a watcher that listens")
        await live.sets.stop(NAME)
        await live.start()
        assert {copy.state for copy in (await status_of(live.sets)).copies} == {"suspect"}
    finally:
        by_hand.kill()
        by_hand.wait()


# -- what an interrupted create may take back


async def interrupted_create(live: LiveSet, fmt: str = "raw", *, makes_images: bool = True) -> None:
    """As a kill just before the definition is written: everything stands but that."""
    live.sources = live.paths()
    await live.create(format=fmt, size_bytes=live.size_bytes if makes_images else None)
    definition = live.directories.definition_path(NAME)
    spec = live.sets.show(NAME).definition
    definition.unlink()
    from qorumctl.controller import interrupted
    from qorumctl.controller.context import SetContext
    from qorumctl.controller.options import Timeouts

    interrupted.announce(SetContext(NAME, live.directories, Timeouts()), spec, makes_images=makes_images)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_data_that_was_put_into_a_leftover_is_kept(live_set: LiveSets, fmt: str) -> None:
    live = live_set(size_bytes=4 * MIB)
    await interrupted_create(live, fmt)
    command = ["qemu-io", "-f", fmt, "-c", "write -P 7 1M 4k", live.sources[1]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    kept = live.image("b").read_bytes()
    with pytest.raises(RefusedError, match=r"b\.img exists and .*a\.img does not"):
        await live.create(format=fmt)
    assert live.image("b").read_bytes() == kept


async def test_files_that_were_being_written_go_with_an_interrupted_create(live_set: LiveSets) -> None:
    """Killed before the rename: of the last sidecar, of the definition."""
    live = live_set(size_bytes=4 * MIB)
    await interrupted_create(live)
    sidecar = identity.sidecar_path(live.image("c"))
    sidecar.rename(temporary_of(sidecar))
    temporary_of(live.directories.definition_path(NAME)).touch()
    await live.sets.delete(NAME, images=True)
    assert leftovers(live) == set()
    assert list(live.directories.config.iterdir()) == []


async def test_a_create_killed_after_its_last_step_is_settled_by_start(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    live.dies_at("interrupted:conclude", "create", NAME, *live.paths(), "--size", "4MiB")
    announcement = live.directories.state_dir(NAME) / "creating.json"
    assert announcement.exists()
    await live.start()
    assert not announcement.exists()


async def test_images_that_were_there_before_are_kept_however_empty(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    for path in live.paths():
        os.truncate(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), 4 * MIB)
    before = {path: Path(path).stat().st_ino for path in live.paths()}
    await interrupted_create(live, makes_images=False)
    await live.create(size_bytes=None)
    assert {path: Path(path).stat().st_ino for path in live.paths()} == before
    assert leftovers(live) == made_of("a", "b", "c")


async def test_a_file_that_somebody_put_there_since_is_kept(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    await interrupted_create(live)
    theirs = live.image("c")
    theirs.unlink()
    theirs.write_bytes(bytes(4 * MIB))
    identity.sidecar_path(theirs).unlink()
    with pytest.raises(QorumError):
        await live.create()
    assert theirs.stat().st_size == 4 * MIB


async def test_another_sets_images_at_those_paths_are_kept(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    await interrupted_create(live)
    for path in live.sources:
        Path(path).unlink()
        identity.sidecar_path(path).unlink()
    await live.sets.create("other", live.sources, CreateOptions(size_bytes=4 * MIB))
    before = {path: Path(path).stat().st_ino for path in live.sources}
    with pytest.raises(RefusedError, match="belongs to set 'other'"):
        await live.create()
    assert {path: Path(path).stat().st_ino for path in live.sources} == before
    assert (await live.sets.start("other")).state == "healthy"
    await live.sets.stop("other", force=True)


# -- create that fails half-way


async def test_a_directory_that_is_missing_takes_the_other_images_back(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    paths = [*live.paths(2), str(live.images_dir / "missing" / "c.img")]
    for thin in (False, True):
        with pytest.raises(RefusedError) as caught:
            await live.create(sources=paths, thin=thin)
        assert str(caught.value) == (
            f"The directory {live.images_dir}/missing does not exist. Make it, or mount what belongs there."
        )
        assert leftovers(live) == set()
    assert list(live.directories.config.iterdir()) == []
    await live.create()
    assert leftovers(live) == made_of("a", "b", "c")


@pytest.mark.parametrize(("fmt", "used_kib"), [("raw", 64), ("qcow2", 56)])
async def test_a_full_disk_takes_the_other_images_back(
    live_set: LiveSets, short_dir: Path, fmt: str, used_kib: int
) -> None:
    """A raw image takes no space when it is made, but its sidecar does; a qcow2 has no room for its tables."""
    live = live_set(size_bytes=4 * MIB)
    full = short_dir / "full"
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", full], check=False).returncode:
        pytest.skip("this user cannot mount a small file system")
    try:
        (full / "filler").write_bytes(bytes(used_kib << 10))
        with pytest.raises(QorumError, match="No space left on device"):
            await live.create(sources=[*live.paths(2), str(full / "c.img")], format=fmt, thin=True)
        assert leftovers(live) == set()
        assert not (full / "c.img").exists()
        assert list(live.directories.config.iterdir()) == []
        assert process.running_pid(live.runtime) is None
    finally:
        subprocess.run(["umount", full], check=True)


async def test_without_a_daemon_to_format_them_no_image_stays(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set(size_bytes=4 * MIB)
    monkeypatch.setenv("QORUM_QSD", "/nonexistent/qsd")
    with pytest.raises(QorumError, match="QORUM_QSD names /nonexistent/qsd, which is not a program"):
        await live.create(format="qcow2")
    assert leftovers(live) == set()
    await live.create(format="raw")
