"""Who may do what with the files of a set (design: 0600 sockets and images, 0640 definitions, 0700 directories), under
any umask, by root and by an ordinary user, in every state of a set's life."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qorumctl.controller.sets import QuorumSets
from qorumctl.controller.watcher import LOCK_NAME
from qorumctl.daemon import process
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.errors import QorumError
from qorumctl.paths import Directories
from qorumctl.store import SetLock
from tests.hostile.people import NOBODY, as_nobody, needs_root, program
from tests.integration.harness import NAME, LiveSet
from tests.live import MIB, below, end_watcher, wait_for

pytestmark = pytest.mark.live
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@pytest.fixture
def home(short_dir: Path) -> Iterator[Path]:
    """Of an ordinary user. Whatever he began has ended afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="h", dir=short_dir))
    short_dir.chmod(0o755)
    for path in (directory, directory / "run", directory / "images"):
        path.mkdir(exist_ok=True, mode=0o700)
        os.chown(path, NOBODY, NOBODY)
    yield directory
    end_watcher(directory / ".local/state/qorum" / NAME)
    paths = RuntimePaths(directory / "run/qorum" / NAME)
    if (pid := process.running_pid(paths)) is not None:
        process.kill(paths, pid)
        wait_for(lambda: process.running_pid(paths) is None, "the daemon's end")


def rights(*roots: Path) -> dict[str, str]:
    """Every file and directory below: its kind and mode, `s600`, by its path without what differs from run to run."""
    found = {}
    for root in roots:
        for path, facts in {root: root.lstat(), **below(root)}.items():
            kind = "s" if stat.S_ISSOCK(facts.st_mode) else "d" if stat.S_ISDIR(facts.st_mode) else "f"
            assert not stat.S_ISLNK(facts.st_mode)
            found[f"{root.name}/{path.relative_to(root)}"] = f"{kind}{stat.S_IMODE(facts.st_mode):03o}"
    return found


STATE = {"state.db", "state.db-wal", "state.db-shm", "lock", "front.lock", LOCK_NAME}
SOCKETS = {"control.sock", "scrub.sock", "watch.sock", "nbd.sock"}


def check(config: Path, state: Path, runtime: Path, images: Path, uid: int, *, nbd: str = "s600") -> None:
    """All of it, as it stands now."""
    assert rights(config)[f"{config.name}/{NAME}.toml"] == "f640"
    for place in (config, state, runtime):
        assert not place.exists() or place.stat().st_mode & 0o022 == 0, place
    private = rights(state / NAME)
    assert private.pop(f"{NAME}/.") == "d700"
    assert {name.partition("/")[2] for name in private} <= STATE
    assert set(private.values()) == {"f600"}
    for path, mode in rights(images).items():
        assert mode in {"f600", "d700"}, path
    if (runtime / NAME).exists():
        found = rights(runtime / NAME)
        assert found.pop(f"{NAME}/.") == ("d700" if nbd == "s600" else "d710")
        sockets = {name.partition("/")[2]: mode for name, mode in found.items() if mode.startswith("s")}
        if sockets:
            assert sockets == dict.fromkeys(SOCKETS, "s600") | {"nbd.sock": nbd}
        files = [mode for mode in found.values() if mode.startswith("f")]
        # The daemon makes its pidfile 0644 less the umask that it was given.
        assert {mode[-2:] for mode in files} <= {"00"}
    assert {facts.st_uid for facts in below(state / NAME, runtime / NAME, images).values()} == {uid}


@needs_root
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_of_an_ordinary_user(home: Path, umask: int) -> None:
    """His own directories, by XDG: after each command of a set's life."""
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
    for variable in ("QORUM_CONFIG_DIR", "QORUM_STATE_DIR", "QORUM_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        environment[variable] = ""
    places = (home / ".config/qorum/sets", home / ".local/state/qorum", home / "run/qorum", home / "images", NOBODY)
    images = [str(home / "images" / f"{letter}.img") for letter in "abc"]
    lives = [["create", NAME, *images, "--size", "1MiB"], ["start", NAME], ["scrub", NAME], ["stop", NAME]]
    for command in lives:
        done = as_nobody(*program(*command), environment=environment, umask=umask)
        if "ModuleNotFoundError" in done.stderr:
            pytest.skip("an ordinary user cannot run this checkout")
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        check(*places)
    assert {facts.st_uid for facts in below(home).values()} == {NOBODY}


@needs_root
@pytest.mark.parametrize(("umask", "group"), [(0o000, ""), (0o077, "daemon")])
async def test_of_root(live_set: Callable[..., LiveSet], umask: int, group: str) -> None:
    """After create, start, scrub and stop; with the volume's socket for a group, and without."""
    live = live_set(size_bytes=MIB)
    d = live.directories
    live.images_dir.chmod(0o700)
    places = (d.config, d.state, d.runtime, live.images_dir, 0)
    before = os.umask(umask)
    d.config.chmod(0o755)
    nbd = "s600"
    try:
        await live.create()
        check(*places)
        if group:
            definition = d.definition_path(NAME)
            text = definition.read_text().replace('group = ""', f'group = "{group}"')
            definition.write_text(text.replace('mode = "0600"', 'mode = "0660"'))
            nbd = "s660"
        await live.start()
        check(*places, nbd=nbd)
        await live.scrub()
        check(*places, nbd=nbd)
        if group:
            assert live.runtime.nbd_sock.stat().st_gid == grp.getgrnam(group).gr_gid
        others_reach_nothing(live)
        await live.sets.stop(NAME)
        check(*places, nbd=nbd)
        await live.scrub(mode="report")
        check(*places, nbd="s600")
    finally:
        os.umask(before)


def others_reach_nothing(live: LiveSet) -> None:
    """Another user of the host: what stops him is ours, not the directories that a test lives in."""
    above = live.directories.runtime
    above.parent.chmod(0o755)
    live.images_dir.chmod(0o755)
    assert as_nobody("ls", str(above)).returncode == 0
    assert as_nobody("ls", str(live.images_dir)).returncode == 0
    for path in live.runtime.sockets:
        stranger = as_nobody(sys.executable, "-c", CONNECT, str(path))
        assert "PermissionError" in stranger.stderr, path
    for path in (live.runtime.log, live.directories.state_dir(NAME) / "state.db", *map(Path, live.sources)):
        assert "Permission denied" in as_nobody("cat", str(path)).stderr, path
    live.images_dir.chmod(0o700)


@needs_root
async def test_a_member_of_the_group_reaches_the_volume_and_no_monitor(
    live_set: Callable[..., LiveSet], short_dir: Path
) -> None:
    live = live_set(size_bytes=MIB)
    await live.create()
    definition = live.directories.definition_path(NAME)
    text = definition.read_text().replace('group = ""', 'group = "daemon"')
    definition.write_text(text.replace('mode = "0600"', 'mode = "0660"'))
    short_dir.chmod(0o755)
    await live.start()
    gid = grp.getgrnam("daemon").gr_gid
    for path in live.runtime.sockets:
        words = [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            f"--groups={gid}",
            sys.executable,
            "-c",
            CONNECT,
            str(path),
        ]
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
        if path == live.runtime.nbd_sock:
            assert done.returncode == 0, done.stderr
        else:
            assert "PermissionError" in done.stderr, path
    listing = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={gid}", "ls", str(live.runtime.directory)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert listing.returncode != 0, "0710: they pass, and see nothing"


@needs_root
async def test_root_takes_no_part_in_a_set_of_somebody_else(home: Path) -> None:
    """His directories are his to fill with links: root is told whose they are, and changes nothing."""
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
    for variable in ("QORUM_CONFIG_DIR", "QORUM_STATE_DIR", "QORUM_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        environment[variable] = ""
    images = [str(home / "images" / f"{letter}.img") for letter in "abc"]
    done = as_nobody(*program("create", NAME, *images, "--size", "1MiB"), environment=environment)
    assert done.returncode == 0, done.stderr
    sets = QuorumSets(Directories(home / ".config/qorum/sets", home / ".local/state/qorum", home / "run/qorum"))
    with pytest.raises(QorumError, match="belongs to another user"):
        await sets.start(NAME)
    (status,) = (await sets.status()).sets
    assert status.state == "failed"
    assert SetLock.held_by(home / ".local/state/qorum" / NAME) is None
    assert {facts.st_uid for facts in below(home).values()} == {NOBODY}
