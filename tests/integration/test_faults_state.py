"""The record of a set on a full disk, damaged, lost, and under a clock that jumps: nothing is repaired that is not on
record, nothing reads as clean that is not, and no copy is believed for want of a record."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qorumctl.controller import watcher
from qorumctl.controller.bridge import LiveFence
from qorumctl.errors import DamagedStateError, QorumError, RefusedError, StoreError
from qorumctl.store import SetLock, records
from tests.integration.harness import NAME, SECTOR, LiveSet, Writers
from tests.integration.picture import nothing_changes
from tests.integration.test_watch import AT, NEW, OLD, known_to_have_missed, started, status, write
from tests.live import MIB, NbdServer, end_watcher, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 16 * MIB


def state(live: LiveSet) -> Path:
    return live.directories.state_dir(NAME) / "state.db"


async def running(live: LiveSet, *, size_bytes: int = SIZE) -> bytearray:
    live.size_bytes = size_bytes
    await live.create()
    await live.start()
    return live.fill()


def damage(live: LiveSet, count: int = 8) -> list[int]:
    """Flips spread over the disk, one copy after the other. Returns the offsets of the sectors."""
    step = live.size_bytes // count
    for n in range(count):
        live.flip("abc"[n % 3], n * step + 5)
    return [n * step for n in range(count)]


def repaired(live: LiveSet, shadow: bytearray, offsets: list[int]) -> set[int]:
    """Of damaged sectors, those that all copies hold as they should."""
    good = {copy: live.contents(copy) for copy in "abc"}
    return {at for at in offsets if all(good[c][at : at + SECTOR] == shadow[at : at + SECTOR] for c in "abc")}


def on_record(live: LiveSet) -> set[int]:
    with live.sets._context(NAME).store(read_only=True) as store:
        return {finding.offset for run in store.runs(100) for finding in store.findings(run.id)}


# -- a full disk


class SmallDisk:
    """The state directory on a file system of its own, one MiB."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        with (self.path / "ballast").open("ab", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    def free(self) -> None:
        (self.path / "ballast").unlink()


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[SmallDisk]:
    path = short_dir / "s"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "qorum-test", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    # Tests name this fixture before `live_set`: what runs on the disk is ended before it is taken away.
    yield SmallDisk(path)
    subprocess.run(["umount", path], check=True)


async def test_a_disk_that_is_full_before_a_scrub(small_disk: SmallDisk, live_set: LiveSets) -> None:
    live = live_set()
    shadow = await running(live)
    offsets = damage(live)
    small_disk.fill()
    with nothing_changes(live):
        scrub = live.cli("scrub", NAME, stderr=subprocess.PIPE)
        _, said = await asyncio.to_thread(scrub.communicate)
        assert scrub.returncode == 1, said
        assert "state.db cannot be written: " in said.decode()
        assert "Free some space on its file system" in said.decode()
        assert b"Traceback" not in said
    # Looking at the set needs no space.
    assert (await status(live)).state == "healthy"
    assert live.sets.history(NAME).runs == []
    small_disk.free()
    report = await live.scrub()
    assert [f.offset for f in report.findings] == offsets
    assert all(live.equal_to(shadow).values())


async def test_a_disk_that_becomes_full_during_a_scrub(small_disk: SmallDisk, live_set: LiveSets) -> None:
    live = live_set()
    shadow = await running(live)
    offsets = damage(live)

    class Fills:
        def started(self, start: object) -> None: ...

        def moved(self, position: Any) -> None:
            if position.position_bytes > SIZE // 2:
                small_disk.fill()

    with pytest.raises(StoreError, match="cannot be written: database or disk is full"):
        await live.scrub(observer=Fills(), rate_bytes_per_s=64 * MIB)
    # Nothing is repaired that is not on record.
    assert repaired(live, shadow, offsets) <= on_record(live)
    small_disk.free()
    report = await live.scrub()
    assert [(f.offset, f.action) for f in report.findings] == [(at, "repaired") for at in offsets]
    assert all(live.equal_to(shadow).values())


async def test_a_disk_that_becomes_full_during_a_repair(
    small_disk: SmallDisk, live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set()
    shadow = await running(live)
    offsets = damage(live)
    heal = LiveFence.heal

    def full(fence: LiveFence, *arguments: Any) -> bool:
        small_disk.fill()
        return heal(fence, *arguments)

    monkeypatch.setattr(LiveFence, "heal", full)
    with pytest.raises(StoreError, match="cannot be written"):
        await live.scrub()
    monkeypatch.undo()
    assert repaired(live, shadow, offsets) <= on_record(live)
    small_disk.free()
    report = await live.scrub()
    assert [(f.offset, f.action) for f in report.findings] == [(at, "repaired") for at in offsets]
    assert all(live.equal_to(shadow).values())


async def test_start_and_stop_on_a_full_disk(small_disk: SmallDisk, live_set: LiveSets) -> None:
    live = live_set()
    shadow = await running(live)
    small_disk.fill()
    result = await live.sets.stop(NAME)
    assert (await status(live)).pid is None
    assert "The set is stopped, but that could not be noted" in result.warnings[-1]
    with pytest.raises(StoreError, match="cannot be written"):
        await live.start()
    assert (await status(live)).pid is None
    small_disk.free()
    live.poke("b", 4 * MIB, b"never acknowledged".ljust(SECTOR))
    # What could not be noted is not believed: the copies are compared.
    started_again = await live.sets.start(NAME)
    assert (started_again.state, started_again.recovery is not None) == ("healthy", True)
    assert all(live.equal_to(shadow).values())


async def test_a_watcher_on_a_full_disk_keeps_nothing_to_itself(
    small_disk: SmallDisk, live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    live = live_set(size_bytes=4 * MIB)
    fails = (await started(live, nbdkit))["c"]
    small_disk.fill()
    fails.writes.touch()
    write(live)
    fails.writes.unlink()
    lock = watcher.LOCK_NAME
    wait_for(lambda: SetLock.held_by(live.directories.state_dir(NAME), file_name=lock) is None, "a watcher that ends")
    small_disk.free()
    assert (await status(live)).state == "degraded"
    result = await live.sets.start(NAME)
    assert (result.state, [c.state for c in (await status(live)).copies]) == ("degraded", ["suspect"] * 3)
    assert (await live.scrub()).outcome == "repaired"
    assert (await status(live)).state == "healthy"


async def test_a_user_whose_files_may_not_grow(live_set: LiveSets) -> None:
    """As a quota would have it, and without root: a scrub that may write no file beyond some size."""
    live = live_set()
    shadow = await running(live)
    offsets = damage(live, 16)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (48 << 10, 48 << 10))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    scrub = live.cli("scrub", NAME, stderr=subprocess.PIPE, preexec_fn=limit)
    _, said = await asyncio.to_thread(scrub.communicate)
    assert scrub.returncode == 1, said
    assert str(state(live)) in said.decode()
    assert b"Traceback" not in said
    assert repaired(live, shadow, offsets) <= on_record(live)
    report = await live.scrub()
    assert report.outcome == "repaired"
    assert set(offsets) == on_record(live)
    assert all(live.equal_to(shadow).values())


# -- damage


def header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xa5" * 100)


def pages(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for at in range(4096, size, 4096):
            file.seek(at)
            file.write(os.urandom(4096))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def newer(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version=99")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def quiet(live: LiveSet) -> Path:
    """The database as one file, with nobody at it."""
    end_watcher(live.directories.state_dir(NAME))
    path = state(live)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    assert not Path(f"{path}-wal").exists()
    return path


async def test_a_damaged_record_is_named_kept_aside_and_begun_anew(live_set: LiveSets) -> None:
    live = live_set()
    shadow = await running(live, size_bytes=4 * MIB)
    await live.scrub()
    for number, harm in enumerate((header, pages, truncated, foreign), start=1):
        path = quiet(live)
        harm(path)
        for look in (live.sets.report, live.sets.history):
            with pytest.raises(StoreError) as caught:
                look(NAME)
            assert str(path) in str(caught.value), harm
            assert "'qorumctl scrub web01', or 'start' where it is stopped, begins a new state" in str(caught.value)
        with pytest.raises(DamagedStateError):
            await live.sets.status([NAME])
        (listed,) = (await live.sets.list()).sets
        assert (listed.state, str(path) in (listed.error or "")) == ("failed", True)
        with pytest.raises(QorumError):
            await live.sets.pause(NAME)
        await told_in_words(live, "status", code=1)
        assert (await live.scrub()).outcome == "clean"
        kept = sorted(entry.name for entry in path.parent.iterdir() if "damaged" in entry.name)
        assert kept == [f"state.db.damaged-{n}" for n in range(1, number + 1)]
    # Its watcher has ended, too.
    await live.start()
    assert (await live.scrub()).outcome == "clean"
    assert (await status(live)).state == "healthy"
    assert all(live.equal_to(shadow).values())


async def told_in_words(live: LiveSet, *command: str, code: int) -> None:
    run = live.cli(*command, NAME, stderr=subprocess.PIPE)
    _, said = await asyncio.to_thread(run.communicate)
    assert run.returncode == code, said
    assert b"Traceback" not in said
    assert b"should not have" not in said


@pytest.mark.parametrize("harm", [gone, emptied])
async def test_a_record_that_is_gone_is_noticed_and_begun_anew(
    live_set: LiveSets, harm: Callable[[Path], None]
) -> None:
    live = live_set()
    await running(live, size_bytes=4 * MIB)
    await live.scrub()
    harm(state(live))
    for suffix in ("-wal", "-shm"):
        state(live).with_name(f"state.db{suffix}").unlink(missing_ok=True)
    assert live.sets.history(NAME).runs == []
    found = await status(live)
    assert (found.state, [copy.state for copy in found.copies]) == ("degraded", ["current"] * 3)
    assert (await live.scrub()).outcome == "clean"
    # The watcher, which has listened throughout, says so anew.
    await asyncio.to_thread(wait_for, lambda: asyncio.run(status(live)).state == "healthy", "a watcher on record")


async def test_what_is_no_damaged_record_is_named_and_left_alone(live_set: LiveSets) -> None:
    live = live_set()
    await running(live, size_bytes=4 * MIB)
    path = quiet(live)
    kept = path.with_name("kept")
    for harm in (newer, directory, link, pipe):
        shutil.copy(path, kept)
        harm(path)
        kind = path.lstat().st_mode
        with nothing_changes(live):
            for work in (
                lambda: live.sets.status([NAME]),
                lambda: live.sets.start(NAME),
                lambda: live.scrub(),
            ):
                with pytest.raises(StoreError) as caught:
                    await asyncio.wait_for(work(), 20)
                assert str(path) in str(caught.value)
                assert caught.value.remedy
            for look in (live.sets.report, live.sets.history):
                with pytest.raises(StoreError, match=r"state\.db"):
                    look(NAME)
        assert path.lstat().st_mode == kind
        if harm is not pipe:
            (path.rmdir if harm is directory else path.unlink)()
            kept.rename(path)
    # No set is kept from being stopped.
    result = await live.sets.stop(NAME)
    assert "that could not be noted" in result.warnings[-1]
    with pytest.raises(StoreError, match=r"state\.db"):
        await live.start()
    assert path.lstat().st_mode == kind


async def test_stop_and_delete_need_no_record(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    await running(live, size_bytes=4 * MIB)
    header(quiet(live))
    assert "could not be noted" in (await live.sets.stop(NAME)).warnings[-1]
    await live.sets.delete(NAME, images=True)
    assert not live.directories.state_dir(NAME).exists()
    assert list(live.images_dir.iterdir()) == []


# -- what was in it


async def lost_twice(live: LiveSet, nbdkit: Nbdkit) -> None:
    """c has missed a write, and b has lost the same one: only a holds what the guest was told is stored."""
    fails = await started(live, nbdkit)
    fails["c"].writes.touch()
    write(live)
    known_to_have_missed(live, "c")
    fails["c"].writes.unlink()
    live.poke("b", AT, OLD)


@pytest.mark.parametrize("harm", [header, gone])
async def test_a_mark_that_is_lost_lets_no_stale_copies_win(
    live_set: LiveSets, nbdkit: Nbdkit, harm: Callable[[Path], None]
) -> None:
    live = live_set(size_bytes=4 * MIB)
    await lost_twice(live, nbdkit)
    harm(quiet(live))
    report = await live.scrub()
    assert [(f.offset, f.verdict, f.action) for f in report.findings] == [(AT, "no-majority", "left")]
    assert report.uncounted == ["a", "b", "c"]
    assert live.contents("a")[AT : AT + 4096] == NEW
    found = await status(live)
    assert (found.state, [copy.missed_writes for copy in found.copies]) == ("damaged", [True] * 3)
    # Not the next time either, nor after a stop and a start.
    assert (await live.scrub()).outcome == "no-majority"
    await live.sets.stop(NAME)
    with pytest.raises(RefusedError, match=r"was lost, and they differ in 1 range, .* no guest was let in"):
        await live.start()
    assert (await status(live)).pid is None
    assert live.contents("a")[AT : AT + 4096] == NEW
    # An operator's decision.
    await live.start(now=True)
    assert (await live.scrub(count_suspects=True)).outcome == "repaired"
    await live.start()
    assert (await status(live)).state == "healthy"


async def test_a_mark_that_is_lost_while_the_set_is_stopped(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=4 * MIB)
    await lost_twice(live, nbdkit)
    await live.sets.stop(NAME)
    state(live).unlink()
    with pytest.raises(RefusedError, match="no guest was let in"):
        await live.start()
    assert live.contents("a")[AT : AT + 4096] == NEW


async def test_a_set_that_was_stopped_in_order_starts_without_its_record(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    await running(live, size_bytes=4 * MIB)
    await live.sets.stop(NAME)
    end_watcher(live.directories.state_dir(NAME))
    shutil.rmtree(live.directories.state_dir(NAME))
    found = await status(live)
    assert (found.state, found.reason) == (
        "stopped",
        "The record of the set was lost; the next start begins a new one.",
    )
    result = await live.sets.start(NAME)
    assert result.recovery is None
    assert "There is no record of web01" in result.warnings[0]
    assert "stopped in order, so its copies are taken as current" in result.warnings[0]
    assert (await status(live)).reason is not None
    assert (await live.scrub()).outcome == "clean"
    assert (await status(live)).state == "healthy"


async def test_a_stop_without_a_record_does_not_call_the_set_clean(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    await running(live, size_bytes=4 * MIB)
    quiet(live).unlink()
    result = await live.sets.stop(NAME)
    assert any("record of web01 was lost" in text for text in result.warnings)
    assert (await live.sets.start(NAME)).recovery is not None


@pytest.mark.parametrize("harm", ["removed", "replaced"])
async def test_a_record_that_is_lost_under_a_scrub_does_not_read_as_clean(live_set: LiveSets, harm: str) -> None:
    live = live_set()
    await running(live)
    path = state(live)
    copy = path.with_name("copy")
    shutil.copy(path, copy)

    class Loses:
        def started(self, start: object) -> None: ...

        def moved(self, position: Any) -> None:
            if position.position_bytes > SIZE // 2 and copy.exists():
                (copy.unlink if harm == "removed" else lambda: None)()
                (path.unlink if harm == "removed" else lambda: copy.rename(path))()

    with pytest.raises(StoreError, match="was removed or replaced while it was in use"):
        await live.scrub(observer=Loses(), rate_bytes_per_s=64 * MIB)
    assert (await status(live)).state == "degraded" or harm == "replaced"
    assert (await live.scrub(fresh=True)).outcome == "clean"


# -- a clock that jumps


class Jumping(datetime):
    """A wall clock that goes back and forth by years, a jump with every look."""

    looks = 0

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        cls.looks += 1
        years = (0, -20, 30, -3, 8)[cls.looks % 5]
        return datetime.now(UTC) + timedelta(days=365 * years)


async def test_a_clock_that_jumps_changes_nothing_but_what_is_shown(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "datetime", Jumping)
    live = live_set()
    shadow = await running(live)
    for _ in range(2):
        offsets = damage(live)
        left = await live.scrub(mode="report")
        assert ([f.offset for f in left.findings], left.outcome) == (offsets, "damaged")
        assert (await status(live)).unrepaired == len(offsets)
        with Writers(live, shadow, _last(live), count=2):
            report = await live.scrub()
        assert [(f.offset, f.action) for f in report.findings] == [(at, "repaired") for at in offsets]
        found = await status(live)
        assert (found.state, found.unrepaired) == ("healthy", 0), found.reason
        assert found.last_scrub is not None
        assert found.last_scrub.run == report.run == left.run + 1
        assert [run.run for run in live.sets.history(NAME).runs][:2] == [report.run, left.run]
    assert all(live.equal_to(shadow).values())
    await live.sets.stop(NAME)
    await live.start()
    for command in ("status", "history", "report"):
        shown = live.cli(command, NAME, stderr=subprocess.PIPE)
        output, said = await asyncio.to_thread(shown.communicate)
        assert (shown.returncode, said) == (0, b""), output.decode()
        assert output


def _last(live: LiveSet) -> Any:
    from qorumctl.core.ranges import Range

    return Range(live.size_bytes - MIB, MIB)


@pytest.mark.parametrize(("ago_s", "waits"), [(0.1, True), (1.9, True), (2.1, False), (-5000.0, False)])
async def test_what_a_daemon_holds_back_is_waited_for_whatever_the_clock_says(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch, ago_s: float, waits: bool
) -> None:
    """QEMU tells the second of two reports a second later; a stop in between must not lose it. Five thousand seconds
    ahead: before the host was booted."""
    context = live_set().sets._context(NAME)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(watcher, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(watcher, "time", SimpleNamespace(monotonic=lambda: 7000.0 - ago_s))
    with context.store() as store:
        watcher.note_heard(store)
    monkeypatch.setattr(watcher, "time", SimpleNamespace(monotonic=lambda: 7000.0))
    await watcher.outlast_throttle(context)
    assert bool(slept) is waits


def test_the_wall_clock_is_asked_only_for_what_is_shown() -> None:
    """records.now, for what is written down to be read by people; the time of an event where the daemon gave none; when
    metrics were taken."""
    source = Path(sys.modules["qorumctl"].__file__ or "").parent
    asked = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        for words in ("datetime.now(", "time.time(", "utcnow(", "time.ctime(", "CLOCK_REALTIME", ".st_mtime", "gmtime(")
        if words in path.read_text()
    }
    assert asked == {"store/records.py", "daemon/events.py", "controller/metrics.py"}
