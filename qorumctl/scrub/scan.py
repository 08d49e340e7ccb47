"""The scan: reads all copies side by side and notes where they differ. What it notes is suspect, not yet damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from qorumctl.copies.base import AHEAD, CHUNK_BYTES, CopyReader
from qorumctl.core.ranges import SECTOR_BYTES, Range, between, coalesce, intersect, split, subtract, total_bytes
from qorumctl.core.vote import Observation
from qorumctl.scrub.dead import give_up_if_dead
from qorumctl.scrub.evidence import ObservedRun, examine
from qorumctl.scrub.pacing import PIECE_BYTES, Courtesy, Pacer
from qorumctl.scrub.plan import ScrubPlan
from qorumctl.scrub.ports import Clock, Supervisor


@dataclass(slots=True)
class Segment:
    """What lies between two checkpoints. `end`: where the scan stopped, early when it was cut."""

    start: int
    end: int
    scanned_bytes: int = 0
    suspects: list[Range] = field(default_factory=list)
    runs: list[ObservedRun] = field(default_factory=list)
    """What the copies said where they differed: evidence, should a guest's read repair it before it is confirmed."""
    failed: list[tuple[str, Range]] = field(default_factory=list)
    """Reads that a copy answered with an error: the copy's name, and what was asked for."""


class Scanner:
    """Reads segments of the disk. Holds no request outstanding between two calls."""

    def __init__(
        self,
        readers: Sequence[CopyReader],
        plan: ScrubPlan,
        supervisor: Supervisor,
        clock: Clock,
        courtesy: Courtesy | None = None,
    ) -> None:
        self._readers = readers
        self._plan = plan
        self._supervisor = supervisor
        self._clock = clock
        self._courtesy = courtesy
        self._pacer = Pacer(plan.rate_bytes_per_s, clock, supervisor.wants_quiet)
        self._most_bytes = plan.tuning.segment_bytes
        if plan.rate_bytes_per_s is not None:
            self._most_bytes = self._whole_chunks(int(plan.rate_bytes_per_s * plan.tuning.segment_s / 2))
        self._room_bytes = self._most_bytes

    def scan(self, start: int) -> Segment:
        """Scans from `start` until a segment's worth of data, time or suspects, or until someone wants quiet."""
        tuning = self._plan.tuning
        if self._courtesy is not None:
            self._courtesy.listen()
        end, pieces = self._data_from(start)
        segment = Segment(start, end)
        held, ahead = self._is_held(), AHEAD
        if held:
            pieces, ahead = list(split(pieces, PIECE_BYTES)), 1
        began_s = asked_s = self._clock.now_s()
        failing: dict[str, list[Range]] = {reader.name: [] for reader in self._readers}
        with ExitStack() as stack:
            streams = [stack.enter_context(reader.stream(pieces, ahead=ahead)) for reader in self._readers]
            for chunks in zip(*streams, strict=True):
                at = chunks[0].range
                first = chunks[0].data
                if any(chunk.failed or chunk.data != first for chunk in chunks):
                    pairs = zip(self._readers, chunks, strict=True)
                    self._note(segment, at, {reader.name: chunk.observation() for reader, chunk in pairs})
                    for reader, chunk in zip(self._readers, chunks, strict=True):
                        if chunk.failed:
                            segment.failed.append((reader.name, at))
                segment.scanned_bytes += at.length
                self._supervisor.moved(at.end, at.length, len(segment.suspects))
                for reader, chunk in zip(self._readers, chunks, strict=True):
                    failing[reader.name] = [*failing[reader.name], at] if chunk.failed else []
                self._pacer.spend(at.length)
                if held and self._courtesy is not None:
                    self._courtesy.rest(self._clock.now_s() - asked_s)
                    asked_s = self._clock.now_s()
                if (
                    held != self._is_held()
                    or self._is_full(segment, began_s + tuning.segment_s)
                    or any(len(f) >= tuning.failing_chunks for f in failing.values())
                ):
                    segment.end = at.end
                    break
        self._learn(self._clock.now_s() - began_s, segment.scanned_bytes)
        # Every stream is closed, nothing is outstanding: from here on the daemon may drain.
        self._give_up_on_the_dead(failing)
        segment.suspects = coalesce(segment.suspects)
        return segment

    def _is_held(self) -> bool:
        return self._courtesy is not None and self._courtesy.holding

    def _learn(self, took_s: float, scanned_bytes: int) -> None:
        """How much a segment's time is good for. What was read ahead when a segment is cut is thrown away and read
        again, six chunks of each copy: at 1 MiB/s that tripled what was read."""
        if took_s >= self._plan.tuning.segment_s:
            self._room_bytes = min(self._most_bytes, self._whole_chunks(scanned_bytes))
        elif took_s < self._plan.tuning.segment_s / 2:
            self._room_bytes = min(self._most_bytes, self._room_bytes * 2)

    def _whole_chunks(self, count_bytes: int) -> int:
        return min(self._plan.tuning.segment_bytes, max(1, count_bytes // CHUNK_BYTES) * CHUNK_BYTES)

    def _note(self, segment: Segment, at: Range, observations: Mapping[str, Observation]) -> None:
        runs = examine(at, observations, self._plan)
        segment.runs += [run for run in runs if not run.verdict.unreadable]
        segment.suspects += [run.range for run in runs]

    def _is_full(self, segment: Segment, deadline_s: float) -> bool:
        tuning = self._plan.tuning
        return (
            self._clock.now_s() >= deadline_s
            or len(segment.suspects) >= tuning.confirm_ranges
            or (bool(segment.suspects) and total_bytes(segment.suspects) >= tuning.confirm_bytes)
            or self._supervisor.wants_quiet()
        )

    def _data_from(self, start: int) -> tuple[int, list[Range]]:
        """Where the segment ends at the latest, and the ranges in it that not every copy reports as zero."""
        tuning, limit = self._plan.tuning, self._plan.within.end
        if self._plan.thorough:
            end = min(limit, start + self._room_bytes)
            return end, [between(start, end)]
        pieces: list[Range] = []
        at, deadline_s = start, self._clock.now_s() + tuning.segment_s
        while at < limit and total_bytes(pieces) < self._room_bytes and self._clock.now_s() < deadline_s:
            window = between(at, min(limit, at + tuning.zero_window_bytes))
            zero = [window]
            for reader in self._readers:
                zero = list(self._worth_skipping(intersect(zero, reader.zero_ranges(window))))
                if not zero:
                    break
            pieces += subtract([window], zero)
            at = window.end
            if self._supervisor.wants_quiet():
                break
        pieces = coalesce(pieces)
        return self._cut(at, pieces)

    def _worth_skipping(self, ranges: Sequence[Range]) -> Iterator[Range]:
        for r in ranges:
            start, end = -(-r.offset // SECTOR_BYTES) * SECTOR_BYTES, r.end
            if end != self._plan.size_bytes:
                end = end // SECTOR_BYTES * SECTOR_BYTES
            if end - start >= self._plan.tuning.zero_least_bytes:
                yield between(start, end)

    def _cut(self, end: int, pieces: list[Range]) -> tuple[int, list[Range]]:
        """No more than a segment's worth of data: windows with little data in them add up to more than one."""
        room = self._room_bytes
        for i, piece in enumerate(pieces):
            if piece.length >= room:
                cut = between(piece.offset, piece.offset + room)
                rest = piece.length > room or i + 1 < len(pieces)
                return (cut.end if rest else end), [*pieces[:i], cut]
            room -= piece.length
        return end, pieces

    def _give_up_on_the_dead(self, failing: Mapping[str, list[Range]]) -> None:
        """A copy that cannot read anything would be bisected sector by sector for days: say so instead."""
        for reader in self._readers:
            chunks = failing[reader.name]
            if len(chunks) >= self._plan.tuning.failing_chunks:
                give_up_if_dead(reader, self._plan, chunks[0].offset)
