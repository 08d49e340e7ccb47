"""What a daemon has open of the copies, found without one: in the descriptors of this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qorumctl.daemon import reader
from qorumctl.daemon.reader import CannotShare
from qorumctl.model.spec import CopySpec, FileSource


def copy_at(path: Path) -> CopySpec:
    path.write_bytes(bytes(512))
    return CopySpec(name="a", source=FileSource(path=str(path)))


def test_an_open_image_is_found_though_a_descriptor_beside_it_goes(tmp_path: Path) -> None:
    """As when a guest hangs up. Here it is the one by which the descriptors themselves are listed."""
    copy = copy_at(tmp_path / "a.img")
    with (tmp_path / "a.img").open("rb") as file:
        (found,) = reader.images([copy], os.getpid())
        assert Path(found.path).samefile(f"/proc/self/fd/{file.fileno()}")
        reader.check_opened([found], os.getpid())
    with pytest.raises(CannotShare, match="opened copy a anew"):
        reader.check_opened([found], os.getpid())


def test_an_image_that_nobody_has_open_is_named(tmp_path: Path) -> None:
    copy = copy_at(tmp_path / "a.img")
    with pytest.raises(CannotShare, match=r"a\.img is not what the daemon has open of copy a"):
        reader.images([copy], os.getpid())
