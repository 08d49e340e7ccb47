"""Which hooks are run: those that nobody else can change or exchange."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl import hook_files
from qorumctl.hook_files import UnsafeError


@pytest.fixture
def place(short_dir: Path) -> Path:
    """Below /tmp, which is sticky and everybody's: nobody can exchange what is ours there."""
    (short_dir / "hooks.d").mkdir(mode=0o755)
    return short_dir / "hooks.d"


def put(place: Path, name: str, mode: int = 0o755) -> Path:
    path = place / name
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def judged(place: Path) -> dict[str, str]:
    return {
        hook.name: "off" if hook.off else "refused" if hook.problem else "runs" for hook in hook_files.look(place).hooks
    }


def test_executables_are_run_in_the_order_of_their_names(place: Path) -> None:
    for name in ("20-mail", "10-log.py", "Zulu", "1st"):
        put(place, name)
    assert [(hook.name, hook.problem) for hook in hook_files.look(place).hooks] == [
        ("10-log.py", None),
        ("1st", None),
        ("20-mail", None),
        ("Zulu", None),
    ]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("off", 0o644), ("10.disabled", 0o755), ("a.dpkg-old", 0o755), ("a~", 0o755), ("a b", 0o755), ("x" * 65, 0o755)],
)
def test_what_nobody_means_to_be_run_is_passed_over(place: Path, name: str, mode: int) -> None:
    put(place, name, mode)
    put(place, ".hidden")
    (place / "directory").mkdir()
    os.mkfifo(place / "pipe")
    assert judged(place) == {name: "off", "directory": "off", "pipe": "off"}
    assert hook_files.look(place).meant == []


def link(path: Path) -> None:
    path.rename(path.with_name(".real"))
    path.symlink_to(".real")


def second_name(path: Path) -> None:
    path.with_name(".other").hardlink_to(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.chmod(0o775), "can be written by other users"),
        (lambda path: path.chmod(0o757), "can be written by other users"),
        (link, "is a symbolic link"),
        (second_name, "has another name"),
    ],
)
def test_one_that_others_could_change_is_refused(place: Path, spoil: Callable[[Path], None], words: str) -> None:
    path = put(place, "10-log")
    spoil(path)
    (hook,) = hook_files.look(place).hooks
    assert (hook.off, hook.remedy is not None) == (False, True)
    assert words in (hook.problem or "")
    with pytest.raises(UnsafeError, match=words):
        hook_files.check(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["10-log", ".", ".."])
def test_one_that_belongs_to_somebody_else_is_refused(place: Path, which: str) -> None:
    path = put(place, "10-log")
    os.chown(place / which, 65534, -1)
    found = hook_files.look(place)
    problems = [found.problem, *(hook.problem for hook in found.hooks)]
    assert any("belongs to user 65534" in (problem or "") for problem in problems)
    with pytest.raises(UnsafeError, match="belongs to user 65534"):
        hook_files.check(path)


@pytest.mark.parametrize("which", ["hooks.d", "."])
def test_so_is_a_directory_in_which_others_could_exchange_it(short_dir: Path, place: Path, which: str) -> None:
    path = put(place, "10-log")
    (short_dir / which).chmod(0o777)
    found = hook_files.look(place)
    assert (found.hooks, found.remedy) == ((), f"Run chmod go-w {(short_dir / which)}.")
    with pytest.raises(UnsafeError, match="can be written by other users"):
        hook_files.check(path)


def test_sticky_is_enough_above_the_directory_and_not_for_itself(short_dir: Path, place: Path) -> None:
    put(place, "10-log")
    short_dir.chmod(0o1777)
    assert judged(place) == {"10-log": "runs"}
    place.chmod(0o1777)
    assert "can be written" in (hook_files.look(place).problem or "")


@pytest.mark.parametrize("which", ["hooks.d", "."])
def test_a_link_on_the_way_is_refused(short_dir: Path, place: Path, which: str) -> None:
    put(place, "10-log")
    other = Path(f"{short_dir}-link") if which == "." else short_dir / "link"
    other.symlink_to(short_dir / which)
    try:
        found = hook_files.look(other / "hooks.d" if which == "." else other)
    finally:
        other.unlink()
    assert (found.hooks, found.problem) == ((), f"{other} is a symbolic link.")


def test_where_there_is_no_directory_there_is_no_hook_and_nothing_wrong(short_dir: Path) -> None:
    for directory in (None, short_dir / "none", short_dir / "none/below"):
        found = hook_files.look(directory)
        assert (found.hooks, found.problem, hook_files.any_there(directory)) == ((), None, False)
    (short_dir / "file").touch()
    assert hook_files.look(short_dir / "file").problem == f"{short_dir / 'file'} is no directory."


def test_events_are_kept_as_soon_as_something_is_there_that_looks_like_a_hook(place: Path) -> None:
    put(place, ".hidden")
    put(place, "10-log.disabled")
    assert not hook_files.any_there(place)
    put(place, "10-log", 0o777)
    assert hook_files.any_there(place), "one that is refused is to be told of"
