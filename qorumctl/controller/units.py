"""The text of the drop-ins that make the units of contrib/systemd fit one set. Pure, but for the mount table.

A mount is wanted, not required: with one of three appliances away, the other two must still be able to serve, and one
that is unmounted must not stop the set. (RequiresMountsFor= would do both.)
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from qorumctl.controller.schedule import Schedule
from qorumctl.errors import RefusedError
from qorumctl.model.spec import NbdSource, SetSpec
from qorumctl.units import format_budget

FILE_NAME = "50-qorumctl.conf"
_PLAIN = set(string.ascii_letters + string.digits + ":_.")
_OCTAL = re.compile(r"\\([0-7]{3})")


def storage_unit(name: str) -> str:
    return f"qorum-storage@{name}.service"


def watch_unit(name: str) -> str:
    return f"qorum-watch@{name}.service"


def scrub_unit(name: str) -> str:
    return f"qorum-scrub@{name}.service"


def scrub_timer(name: str) -> str:
    return f"qorum-scrub@{name}.timer"


def drop_ins(spec: SetSpec, directories: Sequence[str], mounts: Sequence[str], schedule: Schedule) -> dict[str, str]:
    """Unit -> text. `directories` hold images, `mounts` are mount points that they lie on."""
    head = (
        f"# Written by 'qorumctl enable {spec.name}', and removed by 'qorumctl disable {spec.name}'.\n"
        "# What you add belongs into another file beside this one.\n"
    )
    wanted = [mount_unit(mount) for mount in mounts if mount != "/"]
    if any(isinstance(copy.source, NbdSource) and copy.source.endpoint.host for copy in spec.copies):
        wanted.append("network-online.target")
    order = f"[Unit]\nWants={' '.join(wanted)}\nAfter={' '.join(wanted)}\n" if wanted else ""
    writable = "".join(map(_writable, directories))
    return {
        storage_unit(spec.name): f"{head}{order}[Service]\n{writable}",
        scrub_unit(spec.name): f"{head}[Service]\nEnvironment=BUDGET={format_budget(schedule.budget_s)}\n{writable}",
        # An empty value first: the template's own would be kept beside this one.
        scrub_timer(spec.name): (
            f"{head}[Timer]\nOnCalendar=\nOnCalendar={schedule.on_calendar}\nRandomizedDelaySec={schedule.delay}\n"
        ),
    }


def image_directories(spec: SetSpec) -> list[str]:
    """Of the set's image files, without repetition."""
    images = [PurePosixPath(copy.source.path) for copy in spec.copies if copy.source.type == "file"]
    # "//srv" is a root of its own to pathlib, and to nobody else here.
    return list(dict.fromkeys(str(PurePosixPath("/", *image.parts[1:-1])) for image in images))


def mount_points(directories: Iterable[str], table: str) -> list[str]:
    """The mount point that each directory lies on. `table`: as in /proc/self/mountinfo, which asks no file system: one
    that hangs is no obstacle."""
    known = [PurePosixPath(_unescaped(line.split()[4])) for line in table.splitlines() if line]
    found: list[str] = []
    for directory in map(PurePosixPath, directories):
        around = [point for point in known if directory.is_relative_to(point)]
        found.append(str(max(around, key=lambda point: len(point.parts), default=PurePosixPath("/"))))
    return list(dict.fromkeys(found))


def mount_table() -> str:
    return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")


def mount_unit(point: str) -> str:
    """systemd.unit(5), "string escaping for inclusion in unit names": `/srv/a-b` is `srv-a\\x2db.mount`."""
    path = point.strip("/")
    escaped = "".join(
        "-" if byte == ord("/") else chr(byte) if chr(byte) in _PLAIN and (byte != ord(".") or at) else f"\\x{byte:02x}"
        for at, byte in enumerate(path.encode(errors="surrogateescape"))
    )
    return f"{escaped}.mount"


def _unescaped(field: str) -> str:
    """mountinfo writes blanks as \\040."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _writable(directory: str) -> str:
    """One word of a unit file: quotes and backslashes are escaped, and a percent sign would begin a specifier. "-": a
    directory that is away must not keep the others from being used."""
    if not directory.isprintable():
        raise RefusedError(
            f"The path {directory!r} holds characters that no unit file can.",
            remedy="Give it another name.",
            path=directory,
        )
    if ".." in PurePosixPath(directory).parts:
        # Such a line is dropped, with a warning in the journal: nothing could be noted beside the image.
        raise RefusedError(
            f"systemd takes no path with '..' in it: {directory}.",
            remedy="Write it without in the definition, and restart the set.",
            path=directory,
        )
    escaped = directory.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'ReadWritePaths="-{escaped}"\n'
