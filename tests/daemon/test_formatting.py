"""Formatting writes exactly the inode it was given, or says what is wrong and leaves no job and no node."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qorumctl.daemon.client import Monitor
from qorumctl.daemon.features import missing_features
from qorumctl.daemon.formatting import format_image
from qorumctl.errors import CopyError
from tests.live import MIB, Daemons

pytestmark = pytest.mark.live


def image_info(path: Path) -> Any:
    done = subprocess.run(["qemu-img", "info", "--output=json", path], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


async def assert_idle(monitor: Monitor) -> None:
    assert await monitor.execute("query-jobs") == []
    assert await monitor.execute("query-named-block-nodes") == []


async def test_qcow2_lands_on_the_open_inode_even_when_its_name_was_taken(daemons: Daemons, short_dir: Path) -> None:
    paths, _ = await daemons.spawn()
    path = short_dir / "new.qcow2"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        moved = path.rename(short_dir / "moved.qcow2")
        path.write_bytes(b"precious")
        async with await Monitor.open(paths.control_sock) as monitor:
            await format_image(monitor, f"/proc/{os.getpid()}/fd/{fd}", "qcow2", 64 * MIB)
            await assert_idle(monitor)
    finally:
        os.close(fd)
    assert path.read_bytes() == b"precious"
    info = image_info(moved)
    assert (info["format"], info["virtual-size"]) == ("qcow2", 64 * MIB)
    assert "backing-filename" not in info


async def test_raw_needs_nothing(daemons: Daemons, short_dir: Path) -> None:
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        await format_image(monitor, str(short_dir / "absent"), "raw", MIB)


async def test_a_job_that_fails_is_dismissed_and_quoted(daemons: Daemons, short_dir: Path) -> None:
    paths, _ = await daemons.spawn()
    path = short_dir / "x"
    path.touch()
    async with await Monitor.open(paths.control_sock) as monitor:
        for _ in range(2):
            with pytest.raises(CopyError, match=r"my image could not be formatted: .*size"):
                await format_image(monitor, str(path), "qcow2", (1 << 63) - 512, label="my image")
            await assert_idle(monitor)


async def test_a_missing_file_is_named(daemons: Daemons) -> None:
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        with pytest.raises(CopyError, match="/nonexistent/x could not be formatted"):
            await format_image(monitor, "/nonexistent/x", "qcow2", MIB)
        await assert_idle(monitor)


async def test_a_supported_daemon_lacks_nothing_and_probing_changes_nothing(daemons: Daemons) -> None:
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        assert await missing_features(monitor) == []
        await assert_idle(monitor)


async def test_what_is_missing_is_named(daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qorumctl.daemon.features.COMMANDS", ("quit", "no-such-command"))
    monkeypatch.setattr("qorumctl.daemon.features._PROBES", {"file": {"filename": "/nonexistent/x"}, "no-such": {}})
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        assert await missing_features(monitor) == ["command no-such-command", "block driver no-such"]
