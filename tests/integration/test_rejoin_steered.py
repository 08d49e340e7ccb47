"""`copy rejoin` on a terminal: Ctrl-C, SIGTERM and Ctrl-Z, and what a guest notices of them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qorumctl.controller.observer import ScrubStart, Silent
from qorumctl.daemon.client import Monitor
from qorumctl.store import Store
from tests.integration.absence import as_if_nothing_had_been, standing, write
from tests.integration.harness import NAME, LiveSet
from tests.integration.picture import status_of
from tests.live import MIB, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 16 * MIB


async def away(nbdkit: Nbdkit, live: LiveSet) -> bytearray:
    """A set whose copy b is slow, and away."""
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = nbdkit("--filter=delay", "file", paths[1], "delay-read=25ms")
    await live.create(sources=[paths[0], server.uri, paths[2]], size_bytes=None)
    live.sources = paths
    await live.start()
    await live.sets.detach(NAME, "b")
    return live.fill()


def begun(live: LiveSet) -> subprocess.Popen[bytes]:
    command = live.cli("copy", "rejoin", NAME, "b", "--full", stderr=subprocess.PIPE)
    assert command.stderr is not None
    assert b"comparing all of it" in command.stderr.readline()
    return command


async def test_a_scrub_that_is_stopped_as_it_brings_a_copy_back_is_unfinished(
    nbdkit: Nbdkit, live_set: LiveSets
) -> None:
    live = live_set(size_bytes=SIZE)
    await away(nbdkit, live)
    with Store.open(live.directories.state_dir(NAME)) as store:
        mark = store.absences()["b"]
        store.note_absence(replace(mark, kept=False, lost="it was killed", rewrite=((0, 512),)))
    for number, code in ((signal.SIGTERM, 6), (signal.SIGINT, 130)):
        command = live.cli("scrub", NAME, stderr=subprocess.PIPE)
        assert command.stderr is not None
        while b"comparing all of it" not in (line := command.stderr.readline()):
            assert line
        command.send_signal(number)
        _, said = command.communicate(timeout=60)
        assert (command.returncode, b"copy b of web01 is still away" in said) == (code, True)


async def test_interrupted_it_leaves_the_copy_away_and_goes_on_later(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await away(nbdkit, live)
    for number, code in ((signal.SIGINT, 130), (signal.SIGINT, 130), (signal.SIGTERM, 1)):
        command = begun(live)
        note = (await status_of(live.sets)).copies[1].note
        assert note is not None
        assert note.endswith(f"; process {command.pid} (copy rejoin) is at it")
        command.send_signal(number)
        _, said = command.communicate(timeout=60)
        assert command.returncode == code
        assert "copy b of web01 is still away. The same command goes on" in " ".join(said.decode().split())
        state = await standing(live)
        assert (set(state.copies), "copy-b" in state.nodes, len(state.missed)) == ({"a", "c"}, False, 1)
        assert state.exports == {"volume", "heal", "copy-a", "copy-c"}
    write(live, shadow)
    assert (await live.sets.rejoin(NAME, "b")).full
    assert as_if_nothing_had_been(await standing(live))
    assert set(live.equal_to(shadow).values()) == {True}


async def test_cancelled_it_ends_without_a_traceback(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    """As by Ctrl-C before there is anything to show: the thread that works is stopped, and its error is nobody's."""
    live = live_set(size_bytes=SIZE)
    await away(nbdkit, live)
    loop, complaints = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: complaints.append(context))

    async def cancelled_as_it_begins() -> None:
        this = asyncio.current_task()
        assert this is not None

        class Canceller(Silent):
            def started(self, start: ScrubStart) -> None:
                loop.call_soon_threadsafe(this.cancel)

        await live.sets.rejoin(NAME, "b", full=True, observer=Canceller())

    ended, _ = await asyncio.wait([asyncio.ensure_future(cancelled_as_it_begins())])
    assert ended.pop().cancelled()
    # What nobody holds any more is when asyncio complains.
    gc.collect()
    assert complaints == []
    assert set((await standing(live)).copies) == {"a", "c"}


async def test_stopped_it_holds_up_no_guest_and_no_drain(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await away(nbdkit, live)
    command = begun(live)
    command.send_signal(signal.SIGTSTP)
    stat = Path(f"/proc/{command.pid}/stat")
    wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "a stopped command")
    async with await Monitor.open(live.runtime.control_sock) as monitor:
        await monitor.execute("transaction", {"actions": []}, timeout_s=20)
    write(live, shadow)
    os.kill(command.pid, signal.SIGCONT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 0, said.decode()
    assert as_if_nothing_had_been(await standing(live))
    assert set(live.equal_to(shadow).values()) == {True}
