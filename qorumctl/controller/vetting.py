"""Every reason not to start a set that needs no daemon to be found. `start`, `restart` and `check` look at the same."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from qorumctl import identity, image_use, images
from qorumctl.controller import suspects
from qorumctl.controller.context import SetContext
from qorumctl.daemon import process
from qorumctl.errors import DamagedStateError, RefusedError
from qorumctl.identity import Identity
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, SetSpec
from qorumctl.store.absent import Absence
from qorumctl.units import format_size


@dataclass(frozen=True, slots=True)
class Look:
    """One thing to look at. `run` raises QorumError where it is wrong; `detail` says what is so where it is not."""

    subject: str
    detail: str
    run: Callable[[], object]


def vet(context: SetContext, spec: SetSpec, *, takeover: bool) -> Identity:
    """Every refusal that needs no daemon, before anything is changed. Raises QorumError, mostly RefusedError."""
    for look in looks(context, spec, takeover=takeover):
        look.run()
    return _judged(spec)


def recheck(spec: SetSpec, who: Identity, *, without: Set[str] = frozenset()) -> None:
    """What `vet` found, looked at again under the images' locks. RefusedError where it has changed."""
    now = _judged(spec, without=without)
    if now != who:
        raise RefusedError(
            f"The images of {spec.name} were used by somebody else while it was being started.",
            remedy="Nothing was changed. Make sure that no other host runs the set, then try again.",
            set_name=spec.name,
        )


def looks(context: SetContext, spec: SetSpec, *, takeover: bool) -> list[Look]:
    # Our own daemon holds the images of a set that runs.
    running = context.pid() is not None
    found = [
        Look("daemon", "installed", process.find_binary),
        Look("sockets", str(context.runtime.directory), context.runtime.check),
        Look("images", "all different", lambda: images.distinct(spec.copies, own_socket=context.runtime.nbd_sock)),
    ]
    if spec.volume.group:
        found.append(Look("group", spec.volume.group, lambda: group_of(spec)))
    for copy in spec.copies:
        detail = f"{copy.source.label}, {format_size(spec.size)}"
        found.append(Look(f"copy {copy.name}", detail, partial(_look_at_copy, spec, copy, running=running)))
    words = "all of this set, none has missed writes"
    if (context.state_dir / GROWING).exists():
        found.insert(0, Look("size", "no enlargement is unfinished", lambda: _refuse_growing(spec)))
    if absences := context.absences():
        found.insert(0, Look("presence", "no copy is away", lambda: refuse_away(spec, absences, running=running)))
    return [*found, Look("identity", words, lambda: _look_at_identity(spec, takeover=takeover))]


GROWING = "growing.json"
"""In the state directory, while a set is being enlarged: see controller/growing.py."""


def _refuse_growing(spec: SetSpec) -> None:
    raise RefusedError(
        f"An enlargement of {spec.name} was interrupted.",
        remedy="The next 'qorumctl start', 'scrub' or 'grow' finishes it, or takes it back.",
        set_name=spec.name,
    )


def refuse_away(spec: SetSpec, absences: Mapping[str, Absence], *, running: bool) -> None:
    """RefusedError naming a copy that is on record as away: it has missed writes, or will have."""
    for name in spec.copy_names:
        if (absence := absences.get(name)) is not None:
            rejoin = f"'qorumctl copy rejoin {spec.name} {name}'"
            # A restart loses the record of what it missed.
            now = f"Run {rejoin} first; --degraded restarts without it, and all of it is compared later."
            raise RefusedError(
                f"Copy {name} is away since {moment(absence.since)} ({absence.why}): it may have missed writes.",
                remedy=now if running else f"Run 'qorumctl start {spec.name} --degraded', then {rejoin}.",
                set_name=spec.name,
                copy=name,
            )
    for name in sorted(absences.keys() - set(spec.copy_names)):
        raise RefusedError(
            f"Copy {name} is away since {moment(absences[name].since)}, and the definition of {spec.name} has no copy "
            f"'{name}' any more: another that it has may be that one, which has missed writes.",
            remedy=f"If it has another name now, give it its old one back. If it is out of the set for good, run "
            f"'qorumctl start {spec.name} --degraded'.",
            set_name=spec.name,
            copy=name,
        )


def strangers(spec: SetSpec, absences: Mapping[str, Absence]) -> dict[str, str]:
    """Copies without a mark that may be one that has: by another name, or in another's place. A file shows by its
    sidecar what it is; of a device or an NBD export nothing but the definition does, which was edited meanwhile."""
    found = {}
    for copy in spec.copies:
        if copy.name in absences or isinstance(copy.source, FileSource):
            continue
        for name, absence in absences.items():
            if absence.source == copy.source.label:
                found[copy.name] = f"Copy {copy.name} ({copy.source.label}) lies where copy {name} did, which is away."
            elif name not in spec.copy_names and copy.name not in absence.peers:
                found[copy.name] = f"Copy {copy.name} ({copy.source.label}) is new since copy {name} is away."
    return found


@dataclass(slots=True)
class Presence:
    """Who takes part in a degraded start. `absent`: copy -> a sentence that says why it does not. `unread`: those whose
    sidecars `who` knows nothing of."""

    who: Identity
    absent: dict[str, str]
    unread: frozenset[str]


def vet_degraded(context: SetContext, spec: SetSpec, *, takeover: bool, silent: Mapping[str, str]) -> Presence:
    """As `vet`, for a start without the copies that cannot take part. A copy that is in use, or
    belongs elsewhere, is no absent one: RefusedError, as where too few are left. `silent`: copies that are known not
    to answer. The image of a copy that is on record as away is not looked at: what it lies on may hang."""
    absences = context.absences()
    absent = {name: _away_words(a) for name, a in absences.items() if name in spec.copy_names}
    absent.update(strangers(spec, absences))
    absent.update(silent)
    # Our own daemon holds the images of a set that runs.
    running = context.pid() is not None
    process.find_binary()
    context.runtime.check()
    group_of(spec)
    for copy in spec.copies:
        if copy.name in absent:
            continue
        if not running:
            _refuse_use(spec, copy)
        try:
            _look_at_copy(spec, copy, running=True)
            if isinstance(copy.source, FileSource):
                identity.read(copy.source.path)
        except RefusedError as error:
            absent[copy.name] = error.message
    enough(spec, absent, frozenset())
    images.distinct([copy for copy in spec.copies if copy.name not in absent], own_socket=context.runtime.nbd_sock)
    unread = frozenset(absent)
    who = _judged(spec, without=unread)
    if who.foreign_host and not takeover:
        raise foreign(spec, who)
    for name in spec.copy_names:
        if name in who.stale and name not in absent:
            absent[name] = _stale_words(spec, who, name)
    with suppress(DamagedStateError), context.store(read_only=True) as store:
        enough(spec, absent, suspects.missed(store, spec))
    return Presence(who, absent, unread)


def vet_restart(context: SetContext, spec: SetSpec, *, takeover: bool, degraded: bool) -> None:
    """What the start after the stop would refuse, as far as it can be known while the set runs."""
    if degraded:
        vet_degraded(context, spec, takeover=takeover, silent={})
    else:
        vet(context, spec, takeover=takeover)


def _away_words(absence: Absence) -> str:
    return f"Copy {absence.copy} is away since {moment(absence.since)} ({absence.why})."


def enough(spec: SetSpec, absent: Mapping[str, str], missed: Set[str]) -> None:
    """RefusedError where fewer than `threshold` copies are there, or where those of them that have missed writes could
    win a vote by themselves."""
    present = [name for name in spec.copy_names if name not in absent]
    stale = [name for name in present if name in missed]
    if len(present) >= spec.threshold > len(stale):
        return
    few = f"{len(present)} of {len(spec.copies)} copies of {spec.name} can be used, and {spec.threshold} are needed"
    why = " ".join(absent[name] for name in spec.copy_names if name in absent)
    if len(present) >= spec.threshold:
        few, why = f"Too many copies of {spec.name} have missed writes: {', '.join(stale)}", ""
    raise RefusedError(
        f"{few}. {why}".rstrip(),
        remedy="Nothing was changed. Bring the storage of one of them back, then try again.",
        set_name=spec.name,
    )


def moment(time: str) -> str:
    return f"{time[:19].replace('T', ' ')} UTC"


def group_of(spec: SetSpec) -> int | None:
    """The gid that `nbd.sock` is given to; None where the definition names no group."""
    name = spec.volume.group
    if not name:
        return None
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError:
        raise RefusedError(
            f"There is no group '{name}', which [volume] of {spec.name} names.",
            remedy="Create it, or correct the definition.",
            set_name=spec.name,
        ) from None
    if os.geteuid() != 0 and gid not in {os.getegid(), *os.getgroups()}:
        raise RefusedError(
            f"The volume's socket of {spec.name} cannot be given to group '{name}': this user is not in it.",
            remedy="Become a member of that group, or name another in the definition.",
            set_name=spec.name,
        )
    return gid


def _look_at_copy(spec: SetSpec, copy: CopySpec, *, running: bool) -> None:
    source = copy.source
    size: int | None = spec.size
    if isinstance(source, FileSource):
        info = images.inspect(source)
        if not info.exists:
            raise _about(
                spec,
                copy,
                f"The image of copy {copy.name}, {source.path}, does not exist.",
                "Mount what it lives on, or bring it back; or start without it: "
                f"'qorumctl start {spec.name} --degraded'. Nothing was changed.",
            )
        if not running:
            _refuse_use(spec, copy)
        size = info.size_bytes
    elif isinstance(source, DeviceSource):
        size = images.device_size(source.path)
    if size != spec.size:
        raise _about(
            spec,
            copy,
            f"Copy {copy.name} ({source.label}) has {size} bytes, the set {spec.size}.",
            "Nothing was changed. Restore the copy's length, or correct the definition's size.",
        )
    unit = images.alignment(source) if copy.cache == "none" else 512
    if spec.size % unit:
        raise _about(
            spec,
            copy,
            f"The size of {spec.name}, {spec.size} bytes, is not a multiple of {unit}, the block size under copy "
            f"{copy.name} ({source.label}).",
            'Use a size that is, or set cache = "writeback" for this copy.',
        )


def look_at_copy(spec: SetSpec, copy: CopySpec) -> None:
    """As `vet` does, at one copy that nobody may be using. Raises RefusedError."""
    _look_at_copy(spec, copy, running=False)


def distinct(context: SetContext, copies: Sequence[CopySpec]) -> None:
    """Raises RefusedError where two of these are one image."""
    images.distinct(copies, own_socket=context.runtime.nbd_sock)


def _refuse_use(spec: SetSpec, copy: CopySpec) -> None:
    if isinstance(copy.source, FileSource) and image_use.is_used(copy.source.path, writers_only=True):
        raise _about(
            spec,
            copy,
            f"The image of copy {copy.name}, {copy.source.path}, is in use by another process.",
            "Stop what uses it: another set, a virtual machine, or qemu-nbd. Nothing was changed.",
        )


def _about(spec: SetSpec, copy: CopySpec, message: str, remedy: str) -> RefusedError:
    return RefusedError(message, remedy=remedy, set_name=spec.name, copy=copy.name, path=copy.source.label)


def _judged(spec: SetSpec, *, without: Set[str] = frozenset()) -> Identity:
    return identity.judge(identity.read_all(spec, without=without), spec, identity.this_host().id)


def _look_at_identity(spec: SetSpec, *, takeover: bool) -> None:
    who = _judged(spec)
    if who.foreign_host and not takeover:
        raise foreign(spec, who)
    refuse_stale(spec, who)


def refuse_doubtful_identity(spec: SetSpec) -> None:
    """A stale copy, one of another set, a foreign host: RefusedError."""
    _look_at_identity(spec, takeover=False)


def foreign(spec: SetSpec, who: Identity) -> RefusedError:
    return RefusedError(
        f"{spec.name} was started on host {who.foreign_host} and never stopped there in order.",
        remedy="Stop it there. If that host is certainly down, use --takeover: two daemons on one set destroy it.",
        set_name=spec.name,
    )


def refuse_stale(spec: SetSpec, who: Identity) -> None:
    """A copy that missed writes votes as if it were current (invariant 8): RefusedError naming it and the way out."""
    if who.stale:
        first = sorted(who.missing or who.stale)[0]
        raise RefusedError(_stale_words(spec, who, first), remedy=_stale_remedy(spec, who), set_name=spec.name)


def _stale_words(spec: SetSpec, who: Identity, name: str) -> str:
    if name in who.missing:
        return (
            f"Copy {name} ({spec.copy_named(name).source.label}) has lost its identity file: "
            "nobody can tell whether it has every write."
        )
    sidecar = who.sidecars.get(name)
    behind = "" if sidecar is None else f" (generation {sidecar.generation}, the others {who.generation})"
    return f"Copy {name} ({spec.copy_named(name).source.label}) has missed writes{behind}; its votes would be wrong."


def _stale_remedy(spec: SetSpec, who: Identity) -> str:
    name = sorted(who.missing or who.stale)[0]
    current = next((copy for copy in spec.copies if copy.name not in who.stale), None)
    if current is None:
        return "No copy is known to be current: restore the identity files from a backup."
    full = " --full" if name in who.missing else ""
    return (
        "Put the image and the .qorum file that belong together back in place; or run "
        f"'qorumctl start {spec.name} --degraded', then 'qorumctl copy rejoin {spec.name} {name}{full}'."
    )
