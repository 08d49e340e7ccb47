"""What a page about a run is made of: the worst findings first, all of them counted, and no more kept than asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qorumctl import definitions
from qorumctl.controller import dossier
from qorumctl.controller.dossier import Dossier, Wanted
from qorumctl.controller.sets import QuorumSets
from qorumctl.core.disk_map import NO_COPY
from qorumctl.core.findings import Action, Cause, Checkpoint, Fate, Finding
from qorumctl.errors import StoreError
from qorumctl.paths import Directories
from qorumctl.store import Store
from tests.live import make_spec
from tests.store.samples import SIZE, S, no_majority, outvoted, unreadable

WANTED = Wanted(cells=(8, 4), most_findings=4, most_runs=2)


@pytest.fixture
def sets(tmp_path: Path) -> QuorumSets:
    directories = Directories(tmp_path / "c", tmp_path / "s", tmp_path / "r")
    directories.config.mkdir()
    spec = make_spec({name: tmp_path / f"{name}.raw" for name in "abc"}, size_bytes=SIZE)
    definitions.save(directories.definition_path("web01"), spec)
    return QuorumSets(directories)


def scrub(tmp_path: Path, *findings: Finding) -> int:
    with Store.open(tmp_path / "s/web01") as store:
        run = store.begin_run("repair", SIZE, None, False, None, os.getpid()).id
        store.journal(run).conclude([], findings, Checkpoint(SIZE, SIZE, 0, {"a": SIZE, "b": SIZE}, 0, ()))
        store.finish_run(run)
    return run


async def test_the_worst_come_first_and_all_are_counted(sets: QuorumSets, tmp_path: Path) -> None:
    scrub(
        tmp_path,
        *(outvoted(n, Action.REPAIRED) for n in range(3)),
        unreadable(100, Action.FAILED),
        *(no_majority(n) for n in range(200, 202)),
        outvoted(300, Action.LEFT, copies="c"),
        outvoted(400, Action.REPAIRED, cause=Cause.UNCLEAN_SHUTDOWN),
    )
    got: Dossier = await sets.dossier("web01", None, WANTED)
    assert [one.offset // S for one in got.findings] == [200, 201, 100, 300]
    assert {fate: one.number for fate, one in got.tally.by_fate.items()} == {
        Fate.REPAIRED: 4, Fate.RESOLVED: 0, Fate.PENDING: 0, Fate.LEFT: 2, Fate.TIED: 2,
    }  # fmt: skip
    for made in got.maps:
        lanes = {name: sum(cell.number for cell in cells) for name, cells in made.lanes.items()}
        assert lanes == {"a": 5, "b": 3, "c": 3, NO_COPY: 1}
    assert [len(made.ranges) for made in got.maps] == [8, 4]
    assert not any(cell.compared for cell in got.maps[0].lanes["c"]), "c was not read"
    assert got.report.findings == []
    assert got.data == {}
    assert got.fates[1]["a"] == {Fate.REPAIRED: 3, Fate.TIED: 2}
    assert got.fates[1][""] == {Fate.REPAIRED: 1}


async def test_data_of_guests_only_comes_when_it_was_asked_for(sets: QuorumSets, tmp_path: Path) -> None:
    scrub(tmp_path, outvoted(1, Action.REPAIRED), outvoted(2, Action.LEFT))
    got = await sets.dossier("web01", 1, Wanted((8,), 4, 2, most_data=1))
    assert {one.range.offset: [version.sample for version in one.versions] for one in got.data.values()} == {
        2 * S: [b"good", b"bad"]
    }


async def test_only_as_many_runs_as_asked_for(sets: QuorumSets, tmp_path: Path) -> None:
    for _ in range(4):
        scrub(tmp_path, outvoted(1, Action.LEFT))
    got = await sets.dossier("web01", 2, WANTED)
    assert (got.report.run, got.newest_run) == (2, 4)
    assert [run.run for run in got.history.runs] == [4, 3]
    assert sorted(got.fates) == [3, 4]


async def test_a_set_that_was_never_scrubbed_and_a_run_that_never_was(sets: QuorumSets) -> None:
    with pytest.raises(StoreError, match="has never been scrubbed"):
        await sets.dossier("web01", None, WANTED)
    with pytest.raises(StoreError):
        await sets.dossier("web01", 7, WANTED)
    assert dossier.Wanted((1,), 1, 1).most_data == 0
