"""Where a page goes: whole or not at all, for its owner alone, and never in the place of something else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qorumctl.cli import page
from qorumctl.cli.report import write_page
from qorumctl.errors import QorumError, RefusedError

PAGE = f"<!doctype html>\n<meta charset=utf-8>{page.MARK.decode()}\n"


def test_a_page_is_its_owners_alone_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    before = os.umask(0)
    try:
        write_page(path, PAGE)
    finally:
        os.umask(before)
    path.chmod(0o644)
    write_page(path, f"{PAGE}new")
    assert path.read_text() == f"{PAGE}new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_real_page_begins_with_the_mark() -> None:
    from tests.cli.documents import report
    from tests.cli.dossiers import dossier

    text = page.page(dossier(report(set="a" * 32)), with_data=True).encode()
    assert page.MARK in text[: page.MARK_WITHIN_BYTES]
    assert text.startswith(b"<!doctype html>")


@pytest.mark.parametrize("content", [b"", b"precious", b"x" * 2000 + page.MARK])
def test_what_is_no_earlier_report_is_left_unless_it_may_go(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.html"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=r"exists, and is no earlier report.*--overwrite"):
        write_page(path, PAGE)
    assert path.read_bytes() == content
    write_page(path, PAGE, overwrite=True)
    assert path.read_text() == PAGE


@pytest.mark.parametrize("kind", ["directory", "link", "dangling link", "pipe"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_only_a_file_is_ever_replaced(tmp_path: Path, kind: str, overwrite: bool) -> None:
    path, other = tmp_path / "r.html", tmp_path / "other"
    other.write_text(PAGE)
    match kind:
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(other)
        case "dangling link":
            path.symlink_to(tmp_path / "nothing")
        case _:
            os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(RefusedError, match="is not replaced"):
        write_page(path, f"{PAGE}new", overwrite=overwrite)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert other.read_text() == PAGE
    assert {p.name for p in tmp_path.iterdir()} == {"r.html", "other"}


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(QorumError, match=r"cannot be written to .*: No such file or directory.*--html -"):
        write_page(tmp_path / "none" / "r.html", PAGE)
