"""`pause` and `cancel`: when they have returned, the set is free for whoever asked."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from qorumctl.controller import scrub_commands
from qorumctl.controller.context import SetContext
from qorumctl.controller.options import Timeouts
from qorumctl.paths import Directories
from qorumctl.store import RunState
from tests.live import MIB


@pytest.mark.parametrize("timeouts", [Timeouts(), Timeouts(stop_s=0.5)], ids=["lets go", "never does"])
async def test_a_run_that_has_stopped_still_holds_the_set_for_a_moment(tmp_path: Path, timeouts: Timeouts) -> None:
    """While it takes its exports back. `stop`, right after `pause`, would be refused."""
    context = SetContext("w", Directories(tmp_path / "c", tmp_path / "s", tmp_path / "r"), timeouts)
    lock = context.lock("scrub")
    with lock, context.store() as store:
        run = store.begin_run("report", MIB, None, False, None, os.getpid())
        pausing = asyncio.ensure_future(scrub_commands.ask(context, "pause"))
        while store.pending_request(run.id) is None:
            await asyncio.sleep(0)
        store.suspend_run(run.id)
        if timeouts.stop_s > 1:
            await asyncio.sleep(0.5)
            assert not pausing.done()
            lock.release()
        report = await pausing
        assert (report.run, report.resumable) == (run.id, True)
        assert store.run(run.id).state is RunState.SUSPENDED  # type: ignore[union-attr]
