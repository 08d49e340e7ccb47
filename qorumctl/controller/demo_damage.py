"""What the demo writes, and how it damages it: text that a person recognises in a hex dump. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qorumctl.core.diagnosis import Kind
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.units import MIB

SIZE_BYTES = 64 * MIB
COPIES = ("a", "b", "c")
REQUEST_BYTES = 64 << 10
"""What a guest reads at a time: the read-ahead of Linux is of this order."""
_TORN_AT_BYTES = 200


def _template(line: str) -> bytes:
    """Eight lines of 64 bytes, with a place for the sector's number of six digits in each."""
    return b"".join(f"{line.format(number):<61.61}\n".encode() for number in range(1, 9))


_TEXT = _template("Sector %06d, line {} of 8: a guest wrote this, and all is well.")
_OLD_TEXT = _template("%06d {} -- THIS IS AN OLDER TEXT, FROM BEFORE THAT WRITE ---")


def text_of(sector: int) -> bytes:
    """512 bytes: eight lines, each with the number of the sector."""
    return _TEXT % ((sector,) * 8)


def old_text_of(sector: int) -> bytes:
    """What stood there before: different in nearly every byte, as other data is."""
    return _OLD_TEXT % ((sector,) * 8)


def text_at(at: Range) -> bytes:
    """What the volume holds there: whole sectors."""
    return b"".join(text_of(sector) for sector in range(at.offset // SECTOR_BYTES, at.end // SECTOR_BYTES))


@dataclass(frozen=True, slots=True)
class Damage:
    """`content`: what takes the place of one sector of one copy. `kind`: what a scrub must say to it."""

    sector: int
    copy: str
    what: str
    content: bytes
    kind: Kind

    @property
    def at(self) -> Range:
        return Range(self.sector * SECTOR_BYTES, SECTOR_BYTES)

    @property
    def request(self) -> Range:
        """The request of a guest that this sector lies in."""
        return Range(self.at.offset // REQUEST_BYTES * REQUEST_BYTES, REQUEST_BYTES)


def _sector(mebibytes: int, number: int) -> int:
    return mebibytes * MIB // SECTOR_BYTES + number


def _flips(sector: int, copy: str, at: Mapping[int, int]) -> Damage:
    """`at`: the number of a byte -> the bit that flips in it."""
    content = bytearray(text_of(sector))
    for byte, bit in at.items():
        content[byte] ^= 1 << bit
    what = "1 bit flipped" if len(at) == 1 else f"{len(at)} bits flipped"
    return Damage(sector, copy, what, bytes(content), Kind.BIT_FLIPS)


def _filled(sector: int, copy: str, byte: int) -> Damage:
    what, kind = ("overwritten with zeros", Kind.ZEROED) if byte == 0 else (f"filled with 0x{byte:02x}", Kind.FILLED)
    return Damage(sector, copy, what, bytes([byte]) * SECTOR_BYTES, kind)


def _torn(sector: int, copy: str) -> Damage:
    content = text_of(sector)[:_TORN_AT_BYTES] + old_text_of(sector)[_TORN_AT_BYTES:]
    return Damage(sector, copy, f"torn write: older text from byte {_TORN_AT_BYTES} on", content, Kind.TORN)


# Bit 5 makes a small letter of a capital one: the damage of the first sector can be read in its first byte.
ONE_BIT = _flips(_sector(4, 37), "a", {0: 5})
TORN = _torn(_sector(36, 90), "c")
REPAIRABLE: Sequence[Damage] = (
    ONE_BIT,
    _flips(_sector(12, 5), "b", {300: 1}),
    _flips(_sector(20, 101), "c", {64: 0, 65: 7, 400: 3}),
    _filled(_sector(28, 64), "b", 0),
    TORN,
    # Two copies, one request, different sectors: no copy is right in all of it, yet each sector has a majority.
    _flips(_sector(44, 3), "a", {7: 2}),
    _flips(_sector(44, 120), "b", {8: 0}),
)
SHARED = REPAIRABLE[-1].request
HOPELESS: Sequence[Damage] = (
    _filled(_sector(52, 12), "a", 0),
    _filled(_sector(52, 12), "b", 0xFF),
    _flips(_sector(52, 12), "c", {1: 1, 3: 4, 9: 0, 12: 3, 14: 2}),
)
LOST = HOPELESS[0].at
ALL = (*REPAIRABLE, *HOPELESS)
