"""What somebody has put where our files belong: links to a victim, second names of it, pipes. The victim stays as it
is, byte for byte; nothing is waited for; the set is refused, or works beside it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl import definitions, identity
from qorumctl.controller.options import CreateOptions, Timeouts
from qorumctl.controller.sets import QuorumSets
from qorumctl.errors import DefinitionError, QorumError, RefusedError
from qorumctl.files import write_atomically
from qorumctl.paths import Directories
from tests.hostile.common import fingerprint, settle
from tests.hostile.people import NOBODY, needs_root, plant
from tests.hostile.test_state import Stopped
from tests.integration.harness import NAME, LiveSet
from tests.live import MIB

LINKS = ["symlink", "dangling", "hard link"]
ALL = [*LINKS, "pipe", "directory", "socket", "file"]


@pytest.fixture
def stopped(memory_dir: Path) -> Stopped:
    return Stopped(memory_dir)


@pytest.fixture
def victim(memory_dir: Path) -> Path:
    """Ours alone, and larger than any log that is cut."""
    path = memory_dir / "victim"
    path.write_bytes(b"precious " * 500_000)
    path.chmod(0o640)
    return path


def commands(stopped: Stopped) -> list[Callable[[], object]]:
    sets = stopped.sets
    return [*stopped.looks(), lambda: sets.stop(NAME), lambda: sets.cancel(NAME), lambda: sets.attach(NAME)]


STATE = ["state.db", "state.db-wal", "state.db-shm", "state.db-journal", "lock", "watch.lock", "front.lock",
         "creating.json", ".creating.json.tmp"]  # fmt: skip


@needs_root
@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "directory"])
@pytest.mark.parametrize("name", STATE)
def test_in_the_state_directory(stopped: Stopped, victim: Path, name: str, kind: str) -> None:
    """It is ours alone, so this takes a mistake of ours, or of a backup: the victim is safe all the same."""
    before = fingerprint([victim, *stopped.images])
    (stopped.state / name).unlink(missing_ok=True)
    plant(stopped.state / name, kind, victim)
    for command in commands(stopped):
        settle(command)
    assert fingerprint([victim, *stopped.images]) == before


FRONT = ["front.pid", "front.qmp", "front.sock"]
RUNTIME = ["qsd.pid", "qsd.log", "watch.log", "control.lock", "control.sock", "scrub.sock", "watch.sock", "nbd.sock"]


@needs_root
@pytest.mark.parametrize("kind", ["symlink", "pipe", "directory"])
@pytest.mark.parametrize("name", [*RUNTIME, *FRONT])
def test_in_the_runtime_directory(stopped: Stopped, victim: Path, name: str, kind: str) -> None:
    stopped.directories.runtime_dir(NAME).mkdir(parents=True)
    planted = stopped.directories.runtime_dir(NAME) / name
    before = fingerprint([victim])
    plant(planted, kind, victim)
    for command in commands(stopped):
        settle(command)
    assert fingerprint([victim]) == before


@pytest.mark.live
@needs_root
@pytest.mark.parametrize("name", RUNTIME)
async def test_a_start_goes_round_it_or_is_refused(
    live_set: Callable[..., LiveSet], short_dir: Path, name: str
) -> None:
    victim = short_dir / "victim"
    victim.write_bytes(b"precious")
    before = fingerprint([victim])
    live = live_set(size_bytes=MIB)
    await live.create()
    directory = live.directories.runtime_dir(NAME)
    directory.mkdir(parents=True, mode=0o700)
    for kind in ("symlink", "hard link", "pipe") if name != "qsd.pid" else ("directory",):
        plant(directory / name, kind, victim)
        with contextlib.suppress(QorumError):
            await live.start()
            await live.sets.stop(NAME)
        live.end()
        assert fingerprint([victim]) == before
        with contextlib.suppress(FileNotFoundError):
            (directory / name).rmdir() if kind == "directory" else (directory / name).unlink()


class TestDirectories:
    """QORUM_STATE_DIR and QORUM_RUNTIME_DIR may lie in a directory that everybody can write to."""

    @pytest.mark.parametrize("which", ["state", "runtime"])
    @pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
    @needs_root
    def test_one_of_somebody_else_is_refused_by_every_command(self, stopped: Stopped, which: str, mode: int) -> None:
        shared = getattr(stopped.directories, which)
        shared.mkdir(exist_ok=True)
        shared.chmod(0o1777)
        directory = shared / NAME
        if directory.exists():
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()
        directory.mkdir()
        directory.chmod(mode)
        os.chown(directory, NOBODY, NOBODY)
        errors = [settle(command) for command in commands(stopped)]
        assert list(directory.iterdir()) == [], "nothing was put there"
        assert stat.S_IMODE(directory.stat().st_mode) == mode
        # `status` and `list` of all sets, `check` and `attach` have no use for one of them.
        assert sum(isinstance(error, RefusedError) and "nobody" in error.message for error in errors) >= 3

    @pytest.mark.parametrize("which", ["state", "runtime"])
    @needs_root
    def test_a_link_of_somebody_else_is_refused(self, stopped: Stopped, memory_dir: Path, which: str) -> None:
        elsewhere = memory_dir / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        shared = getattr(stopped.directories, which)
        shared.mkdir(exist_ok=True)
        if (shared / NAME).exists():
            (shared / NAME).rename(memory_dir / "aside")
        plant(shared / NAME, "symlink", elsewhere)
        assert any(isinstance(settle(command), RefusedError) for command in commands(stopped))
        assert list(elsewhere.iterdir()) == []

    @pytest.mark.parametrize("which", ["state", "runtime"])
    @needs_root
    def test_ours_that_others_can_write_to_is_refused_or_closed(self, stopped: Stopped, which: str) -> None:
        directory = getattr(stopped.directories, which) / NAME
        directory.mkdir(exist_ok=True, parents=True)
        directory.chmod(0o777)
        error = settle(lambda: stopped.sets.status([NAME]))
        assert isinstance(error, RefusedError)
        assert "can be written by other users" in error.message


class TestDefinition:
    @needs_root
    @pytest.mark.parametrize("kind", ALL)
    def test_planted_before_create(self, memory_dir: Path, victim: Path, kind: str) -> None:
        directories = Directories(memory_dir / "c", memory_dir / "s", memory_dir / "r")
        directories.config.mkdir()
        images = [str(memory_dir / f"{letter}.img") for letter in "abc"]
        plant(directories.definition_path(NAME), kind, victim)
        before = fingerprint([victim])
        sets = QuorumSets(directories)
        for command in (
            lambda: sets.create(NAME, images, CreateOptions(size_bytes=MIB)),
            lambda: sets.start(NAME),
            lambda: sets.delete(NAME, images=True),
            lambda: sets.show(NAME),
        ):
            assert isinstance(settle(command), DefinitionError | RefusedError)
        assert fingerprint([victim]) == before
        assert not any(Path(image).exists() for image in images)

    @needs_root
    def test_a_link_that_somebody_else_owns_is_refused_wherever_it_leads(self, stopped: Stopped) -> None:
        path = stopped.directories.definition_path(NAME)
        real = path.with_suffix(".real")
        path.rename(real)
        path.symlink_to(real)
        assert definitions.load(path) == stopped.spec
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        with pytest.raises(DefinitionError, match="belongs to another user"):
            definitions.load(path)

    def test_a_link_in_a_directory_of_others_is_refused(self, stopped: Stopped, memory_dir: Path) -> None:
        (memory_dir / "shared").mkdir()
        (memory_dir / "shared").chmod(0o777)
        path = memory_dir / "shared" / f"{NAME}.toml"
        path.symlink_to(stopped.directories.definition_path(NAME))
        with pytest.raises(DefinitionError, match="can be replaced by other users"):
            definitions.load(path)

    def test_links_in_a_circle(self, stopped: Stopped) -> None:
        path = stopped.directories.definition_path("other")
        path.symlink_to(path.name)
        spec = stopped.spec.model_copy(update={"name": "other"})
        with pytest.raises(DefinitionError):
            definitions.load(path)
        with pytest.raises(DefinitionError):
            definitions.save(path, spec)


class TestImages:
    """In a directory that the other user may write to: /tmp, an export."""

    @pytest.fixture
    def shared(self, memory_dir: Path) -> Path:
        path = memory_dir / "shared"
        path.mkdir()
        path.chmod(0o1777)
        return path

    def sets(self, memory_dir: Path) -> QuorumSets:
        directories = Directories(memory_dir / "c", memory_dir / "s", memory_dir / "r")
        directories.config.mkdir(exist_ok=True)
        return QuorumSets(directories, timeouts=Timeouts(drain_s=5))

    @needs_root
    @pytest.mark.parametrize("kind", ALL)
    @pytest.mark.parametrize("what", ["image", "every image", "sidecar", "temporary"])
    def test_planted_before_create(self, memory_dir: Path, shared: Path, victim: Path, what: str, kind: str) -> None:
        images = [shared / f"{letter}.img" for letter in "abc"]
        places = {
            "image": images[1:2],
            "every image": images,
            "sidecar": [identity.sidecar_path(images[1])],
            "temporary": [shared / ".b.img.qorum.tmp"],
        }[what]
        if (what, kind) == ("every image", "file"):
            pytest.skip("three equal files of somebody else are images to adopt")
        before = fingerprint([victim])
        for place in places:
            plant(place, kind, victim)
        error = settle(
            lambda: self.sets(memory_dir).create(NAME, list(map(str, images)), CreateOptions(size_bytes=MIB))
        )
        assert fingerprint([victim]) == before
        assert not (memory_dir / "nowhere").exists()
        if what != "temporary" or kind == "directory":
            assert isinstance(error, RefusedError)
            assert os.path.lexists(places[0]), "what is not ours stays"
            assert {p for p in shared.iterdir() if p not in places} == set(), "nothing of ours stays"
        else:
            assert error is None

    @needs_root
    def test_a_link_of_somebody_else_to_an_image_of_ours(self, memory_dir: Path, shared: Path) -> None:
        """Today it leads to the image, tomorrow to /etc/shadow."""
        ours = [memory_dir / f"{letter}.raw" for letter in "abc"]
        for image in ours:
            image.write_bytes(bytes(MIB))
        plant(shared / "c.img", "symlink", ours[2])
        sources = [str(ours[0]), str(ours[1]), str(shared / "c.img")]
        error = settle(lambda: self.sets(memory_dir).create(NAME, sources, CreateOptions()))
        assert isinstance(error, RefusedError)
        assert "is a symbolic link that belongs to another user" in error.message

    @needs_root
    @pytest.mark.parametrize("kind", ["symlink", "dangling", "hard link", "pipe", "directory", "socket"])
    def test_an_image_that_was_replaced_since(self, stopped: Stopped, victim: Path, kind: str) -> None:
        before = fingerprint([victim])
        stopped.images[1].unlink()
        plant(stopped.images[1], kind, victim)
        assert isinstance(settle(lambda: stopped.sets.start(NAME)), RefusedError)
        settle(lambda: stopped.sets.delete(NAME, images=True))
        assert fingerprint([victim]) == before

    @needs_root
    @pytest.mark.parametrize("kind", ALL)
    def test_a_sidecar_that_was_replaced_since(self, stopped: Stopped, victim: Path, kind: str) -> None:
        before = fingerprint([victim])
        sidecar = identity.sidecar_path(stopped.images[1])
        sidecar.unlink()
        plant(sidecar, kind, victim)
        assert isinstance(settle(lambda: stopped.sets.start(NAME)), RefusedError)
        settle(lambda: stopped.sets.delete(NAME, images=True))
        assert fingerprint([victim]) == before

    @needs_root
    def test_a_sidecar_that_somebody_planted_says_nothing(self, stopped: Stopped) -> None:
        """It makes a copy current only with the set's uuid, which stands in files that are ours alone."""
        sidecar = identity.sidecar_path(stopped.images[1])
        text = sidecar.read_text().replace(str(stopped.spec.uuid), "00000000-0000-0000-0000-000000000000")
        sidecar.unlink()
        sidecar.write_text(text)
        os.chown(sidecar, NOBODY, NOBODY)
        error = settle(lambda: stopped.sets.start(NAME))
        assert isinstance(error, RefusedError)
        assert "belongs to set" in error.message


@pytest.mark.parametrize("kind", [*LINKS, "pipe", "file"])
@needs_root
def test_a_temporary_file_is_replaced_and_never_followed(memory_dir: Path, victim: Path, kind: str) -> None:
    before = fingerprint([victim])
    plant(memory_dir / ".f.tmp", kind, victim)
    write_atomically(memory_dir / "f", b"content", 0o600)
    assert (memory_dir / "f").read_bytes() == b"content"
    assert (memory_dir / "f").stat().st_uid == os.geteuid()
    assert fingerprint([victim]) == before
