"""Runs one seed, and checks what must hold: during the run at each finding, and at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from hashlib import sha256

from qorumctl.core.diagnosis import Kind
from qorumctl.core.findings import Action, Finding, FindingVerdict, Source
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.core.vote import strict_majority
from qorumctl.errors import QorumError
from qorumctl.scrub.engine import Scrub
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import StopReason
from tests.sim.ports import Crash, Fate, MemoryJournal, SimClock, SimFence, SimReader, SimSupervisor
from tests.sim.scenario import Mode, Scenario, build
from tests.sim.truth import Activity, Violation, sectors_of
from tests.sim.world import World

MOST_ATTEMPTS = 30

NO_MAJORITY = FindingVerdict.NO_MAJORITY


@dataclass(slots=True)
class Parts:
    """What a test of the simulator replaces by something broken."""

    world: Callable[[World], None] = lambda world: None
    reader: type[SimReader] = SimReader
    fence: type[SimFence] = SimFence
    supervisor: type[SimSupervisor] = SimSupervisor
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
    tally: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Raises Violation, or whatever the engine raises that it should not."""
        scenario = build(self.seed, self.mode)
        world, dice = scenario.world, scenario.world.dice
        self.log, self.tally = world.log, world.tally
        self.parts.world(world)
        fate = Fate(world, dice.choice([0, 1, 3, 6]), dice.choice([0, 0, 1, 2]), dice.choice([0, 0, 1, 2]))
        first = Examiner(world, scenario.mode, scenario.within, disturbed=True)
        self._scrub(scenario, fate, first)
        world.check_the_doomed()
        first.check_the_end()
        world.activity = Activity()
        world.spread_the_word()
        second = Examiner(world, scenario.mode, Range(0, world.sectors * SECTOR_BYTES), disturbed=False)
        self._scrub(scenario, Fate(world), second)
        world.check_the_doomed()
        second.check_the_end()

    def _scrub(self, scenario: Scenario, fate: Fate, examiner: Examiner) -> None:
        """One run of the engine, resumed from its journal as often as it was broken off."""
        world = scenario.world
        journal = self.parts.journal(fate, examiner.inspect, examiner.prove)
        for _ in range(MOST_ATTEMPTS):
            if self._attempt(scenario, fate, examiner, journal):
                break
            # What the next command does first: nothing of the dead one stays open.
            world.watches.clear()
            fate.revive()
            world.now_s += world.dice.choice([1.0, 20.0])
        else:
            raise Violation(f"not finished after {MOST_ATTEMPTS} attempts")
        world.activity.hangs = 0
        world.recover()
        world.drain()
        examiner.journal = journal
        self.findings += len(journal.findings)

    def _attempt(self, scenario: Scenario, fate: Fate, examiner: Examiner, journal: MemoryJournal) -> bool:
        """One process. False: it was ended, or gave up, before the run was finished."""
        world = scenario.world
        readers = [
            self.parts.reader(copy, fate, scenario.chunk_bytes, scenario.read_ahead) for copy in world.copies.values()
        ]
        fence = self.parts.fence(world, fate, readers, may_heal=scenario.mode != "C")
        supervisor = self.parts.supervisor(fate, readers)
        while True:
            self.attempts += 1
            plan = self._plan(scenario, examiner, journal)
            try:
                reason = self.parts.scrub(readers, fence, journal, supervisor, SimClock(world), plan).run()
            except (Crash, QorumError):
                return False
            if world.watches:
                raise Violation(f"the engine returned and left {sorted(world.watches)} open")
            if reason is not StopReason.REPLAN:
                return reason is None
            world.tally["replan"] += 1
            fate.told = None

    def _plan(self, scenario: Scenario, examiner: Examiner, journal: MemoryJournal) -> ScrubPlan:
        world = scenario.world
        world.heeded = world.stale
        return ScrubPlan(
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
    struck_before: Counter[tuple[int, str]] = field(default_factory=Counter)
    deaf_before: set[tuple[int, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not self.disturbed:
            self.wrong_before = {sector: self.world.wrong(sector) for sector in range(self.world.sectors)}
            self.struck_before = self.world.struck.copy()
            self.deaf_before = {(s, name) for name, copy in self.world.copies.items() for s in copy.unreadable}

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
        # Where the majority was lost meanwhile, what was found before that is brought to its end.
        if sector in self.world.doomed and not (self.disturbed and sector in self.world.doomed_late):
            raise Violation(f"sector {sector} has no majority, but was reported: {finding}")
        for name in finding.copies:
            self.found[sector, name] += 1
            if not self.world.struck[sector, name]:
                raise Violation(f"invented: sector {sector} of {name}: {finding}")
            allowed = self.world.struck[sector, name]
            if not self.disturbed:
                allowed += 1 - self.struck_before[sector, name]
            if self.found[sector, name] > allowed:
                raise Violation(
                    f"sector {sector} of {name} was damaged {allowed} times and found more often: {finding}"
                )
            if finding.source is Source.GUEST_READ and self.found[sector, name] == self.world.struck[sector, name]:
                self._check_stored(sector, name, self.world.copies[name].by_read)

    def _check_stored(self, sector: int, name: str, cached: Collection[int]) -> None:
        # Rewritten with what was stored already, as by a guest's read of a wider range, it has nothing to lose.
        if sector in cached and self.world.copies[name].would_lose(sector):
            raise Violation(f"sector {sector} of {name} was put down as repaired, and is only in its cache")

    def _check_evidence(self, finding: Finding) -> None:
        promised = bytes(self.world.shadow[finding.range.offset : finding.range.end])
        winners = [v for v in finding.versions if set(v.copies).isdisjoint(finding.copies)]
        if [v.digest for v in winners] != [sha256(promised).hexdigest()] or winners[0].sample != promised[:16]:
            raise Violation(f"the winner's evidence is not what was written: {finding}")
        if len(set(winners[0].copies) - self.world.heeded) < max(
            self.world.threshold, strict_majority(len(self.world.copies))
        ):
            raise Violation(f"too few current copies behind the winner: {finding}")
        sector = finding.range.offset // SECTOR_BYTES
        if finding.range.length == SECTOR_BYTES and len(finding.copies) == 1 and sector not in self.world.fickle:
            fault = self.world.faults[sector, finding.copies[0]]
            said = finding.diagnosis
            if fault.kind == "flip" and (said.kind, said.flipped_bits) != (Kind.BIT_FLIPS, fault.bits):
                raise Violation(f"{fault.bits} bits were flipped, the diagnosis says {said}")

    def prove(self, finding: Finding) -> None:
        """Put down as repaired: then it is, unless a guest has been there since."""
        for sector in sectors_of(finding.range):
            if not self._is_cold(Range(sector * SECTOR_BYTES, SECTOR_BYTES)):
                continue
            if still := set(self.world.wrong(sector)).intersection(finding.copies):
                raise Violation(f"sector {sector} of {sorted(still)} was put down as repaired and is not")
            for name in finding.copies:
                self._check_stored(sector, name, self.world.copies[name].cached)

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
            if self.hopeless[sector] != 1 and not (self.disturbed and sector in self.world.doomed_late):
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
                # What was misread, or broke when it was to be healed, may rightly be found a second time.
                twice = self._was_fickle(sector) or fault.kind == "brittle"
                if self.found[sector, name] != 1 and not (twice and self.found[sector, name]):
                    raise Violation(f"{fault} was found {self.found[sector, name]} times")
                deaf = fault.kind == "unreadable" or (sector, name) in self.deaf_before
                self._check_outcome(sector, name, "unreadable" if deaf else fault.kind)
            if self.mode != "C" and not self.disturbed and name in self.world.wrong(sector):
                self._check_excuse(sector, name)

    def _was_fickle(self, sector: int) -> bool:
        return self.disturbed and sector in self.world.fickle

    def _check_excuse(self, sector: int, name: str) -> None:
        """What is still wrong in the end cannot be read, or cannot be written: the sector, or another one of its run,
        since a run is healed by one write."""
        finding = self._finding_of(sector, name)
        if finding.action is not Action.FAILED and finding.verdict is not FindingVerdict.UNREADABLE:
            raise Violation(f"at the end sector {sector} of {name} is not what was written: {finding}")

    def _finding_of(self, sector: int, name: str) -> Finding:
        """The first one."""
        assert self.journal is not None
        at = Range(sector * SECTOR_BYTES, SECTOR_BYTES)
        for finding in self.journal.findings.values():
            if name in finding.copies and finding.range.overlaps(at) and finding.verdict is not NO_MAJORITY:
                return finding
        raise Violation(f"sector {sector} of {name} is wrong, and nothing was reported")

    def _check_outcome(self, sector: int, name: str, kind: str) -> None:
        finding = self._finding_of(sector, name)
        sectors = set(sectors_of(finding.range))
        if self.disturbed and (sectors & self.world.fickle.keys() or sectors & self.world.doomed_late):
            return
        verdict = FindingVerdict.UNREADABLE if kind == "unreadable" else FindingVerdict.OUTVOTED
        if finding.verdict is not verdict:
            raise Violation(f"{kind} in sector {sector} of {name} was reported as {finding.verdict}")
        if not self._is_cold(finding.range) and self.disturbed:
            return
        stuck = any(
            (fault := self.world.faults.get((s, n))) is not None and fault.kind in {"stuck", "brittle"}
            for s in sectors_of(finding.range)
            for n in finding.copies
        )
        action = Action.FAILED if stuck else Action.REPAIRED
        if self.mode == "C" or kind == "unreadable":
            action = Action.LEFT
        if finding.action is not action:
            raise Violation(f"{kind} in sector {sector} of {name} ended as {finding.action}, not {action}: {finding}")
