"""What can be typed: arguments and options as types, and what they are turned into."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qorumctl.errors import QorumError, UsageError
from qorumctl.units import parse_size

if TYPE_CHECKING:
    from qorumctl.core.ranges import Range

_SECTOR_BYTES = 512

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show on standard error what is done, the talk with the daemon included."),
]


def set_names(incomplete: str) -> list[str]:
    """For a shell that completes."""
    from qorumctl.definitions import names
    from qorumctl.paths import directories

    with contextlib.suppress(QorumError):
        return [name for name in names(directories().config) if name.startswith(incomplete)]
    return []


SetName = Annotated[str, typer.Argument(metavar="NAME", help="The set.", show_default=False, autocompletion=set_names)]
SetNames = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", help="The sets.", show_default=False, autocompletion=set_names)
]
Force = Annotated[bool, typer.Option("--force", help="Even while a guest is connected.")]
Now = Annotated[
    bool, typer.Option("--now", help="After an unclean stop: let guests in at once, without scrubbing first.")
]
Degraded = Annotated[
    bool,
    typer.Option("--degraded", help="Start without the copies that are away, stale or missing, if enough are left."),
]
Takeover = Annotated[
    bool, typer.Option("--takeover", help="Take the set from another host that did not stop it. Make sure it is down.")
]

Format = Literal["raw", "qcow2"]
ImportFormat = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]
Policy = Literal["repair", "report"]
Cache = Literal["none", "writeback"]
Transport = Literal["auto", "shm", "nbd"]
Form = Literal["uri", "qemu", "libvirt", "vhost-user-blk"]


def parse_range(text: str) -> Range:
    """`OFFSET:LENGTH`, by whole sectors: `0:1MiB`, `1048576:512`. Raises UsageError."""
    from qorumctl.core.ranges import Range

    offset_text, colon, length_text = text.partition(":")
    if not colon:
        raise UsageError(
            f"'{text}' is not a range.", remedy="Use OFFSET:LENGTH, as in 1MiB:64KiB; both are multiples of 512."
        )
    offset, length = parse_size(offset_text), parse_size(length_text)
    for value, words in ((offset, offset_text), (length, length_text)):
        if value % _SECTOR_BYTES:
            raise UsageError(
                f"'{words}' in the range '{text}' is not a multiple of {_SECTOR_BYTES}.",
                remedy=f"Sectors have {_SECTOR_BYTES} bytes: use whole ones.",
            )
    if length == 0:
        raise UsageError(f"The range '{text}' is empty.", remedy="Give it a length of at least 512.")
    return Range(offset, length)
