"""The guest's first root: what is put in comes out, and what a program needs is with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.guest import image

CONTENT = {
    "init": b"#!/bin/sh\n",
    "empty": b"",
    "deep/er/odd": b"x" * 4097,
    "deep/er/three": b"abc",
    "bare": None,
}


def unpack(archive: bytes, into: Path) -> dict[str, bytes | None]:
    """As busybox reads it: what is there afterwards."""
    subprocess.run([image.PARTS / "busybox", "cpio", "-i"], input=archive, cwd=into, check=True, capture_output=True)
    return {
        str(path.relative_to(into)): path.read_bytes() if path.is_file() else None for path in sorted(into.rglob("*"))
    }


@pytest.fixture
def parts() -> Path:
    if (reason := image.lacking()) is not None:
        pytest.skip(f"no Linux guest: {reason}")
    return image.PARTS


@pytest.mark.usefixtures("parts")
def test_what_is_put_in_comes_out_with_the_directories_it_needs(tmp_path: Path) -> None:
    assert unpack(image.archive(CONTENT), tmp_path) == {**CONTENT, "deep": None, "deep/er": None}
    assert all(path.stat().st_mode & 0o111 for path in tmp_path.rglob("*"))


def test_the_same_content_makes_the_same_archive() -> None:
    assert image.archive(CONTENT) == image.archive(dict(CONTENT))


def test_entries_are_aligned_as_linux_reads_them() -> None:
    archive = image.archive(CONTENT)
    assert len(archive) % 4 == 0
    assert archive.index(b"x" * 4097) % 4 == 0
    assert archive.count(b"070701") == len(CONTENT) + 2 + 1


def test_a_program_comes_with_its_libraries_and_its_linker() -> None:
    needed = [path.name for path in image.libraries(Path("/bin/sh"))]
    assert any(name.startswith("libc.so") for name in needed)
    assert any(name.startswith("ld-linux") for name in needed)
    assert all(path.is_absolute() for path in image.libraries(Path("/bin/sh")))


@pytest.mark.usefixtures("parts")
def test_the_image_has_what_init_asks_for(tmp_path: Path) -> None:
    archive = image.build(tmp_path / "initramfs").read_bytes()
    there = unpack(archive, tmp_path)
    assert {"init", "bin/busybox", "e2fsprogs/mke2fs", "e2fsprogs/e2fsck", "modules/virtio_blk.ko"} <= set(there)
    assert there["init"] == image.INIT.read_bytes()


def test_without_its_parts_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "PARTS", tmp_path)
    assert image.lacking() == "the guest's kernel is not there: run make venv"
    (tmp_path / "lacking").write_text("no network\n")
    assert image.lacking() == "no network"
    (tmp_path / "ready").touch()
    assert image.lacking() is None
