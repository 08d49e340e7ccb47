"""Copies that missed writes (invariant 8): who hears of it, who votes then, and what settles it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.model.status import CopyStatus, SetStatus
from tests.integration.harness import NAME, LiveSet
from tests.live import MIB, NbdServer, faulty_server, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 4 * MIB
OLD, NEW = b"\x5a" * 4096, b"\xc3" * 4096
AT = 1 * MIB


class Fails:
    """Copies behind servers whose writes and flushes can be made to fail."""

    def __init__(self, trigger: Path) -> None:
        self.writes = Path(f"{trigger}.write")
        self.flushes = Path(f"{trigger}.flush")


async def started(live: LiveSet, nbdkit: Nbdkit, *, faulty: str = "c", **options: str) -> dict[str, Fails]:
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(b"\x5a" * SIZE)
    sources, fails = list(paths), {}
    for name in faulty:
        trigger = live.images_dir / f"fails-{name}"
        at = "abc".index(name)
        sources[at] = faulty_server(nbdkit, Path(paths[at]), [], once=trigger).uri
        fails[name] = Fails(trigger)
    await live.create(sources=sources, size_bytes=None, **options)
    live.sources = paths
    await live.start()
    return fails


def write(live: LiveSet, at: int = AT, data: bytes = NEW, *, acknowledged: bool = True) -> None:
    link = live.link()
    assert link.write(at, data) is acknowledged
    link.close()


async def status(live: LiveSet) -> SetStatus:
    return (await live.sets.status([NAME])).sets[0]


def known_to_have_missed(live: LiveSet, copies: str) -> None:
    def known() -> bool:
        with live.sets._context(NAME).store(read_only=True) as store:
            return {s.copy for s in store.suspicions() if s.missed} == set(copies)

    wait_for(known, f"marks of {copies}")


def of(status: SetStatus, name: str) -> CopyStatus:
    return next(copy for copy in status.copies if copy.name == name)


async def test_two_copies_that_lost_the_same_write_do_not_outvote_the_current_one(
    live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    live = live_set(size_bytes=SIZE)
    fails = await started(live, nbdkit)
    fails["c"].writes.touch()
    write(live)
    known_to_have_missed(live, "c")
    fails["c"].writes.unlink()
    # b acknowledged the same write, and returns what was there before.
    live.poke("b", AT, OLD)
    report = await live.scrub()
    assert live.contents("a")[AT : AT + 4096] == NEW
    assert [(f.verdict, f.action) for f in report.findings] == [("no-majority", "left")]
    assert report.uncounted == ["c"]
    found = await status(live)
    assert (found.state, of(found, "c").missed_writes, of(found, "a").missed_writes) == ("damaged", True, False)
    assert found.reason == (
        f"No majority at offset {AT} (4096 bytes), where copy c does not count: it has missed a write."
    )
    # The mark stays until somebody has decided: else the next scrub would take the two for a majority.
    assert (await live.scrub()).outcome == "no-majority"
    assert live.contents("a")[AT : AT + 4096] == NEW
    write(live)
    assert (await live.scrub()).outcome == "clean"
    assert (await status(live)).state == "healthy"


async def test_where_an_operator_lets_them_vote_they_win(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    """What every scrub would do without the mark: an acknowledged write is lost."""
    live = live_set(size_bytes=SIZE)
    fails = await started(live, nbdkit)
    fails["c"].writes.touch()
    write(live)
    known_to_have_missed(live, "c")
    fails["c"].writes.unlink()
    live.poke("b", AT, OLD)
    assert (await live.scrub(count_suspects=True)).outcome == "repaired"
    assert live.contents("a")[AT : AT + 4096] == OLD
    assert (await status(live)).state == "healthy"


async def test_a_set_that_is_watched_from_start_to_stop_is_plainly_healthy(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE)
    await started(live, nbdkit)
    write(live)
    found = await status(live)
    assert (found.state, found.watched, found.reason) == ("healthy", True, None)
    assert (await live.sets.stop(NAME)).warnings == []
    await live.start()
    found = await status(live)
    assert (found.state, found.watched) == ("healthy", True)
    assert [copy.note for copy in found.copies] == [None, None, None]


@pytest.mark.parametrize("what", ["write", "flush"])
async def test_a_write_that_failed_makes_the_copy_suspect_until_a_scrub(
    live_set: LiveSets, nbdkit: Nbdkit, what: str
) -> None:
    live = live_set(size_bytes=SIZE)
    fails = (await started(live, nbdkit))["c"]
    trigger = fails.writes if what == "write" else fails.flushes
    trigger.touch()
    link = live.link()
    assert link.write(AT, NEW)
    assert link.flush()
    link.close()
    known_to_have_missed(live, "c")
    trigger.unlink()
    found = await status(live)
    assert (found.state, of(found, "c").state, of(found, "a").state) == ("degraded", "suspect", "current")
    assert (of(found, "c").note or "").startswith(f"has missed a write: a {what} failed (Input/output error), first at")
    report = await live.scrub()
    assert [(f.offset, f.copies, f.action) for f in report.findings] == (
        [(AT, ["c"], "repaired")] if what == "write" else []
    )
    assert live.contents("c") == live.contents("a")
    assert (await status(live)).state == "healthy"


async def test_only_a_scrub_of_the_whole_disk_that_left_nothing_clears_the_mark(
    live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    from qorumctl.core.ranges import Range

    live = live_set(size_bytes=SIZE)
    fails = (await started(live, nbdkit))["c"]
    fails.writes.touch()
    write(live)
    known_to_have_missed(live, "c")
    # The rewrite fails, too.
    assert (await live.scrub()).outcome == "damaged"
    assert of(await status(live), "c").state == "suspect"
    fails.writes.unlink()
    assert (await live.scrub(mode="report")).outcome == "damaged"
    assert (await live.scrub(within=Range(AT, MIB))).outcome == "repaired"
    assert "has missed a write" in (of(await status(live), "c").note or "")
    assert (await live.scrub()).outcome == "clean"
    assert (await status(live)).state == "healthy"


async def test_what_is_missed_while_a_scrub_runs_stays_on_record_and_changes_its_votes(
    live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    from qorumctl.controller.observer import ScrubPosition, Silent

    live = live_set(size_bytes=SIZE)
    fails = (await started(live, nbdkit))["c"]

    class Trouble(Silent):
        def __init__(self) -> None:
            self.made = False

        def moved(self, position: ScrubPosition) -> None:
            if not self.made:
                self.made = True
                fails.writes.touch()
                write(live, SIZE - 4096)
                known_to_have_missed(live, "c")
                fails.writes.unlink()
                live.poke("b", SIZE - 4096, OLD)

    report = await live.scrub(observer=Trouble(), rate_bytes_per_s=MIB)
    assert [(f.offset, f.verdict) for f in report.findings] == [(SIZE - 4096, "no-majority")]
    assert report.uncounted == ["c"]
    assert live.contents("a")[SIZE - 4096 :] == NEW
    assert of(await status(live), "c").state == "suspect"


async def test_a_stop_does_not_call_a_copy_current_that_missed_writes(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE)
    fails = (await started(live, nbdkit))["c"]
    fails.writes.touch()
    write(live)
    fails.writes.unlink()
    # No waiting: the stop does that.
    stopped = await live.sets.stop(NAME)
    assert stopped.warnings == ["Copy c has missed writes: the next start compares the copies."]
    live.poke("b", AT, OLD)
    started_again = await live.sets.start(NAME)
    assert started_again.recovery is not None
    assert live.contents("a")[AT : AT + 4096] == NEW


async def test_what_a_copy_missed_is_brought_up_to_date_before_guests_come_in(
    live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    live = live_set(size_bytes=SIZE)
    fails = (await started(live, nbdkit))["c"]
    fails.writes.touch()
    write(live)
    fails.writes.unlink()
    await live.sets.stop(NAME)
    await live.start()
    assert live.contents("c")[AT : AT + 4096] == NEW
    assert (await status(live)).state == "healthy"


async def test_reports_that_come_faster_than_they_are_told_make_their_copy_suspect(
    live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    from qorumctl.core.ranges import Range

    live = live_set(size_bytes=SIZE)
    await started(live, nbdkit)
    for sector in range(4):
        live.poke("b", sector * 65536, NEW)
    link = live.link()
    for sector in range(4):
        assert link.read(Range(sector * 65536, 512)) is not None
    link.close()

    def suspect() -> bool:
        with live.sets._context(NAME).store(read_only=True) as store:
            return bool(store.suspicions())

    wait_for(suspect, "a mark")
    found = await status(live)
    assert (found.state, [copy.name for copy in found.copies if copy.state == "suspect"]) == ("degraded", ["b"])
    assert "its reports came faster than the daemon tells them" in (found.reason or "")
    assert (await live.scrub()).outcome == "repaired"
    assert (await status(live)).state == "healthy"


async def test_repairs_of_a_scrub_make_nobody_suspect(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE)
    await started(live, nbdkit)
    for sector in range(0, 4096, 128):
        live.flip("b", sector * 512)
    assert len((await live.scrub()).findings) == 32
    write(live)

    def told() -> int:
        with live.sets._context(NAME).store(read_only=True) as store:
            return len(store.events(10))

    # The daemon holds the last of its reports back for a second.
    wait_for(lambda: told() >= 2, "the last report")
    assert (await status(live)).state == "healthy"
