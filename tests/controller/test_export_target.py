"""Where an export is put: in one step, and never over what has come to be there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qorumctl.controller.export_target import Target, put_in_place
from qorumctl.errors import RefusedError


@pytest.fixture(params=["hard links", "no hard links"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """One that is made; also on a file system like that of a share, where link(2) fails."""

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", no_links)
    made = Target(tmp_path / "x", "raw", overwrite=False)
    made.temporary.write_bytes(b"exported")
    return made


def put(target: Target) -> None:
    descriptor = os.open(target.temporary, os.O_RDWR)
    try:
        put_in_place(target, descriptor)
    finally:
        os.close(descriptor)


def test_it_is_there_under_its_own_name_alone(target: Target) -> None:
    put(target)
    assert target.path.read_bytes() == b"exported"
    assert [path.name for path in target.path.parent.iterdir()] == ["x"]


def test_what_somebody_has_put_there_meanwhile_stays(target: Target) -> None:
    target.path.write_bytes(b"mine")
    with pytest.raises(RefusedError, match="File exists"):
        put(target)
    assert target.path.read_bytes() == b"mine"
