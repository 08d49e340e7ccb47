"""The watcher as a process: begun by `start`, one for each set, there over ends of the daemon, gone with `stop`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.controller import log_files, watcher
from qorumctl.daemon import process
from qorumctl.store import SetLock
from tests.integration.harness import NAME, LiveSet
from tests.integration.test_watch import AT, NEW, OLD, started, status, write
from tests.live import MIB, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 4 * MIB


def holder(live: LiveSet) -> tuple[int, str] | None:
    return SetLock.held_by(live.directories.state_dir(NAME), file_name=watcher.LOCK_NAME)


def watching_pid(live: LiveSet) -> int:
    held = holder(live)
    assert held is not None
    return held[0]


def is_watched(live: LiveSet) -> bool:
    pid = process.running_pid(live.runtime)
    return pid is not None and watcher.is_watched(live.sets._context(NAME), pid)


def kill(live: LiveSet, number: signal.Signals = signal.SIGKILL) -> None:
    pid = watching_pid(live)
    os.kill(pid, number)
    wait_for(lambda: (holder(live) or (0, ""))[0] != pid, "the end of the watcher")


async def simple(live: LiveSet) -> None:
    await live.create(cache="writeback")
    await live.start()


async def test_it_is_begun_by_start_in_a_session_of_its_own_and_ended_by_stop(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await simple(live)
    pid, purpose = holder(live) or (0, "")
    assert purpose == "watch --detached"
    assert os.getsid(pid) == pid
    assert (live.runtime.directory / "watch.log").stat().st_mode & 0o777 == 0o600
    await live.sets.stop(NAME)
    assert holder(live) is None
    await live.start()
    assert is_watched(live)
    await live.sets.stop(NAME)
    await live.sets.delete(NAME)
    assert holder(live) is None


async def test_start_begins_no_second_one_and_brings_back_one_that_died(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await simple(live)
    first = watching_pid(live)
    assert not (await live.sets.start(NAME)).changed
    assert watching_pid(live) == first
    kill(live)
    found = await status(live)
    assert (found.state, found.watched) == ("degraded", False)
    assert found.reason == "Nobody listens for write errors now: a copy that misses a write goes unnoticed."
    await live.start()
    assert is_watched(live)
    found = await status(live)
    assert (found.state, found.watched, {copy.state for copy in found.copies}) == ("degraded", True, {"suspect"})
    assert (found.reason or "").startswith("Any copy may have missed a write: nobody listened for write errors")
    # Each still votes: else none could win.
    live.flip("b", 0)
    assert (await live.scrub()).outcome == "repaired"
    assert (await status(live)).state == "healthy"


async def test_a_time_unwatched_outlives_stop_and_start(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await simple(live)
    kill(live)
    await live.sets.stop(NAME)
    await live.start()
    assert (await status(live)).state == "degraded"
    assert (await live.scrub(mode="report")).outcome == "clean"
    assert (await status(live)).state == "healthy"


async def test_it_waits_for_the_set_to_be_started_again(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await simple(live)
    pid = watching_pid(live)
    daemon = process.running_pid(live.runtime)
    assert daemon is not None
    process.kill(live.runtime, daemon)
    wait_for(lambda: not process.find_pid(live.runtime), "the end of the daemon")
    assert (await status(live)).state == "failed"
    await live.start()
    assert watching_pid(live) == pid
    assert is_watched(live)
    assert (await status(live)).state == "healthy"
    os.kill(process.running_pid(live.runtime) or 0, signal.SIGKILL)
    wait_for(lambda: not process.find_pid(live.runtime), "the end of the daemon")
    await live.sets.stop(NAME)
    assert holder(live) is None


async def test_without_a_watcher_a_set_starts_all_the_same_and_says_so(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create(cache="writeback")
    monkeypatch.setattr("sys.executable", "/bin/false")
    result = await live.sets.start(NAME)
    (warning,) = result.warnings
    assert warning.startswith("The watcher could not be started: it ended at once (see ")
    assert (result.changed, result.state) == (True, "degraded")
    monkeypatch.undo()
    assert (await live.sets.start(NAME)).warnings == []
    assert is_watched(live)
    # It came too late to know.
    assert (await status(live)).copies[0].state == "suspect"


async def test_what_it_hears_is_told_to_everybody_who_watches(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE)
    fails = (await started(live, nbdkit))["c"]
    live.poke("a", 0, NEW)
    told: Path = live.images_dir / "told"
    with told.open("wb") as out:
        follower = live.cli("--json", "watch", NAME, stdout=out, stderr=subprocess.PIPE)
        assert follower.stderr is not None
        assert follower.stderr.readline().startswith(b"Another watcher listens to ")
        link = live.link()
        assert link.write(2 * MIB, OLD)
        fails.writes.touch()
        assert link.write(AT, NEW)
        fails.writes.unlink()
        link.close()
        wait_for(lambda: told.read_bytes().count(b"\n") >= 1, "the write error, told")
        # When the one that `start` began is gone, it takes its place.
        first = watching_pid(live)
        kill(live)
        wait_for(lambda: (holder(live) or (first, ""))[0] == follower.pid, "another holder")
        wait_for(lambda: told.read_bytes().count(b"\n") >= 2, "that nobody listened for a moment")
        follower.send_signal(signal.SIGTERM)
        follower.communicate(timeout=10)
        assert follower.returncode == 0
    documents = [json.loads(line) for line in told.read_text().splitlines()]
    failed, unwatched = documents[0], documents[-1]
    assert {key: failed[key] for key in ("schema", "set", "kind", "copy", "operation", "offset", "length")} == {
        "schema": "qorum.event/1",
        "set": NAME,
        "kind": "QUORUM_REPORT_BAD",
        "copy": "c",
        "operation": "write",
        "offset": AT,
        "length": 4096,
    }
    assert (failed["error"], failed["missed_write"]) == ("Input/output error", True)
    assert (unwatched["kind"], unwatched["copy"]) == ("UNWATCHED", None)


async def test_one_that_was_begun_by_hand_stays_over_stop_and_start(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create(cache="writeback")
    by_hand = live.cli("watch", NAME)
    try:
        wait_for(lambda: holder(live), "a watcher that waits")
        await live.start()
        assert (watching_pid(live), is_watched(live)) == (by_hand.pid, True)
        assert (await live.sets.stop(NAME)).warnings == []
        assert by_hand.poll() is None
        await live.start()
        assert is_watched(live)
        assert (await status(live)).state == "healthy"
        await live.sets.stop(NAME)
        await live.sets.delete(NAME)
        assert by_hand.wait(10) == 0
    finally:
        by_hand.kill()
        by_hand.wait()


async def test_a_failed_start_leaves_no_watcher(live_set: LiveSets, monkeypatch: pytest.MonkeyPatch) -> None:
    from qorumctl.daemon.quorum_set import QuorumSet
    from qorumctl.errors import DaemonError

    live = live_set(size_bytes=SIZE)
    await live.create(cache="writeback")

    async def refuse(self: QuorumSet) -> None:
        raise DaemonError("No volume today.")

    monkeypatch.setattr(QuorumSet, "export_volume", refuse)
    with pytest.raises(DaemonError, match="No volume today"):
        await live.start()
    assert holder(live) is None
    monkeypatch.undo()
    await live.start()
    assert (await status(live)).state == "healthy"


async def test_the_daemons_log_is_cut_to_its_tail(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await simple(live)
    log = live.runtime.log
    with log.open("ab") as file:
        file.write(b"old line\n" * (log_files.MOST_BYTES // 9 + 1) + b"newest line\n")
    # Its tail is being written where it is seen to be shorter.
    wait_for(lambda: log.stat().st_size < 2 * MIB and log.read_bytes().endswith(b"newest line\n"), "a shorter log")
    lines = log.read_bytes().splitlines()
    assert (lines[0], lines[1], lines[-1]) == (b"[earlier lines were dropped]", b"old line", b"newest line")


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
async def test_what_a_busy_watcher_hears_after_a_scrub_of_its_repairs_makes_nobody_suspect(
    live_set: LiveSets, killed: bool
) -> None:
    live = live_set(size_bytes=SIZE)
    await simple(live)
    live.fill()
    for sector in range(0, 4096, 128):
        live.flip("b", sector * 512)
    os.kill(watching_pid(live), signal.SIGSTOP)
    try:
        if killed:
            live.dies_at("watcher:note_scrubbed", "scrub", NAME)
        else:
            assert (await live.scrub()).outcome == "repaired"
    finally:
        os.kill(watching_pid(live), signal.SIGCONT)

    def told() -> int:
        with live.sets._context(NAME).store(read_only=True) as store:
            return len(store.events(10))

    wait_for(lambda: told() >= 2, "the last report")
    assert (await status(live)).state == "healthy"


async def test_a_watcher_that_cannot_write_things_down_gives_up_and_the_set_counts_as_unwatched(
    live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    live = live_set(size_bytes=SIZE)
    fails = (await started(live, nbdkit))["c"]
    state = live.directories.state_dir(NAME) / "state.db"
    kept = state.read_bytes()
    state.write_bytes(b"no database" * 1000)
    fails.writes.touch()
    write(live)
    # It tries for ten seconds.
    wait_for(lambda: holder(live) is None, "the end of a watcher that cannot write", deadline_s=120)
    fails.writes.unlink()
    for suffix in ("-wal", "-shm"):
        Path(f"{state}{suffix}").unlink(missing_ok=True)
    state.write_bytes(kept)
    assert (await status(live)).watched is False
