"""Who an image is: the sidecar `IMAGE.qorum`, and what the sidecars of a set say together.

A generation is a period in which the same copies take every write. It rises at every start, and whenever a copy leaves;
`members` are the copies of the generation. A new one is begun in two steps, before any guest can write:

    prepare   `preparing = n` on every member, n above all generations and preparations that any sidecar knows
    commit    `generation = n`, its members, `clean = false`, on every member

A copy is current if it belongs to the highest committed generation and was at least prepared for it: a crash between
two of these writes makes no current copy stale. A copy that was absent is stale even where an earlier start, broken
off, had prepared it under the same number: it is no member. So a copy that missed writes never looks current, though
all local state were lost. Devices and NBD exports have no sidecar, but membership tells whether they were there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qorumctl.errors import RefusedError
from qorumctl.files import (
    NotRegularError,
    TooLargeError,
    read_bounded,
    reason,
    remove_temporary,
    sync_directory,
    write_atomically,
)
from qorumctl.model.spec import CopySpec, FileSource, SetSpec

MOST_BYTES = 64 << 10
"""A sidecar of nine copies takes 500 bytes; more is some other file."""
_APPLICATION = b"qorumctl"
"""machine-id(5): the id is confidential, so only a hash keyed by the application may be shown."""


_MOST_GENERATIONS = 1 << 53
"""No set is started so often, and every JSON reader can hold it."""
_Word = Annotated[str, Field(max_length=64)]
"""Names and ids that we wrote: more is somebody else's, and would fill a terminal."""


class Sidecar(BaseModel):
    """What stands beside an image. `members`: the copies of `generation`. `preparing`: a generation that was about to
    begin. `clean`: the daemon ended in order, so no write of this generation is on some copies only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, serialize_by_alias=True)

    schema_: Literal["qorum.sidecar/1"] = Field("qorum.sidecar/1", alias="schema")
    uuid: _Word
    set: _Word
    copy_: _Word = Field(alias="copy")
    generation: int = Field(ge=0, le=_MOST_GENERATIONS)
    preparing: int | None = Field(None, ge=0, le=_MOST_GENERATIONS)
    members: tuple[_Word, ...]
    host: str = Field(max_length=255)
    host_id: _Word
    clean: bool

    @property
    def reached(self) -> int:
        return max(self.generation, self.preparing or 0)


@dataclass(frozen=True)
class Host:
    name: str
    id: str


@dataclass(frozen=True)
class Identity:
    """What the sidecars say together. `stale` names every copy that does not count.

    `missing`: copies that ought to have a sidecar and have none; stale, too, once the set was ever started.
    `highest`: above every number that is in use, a new generation begins. `unclean`: the last generation was not ended
    in order. `foreign_host`: another host that did not end it, and may still be running the set.
    """

    generation: int
    highest: int
    stale: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    unclean: bool = False
    foreign_host: str | None = None
    sidecars: Mapping[str, Sidecar | None] = field(default_factory=dict, repr=False)


def this_host() -> Host:
    name = socket.gethostname()
    try:
        secret = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        secret = ""
    return Host(name, hashlib.sha256(_APPLICATION + b"\0" + (secret or name).encode()).hexdigest()[:32])


def sidecar_path(image: str | Path) -> Path:
    return Path(f"{image}.qorum")


def read(image: str | Path) -> Sidecar | None:
    """The sidecar of an image; None where there is none. Raises RefusedError for anything that is not one."""
    path = sidecar_path(image)
    try:
        content, _ = read_bounded(path, MOST_BYTES, follow=False)
        return Sidecar.model_validate_json(content)
    except FileNotFoundError:
        return None
    except (NotRegularError, TooLargeError, ValidationError):
        raise _unreadable(path, "holds something else than the identity of an image") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _unreadable(path, "is a symbolic link") from None
        raise _unreadable(path, f"cannot be read: {reason(error)}") from error


def write(image: str | Path, sidecar: Sidecar) -> None:
    """Replaces the sidecar atomically, 0600. Raises RefusedError."""
    path = sidecar_path(image)
    try:
        write_atomically(path, sidecar.model_dump_json(indent=2).encode() + b"\n", 0o600)
    except OSError as error:
        raise RefusedError(
            f"The identity of an image cannot be written to {path}: {reason(error)}.",
            remedy="Check the directory, its rights and its free space.",
            path=str(path),
        ) from error


def remove(image: str | Path) -> None:
    """Removes the sidecar, and one that was being written; nothing happens where there is none. Raises RefusedError."""
    path = sidecar_path(image)
    try:
        remove_temporary(path)
        if os.path.lexists(path):
            path.unlink()
            sync_directory(path.parent)
    except OSError as error:
        raise RefusedError(
            f"{path} cannot be removed: {reason(error)}.", remedy="Remove it.", path=str(path)
        ) from error


def read_all(spec: SetSpec, *, without: Set[str] = frozenset()) -> dict[str, Sidecar | None]:
    """The sidecar of each copy that is a file, by the copy's name. Those in `without` are not looked at: what they lie
    on may hang."""
    return {copy.name: read(copy.source.path) for copy in _file_copies(spec) if copy.name not in without}


def judge(sidecars: Mapping[str, Sidecar | None], spec: SetSpec, host_id: str) -> Identity:
    """What the sidecars of the copies that are files say together.

    Raises RefusedError for an image of another set, and for one that another copy's name belongs to.
    """
    known = {name: sidecar for name, sidecar in sidecars.items() if sidecar is not None}
    for name, sidecar in known.items():
        _check_owner(sidecar, spec, name)
    missing = frozenset(sidecars) - known.keys()
    if not known:
        return Identity(0, 0, missing=missing, sidecars=sidecars)
    generation = max(sidecar.generation for sidecar in known.values())
    holders = [sidecar for sidecar in known.values() if sidecar.generation == generation]
    # The intersection: while a copy is being admitted, some lists hold it and some do not; it is not yet current.
    members = frozenset.intersection(*(frozenset(sidecar.members) for sidecar in holders))
    behind = {name for name, sidecar in known.items() if sidecar.reached < generation}
    # Before the first commit no guest has written: who has no sidecar then was only not yet given one.
    lost = missing if generation else frozenset()
    stale = lost | behind | {name for name in spec.copy_names if name not in members}
    current = [sidecar for name, sidecar in known.items() if name not in stale]
    unclean = [sidecar for sidecar in current if not sidecar.clean]
    return Identity(
        generation=generation,
        highest=max(sidecar.reached for sidecar in known.values()),
        stale=frozenset(stale),
        missing=missing,
        unclean=bool(unclean),
        foreign_host=next((sidecar.host for sidecar in unclean if sidecar.host_id != host_id), None),
        sidecars=sidecars,
    )


def found(spec: SetSpec, host: Host) -> None:
    """Writes the first sidecars of a new set: generation 0, clean, every copy a member."""
    for copy in _file_copies(spec):
        write(copy.source.path, _first(spec, copy, host))


def prepare_start(spec: SetSpec, identity: Identity, host: Host, *, without: Set[str] = frozenset()) -> int:
    """Writes `preparing` to every member-to-be and returns the number of the generation that is about to begin.

    Members-to-be are the copies that are not stale and not in `without` (a copy that leaves, or is not there). Nothing
    may write to the set before `commit_start` has returned. Raises RefusedError.
    """
    generation = identity.highest + 1
    for copy, sidecar in _members_with_sidecars(spec, identity, host, without):
        write(copy.source.path, prepared(sidecar, generation))
    return generation


def commit_start(
    spec: SetSpec, identity: Identity, host: Host, generation: int, *, without: Set[str] = frozenset()
) -> None:
    """Begins the generation that `prepare_start` announced, with the same `identity` and `without`."""
    members = members_after(spec, identity, without)
    for copy, sidecar in _members_with_sidecars(spec, identity, host, without):
        write(copy.source.path, committed(sidecar, generation, members, host))


def begin_generation(spec: SetSpec, identity: Identity, *, without: Set[str] = frozenset()) -> None:
    """Both steps: on return every member has it, and nobody else."""
    host = this_host()
    generation = prepare_start(spec, identity, host, without=without)
    commit_start(spec, identity, host, generation, without=without)


def mark_clean(spec: SetSpec, *, without: Set[str] = frozenset()) -> None:
    """To be called when the daemon has flushed, ended in order, and reported no error. Stale copies are left alone;
    those in `without`, which are away, are not even looked at."""
    sidecars = read_all(spec, without=without)
    generation = max((sidecar.generation for sidecar in sidecars.values() if sidecar is not None), default=0)
    for copy in _file_copies(spec):
        sidecar = sidecars.get(copy.name)
        if sidecar is not None and sidecar.generation == generation and copy.name in sidecar.members:
            write(copy.source.path, sidecar.model_copy(update={"clean": True}))


def admit(spec: SetSpec, name: str, host: Host, *, without: Set[str] = frozenset()) -> None:
    """Makes a stale copy current again, after it was re-synced and verified. Crash-safe: it counts only when every
    sidecar lists it. `without`: other copies that are away. A set that has no files has nothing to be told.

    Raises RefusedError.
    """
    sidecars = read_all(spec, without=without)
    if not sidecars:
        return
    identity = judge(sidecars, spec, host.id)
    gone = identity.stale | without
    members = tuple(copy for copy in spec.copy_names if copy == name or copy not in gone)
    current = next(
        (s for s in identity.sidecars.values() if s is not None and s.generation == identity.generation), None
    )
    if current is None:
        raise RefusedError(
            f"Copy '{name}' cannot be made current: no copy of '{spec.name}' has a current identity.",
            remedy="Check the files beside the images, IMAGE.qorum.",
            set_name=spec.name,
            copy=name,
        )
    # The copy itself first: a list that names it must never meet a sidecar that is behind.
    for copy in sorted(_file_copies(spec), key=lambda copy: copy.name != name):
        if copy.name in members:
            update = {"copy_": copy.name, "members": members, "preparing": None, "clean": not identity.unclean}
            write(copy.source.path, current.model_copy(update=update))


def succeeding(who: Identity, name: str) -> Identity:
    """As `who`, with a copy that was stale, and is proven current: for a generation that begins with it."""
    return replace(who, stale=who.stale - {name})


def found_stale(spec: SetSpec, name: str, host: Host) -> Sidecar:
    """Gives an image without a sidecar one that says whose it is, and that it has missed everything. RefusedError."""
    copy = next(copy for copy in _file_copies(spec) if copy.name == name)
    sidecar = _first(spec, copy, host)
    write(copy.source.path, sidecar)
    return sidecar


def prepared(sidecar: Sidecar, generation: int) -> Sidecar:
    return sidecar.model_copy(update={"preparing": generation})


def committed(sidecar: Sidecar, generation: int, members: Iterable[str], host: Host) -> Sidecar:
    update = {
        "generation": generation,
        "preparing": None,
        "members": tuple(members),
        "clean": False,
        "host": host.name,
        "host_id": host.id,
    }
    return sidecar.model_copy(update=update)


def members_after(spec: SetSpec, identity: Identity, without: Set[str]) -> tuple[str, ...]:
    return tuple(name for name in spec.copy_names if name not in identity.stale and name not in without)


@dataclass(frozen=True)
class _FileCopy:
    name: str
    source: FileSource


def _file_copies(spec: SetSpec) -> list[_FileCopy]:
    return [_FileCopy(copy.name, copy.source) for copy in spec.copies if isinstance(copy.source, FileSource)]


def _members_with_sidecars(
    spec: SetSpec, identity: Identity, host: Host, without: Set[str]
) -> list[tuple[_FileCopy, Sidecar]]:
    """The sidecars as they are on disk now: the commit must keep nothing that the preparation has replaced."""
    members = members_after(spec, identity, without)
    copies = [copy for copy in _file_copies(spec) if copy.name in members]
    return [(copy, read(copy.source.path) or _first(spec, copy, host)) for copy in copies]


def _first(spec: SetSpec, copy: _FileCopy | CopySpec, host: Host) -> Sidecar:
    return Sidecar(
        uuid=str(spec.uuid),
        set=spec.name,
        copy_=copy.name,
        generation=0,
        members=spec.copy_names,
        host=host.name,
        host_id=host.id,
        clean=True,
    )


def _check_owner(sidecar: Sidecar, spec: SetSpec, name: str) -> None:
    source = spec.copy_named(name).source
    path = str(sidecar_path(source.label))
    if sidecar.uuid != str(spec.uuid) or sidecar.set != spec.name:
        same_name = " of another definition" if sidecar.set == spec.name else ""
        raise RefusedError(
            f"The image of copy '{name}', {source.label}, belongs to set '{sidecar.set}'{same_name}.",
            remedy=f"Name the right image. If that set is gone for good, remove {path}.",
            set_name=spec.name,
            copy=name,
            path=path,
        )
    if sidecar.copy_ != name:
        raise RefusedError(
            f"The image of copy '{name}', {source.label}, is that of copy '{sidecar.copy_}'.",
            remedy="Exchange the paths in the definition, or bring the images back to their places.",
            set_name=spec.name,
            copy=name,
            path=path,
        )


def _unreadable(path: Path, why: str) -> RefusedError:
    return RefusedError(
        f"{path} {why}.",
        remedy="It should say which set and copy the image beside it belongs to. If you know the image is"
        " not in use, move it away: the copy is then compared in full.",
        path=str(path),
    )
