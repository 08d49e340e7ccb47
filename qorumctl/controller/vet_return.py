"""Whether an image is the copy that left: looked at before `copy rejoin` changes anything."""

from __future__ import annotations

from qorumctl import identity
from qorumctl.controller import vetting
from qorumctl.controller.context import SetContext
from qorumctl.errors import RefusedError
from qorumctl.model.spec import CopySpec, FileSource, SetSpec
from qorumctl.store import Store


def vet_return(context: SetContext, spec: SetSpec, copy: CopySpec, store: Store, *, full: bool) -> int | None:
    """Every reason not to take a copy back that needs no daemon, before anything is changed. Returns the generation of
    its sidecar; None: it needs none. `full`: one that was lost is made anew. Raises RefusedError."""
    source, away = copy.source, store.absences().keys() - {copy.name}
    vetting.look_at_copy(spec, copy)
    vetting.distinct(context, [other for other in spec.copies if other.name not in away])
    if not isinstance(source, FileSource):
        return None
    sidecar = identity.read(source.path)
    host = identity.this_host()
    others = identity.judge(identity.read_all(spec, without=away | {copy.name}), spec, host.id)
    if sidecar is None:
        if not full:
            raise RefusedError(
                f"Copy {copy.name} ({source.path}) has lost its identity file: nobody can tell whether it is the "
                "image that left.",
                remedy="Nothing was changed. If you know that it is, or that nothing in it is needed, say --full: "
                "all that differs in it is then overwritten.",
                set_name=spec.name,
                copy=copy.name,
                path=source.path,
            )
        return identity.found_stale(spec, copy.name, host).reached
    identity.judge({copy.name: sidecar}, spec, host.id)
    known = [s for s in others.sidecars.values() if s is not None]
    if known and sidecar.generation > others.generation:
        raise RefusedError(
            f"Copy {copy.name} ({source.path}) is of a newer generation ({sidecar.generation}) than the copies "
            f"that run ({others.generation}): it may hold writes that they lack.",
            remedy="Nothing was changed. Find out where it was used since.",
            set_name=spec.name,
            copy=copy.name,
            path=source.path,
        )
    return sidecar.reached
