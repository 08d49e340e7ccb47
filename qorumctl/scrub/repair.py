"""Repair (invariants 2, 3, 6): heal what was outvoted by reading it through the fence, then prove it by reading it
directly. QEMU ignores rewrite errors and reports none, so only the copies' own words count.

Interleavings considered, each with a test: the guest writes the range before, during or after the heal (the heal is a
serialising request, the verification has a watch of its own: a range written meanwhile is looked at again, never
"failed"); the rewrite fails silently (the verification sees it, the heal is repeated, then the finding is `failed`);
we are killed anywhere (findings are on record as pending before the first heal; a resumed run looks before it heals);
a copy is damaged or goes stale in between (each heal follows a fresh vote in which `threshold` current copies agree);
the power of a copy fails (each copy flushes between the heal and the look, and again before what was seen equal is put
down as repaired).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from qorumctl.core.findings import Action, Finding
from qorumctl.core.ranges import Range, RangeSet, coalesce, split
from qorumctl.core.vote import NoMajority
from qorumctl.scrub.confirm import Confirmer, Round
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Fence, Supervisor


@dataclass(slots=True)
class _Patient:
    """`unproven`: what has not been seen equal yet. Only that is looked at again: where guests write all over a large
    finding, each look proves more of it, while all of it is never quiet at once."""

    finding: Finding
    unproven: list[Range]
    heals: int = 0
    to_heal: list[Range] = field(default_factory=list)


class Repairer:
    def __init__(self, confirmer: Confirmer, fence: Fence, plan: ScrubPlan, supervisor: Supervisor) -> None:
        self._confirmer = confirmer
        self._fence = fence
        self._plan = plan
        self._supervisor = supervisor
        self._in_large = True

    def repair(self, findings: Mapping[int, Finding], *, just_confirmed: bool) -> dict[int, Finding]:
        """Heals and verifies. Returns by id, in their final form, the findings that were brought to an end; the others
        lie where guests kept writing, or were not come to before somebody asked to stop.

        `just_confirmed`: a vote of this moment stands behind the findings; else each is voted on before it is healed.
        """
        patients = {i: _Patient(f, [f.range], to_heal=[f.range] if just_confirmed else []) for i, f in findings.items()}
        done: dict[int, Finding] = {}
        for _ in range(self._plan.tuning.repair_rounds):
            if self._supervisor.stop_requested() is not None:
                break
            for patient in patients.values():
                self._heal(patient)
            # Told to stop among the heals: what was healed is still looked at, the rest stays pending on record.
            attended = {i: patient for i, patient in patients.items() if not patient.to_heal}
            if not attended:
                break
            looked_at = self._confirmer.confirm([r for p in attended.values() for r in p.unproven], flush=True)
            seen = _sort_out(looked_at)
            ended = {i: action for i, patient in attended.items() if (action := self._judge(patient, seen)) is not None}
            if Action.REPAIRED in ended.values():
                # A guest's read may have made it equal after the flush that the look began with.
                self._confirmer.flush()
            for i, action in ended.items():
                done[i] = patients.pop(i).finding.settled(action)
        return done

    def _heal(self, patient: _Patient) -> None:
        """Asked to stop, it leaves in `to_heal` all that it was to heal: a heal can take its whole deadline, and there
        are thousands."""
        if not patient.to_heal:
            return
        most_bytes = self._plan.tuning.heal_bytes[patient.heals]
        for piece in self._pieces(patient, most_bytes):
            self._supervisor.suspend_if_requested()
            if self._supervisor.stop_requested() is not None:
                return
            done = self._fence.heal(piece)
            if piece.length > most_bytes:
                self._in_large = done
        patient.heals += 1
        patient.to_heal = []

    def _pieces(self, patient: _Patient, most_bytes: int) -> Iterator[Range]:
        """The first time whole large pieces, until one of them does not get through: guests write there, or another
        copy was damaged in it just now. Then that one again in small ones, as the rest."""
        large_bytes = self._plan.tuning.large_heal_bytes
        if patient.heals:
            yield from split(patient.to_heal, most_bytes)
            return
        for piece in split(patient.to_heal, max(large_bytes, most_bytes)):
            if self._in_large and piece.length == large_bytes > most_bytes:
                yield piece
                if self._in_large:
                    continue
            yield from split([piece], most_bytes)

    def _judge(self, patient: _Patient, seen: _Seen) -> Action | None:
        """The finding's end, or None when it has to be looked at again."""
        at = patient.unproven
        if any(seen.hopeless.touches(r) for r in at):
            return Action.LEFT if patient.heals == 0 else Action.FAILED
        still_wrong = coalesce(part for r in at for part in seen.still_wrong(r, _losers(patient.finding)))
        if patient.heals < len(self._plan.tuning.heal_bytes):
            patient.to_heal = still_wrong
        elif still_wrong:
            return Action.FAILED
        patient.unproven = coalesce([*still_wrong, *(part for r in at for part in seen.unknown.parts_of(r))])
        return None if patient.unproven else Action.REPAIRED


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a verification saw: what is still outvoted, what has lost its majority, what guests wrote meanwhile, and
    what each copy could not read."""

    outvoted: RangeSet
    hopeless: RangeSet
    unknown: RangeSet
    unreadable: Mapping[str, RangeSet]

    def still_wrong(self, r: Range, losers: frozenset[str]) -> Iterator[Range]:
        """A loser that cannot be read any more is not repaired: a rewrite that fails often leaves such a sector. Of
        another copy it says nothing: QEMU leaves that one out of the vote and does not rewrite it."""
        yield from self.outvoted.parts_of(r)
        for name in losers & self.unreadable.keys():
            yield from self.unreadable[name].parts_of(r)


def _sort_out(looked_at: Round) -> _Seen:
    outvoted: list[Range] = []
    hopeless: list[Range] = []
    unreadable: dict[str, list[Range]] = {}
    for run in looked_at.damaged:
        if isinstance(run.verdict, NoMajority):
            hopeless.append(run.range)
        elif run.verdict.losers:
            outvoted.append(run.range)
        for name in run.verdict.unreadable:
            unreadable.setdefault(name, []).append(run.range)
    deaf = {name: RangeSet(ranges) for name, ranges in unreadable.items()}
    return _Seen(RangeSet(outvoted), RangeSet(hopeless), RangeSet(looked_at.busy), deaf)


def _losers(finding: Finding) -> frozenset[str]:
    """Who is to be rewritten. Not `copies`, which blames nobody after an unclean stop. Versions are sorted by votes,
    and a strict majority has the most."""
    return frozenset(name for version in finding.versions[1:] for name in version.copies)
