"""The image that a set is filled from: looked at, without anything being changed or followed to other files."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from qorumctl import identity, image_use, images
from qorumctl.controller.options import CreateOptions, ImportFormat
from qorumctl.controller.sources import parse_source
from qorumctl.daemon.graph import QmpArguments
from qorumctl.errors import RefusedError, UsageError
from qorumctl.files import reason
from qorumctl.model.spec import CopySpec, FileSource, NbdSource

SOURCE = "source"
"""What it is called among the copies, whose names have one letter."""
_HEADER_BYTES = 1024
_FOOTER_BYTES = 512
_VPC_DIFFERENCING = 4
_REMEDY = "Nothing was changed. Make it independent with 'qemu-img convert', and import that."


def parse(options: CreateOptions) -> CopySpec:
    """The source as if it were a copy, to be opened read-only and through the page cache. Raises UsageError."""
    text, fmt = options.import_from or "", options.import_format
    if fmt is None:
        raise UsageError(
            "The format of the image to import was not said, and is never guessed.",
            remedy="Add --from-format, such as --from-format qcow2; 'qemu-img info' tells what an image of yours is.",
        )
    if options.size_bytes is not None:
        raise UsageError(
            "The size of an imported set is that of its source.",
            remedy="Leave --size out; 'qorumctl grow' enlarges the set later.",
        )
    source = parse_source(text, "qcow2" if fmt == "qcow2" else "raw")
    if isinstance(source, NbdSource) and fmt != "raw":
        raise UsageError(f"What lies behind {text} is raw.", remedy="Say --from-format raw.")
    return CopySpec(name=SOURCE, source=source, cache="writeback")


def vet(source: CopySpec, copies: Sequence[CopySpec], fmt: ImportFormat, own_socket: Path) -> None:
    """Every refusal that needs no daemon. Raises RefusedError."""
    images.distinct([source, *copies], own_socket=own_socket)
    if not isinstance(source.source, FileSource):
        return
    path = source.source.path
    if not images.inspect(source.source).exists:
        raise RefusedError(f"{path} does not exist.", remedy="Name the image to import.", path=path)
    if image_use.is_used(path, writers_only=True):
        raise RefusedError(
            f"{path} is in use by another process, which may be writing to it.",
            remedy="Nothing was changed. Stop what uses it: a virtual machine, qemu-nbd, or another set.",
            path=path,
        )
    if (sidecar := identity.read(path)) is not None:
        raise RefusedError(
            f"{path} is copy {sidecar.copy_} of set '{sidecar.set}', and one copy alone may be wrong.",
            remedy=f"Export the set: 'qorumctl export {sidecar.set} FILE'. If it is gone for good, remove "
            f"{identity.sidecar_path(path)}.",
            path=path,
        )
    try:
        _refuse_leads_elsewhere(path, fmt)
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {reason(error)}.", remedy="Check it.", path=path) from None


def node_options(fmt: ImportFormat) -> QmpArguments:
    """How its upper node is opened: the format is said, and nothing that a header names is followed."""
    return {"driver": fmt, **({"backing": None} if fmt in {"qcow2", "vmdk"} else {})}


def _refuse_leads_elsewhere(path: str, fmt: ImportFormat) -> None:
    """An image that names other files would bring their contents into the set, or be half of itself without them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        length = os.fstat(fd).st_size
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return
        header = os.pread(fd, _HEADER_BYTES, 0)
        footer = os.pread(fd, _FOOTER_BYTES, max(0, length - _FOOTER_BYTES))
    finally:
        os.close(fd)
    match fmt:
        case "raw" | "qcow2" | "vdi" | "vhdx":
            # qcow2: images.inspect has looked. QEMU refuses a VDI or VHDX with a parent by itself.
            return
        case "vmdk":
            # VMware's specification: a sparse extent that says how large it is; all else is a list of other files.
            capacity = int.from_bytes(header[12:20], "little")
            parent = b"parentFileNameHint" in _descriptor(path, header)
            if not header.startswith(b"KDMV") or not capacity or parent:
                raise RefusedError(f"{path} is no VMDK that stands for itself.", remedy=_REMEDY, path=path)
        case "vpc":
            # Microsoft's specification: the disk type, at 60 of the footer.
            if footer.startswith(b"conectix") and struct.unpack_from(">I", footer, 60)[0] == _VPC_DIFFERENCING:
                raise RefusedError(f"{path} holds only the differences from another image.", remedy=_REMEDY, path=path)
        case _:
            assert_never(fmt)


def _descriptor(path: str, header: bytes) -> bytes:
    """The text within a VMDK, by the offset and length (in sectors) in its header."""
    at, sectors = (int.from_bytes(header[i : i + 8], "little") for i in (28, 36))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, min(sectors, 128) * 512, min(at, 1 << 40) * 512)
    finally:
        os.close(fd)
