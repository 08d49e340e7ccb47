"""Runs one seed, and checks what must hold: during the run at each finding, and at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from qorumctl.core.diagnosis import Kind
from qorumctl.core.findings import Action, Finding, FindingVerdict, Source
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.core.vote import strict_majority
from qorumctl.errors import QorumError
from qorumctl.scrub.engine import Scrub
from qorumctl.scrub.plan import ScrubPlan
from tests.sim.ports import Crash, Fate, MemoryJournal, SimClock, SimFence, SimReader, SimSupervisor
from tests.sim.scenario import Mode, Scenario, build
from tests.sim.world import Activity, Violation, World, sectors_of

MOST_ATTEMPTS = 30

NO_MAJORITY = FindingVerdict.NO_MAJORITY


@dataclass(slots=True)
class Parts:
    """What a test of the simulator replaces by something broken."""

    world: Callable[[World], None] = lambda world: None
    fence: type[SimFence] = SimFence
    journal: type[MemoryJournal] = MemoryJournal
    scrub: type[Scrub] = Scrub


@dataclass(slots=True)
class Simulation:
    seed: int
    mode: Mode
    parts: Parts = field(default_factory=Parts)
    attempts: int = 0
    findings: int = 0
    log: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Raises Violation, or whatever the engine raises that it should not."""
        scenario = build(self.seed, self.mode)
        self.log = scenario.world.log
        self.parts.world(scenario.world)
        doomed_before = _doomed_content(scenario.world)
        dice = scenario.world.dice
        fate = Fate(scenario.world, dice.choice([0, 1, 3, 6]), dice.choice([0, 0, 1, 2]), dice.choice([0, 0, 1, 2]))
        first = Examiner(scenario.world, scenario.mode, scenario.within, disturbed=True)
        self._scrub(scenario, fate, first)
        first.check_the_end()
        scenario.world.activity = Activity()
        whole = Range(0, scenario.world.sectors * SECTOR_BYTES)
        second = Examiner(scenario.world, scenario.mode, whole, disturbed=False)
        self._scrub(scenario, Fate(scenario.world), second)
        second.check_the_end()
        if _doomed_content(scenario.world) != doomed_before:
            raise Violation("a sector without a majority was written")

    def _scrub(self, scenario: Scenario, fate: Fate, examiner: Examiner) -> None:
        """One run of the engine, resumed from its journal as often as it was broken off."""
        world = scenario.world
        journal = self.parts.journal(fate, examiner.inspect, examiner.prove)
        for _ in range(MOST_ATTEMPTS):
            self.attempts += 1
            if self._attempt(scenario, fate, examiner, journal):
                break
            # What the next command does first: nothing of the dead one stays open.
            world.watches.clear()
            fate.revive()
        else:
            raise Violation(f"not finished after {MOST_ATTEMPTS} attempts")
        world.drain()
        examiner.journal = journal
        self.findings += len(journal.findings)

    def _attempt(self, scenario: Scenario, fate: Fate, examiner: Examiner, journal: MemoryJournal) -> bool:
        world = scenario.world
        readers = [SimReader(copy, fate, scenario.chunk_bytes, scenario.read_ahead) for copy in world.copies.values()]
        fence = self.parts.fence(world, fate, readers, may_heal=scenario.mode != "C")
        plan = ScrubPlan(
            size_bytes=world.sectors * SECTOR_BYTES,
            threshold=world.threshold,
            repair=scenario.mode != "C",
            rewriting=world.rewriting,
            within=examiner.within,
            now=lambda: f"2026-01-01T00:00:{world.now_s:09.6f}Z",
            thorough=scenario.thorough,
            rate_bytes_per_s=scenario.rate_bytes_per_s,
            stale=world.stale,
            checkpoint=journal.checkpoint,
            pending=journal.resumable,
            settled=journal.settled,
            tuning=scenario.tuning,
        )
        try:
            engine = self.parts.scrub(readers, fence, journal, SimSupervisor(fate, readers), SimClock(world), plan)
            reason = engine.run()
        except (Crash, QorumError):
            return False
        if world.watches:
            raise Violation(f"the engine returned and left {sorted(world.watches)} open")
        return reason is None


def _doomed_content(world: World) -> list[tuple[str, int, bool, bytes]]:
    return [
        (name, sector, sector in copy.unreadable, bytes(copy.data[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES]))
        for name, copy in sorted(world.copies.items())
        for sector in sorted(world.doomed)
    ]


@dataclass(slots=True)
class Examiner:
    """Holds one run to the truth, which only the world knows. `disturbed`: guests, faults and crashes are at work."""

    world: World
    mode: Mode
    within: Range
    disturbed: bool
    journal: MemoryJournal | None = None
    found: Counter[tuple[int, str]] = field(default_factory=Counter)
    hopeless: Counter[int] = field(default_factory=Counter)
    wrong_before: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.disturbed:
            self.wrong_before = {sector: self.world.wrong(sector) for sector in range(self.world.sectors)}

    # --- at each finding ----------------------------------------------------------------------------------------------

    def inspect(self, finding: Finding) -> None:
        """Nothing is invented, nothing is counted twice, and the evidence is right."""
        self.world.note(f"finding {finding.range} {finding.verdict} {finding.copies} {finding.action}")
        if not self.within.contains(finding.range) or finding.range.offset % SECTOR_BYTES:
            raise Violation(f"not a finding of this run: {finding}")
        for sector in sectors_of(finding.range):
            if finding.verdict is NO_MAJORITY:
                self._count_hopeless(sector, finding)
            else:
                self._count(sector, finding)
        if self.mode == "C" and finding.action is not Action.LEFT and finding.source is not Source.GUEST_READ:
            raise Violation(f"a scrub that only reports put down {finding.action}")
        if finding.verdict is FindingVerdict.OUTVOTED and self._is_cold(finding.range):
            self._check_evidence(finding)

    def _count_hopeless(self, sector: int, finding: Finding) -> None:
        self.hopeless[sector] += 1
        if sector not in self.world.doomed:
            raise Violation(f"sector {sector} has a majority, but was reported: {finding}")
        if self.hopeless[sector] > 1:
            raise Violation(f"sector {sector} without a majority was reported twice")
        if finding.copies != tuple(sorted(self.world.copies)) or finding.action is not Action.LEFT:
            raise Violation(f"where there is no majority every copy is at fault and nothing is done: {finding}")

    def _count(self, sector: int, finding: Finding) -> None:
        if sector in self.world.doomed:
            raise Violation(f"sector {sector} has no majority, but was reported: {finding}")
        for name in finding.copies:
            self.found[sector, name] += 1
            if not self.world.struck[sector, name]:
                raise Violation(f"invented: sector {sector} of {name}: {finding}")
            allowed = self.world.struck[sector, name] if self.disturbed else 1
            if self.found[sector, name] > allowed:
                raise Violation(
                    f"sector {sector} of {name} was damaged {allowed} times and found more often: {finding}"
                )

    def _check_evidence(self, finding: Finding) -> None:
        promised = bytes(self.world.shadow[finding.range.offset : finding.range.end])
        winners = [v for v in finding.versions if set(v.copies).isdisjoint(finding.copies)]
        if [v.digest for v in winners] != [sha256(promised).hexdigest()] or winners[0].sample != promised[:16]:
            raise Violation(f"the winner's evidence is not what was written: {finding}")
        if len(set(winners[0].copies) - self.world.stale) < max(
            self.world.threshold, strict_majority(len(self.world.copies))
        ):
            raise Violation(f"too few current copies behind the winner: {finding}")
        if finding.range.length == SECTOR_BYTES and len(finding.copies) == 1:
            fault = self.world.faults[finding.range.offset // SECTOR_BYTES, finding.copies[0]]
            said = finding.diagnosis
            if fault.kind == "flip" and (said.kind, said.flipped_bits) != (Kind.BIT_FLIPS, fault.bits):
                raise Violation(f"{fault.bits} bits were flipped, the diagnosis says {said}")

    def prove(self, finding: Finding) -> None:
        """Put down as repaired: then it is, unless a guest has been there since."""
        for sector in sectors_of(finding.range):
            still = set(self.world.wrong(sector)).intersection(finding.copies)
            if still and self._is_cold(Range(sector * SECTOR_BYTES, SECTOR_BYTES)):
                raise Violation(f"sector {sector} of {sorted(still)} was put down as repaired and is not")

    def _is_cold(self, at: Range) -> bool:
        return self.world.warm.isdisjoint(sectors_of(at))

    # --- at the end -------------------------------------------------------------------------------------------------

    def check_the_end(self) -> None:
        assert self.journal is not None
        if self.journal.pending:
            raise Violation(f"finished, with findings still pending: {self.journal.pending}")
        point = self.journal.checkpoint
        if point.cursor_bytes != self.within.end or point.scanned_bytes + point.skipped_bytes != self.within.length:
            raise Violation(f"finished, but the checkpoint says {point}")
        for r in point.busy:
            if self._is_cold(r) or not self.disturbed:
                raise Violation(f"{r} is called busy, though nobody wrote to it")
        self._check_promises()
        for sector in sectors_of(self.within):
            self._check_sector(sector)

    def _check_promises(self) -> None:
        """No acknowledged write is lost: enough current copies hold it. Doomed sectors apart, where all was lost."""
        for sector in range(self.world.sectors):
            right = set(self.world.copies) - set(self.world.wrong(sector)) - self.world.stale
            if sector not in self.world.doomed and len(right) < self.world.threshold:
                raise Violation(f"sector {sector}: only {sorted(right)} hold what was acknowledged")

    def _check_sector(self, sector: int) -> None:
        if sector in self.world.doomed:
            if self.hopeless[sector] != 1:
                raise Violation(f"sector {sector} has no majority and was not reported")
            return
        for name in sorted(self.world.copies):
            fault = self.world.faults.get((sector, name))
            expected = fault is not None and (
                name in self.wrong_before[sector]
                if not self.disturbed
                else fault.early and sector not in self.world.warm
            )
            if fault is not None and expected:
                if self.found[sector, name] != 1:
                    raise Violation(f"{fault} was found {self.found[sector, name]} times")
                self._check_outcome(sector, name, fault.kind)
            if self.mode != "C" and not self.disturbed and name in self.world.wrong(sector):
                self._check_excuse(sector, name)

    def _check_excuse(self, sector: int, name: str) -> None:
        """What is still wrong in the end cannot be read, or cannot be written: the sector, or another one of its run,
        since a run is healed by one write."""
        finding = self._finding_of(sector, name)
        if finding.action is not Action.FAILED and finding.verdict is not FindingVerdict.UNREADABLE:
            raise Violation(f"at the end sector {sector} of {name} is not what was written: {finding}")

    def _finding_of(self, sector: int, name: str) -> Finding:
        """The only one, as was checked before."""
        assert self.journal is not None
        at = Range(sector * SECTOR_BYTES, SECTOR_BYTES)
        for finding in self.journal.findings.values():
            if name in finding.copies and finding.range.overlaps(at) and finding.verdict is not NO_MAJORITY:
                return finding
        raise Violation(f"sector {sector} of {name} is wrong, and nothing was reported")

    def _check_outcome(self, sector: int, name: str, kind: str) -> None:
        finding = self._finding_of(sector, name)
        verdict = FindingVerdict.UNREADABLE if kind == "unreadable" else FindingVerdict.OUTVOTED
        if finding.verdict is not verdict:
            raise Violation(f"{kind} in sector {sector} of {name} was reported as {finding.verdict}")
        if not self._is_cold(finding.range) and self.disturbed:
            return
        stuck = any(
            (fault := self.world.faults.get((s, n))) is not None and fault.kind == "stuck"
            for s in sectors_of(finding.range)
            for n in finding.copies
        )
        action = Action.FAILED if stuck else Action.REPAIRED
        if self.mode == "C" or kind == "unreadable":
            action = Action.LEFT
        if finding.action is not action:
            raise Violation(f"{kind} in sector {sector} of {name} ended as {finding.action}, not {action}: {finding}")
