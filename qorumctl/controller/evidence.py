"""`report --finding`: what each copy holds of a range now, beside what is on record; and their bitwise majority.

The copies are read through their own exports, read-only. Of a running set without its lock: what guests write meanwhile
can be seen half-way. Of a stopped one under its lock, by a daemon of its own that ends with the command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from hashlib import sha256

from qorumctl.controller import inspection, looking, serving, suspects, vetting
from qorumctl.controller.context import SetContext
from qorumctl.controller.live import in_a_thread
from qorumctl.controller.looking import Piece
from qorumctl.controller.observer import ScrubControl
from qorumctl.core.bitwise import Likelihood, Survey, majority
from qorumctl.core.ranges import SECTOR_BYTES, Range, split
from qorumctl.core.vote import NoMajority
from qorumctl.errors import QorumError, RefusedError
from qorumctl.model.evidence import Bitwise, CopyEvidence, Evidence, Row
from qorumctl.model.report import FindingDocument
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import SetState
from qorumctl.store.records import now

ROW_BYTES = 16


async def evidence(
    context: SetContext, finding_id: int, *, most_rows: int, from_bytes: int = 0, control: ScrubControl | None = None
) -> Evidence:
    """`most_rows`: rows of data that are told, from `from_bytes` on. UsageError where there is no such finding."""
    control = control or ScrubControl()
    run, finding = looking.finding_of(context, finding_id)
    if context.pid() is not None:
        spec = serving.spec_in_force(context)
        async with context.control() as monitor:
            state = await context.quorum(spec, monitor).describe()
        if state.assembled:
            told = await in_a_thread(
                control, _read, context, spec, state.copies, run, finding, most_rows, from_bytes, control
            )
            return told.model_copy(update={"state": (await inspection.status(context)).state})
    with context.lock("report --finding"):
        if await serving.is_up(context):
            raise RefusedError(
                f"{context.name} was started a moment ago.", remedy="Repeat the command.", set_name=context.name
            )
        # Of a command that was killed: it serves nobody.
        await serving.end_leftover(context)
        spec = context.spec()
        vetting.vet(context, spec, takeover=False)
        serving.prepare_directories(context)
        async with serving.rolled_back(context) as monitor:
            quorum = context.quorum(spec, monitor)
            await quorum.open_copies(read_only=True)
            await quorum.check_lengths()
            names = spec.copy_names
            told = await in_a_thread(control, _read, context, spec, names, run, finding, most_rows, from_bytes, control)
        await serving.end_leftover(context)
    return told


def _read(
    context: SetContext,
    spec: SetSpec,
    present: Sequence[str],
    run: int,
    finding: FindingDocument,
    most_rows: int,
    from_bytes: int,
    control: ScrubControl,
) -> Evidence:
    def heed() -> None:
        if control.reason is not None:
            raise QorumError("Interrupted: nothing was changed.", set_name=context.name)

    with context.store(read_only=True) as store:
        stale = suspects.stale(store, spec)
    at = Range(finding.offset, finding.length)
    with looking.readers_of(context, present, reached=True) as readers:
        names = [reader.name for reader in readers]
        looking.check_enough(context, names, spec.threshold)
        account = _Account(names, stale, at, most_rows, from_bytes)
        for piece in looking.pieces(readers, at, spec.threshold, stale, heed):
            account.add(piece)
    return Evidence(
        set=spec.name,
        run=run,
        finding=finding,
        read_at=now(),
        state=SetState.STOPPED,
        away=[name for name in spec.copy_names if name not in names],
        **account.told(finding),
    )


class _Account:
    """Adds up what the pieces show."""

    def __init__(self, names: Sequence[str], stale: Set[str], at: Range, most_rows: int, from_bytes: int) -> None:
        self._names = names
        self._counting = frozenset(names) - stale
        self._at = at
        self._most_rows = most_rows
        self._from_bytes = from_bytes
        self._digests = {name: sha256() for name in names}
        self._unreadable = dict.fromkeys(names, 0)
        self._survey = Survey(sorted(self._counting))
        self._sectors = self._tied = 0
        self._rows: list[Row] = []
        self._more = 0
        self._next: int | None = None

    def add(self, piece: Piece) -> None:
        for name, seen in piece.seen.items():
            self._digests[name].update(seen.data)
            self._unreadable[name] += sum(r.length for r in seen.unreadable)
        for run in piece.runs:
            for sector in split([run.range], SECTOR_BYTES):
                self._sectors += 1
                held = piece.readable(sector, frozenset(self._names))
                counted = {name: data for name, data in held.items() if name in self._counting}
                if isinstance(run.verdict, NoMajority):
                    self._tied += 1
                    agreed = self._survey.add(counted)
                else:
                    agreed = majority(list(counted.values()))[0]
                self._add_rows(piece.range.offset + sector.offset, sector.length, held, agreed)

    def _add_rows(self, offset: int, length: int, held: Mapping[str, bytes], agreed: bytes | None) -> None:
        for at in range(0, length, ROW_BYTES):
            parts = {name: held[name][at : at + ROW_BYTES] if name in held else None for name in self._names}
            if len(set(parts.values())) == 1 or offset + at < self._from_bytes:
                continue
            if len(self._rows) < self._most_rows:
                self._rows.append(
                    Row(
                        offset=offset + at,
                        data={name: None if part is None else part.hex() for name, part in parts.items()},
                        bitwise=None if agreed is None else agreed[at : at + ROW_BYTES].hex(),
                    )
                )
            else:
                self._more += 1
                self._next = offset + at if self._next is None else self._next

    def told(self, finding: FindingDocument) -> dict[str, object]:
        recorded = {name: digest for digest, names in finding.votes.items() for name in names}
        known = self._survey.likelihood is not Likelihood.IMPOSSIBLE
        copies = []
        for name in self._names:
            digest, lost = self._digests[name].hexdigest(), self._unreadable[name]
            distance = self._survey.distances.get(name) if known else None
            copies.append(
                CopyEvidence(
                    name=name,
                    digest=digest,
                    recorded=recorded.get(name),
                    changed=recorded.get(name) != digest if name in recorded else not lost,
                    counts=name in self._counting,
                    unreadable_bytes=lost,
                    bits=None if distance is None else distance.bits,
                    sectors=0 if distance is None else distance.sectors,
                    kinds={} if distance is None else dict(distance.kinds),
                )
            )
        groups: dict[tuple[str, int], list[str]] = {}
        for copy in copies:
            groups.setdefault((copy.digest, copy.unreadable_bytes), []).append(copy.name)
        sectors = -(-self._at.length // SECTOR_BYTES)
        return {
            "copies": copies,
            "agree": sorted(groups.values(), key=lambda names: (-len(names), names)),
            "sectors": sectors,
            "equal_sectors": sectors - self._sectors,
            "voted_sectors": self._sectors - self._tied,
            "tied_sectors": self._tied,
            "bitwise": bitwise_of(self._survey),
            "rows": self._rows,
            "more_rows": self._more,
            "next_offset": self._next,
        }


def bitwise_of(survey: Survey) -> Bitwise:
    return Bitwise(
        likelihood=survey.likelihood,
        why=_why(survey),
        tied_bits=survey.tied_bits,
        chance_of_coincidence=survey.chance_of_coincidence,
        crowded_sectors=survey.crowded_sectors,
    )


def _why(survey: Survey) -> str:
    chance = survey.chance_of_coincidence
    odds = f"about 1 in {round(1 / chance):,}" if 0 < chance < 0.5 else "large" if chance else "none"
    match survey.likelihood:
        case Likelihood.IMPOSSIBLE if not survey.sectors:
            return "No sector is without a majority now: there is nothing to decide."
        case Likelihood.IMPOSSIBLE:
            return "As many copies say 0 as 1 in some bits: an odd number of copies that can be read is needed."
        case Likelihood.UNLIKELY:
            seen = ", ".join(f"{name} {' and '.join(kinds)}" for name, kinds in sorted(survey.torn.items()))
            return (
                f"The copies differ in more than single bits ({seen}): they hold different writes, whole or torn, and "
                "bit by bit they would be mixed into something that nobody wrote."
            )
        case Likelihood.DOUBTFUL if survey.crowded_sectors:
            return (
                "Few bits differ, but closer together than scattered flips would: it may be rot, or versions with "
                "different numbers in them, which a mixture would not restore."
            )
        case Likelihood.DOUBTFUL:
            return (
                "The bits that differ are scattered, but so many that two copies may have lost the same one, where "
                f"the majority is then wrong (chance: {odds})."
            )
        case Likelihood.LIKELY:
            return (
                "Few bits differ, and they are scattered: flips that came about independently. The bitwise majority is "
                f"then what was written, unless two copies have lost the same bit (chance: {odds})."
            )
