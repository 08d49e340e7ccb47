"""What a scrub that came to its end settles: marks of the images that it compared, and of no other."""

from __future__ import annotations

import os
from pathlib import Path

from qorumctl.controller import suspects
from qorumctl.core.findings import Checkpoint
from qorumctl.model.spec import CopySpec, FileSource, SetSpec
from qorumctl.store import Store

SIZE = 1 << 20
SPEC = SetSpec(
    name="web01",
    uuid="6f0c0f5e-4b1c-4f29-9f2e-0c3c4d0c8a11",
    size=SIZE,
    threshold=2,
    copies=tuple(CopySpec(name=name, source=FileSource(path=f"/srv/{name}.img")) for name in "abc"),
)


def test_what_a_newcomer_missed_is_not_settled_by_a_scrub_that_never_read_it(tmp_path: Path) -> None:
    with Store.open(tmp_path / "web01") as store:
        store.suspect(["c", "c.2"], missed=True, why="a write failed (EIO)", failed=True)
        run = store.begin_run(
            "repair", SIZE, None, False, None, os.getpid(), dict(suspects.noted_at_begin(store, "abc"))
        ).id
        store.journal(run).conclude([], [], Checkpoint(SIZE))
        store.finish_run(run)
        suspects.clear_compared(store, SPEC, run)
        assert [s.copy for s in store.suspicions()] == ["c.2"]
