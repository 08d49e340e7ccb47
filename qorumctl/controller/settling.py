"""The last step of a copy's return: it is in the quorum again, and what it missed at the very end is healed and proven.

A copy that lacks writes must not decide a vote (invariant 8). So nothing is healed before it was read from every copy,
confirmed as in invariant 5, and outvoted without counting the copy that comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from qorumctl.copies.base import CopyReader
from qorumctl.core.ranges import Range, coalesce, split, total_bytes
from qorumctl.core.vote import NoMajority, Outvoted
from qorumctl.scrub.confirm import Confirmer
from qorumctl.scrub.evidence import ObservedRun
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Fence, StopReason

_ROUNDS = 12
_HEALS = 3


@dataclass(slots=True)
class Settlement:
    """`wrong`: what the copy still holds otherwise than the others, or cannot read. `undecided`: the others do not
    agree among themselves. `others`: outvoted ones that are none of our business. What guests kept writing while we
    looked is in none of these: those writes have reached the copy, too."""

    healed_bytes: int = 0
    verified_bytes: int = 0
    wrong: list[Range] = field(default_factory=list)
    undecided: list[Range] = field(default_factory=list)
    others: set[str] = field(default_factory=set)


class _Patient:
    """A scrub.ports.Supervisor that never stops: the copy votes, so this is brought to its end."""

    def stop_requested(self) -> StopReason | None:
        return None

    def suspend_if_requested(self) -> None:
        return

    def wants_quiet(self) -> bool:
        return False

    def moved(self, position_bytes: int, read_bytes: int, suspects: int) -> None:
        return

    def recovered(self, copy: str, reads: int) -> None:
        return


def settle(
    copy: str,
    readers: Sequence[CopyReader],
    fence: Fence,
    plan: ScrubPlan,
    ranges: Iterable[Range],
    moved: Callable[[int], None],
) -> Settlement:
    """With `plan.repair` what `copy` holds wrongly is healed. It is compared and never counted, whatever its marks."""
    plan = replace(plan, stale=plan.stale | {copy})
    confirmer = Confirmer(readers, fence, plan, _Patient())
    found = Settlement()
    done = 0
    for batch in _batches(ranges, plan):
        _settle(copy, confirmer, fence, plan, batch, found)
        done += total_bytes(batch)
        moved(done)
    return found


def _settle(
    copy: str, confirmer: Confirmer, fence: Fence, plan: ScrubPlan, batch: list[Range], found: Settlement
) -> None:
    left, heals, wrong = batch, 0, list[Range]()
    for _ in range(_ROUNDS):
        seen = confirmer.confirm(left)
        wrong = [run.range for run in seen.damaged if _lacks(copy, run)]
        undecided = [run.range for run in seen.damaged if isinstance(run.verdict, NoMajority)]
        found.undecided += undecided
        found.others |= {name for run in seen.damaged for name in _losers(run) if name != copy}
        if wrong and (heals == _HEALS or not plan.repair):
            found.wrong += wrong
            return
        if undecided:
            return
        if wrong:
            for piece in split(wrong, plan.tuning.heal_bytes[heals]):
                fence.heal(piece)
            heals += 1
            found.healed_bytes += total_bytes(wrong)
        left = coalesce([*wrong, *seen.busy])
        if not left:
            break
    # Healed in the last round, and not seen equal since.
    found.wrong += wrong
    found.verified_bytes += total_bytes(batch) - total_bytes(left)


def _lacks(copy: str, run: ObservedRun) -> bool:
    verdict = run.verdict
    return isinstance(verdict, Outvoted) and (copy in verdict.losers or copy in verdict.unreadable)


def _losers(run: ObservedRun) -> frozenset[str]:
    return run.verdict.losers | run.verdict.unreadable if isinstance(run.verdict, Outvoted) else frozenset()


def _batches(ranges: Iterable[Range], plan: ScrubPlan) -> Iterator[list[Range]]:
    batch: list[Range] = []
    for piece in split(ranges, plan.tuning.heal_bytes[0]):
        batch.append(piece)
        if len(batch) >= plan.tuning.confirm_ranges or total_bytes(batch) >= plan.tuning.confirm_bytes:
            yield batch
            batch = []
    if batch:
        yield batch
