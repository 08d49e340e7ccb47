"""A `create` that was killed half-way can be repeated: what it was about to make is written down first.

The announcement, `creating.json` in the set's state directory, holds the definition-to-be with its fresh uuid. The next
`create` or `delete` of the set takes back what was made under it, and only what cannot be anybody's data: image files
at those paths that are ours alone and hold nothing, and sidecars with that uuid that were never started from.

An import fills images before anything is defined. So it notes the inodes that it has made, before the first byte: an
image that is still that very file, and says in its sidecar that it is of that uuid and was never started from, holds
nothing but a part of what it was to be filled from.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qorumctl import identity, image_use
from qorumctl.controller import intent
from qorumctl.controller.context import SetContext
from qorumctl.errors import QorumError
from qorumctl.files import read_bounded
from qorumctl.model.spec import FileSource, SetSpec

_SCHEMA = "qorum.creating/1"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Announcement:
    """`makes_images`: whether the image files did not exist before. `inodes`: path -> inode of what is filled."""

    definition: SetSpec
    makes_images: bool
    inodes: Mapping[str, int] = field(default_factory=dict)


def announce(
    context: SetContext, spec: SetSpec, *, makes_images: bool, inodes: Mapping[str, int] | None = None
) -> None:
    """Before the first file is made; of an import again, with `inodes`, before the first byte. Raises StoreError."""
    content = {
        "schema": _SCHEMA,
        "definition": spec.model_dump(mode="json"),
        "makes_images": makes_images,
        "inodes": dict(inodes or {}),
    }
    intent.write(_path(context), content)


def conclude(context: SetContext) -> None:
    """After the definition stands, or all was taken back. Idempotent; raises StoreError."""
    intent.conclude(_path(context))


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
    filled = sidecar is not None and _is_inode(source.path, announced.inodes.get(source.path))
    if announced.makes_images and (filled or image_use.is_blank(source, announced.definition.size)):
        try:
            Path(source.path).unlink(missing_ok=True)
        except OSError as error:
            raise intent.failed(Path(source.path), error) from error
    # Also where there is none yet: the kill may have come while it was written.
    identity.remove(source.path)


def _is_inode(path: str, number: int | None) -> bool:
    """Device numbers can change with a reboot; the sidecar beside it says whose it is."""
    try:
        facts = Path(path).lstat()
    except OSError:
        return False
    return stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_ino == number


def _read(context: SetContext) -> _Announcement | None:
    path = _path(context)
    try:
        content, _ = read_bounded(path, _MOST_BYTES, follow=False)
        values = json.loads(content)
        if values["schema"] != _SCHEMA:
            return None
        inodes = {str(name): int(inode) for name, inode in values.get("inodes", {}).items()}
        return _Announcement(SetSpec.model_validate(values["definition"]), values["makes_images"] is True, inodes)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        # Another version's. Nothing is removed on a guess; what stands in the way is named by `create`.
        return None
    except OSError as error:
        raise intent.failed(path, error) from error


def _path(context: SetContext) -> Path:
    return context.announcement_path
