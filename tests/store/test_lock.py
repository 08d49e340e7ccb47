"""One command at a time, and never a dead one."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qorumctl.errors import LockedError, StoreError
from qorumctl.store import SetLock

HOLDER = """
import sys
from pathlib import Path
from qorumctl.store import SetLock
lock = SetLock.acquire(Path(sys.argv[1]), purpose=sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(directory: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, directory, getattr(request, "param", "restart")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_the_second_command_is_told_who_holds_the_set(directory: Path, holder: subprocess.Popen[str]) -> None:
    assert SetLock.held_by(directory) == (holder.pid, "restart")
    with pytest.raises(LockedError) as caught:
        SetLock.acquire(directory, purpose="stop")
    assert str(caught.value) == f"web01 is held by 'restart' (pid {holder.pid}). Wait until it ends, and try again."
    assert caught.value.set_name == "web01"


@pytest.mark.parametrize("holder", ["scrub"], indirect=True)
def test_a_scrub_can_be_paused(directory: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError, match="run 'qorumctl pause web01' first"):
        SetLock.acquire(directory, purpose="stop")


@pytest.mark.parametrize("purpose", ["copy rejoin", "copy replace"])
def test_what_takes_hours_can_be_interrupted(directory: Path, purpose: str) -> None:
    with (
        SetLock.acquire(directory, purpose=purpose),
        pytest.raises(LockedError, match=rf"'kill -INT {os.getpid()}': repeated, it goes on"),
    ):
        SetLock.acquire(directory, purpose="stop")


def test_a_killed_holder_holds_nothing(directory: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert SetLock.held_by(directory) is None
    with SetLock.acquire(directory, purpose="stop"):
        assert SetLock.held_by(directory) == (os.getpid(), "stop")


def test_waiting_ends_when_the_holder_does(directory: Path, holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    holder.stdin.close()
    with SetLock.acquire(directory, purpose="stop", wait_s=10):
        assert SetLock.held_by(directory) == (os.getpid(), "stop")


def test_release_is_idempotent_and_frees_it(directory: Path) -> None:
    lock = SetLock.acquire(directory, purpose="stop")
    lock.release()
    lock.release()
    assert SetLock.held_by(directory) is None
    SetLock.acquire(directory, purpose="start").release()


def test_a_daemon_that_is_started_meanwhile_does_not_inherit_it(directory: Path) -> None:
    with SetLock.acquire(directory, purpose="start"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert SetLock.held_by(directory) is None
    finally:
        child.kill()
        child.wait()


def test_asking_who_holds_it_never_makes_it_look_held(directory: Path) -> None:
    SetLock.acquire(directory, purpose="x").release()
    asking = "import sys\nfrom pathlib import Path\nfrom qorumctl.store import SetLock\nprint('go', flush=True)\n"
    asking += "while True:\n    assert SetLock.held_by(Path(sys.argv[1])) in (None, (0, '')) or True\n"
    askers = [subprocess.Popen([sys.executable, "-c", asking, directory], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for asker in askers:
            assert asker.stdout is not None
            asker.stdout.readline()
        for _ in range(50):
            SetLock.acquire(directory, purpose="stop").release()
    finally:
        for asker in askers:
            asker.kill()
            asker.communicate()


def test_nobody_holds_what_was_never_locked(directory: Path) -> None:
    assert SetLock.held_by(directory) is None
    assert not directory.exists()


def test_the_file_is_private_and_a_link_is_refused(directory: Path) -> None:
    before = os.umask(0)
    try:
        SetLock.acquire(directory, purpose="x").release()
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "lock").stat().st_mode) == 0o600
    (directory / "lock").unlink()
    (directory / "lock").symlink_to("elsewhere")
    for attempt in (lambda: SetLock.acquire(directory, purpose="x"), lambda: SetLock.held_by(directory)):
        with pytest.raises(StoreError, match="cannot be used"):
            attempt()


def test_a_lock_that_its_holder_removed_is_taken_anew(tmp_path: Path) -> None:
    """Two processes must not hold two files of one name."""
    directory = tmp_path / "web01"
    first = SetLock.acquire(directory, purpose="create")
    first.remove_if_alone()
    assert not directory.exists()
    second = SetLock.acquire(directory, purpose="create")
    first.release()
    with pytest.raises(LockedError):
        SetLock.acquire(directory, purpose="scrub")
    second.release()


def test_a_directory_that_holds_more_than_the_lock_stays(tmp_path: Path) -> None:
    directory = tmp_path / "web01"
    with SetLock.acquire(directory, purpose="create") as lock:
        (directory / "state.db").touch()
        lock.remove_if_alone()
    assert (directory / "state.db").exists()


UNSIGNED = """
import resource, signal, sys
from pathlib import Path
from qorumctl.store import SetLock
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with SetLock.acquire(Path(sys.argv[1]), purpose="stop"):
    print(SetLock.held_by(Path(sys.argv[1])))
"""


def test_where_nothing_can_be_written_it_is_held_all_the_same(directory: Path) -> None:
    """A disk that is full must not keep a set from being stopped."""
    with SetLock.acquire(directory, purpose="scrub"):
        pass
    held = subprocess.run([sys.executable, "-c", UNSIGNED, directory], check=True, capture_output=True, text=True)
    assert held.stdout.strip() == "(0, '')"
