"""The library, where it is not what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qorumctl.copies import blkio


@pytest.fixture(autouse=True)
def looked_for_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    blkio.forget()
    yield
    monkeypatch.undo()
    blkio.forget()


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(blkio.VARIABLE, str(tmp_path / "nowhere"))
    assert f"{tmp_path}/nowhere does not load" in str(blkio.why_not())


def test_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    another = "libc.so.6"
    monkeypatch.setenv(blkio.VARIABLE, another)
    assert blkio.why_not() == f"{another} is not libblkio 1.2 or later: it lacks blkio_get_error_msg"


@pytest.mark.usefixtures("shared_memory")
def test_libblkio(tmp_path: Path) -> None:
    with pytest.raises(blkio.BlkioError, match="connect"):
        blkio.Device(tmp_path / "nowhere", slots=1, slot_bytes=4096)
