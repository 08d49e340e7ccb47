"""`export`: what the set holds, by the vote of its current copies, or no file at all."""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from qorumctl.controller import export_target, exporting, intent
from qorumctl.controller.observer import ScrubControl, Silent, StopReason
from qorumctl.controller.options import ExportOptions, ResolveRequest, Timeouts
from qorumctl.controller.voted import MARKER
from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.daemon.sink import SinkPaths
from qorumctl.errors import CopyError, QorumError, RefusedError, StoreError
from qorumctl.model.export import ExportReport
from tests.attack import Attack
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.integration.test_killed import Killer
from tests.live import MIB, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]


@pytest.fixture
def place(short_dir: Path) -> Path:
    """Where exports go."""
    directory = short_dir / "out"
    directory.mkdir()
    return directory


async def filled(live: LiveSet, *, stopped: bool = True, **options: object) -> bytearray:
    """Data in the first half; returns what the disk holds."""
    await live.create(**options)
    shadow = bytearray(random.Random(1).randbytes(live.size_bytes // 2) + bytes(live.size_bytes // 2))
    for copy in "abc":
        live.poke(copy, 0, shadow[: live.size_bytes // 2])
    if not stopped:
        await live.start()
    return shadow


async def export(live: LiveSet, path: Path, **options: object) -> ExportReport:
    return await live.sets.export(NAME, path, ExportOptions(**options))  # type: ignore[arg-type]


def as_raw(path: Path, fmt: str) -> bytes:
    if fmt == "raw":
        return path.read_bytes()
    flat = path.with_suffix(".flat")
    subprocess.run(["qemu-img", "convert", "-f", fmt, "-O", "raw", path, flat], check=True)
    data = flat.read_bytes()
    flat.unlink()
    return data


def nothing_is_left(live: LiveSet, place: Path, *names: str) -> None:
    assert sorted(path.name for path in place.iterdir()) == sorted(names)
    assert process.find_pid(SinkPaths(live.runtime.directory)) is None
    assert not (live.directories.state_dir(NAME) / "exporting.json").exists()


async def test_a_state_that_can_no_longer_be_written_to_leaves_no_file(
    live_set: LiveSets, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is made by then, and noted without its inode: nobody could remove it later."""
    live = live_set(size_bytes=2 * MIB)
    await filled(live)
    write = intent.write

    def full(path: Path, values: Mapping[str, object]) -> None:
        if values["inode"] is not None:
            raise intent.failed(path, OSError(errno.ENOSPC, "No space left on device"))
        write(path, values)

    monkeypatch.setattr(intent, "write", full)
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match=r"exporting\.json cannot be used"):
        await export(live, place / "out.img")
    nothing_is_left(live, place)
    assert len(os.listdir("/proc/self/fd")) == opened
    monkeypatch.undo()
    assert (await export(live, place / "out.img")).exported


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "running"])
async def test_the_file_holds_what_the_set_holds_and_holes_stay_holes(
    live_set: LiveSets, place: Path, fmt: str, stopped: bool
) -> None:
    live = live_set(size_bytes=8 * MIB)
    shadow = await filled(live, stopped=stopped)
    done = await export(live, place / "x", format=fmt)
    assert (done.exported, done.running, done.no_majority) == (True, not stopped, [])
    nothing_is_left(live, place, "x")
    assert as_raw(place / "x", fmt) == shadow
    assert (place / "x").stat().st_blocks * 512 < 5 * MIB
    assert (place / "x").stat().st_mode & 0o777 == 0o600
    if not stopped:
        await live.sets.stop(NAME)


async def test_damage_to_two_copies_in_one_request_loses_nothing(live_set: LiveSets, place: Path) -> None:
    live = live_set(size_bytes=4 * MIB)
    shadow = await filled(live)
    live.flip("a", 1000)
    live.flip("b", 1000 + SECTOR)
    live.flip("c", 3 * MIB)
    await export(live, place / "x")
    assert (place / "x").read_bytes() == shadow


async def test_what_has_no_majority_is_listed_and_nothing_is_exported(live_set: LiveSets, place: Path) -> None:
    live = live_set(size_bytes=4 * MIB)
    shadow = await filled(live)
    for copy in "ab":
        live.poke(copy, 5 * SECTOR, copy.encode() * 10)
        live.poke(copy, 3 * MIB, copy.encode() * SECTOR * 2)
    lost = [(5 * SECTOR, SECTOR), (3 * MIB, 2 * SECTOR)]
    done = await export(live, place / "x")
    assert (done.exported, [(r.offset, r.length) for r in done.no_majority]) == (False, lost)
    nothing_is_left(live, place)
    done = await export(live, place / "x", partial=True)
    assert (done.exported, [(r.offset, r.length) for r in done.no_majority]) == (True, lost)
    for offset, length in lost:
        shadow[offset : offset + length] = MARKER * (length // SECTOR)
    assert (place / "x").read_bytes() == shadow
    nothing_is_left(live, place, "x")


async def test_a_copy_that_missed_writes_does_not_vote(live_set: LiveSets, place: Path) -> None:
    """It and one that lost the same write agree, and would win."""
    live = live_set(size_bytes=4 * MIB)
    await filled(live)
    for copy in "bc":
        live.poke(copy, 0, b"old")
    with live.sets._context(NAME).store() as store:
        store.suspect(["c"], missed=True, why="a test says so")
    done = await export(live, place / "x")
    assert [(r.offset, r.length) for r in done.no_majority] == [(0, SECTOR)]
    nothing_is_left(live, place)


async def test_of_a_copy_that_may_have_missed_writes_it_is_said_that_it_voted(live_set: LiveSets, place: Path) -> None:
    live = live_set(size_bytes=4 * MIB)
    shadow = await filled(live)
    assert (await export(live, place / "x")).warnings == []
    with live.sets._context(NAME).store() as store:
        store.suspect(["b", "c"], missed=False, why="a test says so")
    (warning,) = (await export(live, place / "y")).warnings
    assert "Copy b, c may have missed a write" in warning
    assert (place / "y").read_bytes() == shadow


async def test_a_running_set_in_doubt_is_refused(live_set: LiveSets, place: Path) -> None:
    live = live_set(size_bytes=4 * MIB)
    await filled(live, stopped=False)
    with live.sets._context(NAME).store() as store:
        store.suspect(["c"], missed=False, why="a test says so")
    with pytest.raises(RefusedError, match="Copy c of web01 missed a write, or may have"):
        await export(live, place / "x")
    with pytest.raises(RefusedError, match="is running"):
        await export(live, place / "x", partial=True)
    await live.scrub()
    await export(live, place / "x")
    nothing_is_left(live, place, "x")
    await live.sets.stop(NAME)


async def test_a_copy_that_misses_a_write_meanwhile_spoils_it(
    live_set: LiveSets, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, wait = live_set(size_bytes=4 * MIB), exporting.watcher.outlast_throttle
    await filled(live, stopped=False)

    async def missed(context: object) -> None:
        monkeypatch.setattr(exporting.watcher, "outlast_throttle", wait)
        with live.sets._context(NAME).store() as store:
            store.suspect(["c"], missed=True, why="a test says so")

    monkeypatch.setattr(exporting.watcher, "outlast_throttle", missed)
    with pytest.raises(RefusedError, match="Copy c"):
        await export(live, place / "x")
    nothing_is_left(live, place)


async def test_a_running_set_that_cannot_be_read_is_not_exported(live_set: LiveSets, place: Path) -> None:
    live = live_set(size_bytes=4 * MIB)
    await filled(live, stopped=False, cache="writeback")
    for copy in "ab":
        live.poke(copy, 5 * SECTOR, copy.encode() * 10)
    with pytest.raises(QorumError, match="could not be copied"):
        await export(live, place / "x")
    nothing_is_left(live, place)
    await live.sets.stop(NAME)


@contextmanager
def counting(live: LiveSet) -> Iterator[list[int]]:
    """A guest that writes 1, 2, 3 ... to a row of sectors, one after the other, round after round."""
    stop, written = threading.Event(), [0]

    def write() -> None:
        link = live.link()
        while not stop.is_set():
            number = written[0] + 1
            at = (number - 1) % (live.size_bytes // SECTOR) * SECTOR
            assert link.write(at, struct.pack("<Q", number) * (SECTOR // 8))
            written[0] = number
        link.flush()
        link.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_for(lambda: written[0] > 100, "the first writes")
        yield written
    finally:
        stop.set()
        thread.join()


@pytest.mark.attack("an export of a running set is of one moment", "a guest that counts, sector by sector")
async def test_while_guests_write_it_is_of_one_moment(live_set: LiveSets, place: Path, attack: Attack) -> None:
    live = live_set(size_bytes=MIB)
    await live.create()
    await live.start()
    sectors = live.size_bytes // SECTOR
    with counting(live) as written:
        for _ in attack.rounds(2):
            before = written[0]
            await export(live, place / "x", overwrite=True)
            data = (place / "x").read_bytes()
            seen = [struct.unpack_from("<Q", data, at * SECTOR)[0] for at in range(sectors)]
            newest = max(seen)
            assert before <= newest <= written[0]
            # What was written before the newest is there, and nothing else.
            assert seen == _expected(newest, sectors)
            attack.count(writes=newest - before)
    assert (await live.scrub()).outcome == "clean"
    await live.sets.stop(NAME)


def _expected(newest: int, sectors: int) -> list[int]:
    """Of each sector the last number that is not above the newest."""
    found = [0] * sectors
    for number in range(max(1, newest - sectors + 1), newest + 1):
        found[(number - 1) % sectors] = number
    return found


async def test_what_the_file_did_not_keep_is_noticed(
    live_set: LiveSets, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, reopen = live_set(size_bytes=4 * MIB), exporting.Sink.reopen
    await filled(live)

    async def spoiled(self: exporting.Sink) -> None:
        with next(place.iterdir()).open("r+b") as file:
            file.seek(4096)
            file.write(b"rot")
        await reopen(self)

    monkeypatch.setattr(exporting.Sink, "reopen", spoiled)
    with pytest.raises(CopyError, match="512 B differ, first at offset 4096"):
        await export(live, place / "x")
    nothing_is_left(live, place)
    await live.start()
    with pytest.raises(CopyError, match="512 B differ, first at offset 4096"):
        await export(live, place / "x")
    nothing_is_left(live, place)
    await live.sets.stop(NAME)


async def test_what_is_in_the_way_is_refused(live_set: LiveSets, place: Path) -> None:
    live = live_set(size_bytes=4 * MIB)
    await filled(live)
    (place / "file").write_bytes(b"mine")
    (place / "link").symlink_to(place / "file")
    own, unreadable = live.directories.state_dir(NAME) / "x", Path(os.fsdecode(b"/srv/\xff"))
    for path, words in [
        (place / "file", "exists already"),
        (place / "link", "no regular file"),
        (place, "no regular file"),
        (place / "no" / "x", "no directory"),
        (own, "keeps its own files"),
        (Path("x"), "not an absolute path"),
        (place / "a\nb", "cannot name an export"),
        (unreadable, "cannot name an export"),
    ]:
        with pytest.raises(QorumError, match=words):
            await export(live, path)
    for path in (live.image("a"), Path(f"{live.image('b')}.qorum")):
        with pytest.raises(RefusedError, match=r"of the set|of set"):
            await export(live, path, overwrite=True)
    assert (place / "file").read_bytes() == b"mine"
    nothing_is_left(live, place, "file", "link")
    await export(live, place / "file", overwrite=True)
    assert (place / "file").stat().st_size == live.size_bytes


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "running"])
async def test_who_stops_it_gets_no_file(live_set: LiveSets, place: Path, stopped: bool) -> None:
    live, control = live_set(size_bytes=4 * MIB), ScrubControl()
    await filled(live, stopped=stopped)

    class Stopper(Silent):
        def started(self, start: object) -> None:
            if "comparing" in str(start.work):  # type: ignore[attr-defined]
                control.stop(StopReason.INTERRUPTED)

    with pytest.raises(QorumError, match="Interrupted: nothing was exported"):
        await live.sets.export(NAME, place / "x", observer=Stopper(), control=control)
    nothing_is_left(live, place)
    if not stopped:
        await live.sets.stop(NAME)


STEPS = [
    ("exporting:Checker", True),
    ("exporting:export_target.put_in_place", True),
    ("exporting:export_target.conclude", True),
    ("exporting:jobs.look", False),
    ("exporting:Checker", False),
]


@pytest.mark.parametrize(("step", "stopped"), STEPS)
async def test_killed_before_any_step_the_next_command_removes_what_is_left(
    live_set: LiveSets, place: Path, step: str, stopped: bool
) -> None:
    live = live_set(size_bytes=4 * MIB)
    shadow = await filled(live, stopped=stopped)
    live.dies_at(step, "export", NAME, str(place / "x"))
    if not stopped:
        # A guest writes on, whatever the orphaned job does.
        link = live.link()
        assert link.write(0, b"n" * SECTOR)
        link.close()
        shadow[:SECTOR] = b"n" * SECTOR
    assert (await live.scrub(mode="report")).outcome == "clean"
    nothing_is_left(live, place, *(["x"] if (place / "x").exists() else []))
    await export(live, place / "x", overwrite=True)
    assert (place / "x").read_bytes() == shadow
    if not stopped:
        await live.sets.stop(NAME)
    assert all(live.equal_to(shadow).values())


@pytest.mark.attack("qorumctl killed at any instant harms nothing, and leaves nothing behind", "kill -9 of an export")
async def test_exports_killed_at_random_instants(live_set: LiveSets, place: Path, attack: Attack) -> None:
    live = live_set(size_bytes=8 * MIB)
    shadow = await filled(live, stopped=False)
    command = ("export", NAME, str(place / "x"), "--overwrite")
    killer = Killer(live, seed=0)
    killer.complete(*command)
    for seed in killer.rounds(attack):
        killer.cut(*command)
        if seed % 4 == 1:
            await live.sets.stop(NAME)
            nothing_is_left(live, place, *(["x"] if (place / "x").exists() else []))
            await live.start()
        await export(live, place / "x", overwrite=True)
        assert (place / "x").read_bytes() == shadow
        nothing_is_left(live, place, "x")
    await live.sets.stop(NAME)
    assert all(live.equal_to(shadow).values())


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_imported_scrubbed_damaged_repaired_and_exported_it_is_the_original(
    live_set: LiveSets, place: Path, fmt: str
) -> None:
    live = live_set(size_bytes=8 * MIB)
    dice = random.Random(5)
    original = dice.randbytes(3 * MIB) + bytes(4 * MIB) + dice.randbytes(MIB)
    source = place / "original"
    (place / "flat").write_bytes(original)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", fmt, place / "flat", source], check=True)
    await live.create(size_bytes=None, import_from=str(source), import_format=fmt, cache="writeback")
    await live.start()
    assert (await live.scrub()).outcome == "clean"
    for copy, offset in (("a", 1000), ("b", 1512), ("c", 7 * MIB + 5), ("a", 5 * MIB)):
        live.flip(copy, offset)
    assert (await live.scrub()).outcome == "repaired"
    await export(live, place / "running", format=fmt)
    await live.sets.stop(NAME)
    await export(live, place / "stopped", format=fmt)
    assert as_raw(place / "running", fmt) == as_raw(place / "stopped", fmt) == original


async def test_no_other_set_takes_an_export_for_its_image(live_set: LiveSets, place: Path) -> None:
    """An image that is gone for a while has left its identity file."""
    live = live_set(size_bytes=4 * MIB)
    await filled(live)
    image = str(place / "other.img")
    mine = Path(f"{live.image('a')}.qorum").read_text()
    (place / "other.img.qorum").write_text(mine.replace('"set": "web01"', '"set": "other"'))
    for path in (image, f"{image}.qorum"):
        with pytest.raises(RefusedError, match="copy a of set 'other'"):
            await export(live, Path(path), overwrite=True)
    nothing_is_left(live, place, "other.img.qorum")


async def test_an_export_that_was_killed_and_cannot_be_taken_back_keeps_nobody_from_stopping_the_set(
    live_set: LiveSets, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, lstat, answers = live_set(size_bytes=4 * MIB), Path.lstat, threading.Event()
    await filled(live, stopped=False)
    live.dies_at("exporting:jobs.look", "export", NAME, str(place / "x"))

    def hanging(path: Path) -> os.stat_result:
        if path.name.endswith(".qorum-export"):
            answers.wait()
        return lstat(path)

    async def not_ended(*_: object, **__: object) -> None:
        raise QorumError("A copy job did not end.")

    monkeypatch.setattr(export_target, "_REMOVED_S", 0.1)
    with monkeypatch.context() as broken:
        broken.setattr(export_target.jobs, "drop_all", not_ended)
        await live.sets.stop(NAME)
    try:
        monkeypatch.setattr(Path, "lstat", hanging)
        await live.start()
        with pytest.raises(RefusedError, match="cannot be removed yet"):
            await export(live, place / "x")
        await live.sets.stop(NAME)
    finally:
        answers.set()
    monkeypatch.undo()
    await export(live, place / "x")
    nothing_is_left(live, place, "x")


async def test_a_job_that_does_not_end_is_left_to_the_next_command(
    live_set: LiveSets, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set(size_bytes=4 * MIB)
    await filled(live, stopped=False)

    async def not_ended(*_: object, **__: object) -> None:
        raise QorumError("A copy job did not end.")

    async def unread(*_: object, **__: object) -> dict[str, object]:
        return {}

    with monkeypatch.context() as broken:
        broken.setattr(exporting.jobs, "look", unread)
        broken.setattr(exporting.export_target, "drop_job", not_ended)
        with pytest.raises(QorumError, match="could not be copied"):
            await export(live, place / "x")
    assert (live.directories.state_dir(NAME) / "exporting.json").exists()
    assert (await live.scrub()).outcome == "clean"
    nothing_is_left(live, place)
    await live.sets.stop(NAME)


async def test_an_operators_decision_removes_what_a_killed_export_left_too(live_set: LiveSets, place: Path) -> None:
    live = live_set(size_bytes=4 * MIB)
    await filled(live, stopped=False)
    live.dies_at("exporting:jobs.look", "export", NAME, str(place / "x"))
    with pytest.raises(QorumError):
        await live.sets.resolve(NAME, ResolveRequest(undo=7))
    nothing_is_left(live, place)
    await live.sets.stop(NAME)


async def test_the_file_is_flushed_on_the_way(live_set: LiveSets, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page cache would hold at the end could take longer than the deadline of one flush."""
    live, flush, flushes = live_set(size_bytes=8 * MIB), exporting.NbdLink.flush, []

    def counted(link: exporting.NbdLink) -> bool:
        flushes.append(link)
        return flush(link)

    await filled(live)
    monkeypatch.setattr(exporting, "_FLUSH_BYTES", MIB)
    monkeypatch.setattr(exporting.NbdLink, "flush", counted)
    await export(live, place / "x")
    assert len(flushes) >= live.size_bytes // 2 // MIB


async def test_a_sink_that_dies_costs_the_export_and_no_guest(
    live_set: LiveSets, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, begin = live_set(size_bytes=4 * MIB), exporting.jobs.begin
    shadow = await filled(live, stopped=False)
    paths = SinkPaths(live.runtime.directory)

    async def without_a_sink(*arguments: object, **keys: object) -> None:
        pid = process.find_pid(paths)
        assert pid is not None
        process.kill(paths, pid)
        await process.wait_gone(paths, pid, deadline_s=20)
        await begin(*arguments, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting.jobs, "begin", without_a_sink)
    with pytest.raises(QorumError):
        await export(live, place / "x")
    nothing_is_left(live, place)
    link = live.link()
    assert link.write(0, b"n" * SECTOR)
    assert link.read(Range(SECTOR, 2 * MIB)) == shadow[SECTOR : SECTOR + 2 * MIB]
    link.close()
    await live.sets.stop(NAME)


async def test_a_file_that_hangs_holds_up_no_guest(
    live_set: LiveSets, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sink stops as the job becomes ready: before anything drains it is asked for a flush."""
    live, look = live_set(size_bytes=4 * MIB, timeouts=Timeouts(copy_s=1.0)), exporting.jobs.look
    await filled(live, stopped=False)
    paths = SinkPaths(live.runtime.directory)

    async def until_ready(*arguments: object, **keys: object) -> object:
        states = await look(*arguments, **keys)  # type: ignore[arg-type]
        pid = process.find_pid(paths)
        if any(state.ready for state in states.values()) and pid is not None:
            os.kill(pid, signal.SIGSTOP)
        return states

    monkeypatch.setattr(exporting.jobs, "look", until_ready)
    with counting(live) as written, pytest.raises(QorumError, match="did not answer"):
        await export(live, place / "x")
    monkeypatch.undo()
    assert written[0] > 100
    nothing_is_left(live, place)
    assert (await live.scrub()).outcome == "clean"
    await live.sets.stop(NAME)
