"""What guests keep from being settled is put off to the end, but never more of it than memory has room for."""

from __future__ import annotations

from collections.abc import Sequence

from qorumctl.copies.memory import MemoryCopy
from qorumctl.core.findings import Action, Checkpoint, Finding
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.scrub.engine import Scrub
from qorumctl.scrub.plan import Tuning
from qorumctl.scrub.ports import Watch
from tests.scrub.world import FakeClock, Steered, VotingFence, plan_of

SECTORS = 40
MOST = 4
TUNING = Tuning(segment_bytes=2 * SECTOR_BYTES, gap_bytes=0, put_off_ranges=MOST)


class Record:
    """A scrub.ports.Journal in memory, which also knows how many findings are pending at once."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.checkpoints: list[Checkpoint] = []
        self.most_pending = 0

    def begin_repair(self, findings: Sequence[Finding]) -> list[int]:
        first = len(self.findings)
        self.findings += findings
        self.most_pending = max(self.most_pending, sum(f.action is Action.PENDING for f in self.findings))
        return list(range(first, len(self.findings)))

    def conclude(
        self, settled: Sequence[tuple[int, Finding]], findings: Sequence[Finding], checkpoint: Checkpoint
    ) -> None:
        for i, finding in settled:
            assert self.findings[i].action is Action.PENDING
            self.findings[i] = finding
        self.findings += findings
        self.checkpoints.append(checkpoint)


class Restless(VotingFence):
    """Guests write all that is asked about. `after_heal`: only what was healed."""

    after_heal = False

    def written(self, watch: Watch, within: Sequence[Range]) -> list[Range]:
        return [r for r in within if not self.after_heal or r in self.healed]


def scrubbed(fence: Restless, copies: list[MemoryCopy]) -> Record:
    record = Record()
    plan = plan_of(SECTORS * SECTOR_BYTES, tuning=TUNING)
    assert Scrub(copies, fence, record, Steered(), FakeClock(), plan).run() is None
    assert record.checkpoints[-1].cursor_bytes == SECTORS * SECTOR_BYTES
    return record


def every_other_sector_is_wrong() -> list[MemoryCopy]:
    rows = ["AA" * (SECTORS // 2), "AX" * (SECTORS // 2), "AA" * (SECTORS // 2)]
    return [MemoryCopy.from_letters(name, row, chunk_bytes=SECTOR_BYTES) for name, row in zip("abc", rows, strict=True)]


def test_what_is_busy_is_looked_at_again_before_it_is_too_much() -> None:
    copies = every_other_sector_is_wrong()
    record = scrubbed(Restless(copies), copies)
    # The last of the looks reads it through the fence: that waits its turn among the writes, and all is equal.
    assert max(len(checkpoint.busy) for checkpoint in record.checkpoints) == MOST
    assert record.checkpoints[-1].busy == ()
    assert {copy.letters for copy in copies} == {"A" * SECTORS}


class NeverEqual(Restless):
    """What is healed differs again at once: a guest writes there without end."""

    def heal(self, at: Range) -> bool:
        self.healed.append(at)
        return True


def test_what_stays_busy_does_not_keep_the_run_from_going_on() -> None:
    copies = every_other_sector_is_wrong()
    record = scrubbed(NeverEqual(copies), copies)
    assert len(record.checkpoints[-1].busy) == SECTORS // 2
    assert record.findings == []


def test_repairs_that_nobody_can_prove_are_given_up_before_they_are_too_many() -> None:
    copies = every_other_sector_is_wrong()
    fence = NeverEqual(copies)
    fence.after_heal = True
    record = scrubbed(fence, copies)
    assert record.most_pending <= MOST + 1
    assert {finding.action for finding in record.findings} == {Action.LEFT}
    assert [finding.range for finding in record.findings] == [
        Range(sector * SECTOR_BYTES, SECTOR_BYTES) for sector in range(1, SECTORS, 2)
    ]
