"""Every daemon that runs for a set has glibc's thresholds of `process.TUNING`, however it was started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.controller.observer import ScrubPosition, Silent
from qorumctl.daemon import process
from qorumctl.daemon.reader import ReaderPaths
from qorumctl.daemon.runtime import DaemonPaths
from tests.integration.harness import NAME, LiveSet
from tests.live import MIB

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
TUNED = {b"MALLOC_MMAP_THRESHOLD_=67108864", b"MALLOC_TRIM_THRESHOLD_=268435456"}


def thresholds(paths: DaemonPaths) -> set[bytes]:
    pid = process.running_pid(paths)
    assert pid is not None
    return {one for one in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if one.startswith(b"MALLOC_")}


class _LooksAtTheReader(Silent):
    def __init__(self, paths: ReaderPaths) -> None:
        self._paths = paths
        self.seen: set[bytes] = set()

    def moved(self, position: ScrubPosition) -> None:
        if not self.seen and process.running_pid(self._paths) is not None:
            self.seen = thresholds(self._paths)


async def test_the_sets_daemon_whatever_the_environment_says(live_set: LiveSets) -> None:
    """As a unit starts it: by the command, which may have been given other thresholds."""
    live = live_set(size_bytes=MIB)
    await live.create()
    with live.cli("start", NAME, env=live.environment | {"MALLOC_MMAP_THRESHOLD_": "4096"}) as start:
        assert start.wait(60) == 0
    assert thresholds(live.runtime) == TUNED


async def test_the_front(live_set: LiveSets) -> None:
    live = live_set(size_bytes=MIB)
    await live.create()
    await live.start()
    await live.sets.front(NAME)
    assert thresholds(live.front) == TUNED


@pytest.mark.usefixtures("shared_memory")
async def test_the_reader(live_set: LiveSets) -> None:
    live = live_set(size_bytes=8 * MIB)
    await live.create()
    await live.start()
    live.fill()
    observer = _LooksAtTheReader(ReaderPaths(live.runtime.directory))
    assert (await live.scrub(transport="shm", observer=observer)).outcome == "clean"
    assert observer.seen == TUNED


def test_units_start_it_by_the_command() -> None:
    unit = Path(__file__).parents[2] / "contrib/systemd/qorum-storage@.service"
    starts = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    assert len(starts) == 1
    assert starts[0].partition("=")[2].split()[0:2] == ["/usr/local/bin/qorumctl", "start"]
