"""What an unfinished run may be resumed over, and what begins anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qorumctl.controller.observer import ScrubControl
from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.model.report import ScrubReport
from qorumctl.scrub.ports import StopReason
from tests.integration.harness import NAME, LiveSet
from tests.live import MIB, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]


class StopsAt:
    """An observer that pauses the scrub once it has passed an offset."""

    def __init__(self, offset: int) -> None:
        self.control = ScrubControl()
        self._offset = offset

    def started(self, start: object) -> None: ...

    def moved(self, position: object) -> None:
        if position.position_bytes >= self._offset:  # type: ignore[attr-defined]
            self.control.stop(StopReason.PAUSED)


async def paused(live: LiveSet, offset: int, **options: object) -> ScrubReport:
    stops = StopsAt(offset)
    options.setdefault("rate_bytes_per_s", 48 * MIB)
    report = await live.scrub(observer=stops, control=stops.control, **options)
    assert (report.outcome, report.resumable) == ("unfinished", True)
    return report


async def running(live_set: LiveSets) -> LiveSet:
    live = live_set(size_bytes=32 * MIB)
    await live.create()
    await live.start()
    live.fill()
    return live


def kill_daemon(live: LiveSet) -> None:
    pid = process.running_pid(live.runtime)
    assert pid is not None
    process.kill(live.runtime, pid)
    wait_for(lambda: process.running_pid(live.runtime) is None, "the daemon's end")


async def test_a_paused_run_goes_on_where_it_was(live_set: LiveSets) -> None:
    live = await running(live_set)
    first = await paused(live, 8 * MIB)
    rest = await live.scrub()
    assert (rest.run, rest.outcome) == (first.run, "clean")
    assert rest.scanned_bytes == live.size_bytes


async def test_a_paused_run_goes_on_after_an_orderly_restart(live_set: LiveSets) -> None:
    live = await running(live_set)
    first = await paused(live, 8 * MIB)
    await live.sets.restart(NAME)
    assert (await live.scrub()).run == first.run


async def test_a_run_of_another_kind_begins_anew(live_set: LiveSets) -> None:
    live = await running(live_set)
    first = await paused(live, 8 * MIB)
    other = await live.scrub(mode="report")
    assert other.run != first.run
    assert not live.sets.report(NAME, first.run).resumable


async def test_fresh_begins_anew(live_set: LiveSets) -> None:
    live = await running(live_set)
    first = await paused(live, 8 * MIB)
    assert (await live.scrub(fresh=True)).run != first.run


async def test_a_scrub_of_a_range_leaves_a_paused_one_of_the_disk_alone(live_set: LiveSets) -> None:
    live = await running(live_set)
    first = await paused(live, 8 * MIB)
    part = await live.scrub(within=Range(0, MIB))
    assert part.run != first.run
    assert (await live.scrub()).run == first.run


async def test_a_run_is_not_resumed_over_other_images(live_set: LiveSets) -> None:
    """Copy c is replaced by an older image of itself, under another path, while the run is paused past the place."""
    live = await running(live_set)
    first = await paused(live, 16 * MIB)
    await live.sets.stop(NAME)
    image, moved = live.image("c"), live.images_dir / "moved.img"
    moved.write_bytes(live.contents("c"))
    moved.with_name("moved.img.qorum").write_bytes(image.with_name("c.img.qorum").read_bytes())
    definition = live.directories.definition_path(NAME)
    definition.write_text(definition.read_text().replace(str(image), str(moved)))
    live.sources[2] = str(moved)
    live.flip("c", MIB)
    await live.start()
    report = await live.scrub()
    assert report.run != first.run
    assert [(f.offset // 512, f.copies) for f in report.findings] == [(MIB // 512, ["c"])]


async def test_what_was_compared_before_an_unclean_stop_is_compared_again(live_set: LiveSets) -> None:
    """With --now nothing has compared the copies since: the end of a resumed run would pass for a whole comparison."""
    live = await running(live_set)
    first = await paused(live, 16 * MIB)
    kill_daemon(live)
    live.flip("b", MIB)
    await live.start(now=True)
    assert not live.sets.report(NAME, first.run).resumable
    report = await live.scrub()
    assert [(f.offset // 512, f.copies, f.cause) for f in report.findings] == [(MIB // 512, [], "unclean-shutdown")]
    live.flip("b", MIB)
    blamed = await live.scrub()
    assert [(f.copies, f.cause) for f in blamed.findings] == [(["b"], None)]


async def test_a_comparison_of_a_set_that_crashed_blames_nobody(live_set: LiveSets) -> None:
    live = await running(live_set)
    kill_daemon(live)
    live.flip("b", MIB)
    report = await live.scrub(mode="report")
    assert [(f.copies, f.cause, f.action) for f in report.findings] == [([], "unclean-shutdown", "left")]
    assert all(copy.outvoted == 0 for copy in (await live.sets.status([NAME])).sets[0].copies)


async def test_a_paused_run_can_be_cancelled(live_set: LiveSets) -> None:
    live = await running(live_set)
    first = await paused(live, 8 * MIB)
    assert not (await live.sets.cancel(NAME)).resumable
    assert (await live.scrub()).run != first.run


async def test_pause_reaches_the_run_at_work_and_not_the_newest(live_set: LiveSets) -> None:
    """A run of a range died after the whole one was paused, and says that it runs to this day."""
    live = await running(live_set)
    first = await paused(live, 8 * MIB)
    part = live.cli("--json", "scrub", NAME, "--range", "0:16MiB", "--rate", "4MiB")
    wait_for(lambda: live.sets.history(NAME).runs[0].run != first.run, "the scrub of a range")
    part.kill()
    part.communicate()
    whole = live.cli("--json", "scrub", NAME, "--rate", "4MiB")

    async def shown() -> int | None:
        scrub = (await live.sets.status([NAME])).sets[0].scrub
        return scrub.run if scrub else None

    while await shown() != first.run:
        assert whole.poll() is None
    report = await live.sets.pause(NAME)
    assert (report.run, report.resumable) == (first.run, True)
    whole.communicate(timeout=20)
    assert whole.returncode == 6


async def test_a_range_is_the_whole_of_its_progress(live_set: LiveSets) -> None:
    live = await running(live_set)
    told: list[tuple[str, int, int | None]] = []

    class Tells:
        def started(self, start: object) -> None:
            told.append(("started", start.size_bytes, start.resumed_at_bytes))  # type: ignore[attr-defined]

        def moved(self, position: object) -> None:
            told.append(("moved", position.size_bytes, position.position_bytes))  # type: ignore[attr-defined]

    await live.scrub(within=Range(24 * MIB, 4 * MIB), observer=Tells())
    assert told[0] == ("started", 4 * MIB, None)
    assert told[-1] == ("moved", 4 * MIB, 4 * MIB)


async def test_an_edited_rate_counts_at_the_next_scrub(live_set: LiveSets) -> None:
    live = await running(live_set)
    definition = live.directories.definition_path(NAME)
    definition.write_text(definition.read_text().replace("[scrub]", '[scrub]\nrate = "8MiB/s"'))
    scrub = live.cli("--json", "scrub", NAME, full_speed=False)
    # At full speed 32 MiB are compared before anybody could ask for a pause.
    wait_for(lambda: live.sets.history(NAME).runs, "the scrub")
    assert not (await live.sets.status([NAME])).sets[0].definition_differs
    assert (await live.sets.pause(NAME)).resumable
    scrub.communicate(timeout=20)
