"""What `doctor` finds: all is well here; whatever is wrong is named with what to do; nothing is left behind."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qorumctl.controller import doctor, storage_probe
from qorumctl.controller.doctor import examine
from qorumctl.controller.drain_probe import DRAIN, WATCH, probe, temporary_daemon
from qorumctl.controller.storage_probe import DIRECT, LOCKS
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.process import running_pid
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.model.status import CheckItem, DoctorReport
from qorumctl.paths import Directories
from tests.live import DEADLINE_S, wait_for

live = pytest.mark.live
DAEMON = "qemu-storage-daemon"
SUBJECTS = [
    DAEMON, "block drivers", "QMP commands", DRAIN, WATCH, "libnbd", "shared memory", DIRECT, LOCKS, "file descriptors",
    "definitions", "state", "sockets", "socket paths", "NBD tools",
]  # fmt: skip


@pytest.fixture
def temporary(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's temporary files go; empty again at the end, whatever happened."""
    directory = short_dir / "t"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture(autouse=True)
def nothing_is_left(temporary: Path) -> Iterator[None]:
    yield
    assert list(temporary.iterdir()) == []


@pytest.fixture
def places(short_dir: Path) -> Directories:
    return Directories(short_dir / "config", short_dir / "state", short_dir / "run")


def by_subject(report: DoctorReport) -> dict[str, CheckItem]:
    assert report.ok == all(item.ok for item in report.items)
    for item in report.items:
        assert bool(item.remedy) != item.ok, f"{item.subject}: a remedy stands exactly where something is wrong"
    return {item.subject: item for item in report.items}


async def examined(places: Directories, path: Path | None = None) -> dict[str, CheckItem]:
    return by_subject(await examine(places, path=path))


@pytest.fixture
def no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what has nothing to do with the daemon."""

    async def nothing() -> list[CheckItem]:
        return []

    monkeypatch.setattr(doctor, "_daemon_items", nothing)


# --- all is well


@live
async def test_a_machine_that_can_run_sets(places: Directories, short_dir: Path) -> None:
    before = sorted(short_dir.rglob("*"))
    items = await examined(places)
    assert list(items) == SUBJECTS
    assert [item for item in items.values() if not item.ok] == []
    assert "version " in items[DAEMON].detail
    assert sorted(short_dir.rglob("*")) == before, "it looks, and changes nothing"


# --- the drain


class NoDrain(Monitor):
    """A daemon whose `transaction` does not drain: each of its actions is a command of its own, none is a no-op."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        if command != "transaction" or arguments is None:
            return await super().execute(command, arguments, timeout_s=timeout_s)
        actions: Any = arguments["actions"]
        for action in actions:
            await super().execute(action["type"], action["data"], timeout_s=timeout_s)
        return await super().execute("query-version", timeout_s=timeout_s)


class NoDrainToFreeze(NoDrain):
    """One that drains for an empty transaction only."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        if command == "transaction" and arguments == {"actions": []}:
            return await Monitor.execute(self, command, arguments, timeout_s=timeout_s)
        return await super().execute(command, arguments, timeout_s=timeout_s)


async def probed(kind: type[Monitor]) -> dict[str, CheckItem]:
    async with temporary_daemon() as paths, await kind.open(paths.control_sock) as monitor:
        items = await probe(monitor, paths)
    return by_subject(DoctorReport(ok=all(item.ok for item in items), items=items))


@live
async def test_the_daemon_drains_and_its_watches_tell_the_truth() -> None:
    items = await probed(Monitor)
    assert items[DRAIN].ok
    assert items[WATCH].ok
    assert "marked when it completes" in items[WATCH].detail


@live
async def test_a_transaction_that_does_not_drain_is_found_out() -> None:
    items = await probed(NoDrain)
    assert not items[DRAIN].ok
    assert "had not reached copy c" in items[DRAIN].detail
    assert not items[WATCH].ok


@live
async def test_a_watch_that_is_frozen_without_a_drain_is_found_out() -> None:
    items = await probed(NoDrainToFreeze)
    assert items[DRAIN].ok
    assert not items[WATCH].ok
    assert "with 0 bytes marked" in items[WATCH].detail


@live
async def test_a_cancelled_examination_takes_its_daemon_along(places: Directories, temporary: Path) -> None:
    examination = asyncio.create_task(examine(places, path=None))
    async with asyncio.timeout(DEADLINE_S):
        while not (found := [pid for at in temporary.iterdir() if (pid := running_pid(RuntimePaths(at)))]):
            await asyncio.sleep(0)
    examination.cancel()
    with pytest.raises(asyncio.CancelledError):
        await examination
    assert list(temporary.iterdir()) == []
    wait_for(lambda: not Path(f"/proc/{found[0]}").exists(), "the end of the daemon")


@live
async def test_a_temporary_directory_with_a_long_path_is_not_in_the_way(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temporary / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    async with temporary_daemon() as paths:
        directory = paths.directory
        assert directory.parent == Path("/tmp")
    assert not directory.exists()
    long.rmdir()


# --- the daemon


def program(directory: Path, script: str) -> str:
    path = directory / "daemon.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        (None, "is not a program that can be run"),
        ("echo 'qemu-storage-daemon version 6.1.0'", "version 6.1"),
        ("echo hello", "hello"),
        ("echo 'error while loading shared libraries' >&2; exit 127", "shared libraries"),
        ("exec tail -f /dev/null", "does not end"),
    ],
)
async def test_a_daemon_that_cannot_be_used_is_named(
    short_dir: Path, places: Directories, monkeypatch: pytest.MonkeyPatch, script: str | None, detail: str
) -> None:
    monkeypatch.setenv("QORUM_QSD", program(short_dir, script) if script else "/nonexistent")
    if script and "tail" in script:
        monkeypatch.setattr(doctor, "_LOOK_TIMEOUT_S", 0.4)
    items = await examined(places)
    assert list(items) == SUBJECTS
    assert detail in items[DAEMON].detail
    assert [item.subject for item in items.values() if not item.ok] == SUBJECTS[:5]


async def test_a_daemon_that_does_not_start_says_why(
    short_dir: Path, places: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = '[ "$1" = --version ] && exec echo "qemu-storage-daemon version 7.2.22"; echo "no luck today"; exit 1'
    monkeypatch.setenv("QORUM_QSD", program(short_dir, script))
    items = await examined(places)
    assert items[DAEMON].ok
    assert [item.subject for item in items.values() if not item.ok] == SUBJECTS[1:5]
    assert "no luck today" in items[DRAIN].detail


@live
async def test_what_the_daemon_lacks_is_named(places: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lacking(_monitor: Monitor) -> list[str]:
        return ["block driver quorum", "command x-blockdev-change"]

    monkeypatch.setattr(doctor, "missing_features", lacking)
    items = await examined(places)
    assert items["block drivers"].detail == "missing: quorum"
    assert items["QMP commands"].detail == "missing: x-blockdev-change"


# --- libnbd


@live
async def test_without_libnbd_it_says_what_to_install(places: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nbd", None)
    monkeypatch.delitem(sys.modules, "qorumctl.copies.nbd_link", raising=False)
    items = await examined(places)
    assert "python3-libnbd" in str(items["libnbd"].remedy)
    assert items[DRAIN].detail == "not probed: libnbd is missing"


# --- storage


@pytest.fixture
def images(short_dir: Path) -> Path:
    directory = short_dir / "images"
    directory.mkdir()
    return directory


@pytest.mark.usefixtures("no_daemon")
class TestStorage:
    async def test_a_directory_is_written_with_direct_io(self, places: Directories, images: Path) -> None:
        items = await examined(places, images)
        assert items[DIRECT].ok
        assert items[LOCKS].ok
        assert str(images) in items[DIRECT].detail
        assert list(images.iterdir()) == []

    async def test_of_an_image_the_directory_is_looked_at(self, places: Directories, images: Path) -> None:
        image = images / "a.raw"
        image.write_bytes(b"precious")
        items = await examined(places, image)
        assert items[DIRECT].ok
        assert {path.name: path.read_bytes() for path in images.iterdir()} == {"a.raw": b"precious"}

    async def test_where_o_direct_is_refused_the_option_is_named(
        self, places: Directories, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        really_open = os.open

        def refuse(path: Any, flags: int, *rest: Any) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument", str(path))
            return really_open(path, flags, *rest)

        monkeypatch.setattr(storage_probe.os, "open", refuse)
        items = await examined(places, images)
        assert "refuses O_DIRECT" in items[DIRECT].detail
        assert 'cache = "writeback"' in str(items[DIRECT].remedy)
        assert items[LOCKS].ok
        assert list(images.iterdir()) == []

    async def test_locks_that_do_not_lock_are_found_out(
        self, places: Directories, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage_probe.fcntl, "fcntl", lambda *_: b"")
        assert "two could lock" in (await examined(places, images))[LOCKS].detail

    async def test_a_file_system_without_locks_is_named(
        self, places: Directories, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> bytes:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(storage_probe.fcntl, "fcntl", refuse)
        assert "No locks available" in (await examined(places, images))[LOCKS].detail

    @pytest.mark.parametrize(("path", "detail"), [("/nonexistent/images", "does not exist"), ("/proc", "/proc: ")])
    async def test_a_place_that_cannot_hold_images_is_named(self, places: Directories, path: str, detail: str) -> None:
        items = await examined(places, Path(path))
        assert not items[DIRECT].ok
        assert not items[LOCKS].ok
        assert detail in items[DIRECT].detail

    async def test_storage_that_hangs_holds_nothing_up(
        self, places: Directories, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hang = threading.Event()
        monkeypatch.setattr(doctor, "examine_storage", lambda _path: hang.wait() and [])
        monkeypatch.setattr(doctor, "_LOOK_TIMEOUT_S", 0.2)
        try:
            items = await examined(places)
        finally:
            hang.set()
        assert items["storage"].detail == "no answer within 0.2 s"


def test_the_lock_structure_is_the_kernel_s(short_dir: Path) -> None:
    """F_OFD_GETLK answers in the structure that it was asked in: who holds the lock, and where."""
    path = short_dir / "file"
    path.touch()
    with path.open("r+b") as one, path.open("r+b") as two:
        fcntl.fcntl(one, fcntl.F_OFD_SETLK, storage_probe._FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 7, 5, 0))
        question = storage_probe._FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, whence, start, length, _ = storage_probe._FLOCK.unpack(fcntl.fcntl(two, fcntl.F_OFD_GETLK, question))
    assert (kind, whence, start, length) == (fcntl.F_WRLCK, os.SEEK_SET, 7, 5)


# --- directories and rights


@pytest.mark.usefixtures("no_daemon")
class TestDirectories:
    async def test_what_is_missing_will_be_made(self, places: Directories, short_dir: Path) -> None:
        items = await examined(places, short_dir)
        assert items["state"].detail == f"{places.state} will be made in {short_dir}"

    async def test_what_exists_is_shown_with_owner_and_mode(self, places: Directories, short_dir: Path) -> None:
        places.state.mkdir(mode=0o700)
        items = await examined(places, short_dir)
        assert items["state"].detail.startswith(f"{places.state} (mode 0700, owner ")

    async def test_a_file_in_its_place_is_named(self, places: Directories, short_dir: Path) -> None:
        places.config.touch()
        items = await examined(places, short_dir)
        assert items["definitions"].detail == f"{places.config} is not a directory"
        assert "QORUM_CONFIG_DIR" in str(items["definitions"].remedy)

    async def test_a_link_to_nowhere_is_named(self, places: Directories, short_dir: Path) -> None:
        places.runtime.symlink_to(short_dir / "gone")
        assert "symbolic link to nowhere" in (await examined(places, short_dir))["sockets"].detail

    @pytest.mark.parametrize("mode", [0o770, 0o707])
    async def test_one_that_others_can_write_to_is_named(self, places: Directories, short_dir: Path, mode: int) -> None:
        places.state.mkdir()
        places.state.chmod(mode)
        items = await examined(places, short_dir)
        assert "can be written by other users" in items["state"].detail
        assert f"chmod go-w {places.state}" in str(items["state"].remedy)

    async def test_one_of_another_user_is_named(
        self, places: Directories, short_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        places.state.mkdir()
        if os.geteuid() == 0:
            os.chown(places.state, 65534, 65534)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert "belongs to another user" in (await examined(places, short_dir))["state"].detail

    async def test_one_that_cannot_be_made_is_named(self, places: Directories, short_dir: Path) -> None:
        places.config.touch()
        inside = Directories(places.config / "sets", places.state, places.runtime)
        items = await examined(inside, short_dir)
        assert not items["definitions"].ok
        assert str(places.config) in items["definitions"].detail

    @pytest.mark.parametrize(("length", "detail"), [(70, "a set's name may have "), (110, "is too long for a socket")])
    async def test_a_long_path_to_the_sockets_is_named(
        self, places: Directories, short_dir: Path, length: int, detail: str
    ) -> None:
        runtime = short_dir / ("r" * (length - len(str(short_dir))))
        items = await examined(Directories(places.config, places.state, runtime), short_dir)
        assert detail in items["socket paths"].detail
        assert "QORUM_RUNTIME_DIR" in str(items["socket paths"].remedy)


@pytest.mark.usefixtures("no_daemon")
async def test_a_low_limit_of_open_files_is_named(places: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 4096))
    assert "64" in (await examined(places))["file descriptors"].detail


@pytest.mark.usefixtures("no_daemon")
async def test_missing_nbd_tools_are_no_fault(places: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    item = (await examined(places))["NBD tools"]
    assert item.ok
    assert "libnbd-bin" in item.detail
