"""A `create` that was killed half-way can be repeated: what it was about to make is written down first.

The announcement, `creating.json` in the set's state directory, holds the definition-to-be with its fresh uuid. The next
`create` or `delete` of the set takes back what was made under it, and only what cannot be anybody's data: image files
at those paths that are ours alone and hold nothing, and sidecars with that uuid that were never started from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from qorumctl import identity, image_use
from qorumctl.controller.context import SetContext
from qorumctl.errors import QorumError, StoreError
from qorumctl.files import read_bounded, reason, sync_directory, write_atomically
from qorumctl.model.spec import FileSource, SetSpec

_NAME = "creating.json"
_SCHEMA = "qorum.creating/1"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Announcement:
    """`makes_images`: whether the image files did not exist before."""

    definition: SetSpec
    makes_images: bool


def announce(context: SetContext, spec: SetSpec, *, makes_images: bool) -> None:
    """Before the first file is made. Raises StoreError."""
    path = _path(context)
    content = {"schema": _SCHEMA, "definition": spec.model_dump(mode="json"), "makes_images": makes_images}
    try:
        write_atomically(path, json.dumps(content).encode(), 0o600)
    except OSError as error:
        raise _failed(path, error) from error


def conclude(context: SetContext) -> None:
    """After the definition stands, or all was taken back. Idempotent; raises StoreError."""
    path = _path(context)
    try:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise _failed(path, error) from error


def is_pending(context: SetContext) -> bool:
    return _path(context).exists()


def settle(context: SetContext) -> None:
    """Of a set that is defined: its `create` was killed after its last step, and there is nothing to take back."""
    if is_pending(context):
        conclude(context)


def take_back(context: SetContext) -> None:
    """What an interrupted `create` left, if one was; under the set's lock, and with no daemon running."""
    announced = _read(context)
    if announced is None:
        return
    if not context.is_defined():
        for copy in announced.definition.copies:
            if isinstance(copy.source, FileSource):
                _take_back_image(copy.source, announced)
    conclude(context)


def _take_back_image(source: FileSource, announced: _Announcement) -> None:
    try:
        sidecar = identity.read(source.path)
    except QorumError:
        # Something else stands there; `create` says so.
        return
    if sidecar is not None and (sidecar.uuid != str(announced.definition.uuid) or sidecar.generation > 0):
        return
    if announced.makes_images and image_use.is_blank(source, announced.definition.size):
        try:
            Path(source.path).unlink(missing_ok=True)
        except OSError as error:
            raise _failed(Path(source.path), error) from error
    # Also where there is none yet: the kill may have come while it was written.
    identity.remove(source.path)


def _read(context: SetContext) -> _Announcement | None:
    path = _path(context)
    try:
        content, _ = read_bounded(path, _MOST_BYTES, follow=False)
        values = json.loads(content)
        if values["schema"] != _SCHEMA:
            return None
        return _Announcement(SetSpec.model_validate(values["definition"]), values["makes_images"] is True)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        # Another version's. Nothing is removed on a guess; what stands in the way is named by `create`.
        return None
    except OSError as error:
        raise _failed(path, error) from error


def _path(context: SetContext) -> Path:
    return context.state_dir / _NAME


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be used: {reason(error)}.", remedy="Check its rights.", path=str(path))
