"""Image files and devices: what they are, how to make one without ever touching something that exists.

Formats are stated, never probed: what a guest writes into a raw disk must not change what the disk is taken for. The
qcow2 header is read only of what the definition calls qcow2, and by us: QEMU would follow it to other files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qorumctl.errors import RefusedError
from qorumctl.files import reason, sync_directory
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, NbdSource, Source
from qorumctl.units import MIB, format_size

QCOW2_MAGIC = b"QFI\xfb"
# QEMU docs/interop/qcow2.txt: magic, version, backing file offset and length, cluster bits, size, encryption method;
# from version 3 on, at 72, the features that a reader must know.
_QCOW2_HEADER = struct.Struct(">4sIQIIQI")
_QCOW2_FEATURES_AT = 72
_QCOW2_CORRUPT = 1 << 1
_QCOW2_EXTERNAL_DATA = 1 << 2
_BLKSSZGET = 0x1268
"""linux/fs.h: the logical sector size of a device."""


@dataclass(frozen=True)
class ImageInfo:
    """`size_bytes`: of the disk that a guest sees; None where the image does not exist."""

    path: str
    exists: bool
    size_bytes: int | None = None


def inspect(source: FileSource) -> ImageInfo:
    """What the file is. Raises RefusedError where it could never be an image of ours: no regular file, a symbolic link
    to nowhere, unreadable, or a qcow2 that leads to other files."""
    path = source.path
    _refuse_foreign_link(Path(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if Path(path).is_symlink():
            raise RefusedError(
                f"{path} is a symbolic link to something that does not exist.",
                remedy="Remove the link, or make what it points to available.",
                path=path,
            ) from None
        return ImageInfo(path, exists=False)
    except OSError as error:
        raise RefusedError(
            f"The image {path} cannot be opened: {reason(error)}.", remedy="Check the path and its rights.", path=path
        ) from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            kind = "a block device" if stat.S_ISBLK(facts.st_mode) else "not a regular file"
            remedy = 'Use type = "device" for it.' if stat.S_ISBLK(facts.st_mode) else "Name an image file."
            raise RefusedError(f"{path} is {kind}.", remedy=remedy, path=path)
        size = facts.st_size if source.format == "raw" else qcow2_size(fd, path)
    except OSError as error:
        raise RefusedError(
            f"The image {path} cannot be read: {reason(error)}.", remedy="Check it.", path=path
        ) from error
    finally:
        os.close(fd)
    return ImageInfo(path, exists=True, size_bytes=size)


def _refuse_foreign_link(path: Path) -> None:
    """Whoever owns a link decides which file the daemon, with its rights, opens and writes."""
    with contextlib.suppress(OSError):
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode) and facts.st_uid not in {0, os.geteuid()}:
            raise RefusedError(
                f"{path} is a symbolic link that belongs to another user, who could make it lead to any file.",
                remedy="Name the image itself, or make the link anew as the user that runs the set.",
                path=str(path),
            )


def qcow2_size(fd: int, path: str) -> int:
    """Of the disk in it, in bytes. RefusedError for what is none, and for one that leads to other files."""
    header = os.pread(fd, _QCOW2_FEATURES_AT + 8, 0)
    if len(header) < _QCOW2_FEATURES_AT or not header.startswith(QCOW2_MAGIC):
        raise RefusedError(f"{path} is not a qcow2 image.", remedy='If it is a raw one, use format = "raw".', path=path)
    _, version, backing_offset, _, _, size, encryption = _QCOW2_HEADER.unpack_from(header)
    if version not in {2, 3}:
        raise RefusedError(
            f"{path} is a qcow2 image of version {version}.",
            remedy="Convert it with qemu-img convert -O qcow2; versions 2 and 3 can be used.",
            path=path,
        )
    features = int.from_bytes(header[_QCOW2_FEATURES_AT:], "big") if version == 3 else 0
    if backing_offset:
        raise RefusedError(
            f"{path} has a backing file, through which a set could expose other files.",
            remedy="Make it independent with qemu-img convert -O qcow2.",
            path=path,
        )
    if features & _QCOW2_EXTERNAL_DATA:
        raise RefusedError(
            f"{path} keeps its data in another file, through which a set could expose other files.",
            remedy="Make it independent with qemu-img convert -O qcow2.",
            path=path,
        )
    if encryption:
        raise RefusedError(
            f"{path} is encrypted.", remedy="Encrypt inside the guest, or below the image; convert it first.", path=path
        )
    if features & _QCOW2_CORRUPT:
        raise RefusedError(
            f"{path} is marked as corrupt by QEMU.", remedy=f"Repair it with qemu-img check -r all {path}.", path=path
        )
    return int(size)


def create_exclusive(path: str, size_bytes: int, image_format: Literal["raw", "qcow2"]) -> int:
    """Makes a new file, 0600, and returns its descriptor, which the caller closes.

    A raw image has its length and is ready, a qcow2 one is empty, to be formatted on this very inode. Never touches
    what exists: a file, a link (even to nowhere), anything. Raises RefusedError, and leaves nothing behind then.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:
        raise RefusedError(
            f"{path} exists already.", remedy="Nothing was changed. Choose another path, or move it away.", path=path
        ) from None
    except FileNotFoundError:
        raise RefusedError(
            f"The directory {Path(path).parent} does not exist.",
            remedy="Make it, or mount what belongs there.",
            path=path,
        ) from None
    except OSError as error:
        raise RefusedError(
            f"The image {path} cannot be created: {reason(error)}.", remedy="Check its directory and rights.", path=path
        ) from error
    try:
        os.fchmod(fd, 0o600)
        if image_format == "raw":
            os.ftruncate(fd, size_bytes)
        os.fsync(fd)
        sync_directory(Path(path).parent)
    except OSError as error:
        remove_created(fd, path)
        os.close(fd)
        too_large = error.errno in {errno.EFBIG, errno.EINVAL}
        raise RefusedError(
            f"The image {path} cannot be made {format_size(size_bytes)} long: {reason(error)}.",
            remedy="The file system does not take files of this size." if too_large else "Check the file system.",
            path=path,
        ) from error
    return fd


def remove_created(fd: int, path: str) -> bool:
    """Undoes `create_exclusive`: unlinks `path` if it still is the file behind `fd`. Tells whether it did.

    Somebody who put another file there meanwhile keeps it. The descriptor stays open: it is the caller's.
    """
    try:
        ours, there = os.fstat(fd), Path(path).lstat()
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            return False
        Path(path).unlink()
        sync_directory(Path(path).parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RefusedError(
            f"The image {path}, made a moment ago, cannot be removed again: {reason(error)}.",
            remedy="Remove it by hand.",
            path=path,
        ) from error
    return True


def check_free_space(sources: Iterable[Source], size_bytes: int) -> None:
    """Refuses images that could not be filled: images that do not exist yet, summed up per file system.

    The files are sparse, so creating them would work; the set would fail later, when a guest's write does.
    """
    needed: dict[int, tuple[Path, int]] = {}
    for source in sources:
        if not isinstance(source, FileSource) or os.path.lexists(source.path):
            continue
        directory = Path(source.path).parent
        try:
            device = directory.stat().st_dev
        except FileNotFoundError:
            raise RefusedError(
                f"The directory {directory} does not exist.",
                remedy="Make it, or mount what belongs there.",
                path=source.path,
            ) from None
        except OSError as error:
            raise RefusedError(
                f"The directory {directory} cannot be used: {reason(error)}.", remedy="Check it.", path=source.path
            ) from error
        first, before = needed.get(device, (directory, 0))
        needed[device] = (first, before + _most_bytes(source, size_bytes))
    for directory, bytes_needed in needed.values():
        try:
            usage = os.statvfs(directory)
        except OSError as error:
            raise RefusedError(
                f"The file system of {directory} does not answer: {reason(error)}.",
                remedy="Check it.",
                path=str(directory),
            ) from error
        free = usage.f_bavail * usage.f_frsize
        if free < bytes_needed:
            raise RefusedError(
                f"{directory} has {format_size(free)} free, and the new images there need {format_size(bytes_needed)}.",
                remedy="Free some space, choose a smaller size, or other directories; --thin makes them all the same.",
                path=str(directory),
            )


def _most_bytes(source: FileSource, size_bytes: int) -> int:
    # qcow2: 8 bytes of L2 table and 2 of refcount for each cluster of 64 KiB, and a few clusters more.
    return size_bytes if source.format == "raw" else size_bytes + size_bytes // 4096 + MIB


def distinct(copies: Sequence[CopySpec], *, own_socket: Path | None = None) -> None:
    """Refuses one image under two names: by symbolic or hard link, another spelling, a loop device over it.

    `own_socket`: the set's own NBD socket; a copy behind it would be a copy of itself. Raises RefusedError.
    """
    holders: dict[tuple[object, ...], CopySpec] = {}
    for copy in copies:
        for identity in _identities(copy.source):
            other = holders.setdefault(identity, copy)
            if other is not copy:
                raise RefusedError(
                    f"Copies '{other.name}' and '{copy.name}' are the same image:"
                    f" {other.source.label} and {copy.source.label}.",
                    remedy="Give each copy an image of its own.",
                    copy=copy.name,
                    path=copy.source.label,
                )
        if own_socket is not None and isinstance(copy.source, NbdSource):
            socket = copy.source.endpoint.socket
            if socket and os.path.realpath(socket) == os.path.realpath(own_socket):
                raise RefusedError(
                    f"Copy '{copy.name}' is the set's own volume: {copy.source.label}.",
                    remedy="Give it an image of its own.",
                    copy=copy.name,
                    path=copy.source.label,
                )


def _identities(source: Source) -> list[tuple[object, ...]]:
    """What must be unique. A sidecar's path counts: an image `x.qorum` beside an image `x` would be overwritten."""
    if isinstance(source, NbdSource):
        endpoint = source.endpoint
        where = os.path.realpath(endpoint.socket) if endpoint.socket else (endpoint.host or "").lower()
        return [("nbd", where, None if endpoint.socket else endpoint.port, endpoint.export)]
    path = Path(source.path)
    try:
        facts = path.stat()
    except OSError:
        return [_by_name(path), *_by_sidecar(source)]
    if stat.S_ISBLK(facts.st_mode):
        return [("device", facts.st_rdev), *_behind_loop(facts.st_rdev)]
    return [("inode", facts.st_dev, facts.st_ino), *_by_sidecar(source), _by_name(path)]


def _by_name(path: Path) -> tuple[object, ...]:
    real = Path(os.path.realpath(path))
    try:
        parent = real.parent.stat()
    except OSError:
        return ("name", str(real))
    return ("name", parent.st_dev, parent.st_ino, real.name)


def _by_sidecar(source: Source) -> list[tuple[object, ...]]:
    return [_by_name(Path(f"{source.path}.qorum"))] if isinstance(source, FileSource) else []


def _behind_loop(device: int) -> list[tuple[object, ...]]:
    attribute = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file")
    try:
        facts = Path(attribute.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")).stat()
    except OSError:
        return []
    return [("inode", facts.st_dev, facts.st_ino)]


def device_size(path: str) -> int:
    """Bytes of a block device. Raises RefusedError where there is none."""
    fd = _open_device(path)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise RefusedError(
            f"{path} cannot be measured: {reason(error)}.", remedy="Check the device.", path=path
        ) from error
    finally:
        os.close(fd)


def alignment(source: Source) -> int:
    """The bytes that direct I/O must be a multiple of, as far as it can be told cheaply; 512 where it cannot.

    A device is asked; for a file, the disk under its file system is looked up in sysfs.
    """
    if isinstance(source, DeviceSource):
        fd = _open_device(source.path)
        try:
            answer = fcntl.ioctl(fd, _BLKSSZGET, b"\0" * 4)
            return int(struct.unpack("i", answer)[0])
        except OSError:
            return 512
        finally:
            os.close(fd)
    if isinstance(source, FileSource):
        try:
            device = Path(source.path).parent.stat().st_dev
        except OSError:
            return 512
        disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        # A partition has no queue of its own; its disk is the directory above it.
        for queue in (disk / "queue", disk / ".." / "queue"):
            try:
                return int((queue / "logical_block_size").read_text())
            except (OSError, ValueError):
                continue
    return 512


def _open_device(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(
            f"The device {path} cannot be opened: {reason(error)}.",
            remedy="Check that it is there, and its rights.",
            path=path,
        ) from error
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        os.close(fd)
        raise RefusedError(f"{path} is not a block device.", remedy='Use type = "file" for a file.', path=path)
    return fd
