"""Metrics of a real set: the same story as `status`, in a file that keeps up with it."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qorumctl.controller.options import Timeouts
from qorumctl.controller.sets import QuorumSets
from qorumctl.daemon import process
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.integration.picture import status_of
from tests.integration.test_watcher import is_watched, kill
from tests.live import MIB, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]


class Told:
    """What one text says."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        found = [one.value for one in self._samples if one.name == name and one.labels == {"set": NAME, **labels}]
        assert len(found) < 2
        return found[0] if found else None

    @property
    def state(self) -> str:
        return self._one("qorum_set_state", {"set": NAME})

    def copy_state(self, copy: str) -> str:
        return self._one("qorum_copy_state", {"set": NAME, "copy": copy})

    def _one(self, name: str, labels: dict[str, str]) -> str:
        """The state that is 1."""
        [state] = [
            one.labels["state"]
            for one in self._samples
            if one.name == name and one.value and labels.items() <= one.labels.items()
        ]
        return state


@pytest.fixture
def published(live_set: LiveSets, short_dir: Path) -> LiveSet:
    """A set that keeps a file, in a directory that somebody else has made."""
    live = live_set(size_bytes=4 * MIB)
    (short_dir / "m").mkdir()
    live.directories = replace(live.directories, textfile=short_dir / "m")
    live.sets = QuorumSets(live.directories)
    return live


def in_file(live: LiveSet) -> Told:
    assert live.directories.textfile is not None
    return Told((live.directories.textfile / f"qorum-{NAME}.prom").read_text())


async def test_a_set_s_file_tells_the_story_of_its_life(published: LiveSet, short_dir: Path) -> None:
    live, file = published, short_dir / "m" / f"qorum-{NAME}.prom"
    await live.create(cache="writeback")
    assert (in_file(live).state, in_file(live).copy_state("b")) == ("stopped", "offline")
    assert in_file(live).value("qorum_scrub_last_completed_timestamp_seconds") == 0
    await live.start()
    assert (in_file(live).state, in_file(live).value("qorum_set_watcher_listening")) == ("healthy", 1)
    live.fill()
    live.flip("b", 100 * SECTOR)
    await live.scrub(mode="report")
    told = in_file(live)
    assert (told.state, told.copy_state("b"), told.copy_state("c")) == ("degraded", "suspect", "current")
    assert told.value("qorum_set_unrepaired_findings") == 1
    await live.scrub()
    told, status = in_file(live), await status_of(live.sets)
    assert (told.state, told.copy_state("b"), status.state) == ("healthy", "current", "healthy")
    assert told.value("qorum_set_unrepaired_findings") == 0
    assert told.value("qorum_scrub_findings_total", copy="b", verdict="outvoted") == status.copies[1].outvoted == 2
    assert told.value("qorum_scrub_findings_total", copy="a", verdict="outvoted") == 0
    assert told.value("qorum_scrub_repaired_findings_total", copy="b") == status.copies[1].repaired == 1
    assert told.value("qorum_scrub_scanned_bytes_total") == 2 * live.size_bytes
    assert (told.value("qorum_scrub_last_completed_timestamp_seconds") or 0) > time.time() - 3600
    # Nobody but the watcher is there to tell of this.
    process.kill(live.runtime, process.running_pid(live.runtime) or 0)
    wait_for(lambda: in_file(live).state == "failed", "the watcher's word on the end of the daemon")
    await live.start()
    assert in_file(live).state == "healthy"
    await live.sets.stop(NAME)
    assert (in_file(live).state, in_file(live).value("qorum_set_watcher_listening")) == ("stopped", None)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    await live.sets.delete(NAME)
    assert list(file.parent.iterdir()) == []


async def test_a_copy_that_is_away_a_watcher_that_is_gone_and_a_daemon_that_hangs_are_told(
    live_set: LiveSets, short_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And a directory that is not there keeps nobody from anything."""
    live = live_set(size_bytes=4 * MIB)
    live.directories = replace(live.directories, textfile=short_dir / "nowhere")
    live.sets = QuorumSets(live.directories)
    await live.create(cache="writeback")
    await live.start()
    await live.sets.detach(NAME, "c")
    names = [record.name for record in caplog.records]
    assert names == ["qorumctl.metrics", "qorumctl.metrics", "qorumctl.news", "qorumctl.metrics"]
    assert is_watched(live)
    live.fill(length_bytes=MIB)
    kill(live)
    told = Told(await live.sets.metrics())
    assert (told.state, told.copy_state("c")) == ("degraded", "missing")
    assert told.value("qorum_copy_missed_bytes", copy="c") == MIB
    assert told.value("qorum_set_watcher_listening") == 0
    pid = process.running_pid(live.runtime)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        told = Told(await QuorumSets(live.directories, timeouts=Timeouts(status_s=0.5)).metrics())
    finally:
        os.kill(pid, signal.SIGCONT)
    assert told.state == "stalled"
