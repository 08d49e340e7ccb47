"""Invariant 12: after an unclean stop the copies are compared and healed before a guest reads any of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from qorumctl import identity
from qorumctl.controller.observer import ScrubControl, ScrubPosition, ScrubStart
from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.errors import CopyUnavailableError, QorumError
from qorumctl.scrub.ports import StopReason
from tests.integration.harness import NAME, SECTOR, LiveSet, Writers
from tests.integration.picture import status_of
from tests.live import MIB, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]


class Watching:
    """An observer that looks at the set while it is being recovered, and may stop that."""

    def __init__(self, look: Callable[[ScrubStart | ScrubPosition], None]) -> None:
        self.starts: list[ScrubStart] = []
        self._look = look

    def started(self, start: ScrubStart) -> None:
        self.starts.append(start)
        self._look(start)

    def moved(self, position: ScrubPosition) -> None:
        self._look(position)


async def crashed(live_set: LiveSets, *, count: int = 3, size_bytes: int = 16 * MIB, **options: object) -> LiveSet:
    """A set whose daemon was killed, with copies that differ as after writes in flight."""
    live = live_set(size_bytes=size_bytes)
    await live.create(count=count, **options)
    await live.start()
    live.fill()
    live.end()
    if options.get("format") != "qcow2":
        live.poke("a", 10 * SECTOR, b"n" * SECTOR)
        live.poke("c", 3000 * SECTOR, b"o" * 100)
    return live


def equal(live: LiveSet) -> bool:
    return len({live.contents(copy) for copy in "abcde"[: len(live.sources)]}) == 1


async def test_status_says_failed_and_what_comes_next(live_set: LiveSets) -> None:
    live = await crashed(live_set)
    status = await status_of(live.sets)
    assert (status.state, status.pid, status.volume) == ("failed", None, None)
    assert status.reason == "The daemon is gone without having been stopped; the next start compares the copies."
    stopped = await live.sets.stop(NAME)
    assert not stopped.changed
    assert stopped.warnings == ["The daemon had ended without being stopped: the next start compares the copies."]
    status = await status_of(live.sets)
    assert (status.state, status.reason) == (
        "stopped",
        "The set was not stopped in order; the next start compares the copies.",
    )
    assert (await live.sets.start(NAME)).recovery is not None


@pytest.mark.parametrize("count", [3, 5])
async def test_the_copies_are_healed_before_there_is_a_volume(live_set: LiveSets, count: int) -> None:
    live = await crashed(live_set, count=count)
    volumes: list[bool] = []

    def look(_: object) -> None:
        try:
            live.link(timeout_s=5).close()
        except CopyUnavailableError:
            volumes.append(False)
        else:
            volumes.append(True)

    observer = Watching(look)
    result = await live.sets.start(NAME, observer=observer)
    assert [start.recovery for start in observer.starts] == [True]
    assert volumes
    assert not any(volumes)
    assert result.state == "healthy"
    assert equal(live)
    assert result.recovery is not None
    report = live.sets.report(NAME, result.recovery)
    assert report.outcome == "repaired"
    found = [(f.offset // SECTOR, f.cause, f.copies, f.action) for f in report.findings]
    assert found == [(10, "unclean-shutdown", [], "repaired"), (3000, "unclean-shutdown", [], "repaired")]


async def test_nobody_is_blamed_for_a_power_failure(live_set: LiveSets) -> None:
    live = await crashed(live_set)
    await live.start()
    status = await status_of(live.sets)
    assert {(copy.outvoted, copy.unreadable, copy.repaired, copy.state) for copy in status.copies} == {
        (0, 0, 0, "current")
    }


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_a_daemon_killed_under_writers_loses_nothing_that_was_acknowledged(live_set: LiveSets, fmt: str) -> None:
    live = live_set(size_bytes=16 * MIB)
    await live.create(format=fmt)
    await live.start()
    shadow = live.fill()
    writers = Writers(live, shadow, Range(0, 8 * MIB))
    in_doubt = KilledUnder(live, writers)
    await asyncio.to_thread(in_doubt.run)
    assert (await status_of(live.sets)).state == "failed"
    result = await live.sets.start(NAME)
    assert (result.state, result.warnings) == ("healthy", [])
    report = live.sets.report(NAME, result.recovery)
    assert report.outcome in {"clean", "repaired"}
    assert {f.cause for f in report.findings} <= {"unclean-shutdown"}
    link = live.link()
    readable = [link.read(Range(at, MIB)) for at in range(0, live.size_bytes, MIB)]
    link.close()
    assert None not in readable
    volume = b"".join(bytes(part) for part in readable if part is not None)
    wrong = [at for at in range(0, len(volume), SECTOR) if volume[at : at + SECTOR] != shadow[at : at + SECTOR]]
    # Each writer had one request in flight, of at most 128 sectors: only those may hold either content.
    assert len(wrong) <= 4 * 128
    assert (await live.scrub()).outcome == "clean"


class KilledUnder:
    """Kills the daemon while the writers write; each of them then ends with the error that a guest would see."""

    def __init__(self, live: LiveSet, writers: Writers) -> None:
        self._live = live
        self._writers = writers

    def run(self) -> None:
        import threading

        previous, threading.excepthook = threading.excepthook, lambda _: None
        try:
            self._writers.__enter__()
            wait_for(lambda: self._writers.writes > 200, "writes")
            self._live.end()
            self._writers.__exit__()
        finally:
            threading.excepthook = previous


async def test_now_skips_the_comparison_and_says_so_until_one_was_made(live_set: LiveSets) -> None:
    live = await crashed(live_set)
    result = await live.sets.start(NAME, now=True)
    assert (result.recovery, result.state) == (None, "degraded")
    assert result.warnings == [
        "The set was not stopped in order and has not been compared: run 'qorumctl scrub web01' soon. "
        "Until a whole one is through, the next start compares the copies."
    ]
    status = await status_of(live.sets)
    assert status.reason == "Copy a: not compared since an unclean stop."
    assert {copy.state for copy in status.copies} == {"suspect"}
    await live.sets.stop(NAME)
    assert (
        await status_of(live.sets)
    ).reason == "The set was not stopped in order; the next start compares the copies."
    again = await live.sets.start(NAME)
    assert again.recovery is not None
    assert equal(live)
    await live.sets.stop(NAME)
    assert (await live.sets.start(NAME)).recovery is None


async def test_a_whole_scrub_after_now_settles_it(live_set: LiveSets) -> None:
    live = await crashed(live_set)
    await live.start(now=True)
    await live.scrub(within=Range(0, MIB))
    await live.sets.stop(NAME)
    assert (await status_of(live.sets)).reason != "The set is not running."
    await live.start(now=True)
    assert (await live.scrub()).outcome == "repaired"
    assert (await status_of(live.sets)).state == "healthy"
    await live.sets.stop(NAME)
    assert (await status_of(live.sets)).reason == "The set is not running."
    assert (await live.sets.start(NAME)).recovery is None


async def test_an_interrupted_recovery_leaves_the_set_stopped_and_starts_over(live_set: LiveSets) -> None:
    live = await crashed(live_set, size_bytes=64 * MIB)
    control = ScrubControl()
    observer = Watching(lambda _: control.stop(StopReason.INTERRUPTED))
    with pytest.raises(QorumError) as caught:
        await live.sets.start(NAME, observer=observer, control=control)
    assert str(caught.value) == (
        "The start of web01 was interrupted while its copies were being compared; the set is stopped again. "
        "Start it again, or use --now to skip the comparison."
    )
    assert process.running_pid(live.runtime) is None
    assert [path.name for path in live.runtime.sockets if path.exists()] == []
    status = await status_of(live.sets)
    assert (status.state, status.reason) == (
        "stopped",
        "The set was not stopped in order; the next start compares the copies.",
    )
    result = await live.sets.start(NAME)
    assert result.recovery is not None
    assert equal(live)


async def test_status_shows_the_recovery_while_it_runs(live_set: LiveSets) -> None:
    live = await crashed(live_set, size_bytes=64 * MIB)
    seen: list[tuple[str, bool]] = []

    def look(_: object) -> None:
        status = asyncio.run(status_of(live.sets))
        seen.append((status.state, status.scrub is not None))

    await live.sets.start(NAME, observer=Watching(look))
    assert set(seen) == {("stopped", True)}


async def test_report_policy_compares_and_rewrites_nothing(live_set: LiveSets) -> None:
    live = await crashed(live_set, policy="report")
    result = await live.sets.start(NAME)
    assert result.recovery is not None
    assert result.warnings == [f"Damage was found and left: see 'qorumctl report web01 {result.recovery}'."]
    assert not equal(live)


async def test_what_has_no_majority_is_said_at_the_start(live_set: LiveSets) -> None:
    live = await crashed(live_set)
    for copy in "abc":
        live.poke(copy, 500 * SECTOR, random.Random(copy).randbytes(SECTOR))
    result = await live.sets.start(NAME)
    assert result.state == "damaged"
    assert result.warnings == [
        f"Ranges without a majority were found and left: see 'qorumctl report web01 {result.recovery}'."
    ]


@pytest.mark.parametrize("kind", ["clean", "crashed"])
async def test_a_start_that_fails_keeps_what_was_known_of_the_last_stop(live_set: LiveSets, kind: str) -> None:
    live = await crashed(live_set) if kind == "crashed" else live_set()
    if kind == "clean":
        await live.create()
    # Seen only when the daemon opens it: the image is immutable to writers by its rights, root aside.
    before = [identity.read(path) for path in live.sources]
    live.image("b").rename(live.images_dir / "away")
    with pytest.raises(QorumError):
        await live.start()
    (live.images_dir / "away").rename(live.image("b"))
    assert [identity.read(path) for path in live.sources] == before
    assert ((await live.sets.start(NAME)).recovery is not None) == (kind == "crashed")
