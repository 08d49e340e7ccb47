"""Faults of the daemon and around it: killed, stopped, its monitors held by a stranger, a guest that stops."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qorumctl.controller.sets import QuorumSets
from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.errors import DaemonStalledError
from tests.attack import Attack
from tests.integration.faults import HASTY, Guests, Said, after, at_work, begin, rot, say, tell
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.integration.picture import status_of
from tests.live import MIB, end_watcher, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]


async def running(live: LiveSet) -> bytearray:
    await live.create()
    await live.start()
    return await asyncio.to_thread(live.fill)


def pid_of(live: LiveSet) -> int:
    pid = process.running_pid(live.runtime)
    assert pid is not None
    return pid


# -- killed


@pytest.mark.attack("a daemon that dies loses no acknowledged write", "SIGKILL of it during scrubs", weight=3)
async def test_a_daemon_killed_at_any_instant_of_a_scrub(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=32 * MIB)
    shadow = await running(live)
    hot, cold = Range(0, 4 * MIB), Range(4 * MIB, 28 * MIB)
    earlier: set[int] = set()
    for seed in attack.rounds(2):
        dice = random.Random(seed)
        guests = Guests(live, shadow, hot, seed=seed)
        with guests:
            injected = rot(live, "abc", dice, 60, cold)
            scrub = begin(live, "scrub", NAME, "--rate", "64MiB", timeouts={})
            await at_work(live, scrub)
            await after(dice.uniform(0.0, 0.7), lambda: process.kill(live.runtime, pid_of(live)))
            said = await asyncio.to_thread(tell, scrub)
        assert said.code in {1, 3}, said
        if said.code == 1:
            # Refused: it was dead before the scrub had looked at it, and nothing is repaired without a daemon.
            assert said.document["code"] in {"daemon-gone", "copy-unavailable", "refused"}
            told = said.document["code"] == "refused" or "is gone" in said.words
            assert told or "closed the connection" in said.words or "cannot be" in said.words, said
            assert (await status_of(live.sets)).state == "failed"
        if live.sets.history(NAME).runs:
            found = {f.offset // SECTOR for f in live.sets.report(NAME).findings if f.action == "repaired"}
            # Or of the round before: it may have been killed before it had begun a run.
            assert found <= set(injected) | earlier
        earlier |= set(injected)
        started = await live.sets.start(NAME)
        assert started.recovery is not None
        recovery = live.sets.report(NAME, started.recovery)
        assert {f.action for f in recovery.findings} <= {"repaired"}, recovery.findings
        assert (await live.scrub()).outcome == "clean"
        assert {copy: guests.wrong(live.contents(copy)) for copy in "abc"} == {"a": [], "b": [], "c": []}
        assert live.contents("a") == live.contents("b") == live.contents("c")
        shadow[:] = live.contents("a")
        attack.count(kills=1, mid_run=said.code == 1, writes=guests.acknowledged, flips=len(injected))


# -- stopped


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_daemon_that_is_stopped_in_a_scrub_is_named_after_one_deadline(live_set: LiveSets) -> None:
    live = live_set(size_bytes=32 * MIB)
    shadow = await running(live)
    sectors = rot(live, "abc", random.Random(1), 10, Range(0, live.size_bytes))
    pid = pid_of(live)
    scrub = begin(live, "scrub", NAME, "--rate", "16MiB")
    await asyncio.to_thread(wait_for, lambda: on_its_way(live), "a scrub on its way")
    with frozen(pid):
        said = await asyncio.to_thread(tell, scrub)
        stopped = f"qemu-storage-daemon (pid {pid}) was stopped by a signal and answers nobody."
        assert (said.summary, said.document["message"]) == ((1, "daemon-stalled"), stopped)
        assert said.words.endswith(f"{stopped} Let it go on with 'kill -CONT {pid}'.")
        status = await say(live, "status")
        assert (status.code, status.document["sets"][0]["state"], status.document["sets"][0]["reason"]) == (
            1,
            "stalled",
            stopped,
        )
        hasty = QuorumSets(live.directories, timeouts=HASTY)
        for command in (hasty.start(NAME), hasty.stop(NAME), hasty.qmp(NAME, "query-version")):
            with pytest.raises(DaemonStalledError, match=rf"pid {pid}\) was stopped by a signal"):
                await command
    report = await live.scrub()
    assert report.resumable is False
    assert [f.offset // SECTOR for f in report.findings] == sectors
    assert all(live.equal_to(shadow).values())


def on_its_way(live: LiveSet) -> bool:
    with live.sets._context(NAME).store(read_only=True) as store:
        return bool(store.runs(1)) and store.runs(1)[0].position_bytes > 0


# -- monitors that a stranger holds


@contextmanager
def held(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(path))
        assert stranger.recv(4096)
        yield


def held_words(path: Path) -> str:
    return f"Another program holds the monitor {path}; the daemon of web01 itself answers."


async def test_a_stranger_on_the_control_monitor(live_set: LiveSets) -> None:
    live = live_set()
    shadow = await running(live)
    live.flip("b", 0)
    path = live.runtime.control_sock
    with held(path):
        said = await say(live, "status")
        (status,) = said.document["sets"]
        assert (said.code, status["state"], status["reason"]) == (1, "stalled", held_words(path))
        said = await say(live, "start")
        assert (said.summary, said.document["message"]) == ((1, "daemon-stalled"), held_words(path))
        assert "Find it with 'ss -xp' and end it" in said.words
        # These use the other one.
        assert (await live.scrub()).outcome == "repaired"
        assert (await live.sets.qmp(NAME, "query-version")).result
        assert (await live.sets.stop(NAME)).warnings == []
    assert all(live.equal_to(shadow).values())
    assert (await live.sets.start(NAME)).recovery is None


async def test_a_stranger_on_the_scrub_monitor(live_set: LiveSets) -> None:
    live = live_set()
    await running(live)
    path = live.runtime.scrub_sock
    hasty = QuorumSets(live.directories, timeouts=HASTY)
    with held(path):
        assert (await status_of(live.sets)).state == "healthy"
        assert not (await live.sets.start(NAME)).changed
        said = await say(live, "scrub")
        assert (said.summary, said.document["message"]) == ((1, "daemon-stalled"), held_words(path))
        for command in (hasty.stop(NAME), hasty.qmp(NAME, "query-version")):
            with pytest.raises(DaemonStalledError) as caught:
                await command
            assert caught.value.message == held_words(path)
        assert (await status_of(live.sets)).volume is not None
        # The way out that is left, and its price.
        stopped = await hasty.stop(NAME, force=True)
        assert stopped.warnings == ["The daemon did not answer and was ended: the next start compares the copies."]
    assert (await live.sets.start(NAME)).recovery is not None


async def test_a_stranger_on_the_watch_monitor(live_set: LiveSets) -> None:
    live = live_set()
    await running(live)
    end_watcher(live.directories.state_dir(NAME))
    with held(live.runtime.watch_sock):
        status = await status_of(live.sets)
        assert (status.state, status.watched) == ("degraded", False)
        assert status.reason == "Nobody listens for write errors now: a copy that misses a write goes unnoticed."
        watch = begin(live, "watch", NAME)
        assert watch.stderr is not None
        line = await asyncio.to_thread(watch.stderr.readline)
        watch.terminate()
        await asyncio.to_thread(watch.communicate)
        words = line.decode()
        assert f"The monitor {live.runtime.watch_sock} did not answer within 1 s" in words
        assert "another client holds the monitor" in words
        assert (await live.scrub()).outcome == "clean"
    # It is free again: the next start brings the watcher back.
    assert (await live.sets.start(NAME)).warnings == []
    assert (await status_of(live.sets)).watched


# -- a guest that stops


GUEST = """
import random, sys
from pathlib import Path
from qorumctl.copies.nbd_link import NbdLink
socket, at, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
link, dice = NbdLink(socket, "volume", who="The guest", timeout_s=120), random.Random(seed)
MIB, under_way = 1 << 20, []
print("writing", flush=True)
n = 0
while True:
    # A queue of eight, half writes, half reads, of a MiB each: nearly always in the middle of sending or taking one.
    slot = n % 8
    if n >= 8:
        assert link.complete(under_way[slot])
    ticket = link.submit_write(at + slot // 2 * MIB, dice.randbytes(MIB)) if slot % 2 else link.submit_read(
        __import__("qorumctl.core.ranges", fromlist=["Range"]).Range(at + slot // 2 * MIB, MIB))
    under_way[slot:slot + 1] = [ticket]
    n += 1
"""


async def test_a_guest_that_is_stopped_under_load_stalls_only_the_scrub(live_set: LiveSets) -> None:
    live = live_set(size_bytes=16 * MIB)
    shadow = await running(live)
    guest = subprocess.Popen(
        [sys.executable, "-c", GUEST, str(live.runtime.nbd_sock), str(8 * MIB), "5"], stdout=subprocess.PIPE
    )
    try:
        assert guest.stdout is not None
        assert await asyncio.to_thread(guest.stdout.readline)
        stalled: Said | None = None
        ends_at_s, sector = time.monotonic() + 60, 0
        while stalled is None and time.monotonic() < ends_at_s:
            # Without a suspect a scrub has nothing to drain for.
            live.flip("a", sector * SECTOR)
            sector += 2
            guest.send_signal(signal.SIGSTOP)
            said = await say(live, "scrub")
            guest.send_signal(signal.SIGCONT)
            stalled = said if said.code == 1 else None
        assert stalled is not None, "it was never stopped in the middle of a request"
        assert stalled.document["code"] == "daemon-stalled"
        assert "A guest that was stopped in a request holds it up, or a copy that hangs" in stalled.words, stalled
        assert guest.poll() is None
        report = await live.scrub()
        assert {f.action for f in report.findings} == {"repaired"}
        assert guest.poll() is None, "the guest never noticed"
    finally:
        guest.kill()
        guest.communicate()
    await live.scrub()
    assert live.contents("a") == live.contents("b") == live.contents("c")
    assert live.contents("a")[: 8 * MIB] == shadow[: 8 * MIB]
