"""Looking at sets without touching them: `status`, `list`, `check`. No command sent here drains or waits for a lock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qorumctl.controller import failing, fronting, record, watcher
from qorumctl.controller.absences import RECORD_LOST
from qorumctl.controller.attach import uri
from qorumctl.controller.context import SetContext
from qorumctl.controller.serving import definition_differs
from qorumctl.controller.vetting import Look, looks, moment
from qorumctl.core.blame import Blame
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import GraphState
from qorumctl.errors import CopyUnavailableError, DaemonError, LockedError, QorumError
from qorumctl.model.hooks import HookFailure
from qorumctl.model.report import RunSummary
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import (
    CheckItem,
    CheckReport,
    CopyBlame,
    CopyState,
    CopyStatus,
    RunningScrub,
    SetListing,
    SetState,
    SetStatus,
)
from qorumctl.paths import check_ours
from qorumctl.store import SetLock, range_document
from qorumctl.store.absent import Absence
from qorumctl.store.replacing import Replacement
from qorumctl.store.reports import OpenDamage
from qorumctl.store.suspicions import Suspicion
from qorumctl.units import format_size

_MAY_HAVE = "may have missed a write"
Counts = dict[str, tuple[int, int, int]]


@dataclass(slots=True)
class _History:
    """What the store remembers."""

    running_spec: SetSpec | None = None
    uncompared: bool = False
    absences: dict[str, Absence] = field(default_factory=dict)
    replacements: dict[str, Replacement] = field(default_factory=dict)
    suspicions: list[Suspicion] = field(default_factory=list)
    watched: bool | None = None
    at_work: tuple[int, str] | None = None
    """The command that holds the set's lock: its pid and purpose."""
    scrub: RunningScrub | None = None
    last: RunSummary | None = None
    counts: Counts = field(default_factory=dict)
    damage: OpenDamage = field(default_factory=lambda: OpenDamage(0, {}, {}, None))
    blame: Blame | None = None
    owner: str | None = None
    hook_failures: list[HookFailure] = field(default_factory=list)
    lost: bool = False
    """The set has none of its own."""


@dataclass(frozen=True, slots=True)
class _Live:
    """What the daemon says. `ailing`: copies that a read found stalled or missing; `problem`: why it said
    nothing."""

    graph: GraphState | None
    ailing: Mapping[str, CopyState] = field(default_factory=dict)
    stalled: bool = False
    problem: str | None = None


async def status(context: SetContext) -> SetStatus:
    """One set's status. Raises DefinitionError or StoreError where it cannot be told at all."""
    pid = context.pid()
    history = _history(context, pid)
    spec = context.spec() if history.running_spec is None or pid is None else history.running_spec
    live = await _live(context, spec) if pid is not None else None
    copies = [_copy_status(spec, name, history, live, pid) for name in spec.copy_names]
    history.lost = not record.is_of(history.owner, spec)
    state, reason = _judge(context, history, live, copies)
    return SetStatus(
        set=spec.name,
        uuid=str(spec.uuid),
        state=state,
        reason=reason,
        size=spec.size,
        threshold=spec.threshold,
        policy=spec.policy,
        pid=pid,
        volume=uri(context.runtime.nbd_sock) if live and live.graph and live.graph.volume_exported else None,
        definition_differs=pid is not None and _edited(context, history.running_spec),
        watched=history.watched if live is not None else None,
        scrub=history.scrub,
        last_scrub=history.last,
        unrepaired=history.damage.number,
        copies=copies,
        front=fronting.look(context),
        hook_failures=history.hook_failures,
    )


async def status_at_all_costs(context: SetContext) -> SetStatus:
    """As `status`; a set whose definition or state cannot be used is `failed`, and must not hide how the others are.
    What is unknown of it is empty, or 0."""
    try:
        return await status(context)
    except QorumError as error:
        pid = None
        with contextlib.suppress(QorumError):
            pid = context.pid()
        return SetStatus(
            set=context.name,
            uuid="",
            state=SetState.FAILED,
            reason=str(error),
            size=0,
            threshold=0,
            policy="repair",
            pid=pid,
            volume=None,
            definition_differs=False,
            scrub=None,
            last_scrub=None,
            unrepaired=0,
            copies=[],
        )


def _edited(context: SetContext, running: SetSpec | None) -> bool:
    try:
        return definition_differs(running, context.spec())
    except QorumError:
        return True


def _history(context: SetContext, pid: int | None) -> _History:
    history = _History()
    check_ours(context.state_dir)
    if not context.state_dir.is_dir():
        return history
    history.at_work = holder = SetLock.held_by(context.state_dir)
    with context.store(read_only=True) as store:
        history.running_spec = context.running_spec(store)
        history.owner = record.owner(store)
        history.uncompared = context.uncompared(store)
        history.suspicions = store.suspicions()
        history.absences = store.absences()
        history.replacements = store.replacements()
        history.counts = store.copy_counts()
        for run in store.runs(1):
            history.last = store.run_summary(run)
        if holder is not None and (at_work := store.running_run(holder[0])) is not None:
            history.scrub = RunningScrub(
                run=at_work.id,
                mode=at_work.mode,
                position=at_work.position_bytes,
                range=range_document(at_work),
                pid=at_work.pid,
                held_back=at_work.parameters.get("held_back") is True,
            )
        history.damage = store.open_damage()
        history.blame = store.blame()
        history.hook_failures = store.outbox.failures()
    history.watched = None if pid is None else watcher.is_watched(context, pid)
    return history


async def _live(context: SetContext, spec: SetSpec) -> _Live | None:
    limit_s = context.timeouts.status_s
    try:
        async with asyncio.timeout(2 * limit_s), context.control(timeout_s=limit_s) as monitor:
            graph = await context.quorum(spec, monitor).describe()
    except (DaemonError, LockedError, TimeoutError) as error:
        if context.pid() is None:
            # It has ended since we looked for it.
            return None
        words = error.message if isinstance(error, QorumError) else "The daemon does not answer."
        return _Live(None, stalled=True, problem=words)
    # One without an export is changing places, or a command was killed as it did: nobody waits for it.
    there = [name for name in graph.copies if copy_node(name) in graph.exports]
    states = await asyncio.gather(*(asyncio.to_thread(_probe, context, name) for name in there))
    return _Live(graph, {name: state for name, state in zip(there, states, strict=True) if state is not None})


def _probe(context: SetContext, name: str) -> CopyState | None:
    """What ails a copy: it does not answer a read in time, or every read fails. A bad sector alone is neither."""
    try:
        from qorumctl.copies.nbd import NbdCopy

        reader = NbdCopy(name, context.runtime.nbd_sock, copy_node(name), timeout_s=context.timeouts.status_s)
        try:
            last = max(0, reader.size_bytes // SECTOR_BYTES - 1)
            probes = [Range(sector * SECTOR_BYTES, SECTOR_BYTES) for sector in {0, last // 2, last}]
            return CopyState.MISSING if all(reader.observe(probe).unreadable for probe in probes) else None
        finally:
            reader.close()
    except CopyUnavailableError:
        return CopyState.STALLED


def _copy_status(spec: SetSpec, name: str, history: _History, live: _Live | None, pid: int | None) -> CopyStatus:
    state, note = CopyState.OFFLINE, None
    absence = history.absences.get(name)
    missed_bytes = None
    fails = failing.is_failing(*history.damage.lost_by_copy.get(name, (0, 0)))
    if absence is not None:
        state = CopyState.MISSING
        missed_bytes = _missed_bytes(absence, live, pid)
        note = _absence_words(absence, live, missed_bytes, history.at_work)
    elif live is not None:
        state = CopyState.CURRENT
        if live.graph is not None and live.graph.assembled and name not in live.graph.copies:
            state, note = CopyState.MISSING, "not in the quorum"
        elif ails := live.ailing.get(name):
            state, note = ails, "does not answer" if ails is CopyState.STALLED else "every read fails"
        elif missed := next((s for s in history.suspicions if s.copy == name and s.missed), None):
            state, note = CopyState.SUSPECT, _missed(missed)
        elif left := history.damage.by_copy.get(name, 0):
            state, note = CopyState.SUSPECT, f"{left} damaged range{'s' if left > 1 else ''} not repaired"
            if fails:
                note += f", more than a scrub writes anew: it is failing; {failing.replacement(spec.name, name)}"
        elif history.uncompared:
            state, note = CopyState.SUSPECT, "not compared since an unclean stop"
        elif unwatched := next((s for s in history.suspicions if s.copy == name), None):
            state, note = CopyState.SUSPECT, f"{_MAY_HAVE}: {unwatched.why} before {moment(unwatched.last)}"
    outvoted, unreadable, repaired = history.counts.get(name, (0, 0, 0))
    if (successor := history.replacements.get(name)) is not None:
        words = f"being replaced by {successor.source.label}"
        if history.at_work is not None and history.at_work[1] == "copy replace":
            words += f"; process {history.at_work[0]} is at it"
        else:
            words += f": 'qorumctl copy replace {spec.name} {name}' goes on"
        note = f"{note}; {words}" if note else words
    return CopyStatus(
        name=name,
        source=spec.copy_named(name).source.label,
        state=state,
        outvoted=outvoted,
        unreadable=unreadable,
        repaired=repaired,
        missed_writes=any(s.copy == name and s.missed for s in history.suspicions),
        failing=fails,
        note=note,
        away_since=None if absence is None else absence.since,
        missed_bytes=missed_bytes,
        blame=_blame(history.blame, name),
        replaced_by=None if successor is None else successor.source.label,
    )


def _blame(found: Blame | None, name: str) -> CopyBlame | None:
    if found is None or found.copy != name:
        return None
    return CopyBlame(
        scrubs=found.scrubs,
        of_scrubs=found.of_scrubs,
        days=found.days,
        outvoted=found.faults.outvoted,
        unreadable=found.faults.unreadable,
        recurring=found.faults.recurring,
        others=found.others,
    )


def _missed_bytes(absence: Absence, live: _Live | None, pid: int | None) -> int | None:
    """None: no daemon has the record of it."""
    if not absence.kept or absence.daemon != pid or live is None or live.graph is None:
        return None
    records = [record for record in live.graph.missed if record.copy == absence.copy]
    return sum(record.count_bytes for record in records) if records else None


def _absence_words(
    absence: Absence, live: _Live | None, missed_bytes: int | None, at_work: tuple[int, str] | None
) -> str:
    since = f"{absence.why}, away since {moment(absence.since)}"
    if at_work is not None and at_work[1] in ({"scrub", "copy rejoin"} if absence.rewrite else {"copy rejoin"}):
        return f"{since}; process {at_work[0]} ({at_work[1]}) is at it"
    if absence.rewrite:
        since += "; the next scrub brings it back"
    if live is not None and live.graph is not None and absence.copy in live.graph.copies:
        return f"{since}, half back: repeat the command that was interrupted"
    if live is not None and live.graph is None:
        return since
    if missed_bytes is None:
        lost = absence.lost or RECORD_LOST
        return f"{since}; {lost}: rejoin compares all of it"
    return f"{since}; {format_size(missed_bytes)} written since, which rejoin copies"


def _missed(known: Suspicion) -> str:
    if known.why == record.FORGOTTEN:
        return (
            f"may have missed a write: {known.why}, seen at {moment(known.since)}; it has no vote until it is compared"
        )
    often = f", {known.count} reports since" if known.count > 1 else ""
    return f"has missed a write: {known.why}, first at {moment(known.since)}{often}"


def _judge(
    context: SetContext, history: _History, live: _Live | None, copies: Sequence[CopyStatus]
) -> tuple[SetState, str | None]:
    if live is None:
        if history.running_spec is not None:
            return (
                SetState.FAILED,
                "The daemon is gone without having been stopped; the next start compares the copies.",
            )
        if history.uncompared:
            return SetState.STOPPED, "The set was not stopped in order; the next start compares the copies."
        if history.lost:
            return SetState.STOPPED, "The record of the set was lost; the next start begins a new one."
        if history.absences:
            away = ", ".join(sorted(history.absences))
            return SetState.STOPPED, f"The set is not running, and copy {away} is away."
        return SetState.STOPPED, "The set is not running."
    if live.stalled:
        return SetState.STALLED, live.problem
    if live.graph is not None and not (live.graph.assembled and live.graph.volume_exported):
        if SetLock.held_by(context.state_dir) is not None:
            return SetState.STOPPED, "Another command is at work on the set; the volume is not exported yet."
        return SetState.FAILED, "The volume is not exported: an earlier command did not finish."
    if any(copy.state is CopyState.STALLED for copy in copies):
        names = ", ".join(copy.name for copy in copies if copy.state is CopyState.STALLED)
        return SetState.STALLED, f"Copy {names} does not answer; reads and writes of the volume wait for it."
    if (first := history.damage.without_majority) is not None:
        if missed := [copy.name for copy in copies if copy.missed_writes]:
            return (
                SetState.DAMAGED,
                f"No majority at offset {first.offset} ({first.length} bytes), where copy {', '.join(missed)} does not "
                "count: it has missed a write.",
            )
        return SetState.DAMAGED, f"No majority at offset {first.offset} ({first.length} bytes): reading there fails."
    if history.lost:
        return SetState.DEGRADED, f"The record of the set was lost: 'qorumctl scrub {context.name}' begins a new one."
    may_have = [copy for copy in copies if (copy.note or "").startswith(_MAY_HAVE)]
    for copy in copies:
        if copy.state is not CopyState.CURRENT and (copy not in may_have or len(may_have) < len(copies)):
            return SetState.DEGRADED, f"Copy {copy.name}: {copy.note}."
    if history.watched is False:
        return SetState.DEGRADED, "Nobody listens for write errors now: a copy that misses a write goes unnoticed."
    if may_have:
        return SetState.DEGRADED, f"Any copy {may_have[0].note}."
    return SetState.HEALTHY, live.problem


async def listing(context: SetContext) -> SetListing:
    """One line of `list`: a definition that cannot be used is listed with its error."""
    try:
        found = await status(context)
    except QorumError as error:
        return SetListing(name=context.name, state=SetState.FAILED, size=None, copies=None, error=str(error))
    return SetListing(name=found.set, state=found.state, size=found.size, copies=len(found.copies))


def check(context: SetContext) -> CheckReport:
    """Looks at everything that `start` would look at before it starts a daemon. Changes nothing."""
    spec = context.spec()
    items = [CheckItem(subject="definition", ok=True, detail=str(context.definition_path))]
    items += [_check(look) for look in looks(context, spec, takeover=False)]
    return CheckReport(set=spec.name, ok=all(item.ok for item in items), items=items)


def _check(look: Look) -> CheckItem:
    try:
        look.run()
    except QorumError as error:
        return CheckItem(subject=look.subject, ok=False, detail=error.message, remedy=error.remedy)
    return CheckItem(subject=look.subject, ok=True, detail=look.detail)
