"""How a scrub reads the copies: through shared memory and over NBD it does the same, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qorumctl.controller.observer import ScrubPosition, Silent
from qorumctl.controller.options import Transport
from qorumctl.copies import blkio
from qorumctl.daemon import process, reader
from qorumctl.daemon.reader import ReaderPaths
from qorumctl.errors import CopySharingError, RefusedError
from tests.integration.harness import NAME, LiveSet
from tests.live import MIB, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
SIZE = 8 * MIB
shared = pytest.mark.usefixtures("shared_memory")


@pytest.fixture(params=["nbd", "shm"])
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    if chosen == "shm":
        request.getfixturevalue("shared_memory")
    return chosen


@pytest.fixture(autouse=True)
def what_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="qorumctl.scrub")


async def running(live_set: LiveSets, **options: object) -> tuple[LiveSet, bytearray]:
    live = live_set(size_bytes=SIZE)
    await live.create(**options)
    await live.start()
    return live, live.fill()


def left_of_it(live: LiveSet) -> list[str]:
    paths = ReaderPaths(live.runtime.directory)
    files = [path.name for pattern in ("reader*", "shm-*") for path in paths.directory.glob(pattern)]
    return [*files, *map(str, process.processes(paths))]


async def test_damage_is_found_and_repaired(
    live_set: LiveSets, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    live, shadow = await running(live_set)
    for copy, at in (("a", 0), ("b", 3 * MIB + 77), ("c", SIZE - 1)):
        live.flip(copy, at)
    report = await live.scrub(transport=transport)
    assert [(f.offset, f.copies, f.action) for f in report.findings] == [
        (0, ["a"], "repaired"),
        (3 * MIB, ["b"], "repaired"),
        (SIZE - 512, ["c"], "repaired"),
    ]
    assert report.read_bytes == dict.fromkeys("abc", SIZE)
    assert all(live.equal_to(shadow).values())
    assert ("through shared memory" in caplog.text) == (transport == "shm")
    assert left_of_it(live) == []


@shared
async def test_copies_that_only_the_daemon_can_read(live_set: LiveSets, nbdkit: Callable[..., NbdServer]) -> None:
    live = live_set(size_bytes=SIZE)
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(b"\x5a" * SIZE)
    server = nbdkit("file", paths[2])
    await live.create(sources=[*paths[:2], server.uri], size_bytes=None)
    await live.start()
    live.flip("b", MIB)
    with pytest.raises(RefusedError, match=r"shared memory: copy c is neither a raw image nor a device\."):
        await live.scrub(transport="shm")
    assert (await live.scrub()).outcome == "repaired"


@shared
async def test_an_image_that_was_exchanged_beneath_the_daemon(live_set: LiveSets) -> None:
    """What the path leads to is not what guests read."""
    live, _ = await running(live_set)
    image = live.image("b")
    image.rename(image.with_suffix(".old"))
    image.write_bytes(bytes(SIZE))
    with pytest.raises(RefusedError, match=rf"{image} is not what the daemon has open of copy b\."):
        await live.scrub(transport="shm")
    assert (await live.scrub()).outcome == "clean"


@shared
async def test_a_descriptor_that_means_another_copy_by_the_time_it_is_followed(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is compared with another one's image would never be found damaged."""
    live, _ = await running(live_set)
    seen = reader.images

    def then_reopened(*arguments: Any) -> list[reader.Image]:
        a, b, c = seen(*arguments)
        return [a, replace(b, path=a.path), c]

    monkeypatch.setattr(reader, "images", then_reopened)
    live.flip("b", MIB)
    with pytest.raises(RefusedError, match="the daemon opened copy b anew in that moment"):
        await live.scrub(transport="shm")
    assert (await live.scrub()).outcome == "repaired"
    assert left_of_it(live) == []


@shared
async def test_of_a_stopped_set(live_set: LiveSets, caplog: pytest.LogCaptureFixture) -> None:
    live, _ = await running(live_set)
    await live.sets.stop(NAME)
    live.flip("b", MIB)
    report = await live.scrub(mode="report", transport="shm")
    assert [(f.offset, f.copies, f.action) for f in report.findings] == [(MIB, ["b"], "left")]
    assert "through shared memory" in caplog.text
    assert list(live.runtime.directory.glob("*.sock")) == []


@shared
async def test_of_a_copy_that_was_replaced_meanwhile(live_set: LiveSets) -> None:
    """Its nodes have another name until the next start."""
    live, shadow = await running(live_set)
    await live.sets.replace(NAME, "c", str(live.images_dir / "new.img"))
    live.sources[2] = str(live.images_dir / "new.img")
    live.flip("c", MIB)
    report = await live.scrub(transport="shm")
    assert [(f.offset, f.copies, f.action) for f in report.findings] == [(MIB, ["c"], "repaired")]
    assert all(live.equal_to(shadow).values())


class KillsTheReader(Silent):
    """When a part of the disk has been compared."""

    def __init__(self, live: LiveSet) -> None:
        self.paths = ReaderPaths(live.runtime.directory)

    def moved(self, position: ScrubPosition) -> None:
        if 0 < position.position_bytes < SIZE and (pid := process.find_pid(self.paths)) is not None:
            process.kill(self.paths, pid)


@shared
async def test_a_reader_that_ends_in_the_middle(live_set: LiveSets, caplog: pytest.LogCaptureFixture) -> None:
    """Over NBD, perhaps, nothing is wrong with the copies."""
    live, shadow = await running(live_set)
    for at in (0, SIZE - 1):
        live.flip("a", at)
    report = await live.scrub(observer=KillsTheReader(live), rate_bytes_per_s=16 * MIB)
    assert "The scrub goes on over NBD." in caplog.text
    assert [(f.offset, f.action) for f in report.findings] == [(0, "repaired"), (SIZE - 512, "repaired")]
    assert report.scanned_bytes == SIZE
    assert all(live.equal_to(shadow).values())
    assert left_of_it(live) == []


@shared
async def test_a_reader_that_ends_where_nothing_else_will_do(live_set: LiveSets) -> None:
    live, shadow = await running(live_set)
    live.flip("a", SIZE - 1)
    with pytest.raises(CopySharingError, match="cannot be read through shared memory any more"):
        await live.scrub(observer=KillsTheReader(live), rate_bytes_per_s=16 * MIB, transport="shm")
    assert left_of_it(live) == []
    assert (await live.scrub(transport="shm")).outcome == "repaired"
    assert all(live.equal_to(shadow).values())


@shared
@pytest.mark.parametrize("then", ["shm", "nbd"])
async def test_what_a_killed_scrub_leaves_hinders_nobody(live_set: LiveSets, then: Transport) -> None:
    live, shadow = await running(live_set)
    killed = live.cli("scrub", NAME, "--transport", "shm", "--rate", "1MiB/s")
    wait_for(lambda: process.running_pid(ReaderPaths(live.runtime.directory)), "exports of the scrub")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    live.flip("a", MIB)
    assert (await live.scrub(transport=then)).outcome == "repaired"
    assert left_of_it(live) == []
    assert (await live.sets.detach(NAME, "b")).changed
    assert (await live.sets.rejoin(NAME, "b")).changed
    assert all(live.equal_to(shadow).values())
    await live.sets.stop(NAME)
    assert list(live.runtime.directory.glob("*.sock")) == []


async def test_without_the_library(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    live, _ = await running(live_set)
    monkeypatch.setattr(blkio, "why_not", lambda: "libblkio is not installed")
    words = "The copies of web01 cannot be read through shared memory: libblkio is not installed"
    with pytest.raises(RefusedError, match=words):
        await live.scrub(transport="shm")
    live.flip("a", MIB)
    assert (await live.scrub(transport="auto")).outcome == "repaired"
    assert "over NBD: libblkio is not installed" in caplog.text


@shared
async def test_where_a_reader_cannot_be_started(live_set: LiveSets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is too long, say."""
    live, _ = await running(live_set)
    nowhere = live.runtime.directory / "nowhere" / "shm.sock"
    monkeypatch.setattr(ReaderPaths, "socket", lambda *_: nowhere)
    with pytest.raises(RefusedError, match=r"The copies of web01 cannot be read through shared memory: .*nowhere"):
        await live.scrub(transport="shm")
    live.flip("a", MIB)
    assert (await live.scrub()).outcome == "repaired"
    assert left_of_it(live) == ["reader.log"]


@shared
async def test_a_stop_ends_the_reader_of_a_killed_scrub(live_set: LiveSets) -> None:
    live, _ = await running(live_set)
    killed = live.cli("scrub", NAME, "--transport", "shm", "--rate", "1MiB/s")
    wait_for(lambda: process.running_pid(ReaderPaths(live.runtime.directory)), "a reader")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert left_of_it(live) != []
    await live.sets.stop(NAME)
    assert left_of_it(live) == []


@shared
@pytest.mark.parametrize("command", ["start", "delete"])
async def test_the_reader_of_a_killed_scrub_whose_daemon_died_too(live_set: LiveSets, command: str) -> None:
    """It would keep the space of deleted images, out of everybody's reach."""
    live, _ = await running(live_set)
    killed = live.cli("scrub", NAME, "--transport", "shm", "--rate", "1MiB/s")
    wait_for(lambda: process.running_pid(ReaderPaths(live.runtime.directory)), "a reader")
    for pid in (killed.pid, process.find_pid(live.runtime)):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    killed.wait()
    wait_for(lambda: process.find_pid(live.runtime) is None, "the end of the daemon")
    assert left_of_it(live) != []
    if command == "start":
        await live.sets.start(NAME, now=True)
    else:
        await live.sets.delete(NAME, images=True)
    assert left_of_it(live) == []
