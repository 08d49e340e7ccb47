"""The image to import is looked at before anything is made: what it is, whose, and whether it leads to other files."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from qorumctl import identity
from qorumctl.controller import import_source
from qorumctl.controller.import_source import SOURCE, doubts, vet
from qorumctl.controller.options import ImportFormat
from qorumctl.errors import RefusedError
from qorumctl.identity import Sidecar
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource

NOBODYS = Path("/nowhere/nbd.sock")


def file(path: Path) -> CopySpec:
    return CopySpec(name=SOURCE, source=FileSource(path=str(path)))


def device(path: Path) -> CopySpec:
    """A regular file stands in for it: it is read in the same way."""
    return CopySpec(name=SOURCE, source=DeviceSource(path=str(path)))


def overlay(path: Path) -> Path:
    """A qcow2 with a backing file."""
    path.write_bytes(struct.pack(">4sIQIIQI", b"QFI\xfb", 3, 104, 9, 16, 1 << 20, 0).ljust(104, b"\0") + b"/etc/shad")
    return path


@pytest.mark.parametrize("where", [file, device])
def test_what_leads_to_other_files_is_refused_wherever_it_lies(
    tmp_path: Path, where: Callable[[Path], CopySpec]
) -> None:
    with pytest.raises(RefusedError, match="backing file"):
        vet(where(overlay(tmp_path / "x")), [], "qcow2", NOBODYS)
    (tmp_path / "y").write_bytes(b"KDMV" + bytes(1020))
    with pytest.raises(RefusedError, match="stands for itself"):
        vet(where(tmp_path / "y"), [], "vmdk", NOBODYS)
    (tmp_path / "z").write_bytes(struct.pack(">8s52xI", b"conectix", 4) + bytes(4096))
    with pytest.raises(RefusedError, match="only the differences"):
        vet(where(tmp_path / "z"), [], "vpc", NOBODYS)


def test_a_copy_is_known_by_any_path_that_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(4096))
    identity.write(
        tmp_path / "a.img",
        Sidecar(uuid="u", set="web01", copy_="a", generation=3, members=("a",), host="h", host_id="i", clean=True),
    )
    (tmp_path / "link").symlink_to(tmp_path / "a.img")
    for name in ("a.img", "link"):
        with pytest.raises(RefusedError, match="copy a of set 'web01'"):
            vet(file(tmp_path / name), [], "raw", NOBODYS)


def test_what_is_told_as_raw_and_looks_like_something_else_is_imported_with_a_warning(tmp_path: Path) -> None:
    raw = tmp_path / "x.raw"
    raw.write_bytes(bytes(1 << 20))
    assert doubts(file(raw), "raw") == []
    for fmt in get_args(ImportFormat)[1:]:
        image = tmp_path / f"x.{fmt}"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", fmt, raw, image], check=True)
        (warning,) = doubts(file(image), "raw")
        assert f"looks like a {fmt} image" in warning
        assert doubts(file(image), fmt) == []
    fixed = tmp_path / "fixed"
    subprocess.run(["qemu-img", "convert", "-O", "vpc", "-o", "subformat=fixed", raw, fixed], check=True)
    assert "vpc" in doubts(device(fixed), "raw")[0]
    assert {name for name, _, _ in import_source._MAGIC} == set(get_args(ImportFormat)[1:])
