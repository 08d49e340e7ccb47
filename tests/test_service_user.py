"""Root acts as the service user on what belongs to it, and as itself on everything else."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qorumctl import paths
from qorumctl.paths import Directories
from qorumctl.service_user import acting_as, acting_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
SERVICE_USER = "nobody"
ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import os, sys
from pathlib import Path
from qorumctl import paths
place = Path(sys.argv[1])
paths.SERVICE_USER = "nobody"
paths.SERVICE_DIRECTORIES = paths.Directories(place / "c", place / "s", place / "r")
from qorumctl.cli.main import main
try:
    main(sys.argv[2:])
finally:
    print(os.environ.get("HOME"), os.environ.get("USER"), file=sys.stderr)
    print(os.getresuid(), os.getresgid(), file=sys.stderr)
"""


@pytest.fixture
def directories(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Directories:
    """As `systemd-tmpfiles` makes them."""
    short_dir.chmod(0o755)
    made = Directories(short_dir / "c", short_dir / "s", short_dir / "r")
    uid = pwd.getpwnam(SERVICE_USER).pw_uid
    for path in (made.config, made.state, made.runtime):
        path.mkdir(mode=0o750)
        os.chown(path, uid, -1)
    monkeypatch.setattr(paths, "SERVICE_USER", SERVICE_USER)
    monkeypatch.setattr(paths, "SERVICE_DIRECTORIES", made)
    return made


@pytest.fixture
def checkout(short_dir: Path) -> Path:
    """A copy that all can read, wherever this one lies."""
    return shutil.copytree(ROOT / "qorumctl", short_dir / "checkout/qorumctl").parent


def run(directories: Directories, checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With the rights that the process has at its end as the last line of standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QORUM_")}
    modules = [str(checkout), *(path for path in sys.path if path and Path(path) != ROOT)]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directories.state.parent), *arguments],
        env=environment | {"PYTHONPATH": os.pathsep.join(modules)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@as_root
def test_root_acts_as_the_service_user_for_good(directories: Directories, checkout: Path) -> None:
    done = run(directories, checkout, "list")
    user = pwd.getpwnam(SERVICE_USER)
    assert done.stdout == "No set is defined. 'qorumctl create' makes one.\n"
    assert done.stderr.splitlines()[-2:] == [
        f"{user.pw_dir} {user.pw_name}",
        f"{(user.pw_uid,) * 3} {(user.pw_gid,) * 3}",
    ]


@as_root
def test_a_checkout_that_the_service_user_cannot_read_is_named(directories: Directories, checkout: Path) -> None:
    """One in root's home. Modules that are imported later cannot be found then."""
    checkout.chmod(0o700)
    done = run(directories, checkout, "list")
    assert f"nobody, as whom root's commands run here, cannot read {checkout}/qorumctl." in done.stderr
    assert "make install" in done.stderr


@as_root
@pytest.mark.parametrize("command", ["enable", "disable"])
def test_what_only_root_can_do_root_does(directories: Directories, checkout: Path, command: str) -> None:
    assert run(directories, checkout, command, "--help").stderr.splitlines()[-1] == "(0, 0, 0) (0, 0, 0)"


@as_root
def test_root_s_own_directories_are_root_s(directories: Directories) -> None:
    assert acting_user(directories) is not None
    os.chown(directories.state, 0, 0)
    assert acting_user(directories) is None


@as_root
def test_other_directories_are_nobody_s_business(directories: Directories) -> None:
    assert acting_user(Directories(directories.config, Path("/elsewhere"), directories.runtime)) is None


def test_nobody_but_root_acts_as_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Directories(tmp_path, tmp_path, tmp_path)
    monkeypatch.setattr(paths, "SERVICE_DIRECTORIES", made)
    monkeypatch.setattr(paths, "SERVICE_USER", pwd.getpwuid(os.geteuid()).pw_name)
    assert acting_user(made) is None


@as_root
def test_for_a_block_and_back_again() -> None:
    user = pwd.getpwnam(SERVICE_USER)
    before = (os.getresuid(), os.getresgid(), os.getgroups())
    with acting_as(user):
        assert (os.geteuid(), os.getegid()) == (user.pw_uid, user.pw_gid)
        assert os.getuid() == 0
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
    with acting_as(None):
        assert os.geteuid() == 0
