"""Delete: forgets a stopped set and, when asked to, its image files. What may be somebody else's is left, and named."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qorumctl import identity, image_use
from qorumctl.controller import hooks, interrupted, newcomer, textfile, watcher
from qorumctl.controller.context import SetContext
from qorumctl.controller.serving import end_leftover
from qorumctl.controller.vetting import foreign
from qorumctl.errors import QorumError, RefusedError, StoreError
from qorumctl.files import reason, sync_directory, temporary_of
from qorumctl.identity import Sidecar
from qorumctl.model.spec import FileSource, SetSpec
from qorumctl.model.status import Result
from qorumctl.store.database import FILE_NAME


async def delete(context: SetContext, *, images_too: bool) -> Result:
    """Images first, the definition last: a delete that was interrupted can be repeated. Under the set's lock."""
    if not context.is_defined() and interrupted.is_pending(context):
        return await _delete_unborn(context)
    spec = context.spec()
    if context.pid() is not None:
        raise RefusedError(
            f"{spec.name} is running.", remedy=f"Run 'qorumctl stop {spec.name}' first.", set_name=spec.name
        )
    await watcher.end(context, by_hand_too=True)
    await hooks.end_delivery(context)
    await end_leftover(context)
    sidecars, warnings = _own_sidecars(spec)
    _refuse_foreign_host(spec, sidecars)
    notes = list(context.replacements().values())
    files = [copy.source for copy in spec.copies if isinstance(copy.source, FileSource)]
    if images_too:
        for source in files:
            _refuse_use(spec, source)
        warnings += _left(files, sidecars)
    for source in files:
        if source.path in sidecars:
            if images_too:
                warnings += _delete_image(Path(source.path))
            identity.remove(source.path)
    for note in notes:
        if not context.has_succeeded(note):
            newcomer.take_away(spec, note if images_too else replace(note, created=False))
    if (warning := await textfile.remove(context)) is not None:
        warnings.append(warning)
    forget_history(context)
    _unlink(temporary_of(context.definition_path))
    _unlink(context.definition_path)
    interrupted.conclude(context)
    _remove_directories(context)
    return Result(set=spec.name, command="delete", changed=True, warnings=warnings)


async def _delete_unborn(context: SetContext) -> Result:
    """A `create` was killed: nothing is defined, but empty images and sidecars of it may stand."""
    await end_leftover(context)
    interrupted.take_back(context)
    _unlink(temporary_of(context.definition_path))
    _remove_directories(context)
    return Result(set=context.name, command="delete", changed=True)


def forget_history(context: SetContext) -> None:
    """The lock stays, since we hold it. Also before a set is created: a name must not inherit another set's history."""
    for suffix in ("", "-wal", "-shm"):
        _unlink(context.state_dir / f"{FILE_NAME}{suffix}")


def _own_sidecars(spec: SetSpec) -> tuple[dict[str, Sidecar], list[str]]:
    """Image path -> sidecar, where the sidecar carries this set's identity: a path may hold somebody else's image by
    now."""
    own: dict[str, Sidecar] = {}
    warnings = []
    for copy in spec.copies:
        if not isinstance(copy.source, FileSource):
            continue
        path = copy.source.path
        try:
            sidecar = identity.read(path)
        except RefusedError as error:
            warnings.append(f"{error.message} It was left.")
            continue
        if sidecar is None:
            continue
        if sidecar.uuid == str(spec.uuid):
            own[path] = sidecar
        else:
            warnings.append(f"{path} was left: it belongs to set '{sidecar.set}'.")
    return own, warnings


def _left(files: Sequence[FileSource], sidecars: Mapping[str, Sidecar]) -> list[str]:
    nameless = [source.path for source in files if source.path not in sidecars and Path(source.path).exists()]
    return [f"{path} was left: no identity file says that it is this set's." for path in nameless]


def _delete_image(path: Path) -> list[str]:
    target = path.resolve() if path.is_symlink() else None
    _unlink(path)
    return [] if target is None else [f"{path} was a symbolic link: it is gone, {target} was left."]


def _refuse_foreign_host(spec: SetSpec, sidecars: dict[str, Sidecar]) -> None:
    newest = max((sidecar.generation for sidecar in sidecars.values()), default=0)
    here = identity.this_host().id
    for sidecar in sidecars.values():
        if sidecar.generation == newest and not sidecar.clean and sidecar.host_id != here:
            error = foreign(spec, identity.Identity(newest, newest, foreign_host=sidecar.host))
            error.remedy = (
                "Stop it there. If that host is certainly down, start it here with --takeover and stop it, then delete."
            )
            raise error


def _refuse_use(spec: SetSpec, source: FileSource) -> None:
    if image_use.is_used(source.path):
        raise RefusedError(
            f"{source.path} is in use by another process.",
            remedy="Nothing was changed. Stop what uses it: a virtual machine, qemu-nbd, or a backup.",
            set_name=spec.name,
            path=source.path,
        )


def _remove_directories(context: SetContext) -> None:
    for directory in (context.runtime.directory, context.state_dir):
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(
                f"{directory} cannot be removed: {reason(error)}.", remedy="Remove it.", path=str(directory)
            ) from None


def _unlink(path: Path) -> None:
    try:
        path.unlink()
        sync_directory(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise QorumError(
            f"{path} cannot be removed: {reason(error)}.", remedy="Check its rights, then repeat.", path=str(path)
        ) from None
