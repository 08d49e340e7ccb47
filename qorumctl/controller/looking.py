"""What the copies hold in a range now, read directly and voted on, piece by piece: memory stays flat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass

from qorumctl.controller.context import SetContext
from qorumctl.copies.base import CopyReader
from qorumctl.copies.nbd import NbdCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range, RangeSet, split
from qorumctl.core.vote import NoMajority, Observation, Run, vote
from qorumctl.daemon.graph import copy_node
from qorumctl.errors import CopyUnavailableError, RefusedError, UsageError
from qorumctl.model.report import FindingDocument
from qorumctl.units import KIB

PIECE_BYTES = 64 * KIB


@dataclass(frozen=True, slots=True)
class Piece:
    """`runs`: of the sectors that are not unanimous, relative to the piece's beginning."""

    range: Range
    seen: Mapping[str, Observation]
    runs: Sequence[Run]

    def tied(self) -> Iterator[Range]:
        """The sectors without a majority, relative to the piece."""
        for run in self.runs:
            if isinstance(run.verdict, NoMajority):
                yield from split([run.range], SECTOR_BYTES)

    def readable(self, sector: Range, names: Set[str]) -> dict[str, bytes]:
        """Copy -> what it holds there, of those named that can read it."""
        return {
            name: bytes(self.seen[name].data[sector.offset : sector.end])
            for name in sorted(names)
            if not RangeSet(self.seen[name].unreadable).touches(sector)
        }

    def unreadable(self, since_bytes: int) -> dict[str, list[Range]]:
        """Copy -> what it cannot read, relative to `since_bytes`."""
        by = self.range.offset - since_bytes
        return {name: [r.shifted(by) for r in seen.unreadable] for name, seen in self.seen.items()}


def pieces(
    readers: Sequence[CopyReader],
    at: Range,
    threshold: int,
    stale: Set[str],
    between_reads: Callable[[], None],
) -> Iterator[Piece]:
    """Nothing is outstanding when a piece is handed over. Raises CopyUnavailableError, and what `between_reads` does,
    which is called before each read."""
    for part in split([at], PIECE_BYTES):
        between_reads()
        seen = {reader.name: reader.observe(part, between_reads=between_reads) for reader in readers}
        yield Piece(part, seen, vote(seen, threshold, stale=stale))


@contextmanager
def readers_of(context: SetContext, names: Sequence[str], *, reached: bool = False) -> Iterator[list[CopyReader]]:
    """Of all these copies: CopyUnavailableError. With `reached`, of those that can be reached."""
    with ExitStack() as stack:
        readers: list[CopyReader] = []
        for name in names:
            with suppress(*([CopyUnavailableError] if reached else [])):
                reader = NbdCopy(name, context.runtime.nbd_sock, copy_node(name), timeout_s=context.timeouts.copy_s)
                stack.enter_context(closing(reader))
                readers.append(reader)
        yield readers


def finding_of(context: SetContext, finding_id: int) -> tuple[int, FindingDocument]:
    """Its run, and the finding. UsageError where there is none."""
    with context.store(read_only=True) as store:
        found = store.finding_by_id(finding_id)
    if found is None:
        raise UsageError(
            f"{context.name} has no finding {finding_id}.",
            remedy=f"Findings stand in 'qorumctl report {context.name}', the column ID.",
            set_name=context.name,
        )
    return found


def check_enough(context: SetContext, names: Sequence[str], threshold: int) -> None:
    """RefusedError where so few copies can be read that no vote could be won."""
    if len(names) < threshold:
        raise RefusedError(
            f"Only {len(names)} of the copies of {context.name} can be read, and {threshold} are needed for a vote.",
            remedy=f"See 'qorumctl status {context.name}'; bring the others back first.",
            set_name=context.name,
        )
