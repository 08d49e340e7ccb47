"""What a decision makes of a range: which sectors are written, with what, and over what. Writes nothing itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Literal

from qorumctl.controller.evidence import bitwise_of
from qorumctl.controller.looking import Piece
from qorumctl.core.bitwise import Likelihood, Survey
from qorumctl.core.ranges import Range, between
from qorumctl.core.vote import Outvoted
from qorumctl.errors import RefusedError, UsageError
from qorumctl.files import reason
from qorumctl.model.evidence import ResolvedCopy


@dataclass(frozen=True, slots=True)
class Decision:
    """What every copy is to hold: `value` is a copy's name or a file's path."""

    kind: Literal["copy", "bitwise", "file"]
    value: str = ""

    @classmethod
    def parse(cls, text: str) -> Decision:
        """`copy=NAME`, `bitwise`, `file=PATH`. Raises UsageError."""
        kind, equals, value = text.partition("=")
        match kind, bool(equals and value):
            case "bitwise", False if not equals:
                return cls("bitwise")
            case "copy", True:
                return cls("copy", value)
            case "file", True:
                return cls("file", str(Path(value).absolute()))
        raise UsageError(f"'{text}' is no decision.", remedy="Use copy=NAME, bitwise, or file=PATH.")

    def __str__(self) -> str:
        # Names of files are bytes, and what is told of them is UTF-8.
        value = self.value.encode(errors="backslashreplace").decode()
        return "bitwise" if self.kind == "bitwise" else f"{self.kind}={value}"


@contextmanager
def content_of(decision: Decision, length_bytes: int) -> Iterator[BinaryIO | None]:
    """The file of a decision that names one. UsageError where it is none, or has another length than the range."""
    if decision.kind != "file":
        yield None
        return
    path = Path(decision.value)
    try:
        # O_NONBLOCK: a pipe would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {reason(error)}.", remedy="Nothing was changed.", path=str(path)
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size != length_bytes:
            has = f"has {facts.st_size} bytes" if stat.S_ISREG(facts.st_mode) else "is no regular file"
            raise UsageError(
                f"{path} {has}, and the range {length_bytes}.",
                remedy="Nothing was changed. Name a file that holds exactly the range.",
                path=str(path),
            )
        yield file


class Draft:
    """Fed with the pieces of a range in order. Errors of `add`: RefusedError where the decision says nothing, or where
    a file contradicts a majority. The sectors that have a majority are not written: a scrub repairs those."""

    def __init__(
        self, set_name: str, at: Range, decision: Decision, names: Sequence[str], stale: Set[str], file: BinaryIO | None
    ) -> None:
        self._set, self._at, self._decision, self._file = set_name, at, decision, file
        self._names = names
        self._counting = frozenset(names) - stale
        self._survey = Survey(sorted(self._counting))
        self._written: list[Range] = []
        self._before = {name: sha256() for name in names}
        self._after = {name: sha256() for name in names}
        self._chosen = sha256()
        self._changed = dict.fromkeys(names, 0)
        self._unreadable = dict.fromkeys(names, 0)
        if decision.kind == "copy" and decision.value not in names:
            raise RefusedError(
                f"Copy {decision.value} of {set_name} cannot be read: it is not in the quorum, or there is none such.",
                remedy=f"Nothing was changed. Copies that can be chosen: {', '.join(names)}.",
                set_name=set_name,
            )

    def add(self, piece: Piece) -> bytes:
        """Returns what every copy is to hold there: the decision, and what the copies agree on."""
        chosen = bytearray(self._agreed(piece))
        given = self._given(piece)
        for sector in piece.tied():
            chosen[sector.offset : sector.end] = self._decide(piece, sector, given)
            self._note_written(sector.shifted(piece.range.offset))
        if given is not None and bytes(chosen) != given:
            at = next(i for i, (x, y) in enumerate(zip(chosen, given, strict=True)) if x != y)
            raise self._refused(
                piece.range.offset + at, f"{self._decision.value} differs from what a majority of the copies holds"
            )
        tied = list(piece.tied())
        for name in self._names:
            seen = piece.seen[name]
            after = bytearray(seen.data)
            for sector in tied:
                after[sector.offset : sector.end] = chosen[sector.offset : sector.end]
                same = seen.data[sector.offset : sector.end] == chosen[sector.offset : sector.end]
                self._changed[name] += not same or any(r.overlaps(sector) for r in seen.unreadable)
            self._before[name].update(seen.data)
            self._after[name].update(after)
            self._unreadable[name] += sum(r.length for r in seen.unreadable)
        self._chosen.update(chosen)
        return bytes(chosen)

    @property
    def written(self) -> list[Range]:
        return self._written

    def copies(self) -> list[ResolvedCopy]:
        return [
            ResolvedCopy(
                name=name,
                before=self._before[name].hexdigest(),
                after=self._after[name].hexdigest(),
                changed_sectors=self._changed[name],
            )
            for name in self._names
        ]

    def plan(self) -> str:
        """The same for two drafts exactly where they write the same over the same."""
        told = [str(self._at), *map(str, self._written), self._chosen.hexdigest()]
        told += [f"{name} {self._before[name].hexdigest()} {self._unreadable[name]}" for name in sorted(self._names)]
        return sha256("\n".join(told).encode()).hexdigest()

    def warnings(self) -> list[str]:
        told = []
        if self._decision.kind == "bitwise" and self._survey.likelihood is not Likelihood.LIKELY:
            found = bitwise_of(self._survey)
            told.append(f"The bitwise majority is {found.likelihood} to be what was written. {found.why}")
        if self._decision.kind == "copy" and self._decision.value not in self._counting:
            told.append(f"Copy {self._decision.value} has missed writes: what it holds may be out of date.")
        return told

    # -- details

    def _note_written(self, sector: Range) -> None:
        if self._written and self._written[-1].end == sector.offset:
            self._written[-1] = between(self._written[-1].offset, sector.end)
        else:
            self._written.append(sector)

    def _agreed(self, piece: Piece) -> bytes:
        """What the majority holds; where there is none, anything."""
        agreed = bytearray(next(iter(piece.seen.values())).data)
        for run in piece.runs:
            if isinstance(run.verdict, Outvoted):
                winner = piece.seen[min(run.verdict.winners)]
                agreed[run.range.offset : run.range.end] = winner.data[run.range.offset : run.range.end]
        return bytes(agreed)

    def _given(self, piece: Piece) -> bytes | None:
        if self._file is None:
            return None
        self._file.seek(piece.range.offset - self._at.offset)
        given = self._file.read(piece.range.length)
        if len(given) != piece.range.length:
            raise self._refused(piece.range.offset, f"{self._decision.value} has become shorter")
        return given

    def _decide(self, piece: Piece, sector: Range, given: bytes | None) -> bytes:
        counted: Mapping[str, bytes] = piece.readable(sector, self._counting)
        agreed = self._survey.add(counted)
        offset = piece.range.offset + sector.offset
        match self._decision.kind:
            case "bitwise":
                if agreed is None:
                    raise self._refused(offset, "there is no bitwise majority, since bits are tied")
                return agreed
            case "copy":
                held = piece.readable(sector, frozenset([self._decision.value]))
                if self._decision.value not in held:
                    raise self._refused(offset, f"copy {self._decision.value} cannot be read there")
                return held[self._decision.value]
            case "file":
                assert given is not None
                return given[sector.offset : sector.end]

    def _refused(self, offset: int, why: str) -> RefusedError:
        return RefusedError(
            f"{self._set} cannot be resolved like this: {why}, at offset {offset}.",
            remedy="Nothing was written. Decide otherwise, or scrub, and look at the evidence again.",
            set_name=self._set,
        )
