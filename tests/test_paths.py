"""Where things live, and directories that nobody else can tamper with (design section 5)."""

import os
import stat
from pathlib import Path

import pytest

from qorumctl import paths
from qorumctl.errors import RefusedError, UsageError
from qorumctl.paths import directories, ensure_private

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory to somebody else")


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.os, "geteuid", lambda: 4321)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("root")
def test_root_uses_the_system_s_directories_whatever_xdg_says() -> None:
    found = directories({"HOME": "/root", "XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"})
    assert found.definition_path("web01") == Path("/etc/qorum/sets/web01.toml")
    assert found.state_dir("web01") == Path("/var/lib/qorum/web01")
    assert found.runtime_dir("web01") == Path("/run/qorum/web01")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("value", "found"), [("/m", Path("/m")), ("relative", Path("relative")), ("", None)])
def test_the_directory_for_metrics_is_taken_as_it_is_named(value: str, found: Path | None) -> None:
    """A wrong one must not keep anything from being done: whoever writes there warns."""
    assert directories({"QORUM_TEXTFILE_DIR": value}).textfile == found
    assert directories({}).textfile is None


def test_the_user_qorum_shares_them(ordinary: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_user_name", lambda: "qorum")
    assert directories({}).state == Path("/var/lib/qorum")


@pytest.mark.usefixtures("ordinary")
class TestAnOrdinaryUser:
    def test_has_xdg_directories(self) -> None:
        found = directories({"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"})
        assert (found.config, found.state, found.runtime) == (
            Path("/c/qorum/sets"),
            Path("/s/qorum"),
            Path("/r/qorum"),
        )

    def test_has_defaults_below_home_and_relative_ones_are_ignored(self) -> None:
        found = directories({"HOME": "/home/u", "XDG_CONFIG_HOME": "relative", "XDG_RUNTIME_DIR": "/run/user/1"})
        assert (found.config, found.state) == (Path("/home/u/.config/qorum/sets"), Path("/home/u/.local/state/qorum"))

    def test_is_told_when_there_is_no_place_for_sockets(self) -> None:
        with pytest.raises(UsageError, match="XDG_RUNTIME_DIR") as caught:
            directories({"HOME": "/home/u"})
        assert "QORUM_RUNTIME_DIR" in str(caught.value.remedy)

    def test_may_override_all_three(self) -> None:
        found = directories({"QORUM_CONFIG_DIR": "/1", "QORUM_STATE_DIR": "/2", "QORUM_RUNTIME_DIR": "/3"})
        assert (found.config, found.state, found.runtime) == (Path("/1"), Path("/2"), Path("/3"))


def test_an_override_must_be_absolute() -> None:
    with pytest.raises(UsageError, match="QORUM_STATE_DIR is 'here'"):
        directories({"QORUM_STATE_DIR": "here"})


@pytest.mark.parametrize("name", ["../etc", "", "a/b", "Web", ".", "a" * 33, "-a", "a\n"])
def test_a_name_never_leads_elsewhere(name: str) -> None:
    found = directories({"QORUM_CONFIG_DIR": "/1", "QORUM_STATE_DIR": "/2", "QORUM_RUNTIME_DIR": "/3"})
    for path_of in (found.definition_path, found.state_dir, found.runtime_dir):
        with pytest.raises(UsageError, match="cannot name a set"):
            path_of(name)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestEnsurePrivate:
    def test_makes_the_directory_and_its_parents_whatever_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o000)
        try:
            ensure_private(tmp_path / "qorum" / "web01")
        finally:
            os.umask(before)
        assert mode_of(tmp_path / "qorum" / "web01") == 0o700
        assert mode_of(tmp_path / "qorum") == 0o755

    def test_narrows_and_widens_what_is_ours(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir(mode=0o777)
        ensure_private(tmp_path / "d")
        assert mode_of(tmp_path / "d") == 0o700
        ensure_private(tmp_path / "d", 0o710, group=os.getegid())
        assert (mode_of(tmp_path / "d"), (tmp_path / "d").stat().st_gid) == (0o710, os.getegid())

    def test_refuses_a_symbolic_link_and_touches_nothing_behind_it(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(mode=0o755)
        (tmp_path / "link").symlink_to("real")
        with pytest.raises(RefusedError, match="symbolic link"):
            ensure_private(tmp_path / "link")
        assert mode_of(tmp_path / "real") == 0o755

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "f").touch()
        with pytest.raises(RefusedError, match="Not a directory"):
            ensure_private(tmp_path / "f")

    @as_root
    def test_refuses_a_directory_of_somebody_else(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        os.chown(tmp_path / "d", 54321, -1)
        with pytest.raises(RefusedError, match="belongs to user 54321"):
            ensure_private(tmp_path / "d")

    @as_root
    def test_takes_root_s_directory_unless_others_can_write_to_it(self, tmp_path: Path, ordinary: None) -> None:
        (tmp_path / "d").mkdir(mode=0o755)
        ensure_private(tmp_path / "d")
        (tmp_path / "d").chmod(0o775)
        with pytest.raises(RefusedError, match="can be written by other users"):
            ensure_private(tmp_path / "d")
