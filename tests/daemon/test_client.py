"""One monitor: every way a daemon can fail to answer becomes one named error, within a deadline and without noise."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from qorumctl.daemon.client import Monitor
from qorumctl.errors import CommandError, DaemonGoneError, DaemonStalledError
from tests.live import Daemons

pytestmark = pytest.mark.live


async def test_a_reply_and_its_debug_line(daemons: Daemons, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "qorumctl.qmp")
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        caplog.clear()
        assert await monitor.execute("query-block-exports") == []
    assert [record.name for record in caplog.records] == ["qorumctl.qmp"] * 2
    name = f"{paths.directory.name}/control"
    assert caplog.messages[0] == f"{name} -> query-block-exports"
    assert caplog.messages[1].startswith(f"{name} <- query-block-exports: [] (")


async def test_commands_may_run_at_once(daemons: Daemons) -> None:
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        replies = await asyncio.gather(*(monitor.execute("query-block-exports") for _ in range(50)))
    assert replies == [[]] * 50


async def test_a_refused_command_keeps_qemus_words(daemons: Daemons) -> None:
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        with pytest.raises(CommandError) as caught:
            await monitor.execute("blockdev-del", {"node-name": "nothing"})
    assert caught.value.command == "blockdev-del"
    assert caught.value.error_class == "GenericError"
    assert caught.value.description == "Failed to find node with node-name='nothing'"


async def test_a_second_client_gives_up_at_its_deadline(daemons: Daemons) -> None:
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as first:
        began_s = time.monotonic()
        with pytest.raises(DaemonStalledError, match="another client holds the monitor"):
            await Monitor.open(paths.control_sock, timeout_s=0.3)
        assert time.monotonic() - began_s < 3
        assert await first.execute("query-block-exports") == [], "the first is not disturbed"


async def test_a_second_client_is_served_when_the_first_leaves(daemons: Daemons) -> None:
    paths, _ = await daemons.spawn()
    first = await Monitor.open(paths.control_sock)
    waiting = asyncio.create_task(Monitor.open(paths.control_sock))
    await asyncio.sleep(0)
    await first.close()
    async with await waiting as second:
        assert await second.execute("query-block-exports") == []


async def test_a_full_backlog_is_a_stall_too(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    os.kill(pid, signal.SIGSTOP)
    queued: list[socket.socket] = []
    try:
        for _ in range(64):
            queued.append(socket.socket(socket.AF_UNIX))
            queued[-1].setblocking(False)
            if queued[-1].connect_ex(str(paths.control_sock)):
                break
        else:
            pytest.fail("the backlog has no end")
        with pytest.raises(DaemonStalledError):
            await Monitor.open(paths.control_sock, timeout_s=0.3)
    finally:
        for connection in queued:
            connection.close()
        os.kill(pid, signal.SIGCONT)


async def test_nothing_listens(short_dir: Path) -> None:
    with pytest.raises(DaemonGoneError):
        await Monitor.open(short_dir / "absent.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(short_dir / "stale.sock"))
    with pytest.raises(DaemonGoneError):
        await Monitor.open(short_dir / "stale.sock")


async def test_a_command_that_takes_too_long_is_a_stall(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DaemonStalledError, match=r"stopped by a signal.*kill -CONT"):
            await monitor.execute("query-block-exports", timeout_s=0.2)
        os.kill(pid, signal.SIGCONT)
        assert await monitor.execute("query-named-block-nodes") == [], "the late reply is not taken for this one's"


async def test_death_in_flight_and_after_is_named_and_silent(
    daemons: Daemons, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    paths, pid = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        os.kill(pid, signal.SIGSTOP)
        flying = [asyncio.create_task(monitor.execute("query-block-exports")) for _ in range(3)]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        for command in flying:
            with pytest.raises(DaemonGoneError, match="query-block-exports"):
                await command
        with pytest.raises(DaemonGoneError):
            await monitor.execute("query-block-exports")
    await monitor.close()
    with pytest.raises(DaemonGoneError):
        await monitor.execute("query-block-exports")
    del monitor
    gc.collect()
    assert caplog.records == [], "no traceback, and no task whose exception nobody took"
    assert capfd.readouterr().err == ""


async def test_a_daemon_that_dies_during_the_greeting_is_gone(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    os.kill(pid, signal.SIGSTOP)
    opening = asyncio.create_task(Monitor.open(paths.control_sock))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DaemonGoneError):
        await opening


async def test_events_are_not_hoarded(daemons: Daemons) -> None:
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        await monitor.execute("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 512})
        await monitor.execute("block-export-add", {"type": "nbd", "id": "n", "node-name": "n"})
        # Announces BLOCK_EXPORT_DELETED, before the reply to what follows.
        await monitor.execute("block-export-del", {"id": "n"})
        await monitor.execute("blockdev-del", {"node-name": "n"})
        assert monitor._client.events.history == ()
        assert monitor._client.events.empty()


async def announce(monitor: Monitor, count: int) -> None:
    """So many events BLOCK_EXPORT_DELETED, all of them before this returns."""
    await monitor.execute("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 512})
    for number in range(count):
        await monitor.execute("block-export-add", {"type": "nbd", "id": f"n{number}", "node-name": "n"})
        await monitor.execute("block-export-del", {"id": f"n{number}"})
    await monitor.execute("blockdev-del", {"node-name": "n"})


async def test_events_are_told_in_order_and_end_with_the_daemon(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    async with await Monitor.open(paths.watch_sock) as monitor:
        stream = monitor.listen("BLOCK_EXPORT_DELETED")
        await announce(monitor, 3)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            heard = [event["data"]["id"] async for event in stream.read()]
    assert (heard, stream.lost) == (["n0", "n1", "n2"], 0)


async def test_events_wake_a_reader_and_others_are_left_out(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    async with await Monitor.open(paths.watch_sock) as monitor:
        stream, other = monitor.listen("BLOCK_EXPORT_DELETED"), monitor.listen("QUORUM_FAILURE")
        waiting = asyncio.ensure_future(anext(aiter(stream.read())))
        deaf = asyncio.ensure_future(anext(aiter(other.read()), None))
        await asyncio.sleep(0)
        await announce(monitor, 1)
        async with asyncio.timeout(10):
            assert (await waiting)["event"] == "BLOCK_EXPORT_DELETED"
            assert not deaf.done()
            os.kill(pid, signal.SIGKILL)
            assert await deaf is None


async def test_events_that_nobody_reads_are_counted_and_dropped(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qorumctl.daemon.client._MOST_EVENTS", 2)
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.watch_sock) as monitor:
        stream = monitor.listen("BLOCK_EXPORT_DELETED")
        await announce(monitor, 5)
        assert stream.lost == 3
        assert [listener.history for listener in monitor._client._listeners] == [(), ()]


@pytest.mark.parametrize("when", ["before the greeting", "after the greeting"])
async def test_what_the_last_client_was_not_told_is_no_greeting(short_dir: Path, when: str) -> None:
    """QEMU keeps it for whoever comes next."""
    event = b'{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "QUORUM_REPORT_BAD", "data": {}}\n'
    greeting = (
        b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\n'
    )
    clients = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal clients
        clients += 1
        first = clients == 1
        writer.write(event if first and when.startswith("before") else b"")
        writer.write(greeting)
        writer.write(event if first and when.startswith("after") else b"")
        # A client's message has no line break, and the next one is only sent after the answer.
        while message := await reader.read(4096):
            asked = json.loads(message)
            # The negotiation has no id.
            answer = {"return": {}} | ({"id": asked["id"]} if "id" in asked else {})
            writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    async with await asyncio.start_unix_server(serve, short_dir / "m.sock"):
        async with await Monitor.open(short_dir / "m.sock", timeout_s=20) as monitor:
            assert await monitor.execute("query-version") == {}
        assert clients == 2
