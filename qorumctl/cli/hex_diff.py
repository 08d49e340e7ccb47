"""Where versions of a range differ, as rows of hexadecimal bytes. Pure. It is guests' data: for who asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ROW_BYTES = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes beside each other that all differ from the reference, or all do not."""

    text: str
    differs: bool


@dataclass(frozen=True, slots=True)
class Row:
    """16 bytes of one version, from `offset` on the disk. `letters`: as ASCII, a dot for what cannot be printed."""

    offset: int
    version: int
    pieces: list[Piece]
    letters: list[Piece]


@dataclass(frozen=True, slots=True)
class HexDiff:
    """Rows in which any version differs from the first, each version in turn. `more`: places with a difference that
    are left out."""

    rows: list[Row]
    more: int


def hex_diff(offset: int, versions: Sequence[bytes], most_places: int) -> HexDiff:
    """`versions`: from `offset` on; the first is what the others are compared with."""
    length = max(map(len, versions), default=0)
    places = [
        at
        for at in range(0, length, ROW_BYTES)
        if any(version[at : at + ROW_BYTES] != versions[0][at : at + ROW_BYTES] for version in versions[1:])
    ]
    rows = []
    for at in places[:most_places]:
        reference = versions[0][at : at + ROW_BYTES]
        for number, version in enumerate(versions):
            part = version[at : at + ROW_BYTES]
            wrong = [i >= len(reference) or byte != reference[i] for i, byte in enumerate(part)]
            rows.append(
                Row(
                    offset + at,
                    number,
                    list(_pieces([f"{byte:02x}" for byte in part], wrong, " ")),
                    list(_pieces([chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part], wrong, "")),
                )
            )
    return HexDiff(rows, max(0, len(places) - most_places))


def _pieces(words: Sequence[str], wrong: Sequence[bool], between: str) -> Iterator[Piece]:
    start = 0
    for i in range(1, len(words) + 1):
        if i == len(words) or wrong[i] != wrong[start]:
            yield Piece(between.join(words[start:i]), wrong[start])
            start = i
