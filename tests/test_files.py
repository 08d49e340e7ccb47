"""Small files are whole or absent after a crash, and never somebody else's."""

import os
import stat
from pathlib import Path

import pytest

from qorumctl import files
from qorumctl.files import NotRegularError, TooLargeError, read_bounded, write_atomically


def test_what_was_written_is_read_with_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", b"new", 0o640)
    content, facts = read_bounded(tmp_path / "f", 100, follow=False)
    assert (content, stat.S_IMODE(facts.st_mode)) == (b"new", 0o640)


@pytest.mark.parametrize("failing", ["fsync", "fchmod", "write"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, failing, fail)
        with pytest.raises(OSError, match="No space"):
            write_atomically(tmp_path / "f", b"new", 0o600)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"f": b"old"}


def test_replacing_a_symbolic_link_leaves_its_target_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "f").symlink_to("target")
    write_atomically(tmp_path / "f", b"new", 0o600)
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert (tmp_path / "f").read_bytes() == b"new"


def test_reading_takes_only_regular_files_of_bounded_size(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(TooLargeError):
        read_bounded(tmp_path / "large", 10, follow=True)
    assert read_bounded(tmp_path / "large", 11, follow=True)[0] == b"x" * 11
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotRegularError):
        read_bounded(tmp_path / "pipe", 10, follow=True)
    with pytest.raises(NotRegularError):
        read_bounded(tmp_path, 10, follow=True)
    (tmp_path / "link").symlink_to("large")
    with pytest.raises(OSError, match="symbolic"):
        read_bounded(tmp_path / "link", 100, follow=False)
