"""What an operator names as the image of a copy."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

from qorumctl.errors import UsageError
from qorumctl.explain import reason_of
from qorumctl.model.spec import DeviceSource, FileSource, NbdSource, Source


def parse_source(text: str, image_format: Literal["raw", "qcow2"]) -> Source:
    """An NBD URI, a block device, or the absolute path of an image file. Raises UsageError."""
    try:
        if "://" in text:
            return NbdSource(uri=text)
        if not Path(text).is_absolute():
            raise UsageError(f"'{text}' is not an absolute path.", remedy=f"Write {Path(text).absolute()}.")
        if _is_device(text):
            return DeviceSource(path=text)
        return FileSource(path=text, format=image_format)
    except ValueError as error:
        raise UsageError(
            f"{reason_of(error)}.", remedy="A source is an absolute path, a block device or an NBD URI."
        ) from None


def _is_device(path: str) -> bool:
    """By what it is; where nothing is there yet, by where it is: a file in /dev would be a typing error."""
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError:
        return path.startswith("/dev/") and not path.startswith("/dev/shm/")  # noqa: S108 - a file system, not a temp file
