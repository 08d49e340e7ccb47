"""QEMU's words about an image or a server -> a CopyError that names the copy and says what to do."""

from __future__ import annotations

from qorumctl.errors import CommandError, CopyError, CopyInUseError, CopySilentError, CopyUnavailableError
from qorumctl.model.spec import CopySpec, NbdSource

_LOCKED = '" lock'
# QEMU has one error class for all of these; its words, the same in 7.2 and 10.0, are all there is to go by.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    ("O_DIRECT", "its file system does not support direct I/O", 'Set `cache = "writeback"` for this copy.'),
    (
        "aio=native",
        "this qemu-storage-daemon was built without Linux AIO, which keeps overlapping writes in order",
        'Use a build that has it, or set `cache = "writeback"` for this copy.',
    ),
    (_LOCKED, "another process is using it", "Stop what uses it: another set, a virtual machine, or qemu-nbd."),
    ("No such file or directory", "it does not exist", "Restore or mount it, or correct the set's definition."),
    ("Permission denied", "permission was denied", "Give the user that runs the set the right to read and write it."),
    ("Operation not permitted", "permission was denied", "Look for an immutable attribute or a security policy."),
    ("Read-only file system", "its file system is read-only", "Remount it writable, and find out why it is not."),
    ("is read-only", "it is read-only", "Make it writable for the user that runs the set."),
    ("Is a directory", "it is a directory", "Correct the path in the set's definition."),
    ("not in qcow2 format", "it is not a qcow2 image", "Correct `format` in the set's definition."),
    ("block device", "it is not a block device", 'Use a source of type "file" for an image file.'),
    ("Device or resource busy", "it is in use", "Unmount it, or stop what uses it."),
)


def explain(copy: CopySpec, error: CommandError) -> CopyError:
    """`error`: what QEMU said when this copy was opened."""
    label, said = copy.source.label, error.description
    if isinstance(copy.source, NbdSource):
        return CopyUnavailableError(
            f"Copy {copy.name} ({label}) cannot be reached: {said}.",
            remedy="Check that its NBD server runs, offers that export, and lets this host in.",
            copy=copy.name,
            path=label,
        )
    without_path = said.replace(label, "")
    for words, cause, remedy in _CAUSES:
        if words in without_path:
            kind = CopyInUseError if words == _LOCKED else CopyError
            return kind(
                f"Copy {copy.name} ({label}) cannot be opened: {cause}.", remedy=remedy, copy=copy.name, path=label
            )
    return CopyError(
        f"Copy {copy.name} ({label}) cannot be opened: {said}.",
        remedy="Check the image and its storage.",
        copy=copy.name,
        path=label,
    )


def silent(copy: CopySpec, timeout_s: float) -> CopySilentError:
    """The daemon hung while it opened this copy: its storage does not answer."""
    return CopySilentError(
        f"Copy {copy.name} ({copy.source.label}) did not answer within {timeout_s:g} s.",
        remedy="Check its storage, or the network to it.",
        copy=copy.name,
        path=copy.source.label,
    )
