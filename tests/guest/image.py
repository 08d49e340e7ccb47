"""The guest's initramfs: busybox, virtio modules, e2fsprogs with the libraries they load, and `init` beside this file.

Its parts lie in build/guest, where .ci/guest puts them; e2fsprogs and its libraries are this machine's own.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

PARTS = Path(__file__).resolve().parents[2] / "build" / "guest"
KERNEL = PARTS / "vmlinuz"
INIT = Path(__file__).with_name("init")
TOOLS = ("mke2fs", "e2fsck")
_MAGIC = "070701"
_END = "TRAILER!!!"


def lacking() -> str | None:
    """Why there can be no guest, or None."""
    if (PARTS / "ready").exists():
        return None
    reason = PARTS / "lacking"
    return reason.read_text().strip() if reason.exists() else "the guest's kernel is not there: run make venv"


def build(path: Path) -> Path:
    """Writes the archive that a kernel unpacks as its first root. Not compressed: the guest would pay for that."""
    content = {"init": INIT.read_bytes(), "bin/busybox": (PARTS / "busybox").read_bytes()}
    for module in sorted((PARTS / "modules").iterdir()):
        content[f"modules/{module.name.removesuffix('.xz')}"] = _plain(module)
    for tool in TOOLS:
        program = _find(tool)
        content[f"e2fsprogs/{tool}"] = program.read_bytes()
        for library in libraries(program):
            content[str(library).lstrip("/")] = library.read_bytes()
    path.write_bytes(archive(content))
    return path


def archive(content: Mapping[str, bytes | None]) -> bytes:
    """A cpio archive of the format that Linux reads (`newc`). Path -> content, or None for a directory; those that a
    path needs are added, and every file may be run."""
    directories = {str(parent) for name in content for parent in Path(name).parents} - {"."}
    entries = {**dict.fromkeys(sorted(directories)), **content}
    return b"".join(part for number, name in enumerate(entries, 1) for part in _entry(name, entries[name], number)) + (
        b"".join(_entry(_END, b"", 0))
    )


def _entry(name: str, content: bytes | None, inode: int) -> Iterator[bytes]:
    """Linux's driver-api/early-userspace/buffer-format: thirteen numbers of eight hexadecimal digits, name, content."""
    mode, links = (stat.S_IFDIR | 0o755, 2) if content is None else (stat.S_IFREG | 0o755, 1)
    encoded, body = name.encode() + b"\0", content or b""
    numbers = (inode, mode, 0, 0, links, 0, len(body), 0, 0, 0, 0, len(encoded), 0)
    header = _MAGIC.encode() + b"".join(b"%08x" % number for number in numbers)
    yield from (header, encoded, b"\0" * (-(len(header) + len(encoded)) % 4), body, b"\0" * (-len(body) % 4))


def libraries(program: Path) -> list[Path]:
    """What the dynamic linker loads for it, and the linker, under the names that they are looked up by."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE)]


def _plain(module: Path) -> bytes:
    """Debian 13 compresses its modules."""
    return lzma.decompress(module.read_bytes()) if module.suffix == ".xz" else module.read_bytes()


def _find(tool: str) -> Path:
    found = shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    assert found is not None, f"{tool} is not installed: apt-get install e2fsprogs"
    return Path(found)
