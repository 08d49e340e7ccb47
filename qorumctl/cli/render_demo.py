"""What `qorumctl demo` tells, as text for 80 columns. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qorumctl.cli import exit_codes
from qorumctl.cli.render import table, words
from qorumctl.cli.text import counted, listed
from qorumctl.controller.demo_damage import LOST, Damage
from qorumctl.core.findings import Action
from qorumctl.model.demo import DemoRead, DemoReport
from qorumctl.model.status import CheckItem
from qorumctl.units import MIB

_WIDTH = 80
_INDENT = 3
_DIGEST_DIGITS = 16
_ROW_BYTES = 16
_SPOILT_AT = 8 * MIB + 100
_MEANING = {
    exit_codes.FINE: "nothing found",
    exit_codes.FAILED: "it could not be done",
    exit_codes.REPAIRED: "damage found, all of it repaired",
    exit_codes.LEFT: "damage found and left",
    exit_codes.NO_MAJORITY: "damage found, and some of it has no majority",
    exit_codes.UNFINISHED: "unfinished",
}


GAP = Text("")


def opening(text: str) -> RenderableType:
    return Constrain(words(text), _WIDTH)


def step(number: int, title: str) -> list[RenderableType]:
    return [GAP, words(f"{number}. {title}", "bold")]


def told(text: str) -> RenderableType:
    """A paragraph below a step's title."""
    return indented(words(text))


def indented(renderable: RenderableType) -> RenderableType:
    return Constrain(Padding(renderable, (0, 0, 0, _INDENT)), _WIDTH)


def commands(*lines: str) -> str:
    """What somebody would type. Never folded: it is to be copied. An indented line belongs to the one before it."""
    return "\n".join(f"{' ' * _INDENT}{'  ' if line.startswith(' ') else '$ '}{line}" for line in lines)


def hex_row(copy: str, data: bytes) -> str:
    """`a  53 65 63 ...  |Sec...|`, as hexdump -C shows it."""
    row = data[:_ROW_BYTES]
    half = _ROW_BYTES // 2
    digits = f"{row[:half].hex(' ')}  {row[half:].hex(' ')}"
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
    return f"{copy}  {digits}  |{text}|"


def hex_rows(contents: Mapping[str, bytes]) -> RenderableType:
    return indented(Text("\n".join(hex_row(copy, data) for copy, data in contents.items())))


def damage(planned: Sequence[Damage]) -> RenderableType:
    made = table("OFFSET", "SECTOR", "COPY", "DAMAGE", right=("OFFSET", "SECTOR"), fold=("DAMAGE",))
    for one in planned:
        made.add_row(str(one.at.offset), str(one.sector), one.copy, one.what)
    return indented(made)


def reads(found: Sequence[DemoRead]) -> RenderableType:
    made = table(
        "OFFSET", "DAMAGED IN", "ONE READ OF 64 KiB", "128 READS OF 512 BYTES", right=("OFFSET",),
        fold=("128 READS OF 512 BYTES",),
    )  # fmt: skip
    for one in found:
        made.add_row(str(one.offset), f"{'copy' if len(one.copies) == 1 else 'copies'} {listed(one.copies)}",
                     _whole(one), _sectors(one))  # fmt: skip
    return indented(made)


def _whole(read: DemoRead) -> Text:
    match read.whole:
        case "right":
            return Text("right", "green")
        case "error":
            return Text("I/O error", "bold red")
        case "wrong":
            return Text("WRONG DATA", "bold red")


def _sectors(read: DemoRead) -> Text:
    parts = [Text(f"{read.sectors_right} right", "green")]
    if read.sectors_failed:
        parts.append(Text(counted(read.sectors_failed, "I/O error"), "bold red"))
    if read.sectors_wrong:
        parts.append(Text(f"{read.sectors_wrong} WRONG", "bold red"))
    return Text(", ").join(parts)


def digests(expected: str, found: Mapping[str, str], images: Mapping[str, Path]) -> RenderableType:
    """SHA-256, by their beginnings."""
    made = Table.grid(padding=(0, 3, 0, 0))
    made.add_row("written", f"{expected[:_DIGEST_DIGITS]}...", "")
    for copy, digest in found.items():
        same = Text("the same", "green") if digest == expected else Text("different", "yellow")
        made.add_row(images[copy].name, f"{digest[:_DIGEST_DIGITS]}...", same)
    return indented(made)


def exit_code(code: int) -> RenderableType:
    return told(f"Exit code {code}: {_MEANING.get(code, 'interrupted')}.")


def ending(report: DemoReport) -> list[RenderableType]:
    if not report.ok:
        return [GAP, *(Constrain(_failure(item), _WIDTH) for item in report.checks if not item.ok)]
    repaired = sum(one.action is Action.REPAIRED for one in report.scrub.findings)
    verdict = (
        f"All went as told: {counted(repaired, 'damaged sector')} repaired, the one that nobody can repair named,"
        " and no read returned wrong data."
    )
    shown: list[RenderableType] = [GAP, Constrain(words(verdict, "bold"), _WIDTH), GAP]
    if report.directory is None:
        shown.append(opening("The daemon has ended and its directory is removed; --keep leaves them for playing."))
    return shown


def _failure(item: CheckItem) -> Text:
    return words(f"NOT TRUE ({item.subject}): {item.detail}. {item.remedy}", "bold red")


def going_on(report: DemoReport, pid: int | None, program: str) -> list[str]:
    """What to type next, after --keep; each line as it stands."""
    image = f"{report.directory}/b.raw"
    return [
        f"The set is left running (daemon: pid {pid}). To go on with it:",
        "",
        *(f"  export {key}={shlex.quote(value)}" for key, value in report.environment.items()),
        f"  {program} status {report.set}",
        f"  {program} report {report.set} {report.scrub.run}",
        f"  {program} attach {report.set}",
        f"  hexdump -C -s {LOST.offset} -n {LOST.length} {image}",
        "  printf spoilt | \\",
        f"    dd of={image} bs=1 seek={_SPOILT_AT} conv=notrunc status=none",
        f"  {program} scrub {report.set}",
        "",
        "To end it and remove everything:",
        "",
        f"  {program} stop --force {report.set} && rm -r {report.directory}",
    ]
