"""kill -9 at any instant (invariant 7): nothing is lost or counted twice, and nothing reads as clean."""

import os
import random
import subprocess
import sys
from pathlib import Path

from qorumctl.core.findings import Action
from qorumctl.store import SetLock, Store
from tests.store.samples import S

# Works as the engine does: what a crash left pending is settled first; then each sector's finding goes on record as
# pending, and is settled together with the checkpoint. A byte on stdout marks each step that was acknowledged.
WRITER = """
import os, sys
from pathlib import Path
from qorumctl.core.findings import Action, Checkpoint
from qorumctl.store import SetLock, Store
from tests.store.samples import S, SIZE, outvoted
directory = Path(sys.argv[1])
lock = SetLock.acquire(directory, purpose="scrub", wait_s=5)
store = Store.open(directory)
unfinished = store.unfinished_run()
run = (store.reopen_run(unfinished.id, os.getpid()) if unfinished
       else store.begin_run("repair", SIZE, None, False, None, os.getpid()))
journal = store.journal(run.id)
for finding_id, finding in store.pending_findings(run.id):
    journal.conclude([(finding_id, finding.settled(Action.FAILED))], [], run.checkpoint)
settled = store.settled_ranges(run.id, run.checkpoint.cursor_bytes)
sector = run.checkpoint.cursor_bytes // S + len(settled)
while True:
    here = Checkpoint((sector + 1) * S, (sector + 1) * S)
    ids = journal.begin_repair([outvoted(sector, Action.PENDING)])
    os.write(1, b"b")
    store.note_position(run.id, here.cursor_bytes)
    journal.conclude([(ids[0], outvoted(sector, Action.FAILED))], [], here)
    os.write(1, b"s")
    sector += 1
"""


def test_a_killed_writer_loses_nothing_and_leaves_nothing_behind(directory: Path) -> None:
    chance = random.Random(20261123)
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, directory], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        try:
            seen = b""
            for _ in range(chance.randrange(1, 40)):
                seen += (step := os.read(writer.stdout.fileno(), 1))
                assert step, "the writer ended by itself"
        finally:
            writer.kill()
            seen += writer.stdout.read()
            writer.stdout.close()
            writer.wait()
        check(directory, at_least=seen.count(b"s"))


def check(directory: Path, *, at_least: int) -> None:
    assert SetLock.held_by(directory) is None
    with Store.open(directory) as store:
        run = store.unfinished_run()
        assert run is not None
        assert (run.id, store.outcome_of(run), run.resumable) == (1, "unfinished", True)
        found = list(store.findings(run.id))
        sectors = [f.offset // S for f in found]
        assert sectors == list(range(len(sectors))), "a finding was lost or counted twice"
        pending = [f for f in found if f.action is Action.PENDING]
        assert len(pending) <= 1
        assert all(len(f.votes) == 2 for f in found), "a finding lost its evidence"
        settled = len(found) - len(pending)
        assert settled >= at_least
        # Settled by a resumed writer, without the checkpoint: one beyond the cursor at the most.
        assert 0 <= settled - run.checkpoint.cursor_bytes // S <= 1
