"""The definition of a set, `NAME.toml`: what an operator writes. Bad input is refused with the key and the remedy."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from qorumctl.core.vote import strict_majority
from qorumctl.errors import UsageError
from qorumctl.units import format_exact_size, parse_rate, parse_size

SET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
COPY_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,11}")
"""Short: the longest node name made of it, `copy-NAME-file`, must fit QEMU's 31 characters."""
MOST_COPIES = 9
"""Letters a to i. Nobody keeps more; a bound keeps memory (buffers per copy) and the graph small."""


FULL_SPEED: Final = "max"
"""A rate: no limit, whatever guests feel."""


def _size(value: object) -> object:
    if not isinstance(value, int | str) or isinstance(value, bool):
        return value
    try:
        return parse_size(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _rate(value: object) -> object:
    if value == FULL_SPEED or not isinstance(value, int | str) or isinstance(value, bool):
        return value
    try:
        return parse_rate(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _absolute(path: str) -> str:
    if not PurePosixPath(path).is_absolute():
        raise ValueError(f"'{path}' is not an absolute path")
    if "\0" in path or "\n" in path:
        raise ValueError("a path cannot hold NUL or a line break")
    return path


def check_set_name(name: str) -> str:
    """Returns the name. ValueError says what a name may be."""
    if not SET_NAME.fullmatch(name):
        raise ValueError(f"'{name}' cannot name a set: use 1 to 32 of a-z, 0-9, '_', '-', a letter or digit first")
    return name


def _copy_name(name: str) -> str:
    if not COPY_NAME.fullmatch(name):
        raise ValueError(f"'{name}' cannot name a copy: use 1 to 12 of a-z, 0-9, '_', '-', a letter or digit first")
    if name.endswith("-file"):
        raise ValueError(f"'{name}' cannot name a copy: '-file' at its end is used for nodes")
    return name


def _group_name(name: str) -> str:
    if any(ord(character) < 32 or character in ":," for character in name):
        raise ValueError("a group's name holds no control characters, colons or commas")
    return name


def _rate_text(rate: int | str) -> str:
    return f"{format_exact_size(rate)}/s" if isinstance(rate, int) else rate


def _is_rate(rate: object) -> object:
    """One sentence, where a union would have one for each of its members."""
    if rate != FULL_SPEED and (not isinstance(rate, int) or isinstance(rate, bool) or not 0 < rate <= LARGEST_BYTES):
        raise ValueError('a rate is bytes per second, such as "200MiB/s", or "max"')
    return rate


LARGEST_BYTES = (1 << 63) - (1 << 30)
"""QEMU's BDRV_MAX_LENGTH: more than a disk can have."""
_SIZE_PATTERN = r"\d+(\.\d+)?\s*([KkMmGgTt]([Ii][Bb])?|[Bb])?"
Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(format_exact_size, return_type=str, when_used="json"),
    Field(gt=0, le=LARGEST_BYTES),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string", "pattern": f"^{_SIZE_PATTERN}$"}]},
        mode="validation",
    ),
]
Rate = Annotated[
    int | Literal["max"],
    BeforeValidator(_is_rate),
    BeforeValidator(_rate),
    PlainSerializer(_rate_text, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {"type": "string", "pattern": f"^({_SIZE_PATTERN}(/s)?|{FULL_SPEED})$"},
            ]
        },
        mode="validation",
    ),
]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
SetName = Annotated[str, AfterValidator(check_set_name), Field(json_schema_extra={"pattern": f"^{SET_NAME.pattern}$"})]
CopyName = Annotated[str, AfterValidator(_copy_name), Field(json_schema_extra={"pattern": f"^{COPY_NAME.pattern}$"})]


class Strict(BaseModel):
    """An unknown key is an error: a misspelt `threshhold` must not be silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileSource(Strict):
    """An image file. Its format is stated, never probed: a guest could write a qcow2 header into a raw disk."""

    type: Literal["file"] = Field("file", description='"file".')
    path: AbsolutePath = Field(description="An absolute path.")
    format: Literal["raw", "qcow2"] = Field("raw", description='"raw" or "qcow2" (without a backing file).')

    @property
    def label(self) -> str:
        return self.path


class DeviceSource(Strict):
    """A block device. No sidecar: that nobody else uses it is the management stack's duty."""

    type: Literal["device"] = Field("device", description='"device".')
    path: AbsolutePath = Field(description="An absolute path, best one that stays the same: /dev/disk/by-id/...")
    format: Literal["raw"] = Field("raw", description='"raw".')

    @property
    def label(self) -> str:
        return self.path


class NbdSource(Strict):
    """An NBD export: `nbd://HOST[:PORT]/EXPORT`, `nbds://...?tls-certificates=DIR`, `nbd+unix:///EXPORT?socket=PATH`."""

    type: Literal["nbd"] = Field("nbd", description='"nbd".')
    uri: str = Field(
        description="nbd://HOST[:PORT]/EXPORT, nbds://...?tls-certificates=DIR, or nbd+unix:///EXPORT?socket=PATH."
    )
    format: Literal["raw"] = Field("raw", description='"raw".')

    @property
    def label(self) -> str:
        return self.uri

    @property
    def endpoint(self) -> NbdEndpoint:
        return parse_nbd_uri(self.uri)

    @model_validator(mode="after")
    def _parses(self) -> NbdSource:
        parse_nbd_uri(self.uri)
        return self


class NbdEndpoint(Strict):
    """Where an NBD export is. Either `socket`, or `host` and `port`. `tls_certificates`: a directory, for nbds."""

    export: str
    host: str | None = None
    port: int = 10809
    socket: str | None = None
    tls: bool = False
    tls_certificates: str | None = None


def parse_nbd_uri(uri: str) -> NbdEndpoint:
    """The NBD URI specification's forms, with libnbd's `tls-certificates` query. ValueError says what is wrong."""
    parts = urlsplit(uri)
    query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
    export = unquote(parts.path.removeprefix("/"))
    if "\0" in unquote(uri):
        raise ValueError("an NBD URI cannot hold NUL")
    if parts.scheme not in {"nbd", "nbds", "nbd+unix", "nbds+unix"}:
        raise ValueError(f"'{uri}' is not an NBD URI: use nbd://, nbds:// or nbd+unix://")
    if parts.username or parts.password or parts.fragment:
        # What was meant to be a secret is not repeated: sentences end up in logs.
        shown = uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1).partition("#")[0]
        raise ValueError(f"'{shown}': user, password and fragment mean nothing in an NBD URI")
    tls = parts.scheme.startswith("nbds")
    unix = parts.scheme.endswith("+unix")
    unknown = set(query) - ({"socket"} if unix else set()) - ({"tls-certificates"} if tls else set())
    if unknown:
        raise ValueError(f"'{uri}': unknown parameter '{sorted(unknown)[0]}'")
    certificates = query.get("tls-certificates")
    if certificates is not None:
        _absolute(certificates)
    if unix:
        if not query.get("socket"):
            raise ValueError(f"'{uri}' names no socket: add ?socket=/path")
        return NbdEndpoint(export=export, socket=_absolute(query["socket"]), tls=tls, tls_certificates=certificates)
    try:
        port = parts.port or 10809
    except ValueError:
        raise ValueError(f"'{uri}': the port is not a number up to 65535") from None
    if not parts.hostname:
        raise ValueError(f"'{uri}' names no host")
    return NbdEndpoint(export=export, host=parts.hostname, port=port, tls=tls, tls_certificates=certificates)


Source = Annotated[FileSource | DeviceSource | NbdSource, Field(discriminator="type")]


class CopySpec(Strict):
    """One copy. `cache = "none"` reads the medium, not the page cache (O_DIRECT)."""

    name: CopyName = Field(description="1 to 12 of a-z, 0-9, '_', '-', a letter or digit first.")
    source: Source = Field(description="Where it is: a table, one of the three below.")
    cache: Literal["none", "writeback"] = Field(
        "none", description='"none": a scrub sees the medium (O_DIRECT). "writeback": through the page cache.'
    )


class VolumeSpec(Strict):
    """Who may connect to the volume: group and mode of `nbd.sock`. Never the world."""

    group: Annotated[str, AfterValidator(_group_name)] = Field(
        "", description="The group that nbd.sock belongs to; empty: that of the daemon."
    )
    mode: str = Field("0600", pattern=r"^0?6[06]0$", description='The mode of nbd.sock: "0600" or "0660".')

    @property
    def mode_bits(self) -> int:
        return int(self.mode, 8)


class ScrubSpec(Strict):
    """`rate`: the most bytes per second read from each copy; None: what guests leave room for."""

    rate: Rate | None = Field(
        None,
        description='The most that is read from each copy per second, such as "200MiB/s"; "max": without a limit. Left '
        "out, a scrub gives way while guests are at work.",
    )

    @property
    def cap(self) -> int | None:
        """In bytes per second, where there is one."""
        return self.rate if isinstance(self.rate, int) else None


class SetSpec(Strict):
    """A set: an odd number of copies of one size, a strict majority to win a vote, and what to do with the losers."""

    name: SetName = Field(description="That of the file, without .toml: 1 to 32 of a-z, 0-9, '_', '-'.")
    uuid: UUID = Field(description="Made by create; the images carry it in their identity. Never to be changed.")
    size: Size = Field(description="Of the disk, a multiple of 512 bytes. `qorumctl grow` changes it, and the copies.")
    threshold: int = Field(
        0, description="How many copies must agree: more than half; that is what it is where it is left out."
    )
    policy: Literal["repair", "report"] = Field(
        "repair", description='"repair": outvoted sectors are rewritten. "report": nothing ever is.'
    )
    copies: tuple[CopySpec, ...] = Field(description="3, 5, 7 or 9 tables, each with an image of its own.")
    volume: VolumeSpec = Field(VolumeSpec(), description="A table: who may connect.")
    scrub: ScrubSpec = Field(ScrubSpec(), description="A table: how the set is scrubbed.")

    @model_validator(mode="before")
    @classmethod
    def _default_threshold(cls, data: Any) -> Any:
        if isinstance(data, dict) and "threshold" not in data and isinstance(data.get("copies"), list | tuple):
            return {**data, "threshold": strict_majority(len(data["copies"]))}
        return data

    @model_validator(mode="after")
    def _coherent(self) -> SetSpec:
        count = len(self.copies)
        if count < 3 or count % 2 == 0 or count > MOST_COPIES:
            raise ValueError(f"a set has 3, 5, 7 or 9 copies, not {count}: with an even number a vote can be tied")
        if not strict_majority(count) <= self.threshold <= count:
            raise ValueError(
                f"threshold {self.threshold} is no strict majority of {count} copies: "
                f"use {strict_majority(count)} to {count}"
            )
        names = [copy.name for copy in self.copies]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two copies are named '{twice[0]}'")
        labels = [copy.source.label for copy in self.copies]
        if same := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"'{same[0]}' is named twice: each copy needs its own image")
        if self.size % 512:
            raise ValueError(f"size {self.size} is not a multiple of 512")
        return self

    def copy_named(self, name: str) -> CopySpec:
        return next(copy for copy in self.copies if copy.name == name)

    @property
    def copy_names(self) -> tuple[str, ...]:
        return tuple(copy.name for copy in self.copies)
