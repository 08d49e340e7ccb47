"""Copies that cannot be read: a sector, a stretch, everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.errors import CopyError, CopyUnavailableError
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.live import MIB, NbdServer, faulty_server

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 4 * MIB


async def with_a_bad_copy(live: LiveSet, nbdkit: Nbdkit, *bad: tuple[int, int]) -> Path:
    """Copy c is behind a server that fails these sectors while the returned file exists."""
    trigger = live.images_dir / "bad"
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(b"\x5a" * SIZE)
    server = faulty_server(nbdkit, Path(paths[2]), bad, once=trigger)
    await live.create(sources=[*paths[:2], server.uri], size_bytes=None)
    live.sources = paths
    await live.start()
    trigger.touch()
    return trigger


async def test_sectors_that_stay_unreadable_are_found_exactly_and_left(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE)
    trigger = await with_a_bad_copy(live, nbdkit, (100, 100), (3000, 3004))
    live.flip("a", 200 * SECTOR)
    report = await live.scrub()
    assert [(f.offset // SECTOR, f.length // SECTOR, f.verdict, f.copies, f.action) for f in report.findings] == [
        (100, 1, "unreadable", ["c"], "failed"),
        (200, 1, "outvoted", ["a"], "repaired"),
        (3000, 5, "unreadable", ["c"], "failed"),
    ]
    assert {name for names in report.findings[0].votes.values() for name in names} == {"a", "b"}
    assert report.outcome == "damaged"
    status = (await live.sets.status([NAME])).sets[0]
    assert (status.state, status.copies[2].unreadable) == ("degraded", 2)
    trigger.unlink()
    assert (await live.scrub()).outcome == "clean"
    assert (await live.sets.status([NAME])).sets[0].state == "healthy"


async def test_where_one_cannot_be_read_and_two_differ_nobody_wins(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE)
    await with_a_bad_copy(live, nbdkit, (100, 100))
    live.flip("a", 100 * SECTOR)
    before = live.contents("a"), live.contents("b")
    report = await live.scrub()
    (found,) = report.findings
    assert (found.verdict, found.action, found.copies) == ("no-majority", "left", ["a", "b", "c"])
    assert report.outcome == "no-majority"
    assert (live.contents("a"), live.contents("b")) == before


async def test_what_a_copy_has_not_stored_is_not_called_repaired(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE)
    trigger = await with_a_bad_copy(live, nbdkit, (8000, 8000))
    trigger.unlink()
    live.flip("c", 100 * SECTOR)
    refuses = Path(f"{trigger}.flush")
    refuses.touch()
    with pytest.raises(CopyError, match="Copy c did not confirm that it has stored what was repaired"):
        await live.scrub()
    assert [f.action for f in live.sets.report(NAME).findings] == ["pending"]
    refuses.unlink()
    report = await live.scrub()
    assert [(f.offset, f.action) for f in report.findings] == [(100 * SECTOR, "repaired")]


async def test_a_copy_that_can_read_nothing_ends_the_run_instead_of_filling_it(
    live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    live = live_set(size_bytes=32 * MIB)
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(b"\x5a" * live.size_bytes)
    trigger = live.images_dir / "bad"
    server = faulty_server(nbdkit, Path(paths[2]), [(0, live.size_bytes // SECTOR)], once=trigger)
    await live.create(sources=[*paths[:2], server.uri], size_bytes=None)
    await live.start()
    trigger.touch()
    with pytest.raises(CopyUnavailableError, match="Copy c cannot read anything: every read fails, from offset 0 on"):
        await live.scrub()
    assert live.sets.report(NAME).resumable
    trigger.unlink()
    assert (await live.scrub()).outcome == "clean"


async def test_a_copy_whose_server_is_gone_is_missing(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE)
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(b"\x5a" * SIZE)
    server = nbdkit("file", paths[2])
    await live.create(sources=[*paths[:2], server.uri], size_bytes=None)
    await live.start()
    server.end()
    status = (await live.sets.status([NAME])).sets[0]
    assert (status.state, status.reason) == ("degraded", "Copy c: every read fails.")
    assert status.copies[2].state == "missing"
    with pytest.raises(CopyUnavailableError, match="Copy c"):
        await live.scrub()
    assert "Copy c" in (live.sets.report(NAME).message or "")


async def test_a_copy_that_hangs_in_a_scrub_is_named_and_nothing_is_written(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    from qorumctl.controller.options import Timeouts

    live = live_set(size_bytes=SIZE, timeouts=Timeouts(copy_s=1, drain_s=2, status_s=0.5))
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(b"\x5a" * SIZE)
    server = nbdkit("file", paths[2])
    await live.create(sources=[*paths[:2], server.uri], size_bytes=None)
    live.sources = paths
    await live.start()
    live.flip("a", 0)
    before = live.contents("a")
    server.pause()
    with pytest.raises(CopyUnavailableError, match="Copy c"):
        await live.scrub()
    status = (await live.sets.status([NAME])).sets[0]
    assert (status.state, status.copies[2].state) == ("stalled", "stalled")
    assert live.contents("a") == before
    server.resume()
    assert (await live.scrub()).outcome == "repaired"
