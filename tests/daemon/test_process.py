"""The daemon as a process: it starts whole or not at all, is found again, and is never mistaken for another."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.errors import DaemonStartError, RefusedError
from tests.live import DEADLINE_S, Daemons, wait_for

live = pytest.mark.live


def script(directory: Path, text: str) -> str:
    path = directory / "daemon.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def exists(pid: int) -> bool:
    """Also true of a zombie."""
    return Path(f"/proc/{pid}").exists()


def leftovers(paths: RuntimePaths) -> set[str]:
    return {entry.name for entry in paths.directory.iterdir()} - {"qsd.log"}


# --- start


@live
async def test_spawn_detaches_the_daemon_and_waits_until_it_answers(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()

    assert process.running_pid(paths) == pid
    assert os.getsid(pid) == pid, "a session of its own: it outlives the caller's terminal"
    proc = Path(f"/proc/{pid}")
    assert os.readlink(proc / "cwd") == "/"
    assert os.readlink(proc / "fd/0") == "/dev/null"
    assert os.readlink(proc / "fd/1") == os.readlink(proc / "fd/2") == str(paths.log)
    environment = (proc / "environ").read_bytes().split(b"\0")
    assert b"MALLOC_MMAP_THRESHOLD_=67108864" in environment
    assert b"MALLOC_TRIM_THRESHOLD_=268435456" in environment
    for path in (*paths.sockets, paths.pidfile, paths.log):
        assert path.stat().st_mode & 0o077 == 0, f"{path.name} is for its owner alone"


@live
async def test_each_of_the_three_monitors_serves_a_client_of_its_own(daemons: Daemons) -> None:
    paths, _ = await daemons.spawn()
    async with (
        await Monitor.open(paths.control_sock) as control,
        await Monitor.open(paths.scrub_sock) as scrub,
        await Monitor.open(paths.watch_sock) as watch,
    ):
        assert [await monitor.execute("query-block-exports") for monitor in (control, scrub, watch)] == [[], [], []]


@live
async def test_a_second_daemon_in_one_directory_is_refused_and_the_first_is_unharmed(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    with pytest.raises(RefusedError, match=f"pid {pid}"):
        await process.spawn(paths)
    async with await Monitor.open(paths.control_sock) as monitor:
        assert await monitor.execute("query-block-exports") == []


@live
async def test_a_directory_with_a_comma_and_a_space_works(short_dir: Path) -> None:
    paths = RuntimePaths(short_dir / "a,b c")
    paths.directory.mkdir()
    pid = await process.spawn(paths)
    try:
        assert process.running_pid(paths) == pid
    finally:
        process.kill(paths, pid)
        assert await process.wait_gone(paths, pid, deadline_s=DEADLINE_S)


@live
async def test_a_daemon_that_refuses_its_arguments_leaves_nothing(
    daemons: Daemons, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = process.find_binary()
    monkeypatch.setenv("QORUM_QSD", script(short_dir, f'exec {real} "$@" --blockdev driver=no-such-driver'))
    paths = daemons.paths()
    with pytest.raises(DaemonStartError, match="no-such-driver") as caught:
        await process.spawn(paths)
    assert str(paths.log) in str(caught.value)
    assert leftovers(paths) == set()


async def test_a_daemon_that_dies_at_once_is_quoted(
    daemons: Daemons, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "QORUM_QSD", script(short_dir, "echo first >&2; echo 'qemu-storage-daemon: it hurts.' >&2; exit 1")
    )
    paths = daemons.paths()
    paths.log.write_text("from an earlier run\n")
    with pytest.raises(DaemonStartError, match="ended at once: it hurts"):
        await process.spawn(paths)
    assert leftovers(paths) == set()


async def test_a_daemon_that_dies_in_silence_is_not_blamed_for_an_earlier_log(
    daemons: Daemons, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QORUM_QSD", script(short_dir, "exit 7"))
    paths = daemons.paths()
    paths.log.write_text("from an earlier run\n")
    with pytest.raises(DaemonStartError, match="exit 7"):
        await process.spawn(paths)


async def test_a_daemon_that_is_never_ready_is_killed_at_the_deadline(
    daemons: Daemons, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QORUM_QSD", script(short_dir, f"echo $$ > {short_dir}/pid; exec sleep 100"))
    paths = daemons.paths()
    with pytest.raises(DaemonStartError, match=r"not ready within 0\.5 s"):
        await process.spawn(paths, deadline_s=0.5)
    pid = int((short_dir / "pid").read_text())
    assert not exists(pid), "killed and reaped"
    assert leftovers(paths) == set()


async def test_a_path_too_long_for_a_socket_is_refused_before_anything(short_dir: Path) -> None:
    paths = RuntimePaths(short_dir / ("x" * 90))
    paths.directory.mkdir()
    with pytest.raises(RefusedError, match="107") as caught:
        await process.spawn(paths)
    assert "QORUM_RUNTIME_DIR" in str(caught.value)
    assert list(paths.directory.iterdir()) == []


async def test_a_missing_directory_is_named(short_dir: Path) -> None:
    with pytest.raises(DaemonStartError, match="cannot be started") as caught:
        await process.spawn(RuntimePaths(short_dir / "absent"))
    assert str(short_dir / "absent") in str(caught.value)


# --- the program


def test_a_missing_program_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QORUM_QSD", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DaemonStartError, match=r"qemu-system-common.*qemu-utils"):
        process.find_binary()


def test_a_wrong_override_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QORUM_QSD", "/nonexistent/qsd")
    with pytest.raises(DaemonStartError, match="QORUM_QSD names /nonexistent/qsd"):
        process.find_binary()


# --- whose pid it is


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "999999999", "1", "ourselves"])
def test_a_pidfile_that_names_no_daemon_of_ours_means_stopped(daemons: Daemons, text: str) -> None:
    paths = daemons.paths()
    assert process.running_pid(paths) is None
    paths.pidfile.write_text(text.replace("ourselves", str(os.getpid())) + "\n")
    assert process.running_pid(paths) is None


def test_a_reused_pid_is_not_ours_and_is_never_signalled(daemons: Daemons) -> None:
    paths, other = daemons.paths(), daemons.paths()
    with subprocess.Popen(
        ["sh", "-c", "read line", "sh", "--pidfile", str(other.pidfile)], stdin=subprocess.PIPE
    ) as stranger:
        paths.pidfile.write_text(str(stranger.pid))
        assert process.running_pid(paths) is None
        assert not process.terminate(paths, stranger.pid)
        assert not process.kill(paths, stranger.pid)
        assert stranger.poll() is None
        stranger.kill()


def test_a_zombie_is_not_running(daemons: Daemons) -> None:
    paths = daemons.paths()
    with subprocess.Popen(["sh", "-c", "exit", "sh", "--pidfile", str(paths.pidfile)]) as child:
        paths.pidfile.write_text(str(child.pid))
        wait_for(lambda: " Z " in Path(f"/proc/{child.pid}/stat").read_text(), "a zombie")
        assert process.running_pid(paths) is None


@live
async def test_the_daemon_is_found_through_a_symlinked_directory(daemons: Daemons, short_dir: Path) -> None:
    paths, pid = await daemons.spawn()
    (short_dir / "link").symlink_to(paths.directory)
    assert process.running_pid(RuntimePaths(short_dir / "link")) == pid


# --- the end


@live
async def test_terminate_ends_it_and_it_is_reaped(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    assert not await process.wait_gone(paths, pid, deadline_s=0)
    assert process.terminate(paths, pid)
    assert await process.wait_gone(paths, pid, deadline_s=DEADLINE_S)
    wait_for(lambda: not exists(pid), "the zombie to be reaped")
    assert process.running_pid(paths) is None
    assert await process.wait_gone(paths, pid, deadline_s=0), "gone is gone"


@live
async def test_what_a_killed_daemon_leaves_is_cleared(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    assert process.kill(paths, pid)
    assert await process.wait_gone(paths, pid, deadline_s=DEADLINE_S)
    assert process.running_pid(paths) is None
    assert leftovers(paths) == {"control.sock", "scrub.sock", "watch.sock", "nbd.sock", "qsd.pid"}
    process.clear_runtime(paths)
    assert leftovers(paths) == set()


@live
async def test_a_living_daemon_is_not_cleared(daemons: Daemons) -> None:
    paths, _ = await daemons.spawn()
    with pytest.raises(RefusedError):
        process.clear_runtime(paths)
    assert paths.control_sock.exists()


@live
async def test_a_dead_daemons_sockets_do_not_hinder_the_next(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    os.kill(pid, signal.SIGKILL)
    assert await process.wait_gone(paths, pid, deadline_s=DEADLINE_S)
    again = await process.spawn(paths)
    try:
        assert again != pid
    finally:
        process.kill(paths, again)
        assert await process.wait_gone(paths, again, deadline_s=DEADLINE_S)


@live
async def test_a_living_daemon_whose_pidfile_was_lost_is_neither_cleared_nor_replaced(daemons: Daemons) -> None:
    paths, pid = await daemons.spawn()
    paths.pidfile.unlink()
    assert process.running_pid(paths) is None
    with pytest.raises(RefusedError, match=f"pid {pid}"):
        await process.spawn(paths)
    async with await Monitor.open(paths.control_sock) as monitor:
        assert await monitor.execute("query-block-exports") == []
    assert not await process.wait_gone(paths, pid, deadline_s=0), "its pid is still known to be ours"
    assert process.kill(paths, pid)
    assert await process.wait_gone(paths, pid, deadline_s=DEADLINE_S)


def test_a_file_in_a_sockets_place_is_not_deleted(daemons: Daemons) -> None:
    paths = daemons.paths()
    paths.nbd_sock.write_text("precious")
    with pytest.raises(RefusedError, match=r"nbd\.sock"):
        process.clear_runtime(paths)
    assert paths.nbd_sock.read_text() == "precious"


def test_a_stale_socket_is_cleared(daemons: Daemons) -> None:
    paths = daemons.paths()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(paths.control_sock))
    process.clear_runtime(paths)
    assert leftovers(paths) == set()
