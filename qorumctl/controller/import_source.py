"""The image that a set is filled from: looked at, without anything being changed or followed to other files."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
_MAGIC = (
    ("qcow2", 0, images.QCOW2_MAGIC),
    ("vmdk", 0, b"KDMV"),
    ("vhdx", 0, b"vhdxfile"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("vpc", 0, b"conectix"),
)
"""Format, where its mark lies, and the mark; that of a VPC of fixed size lies in its footer."""
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
    if isinstance(source.source, NbdSource):
        return
    path = source.source.path
    if isinstance(source.source, FileSource):
        _vet_file(path)
    try:
        with _opened(path) as fd:
            _refuse_leads_elsewhere(fd, path, fmt)
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {reason(error)}.", remedy="Check it.", path=path) from None


def _vet_file(path: str) -> None:
    if not images.inspect(FileSource(path=path)).exists:
        raise RefusedError(f"{path} does not exist.", remedy="Name the image to import.", path=path)
    if image_use.is_used(path, writers_only=True):
        raise RefusedError(
            f"{path} is in use by another process, which may be writing to it.",
            remedy="Nothing was changed. Stop what uses it: a virtual machine, qemu-nbd, or another set.",
            path=path,
        )
    for image in (path, os.path.realpath(path)):
        if (sidecar := identity.read(image)) is not None:
            raise RefusedError(
                f"{path} is copy {sidecar.copy_} of set '{sidecar.set}', and one copy alone may be wrong.",
                remedy=f"Export the set: 'qorumctl export {sidecar.set} FILE'. If it is gone for good, remove "
                f"{identity.sidecar_path(image)}.",
                path=path,
            )


def doubts(source: CopySpec, fmt: ImportFormat) -> list[str]:
    """Warnings. What is said to be raw is taken as it is: a disk may well begin like an image of another format. But
    mostly somebody has mistaken the format, and no guest would find a disk in what was imported."""
    if fmt != "raw" or isinstance(source.source, NbdSource):
        return []
    path = source.source.path
    with suppress(OSError), _opened(path) as fd:
        header, footer = _ends(fd)
        for name, at, magic in _MAGIC:
            if header[at:].startswith(magic) or (name == "vpc" and footer.startswith(magic)):
                return [
                    f"{path} looks like a {name} image, and was imported byte by byte, as raw. If that was a mistake, "
                    f"delete the set and import it with --from-format {name}."
                ]
    return []


def node_options(fmt: ImportFormat) -> QmpArguments:
    """How its upper node is opened: the format is said, and nothing that a header names is followed."""
    return {"driver": fmt, **({"backing": None} if fmt in {"qcow2", "vmdk"} else {})}


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _ends(fd: int) -> tuple[bytes, bytes]:
    """The first and the last bytes, also of a device."""
    length = os.lseek(fd, 0, os.SEEK_END)
    return os.pread(fd, _HEADER_BYTES, 0), os.pread(fd, _FOOTER_BYTES, max(0, length - _FOOTER_BYTES))


def _refuse_leads_elsewhere(fd: int, path: str, fmt: ImportFormat) -> None:
    """An image that names other files would bring their contents into the set, or be half of itself without them. It
    may lie on a device, too, where a guest could have written it."""
    header, footer = _ends(fd)
    match fmt:
        case "raw" | "vdi" | "vhdx":
            # QEMU refuses a VDI or VHDX with a parent by itself.
            return
        case "qcow2":
            if not header.startswith(images.QCOW2_MAGIC):
                raise RefusedError(
                    f"{path} is not a qcow2 image.",
                    remedy="Nothing was changed. Say its true format; 'qemu-img info' tells what an image of yours is.",
                    path=path,
                )
            images.qcow2_size(fd, path)
        case "vmdk":
            # VMware's specification: a sparse extent that says how large it is; all else is a list of other files.
            capacity = int.from_bytes(header[12:20], "little")
            parent = b"parentFileNameHint" in _descriptor(fd, header)
            if not header.startswith(b"KDMV") or not capacity or parent:
                raise RefusedError(f"{path} is no VMDK that stands for itself.", remedy=_REMEDY, path=path)
        case "vpc":
            # Microsoft's specification: the disk type, at 60 of the footer.
            # QEMU believes the copy at the beginning, if there is one.
            ends = [end for end in (header, footer) if end.startswith(b"conectix") and len(end) >= 64]
            if any(struct.unpack_from(">I", end, 60)[0] == _VPC_DIFFERENCING for end in ends):
                raise RefusedError(f"{path} holds only the differences from another image.", remedy=_REMEDY, path=path)
        case _:
            assert_never(fmt)


def _descriptor(fd: int, header: bytes) -> bytes:
    """The text within a VMDK, by the offset and length (in sectors) in its header."""
    at, sectors = (int.from_bytes(header[i : i + 8], "little") for i in (28, 36))
    return os.pread(fd, min(sectors, 128) * 512, min(at, 1 << 40) * 512)
