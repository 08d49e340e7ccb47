"""A start that fails, at whatever step, leaves nothing behind: no daemon, no socket, and no doubt about the copies."""

from __future__ import annotations

import fcntl
import grp
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qorumctl import identity
from qorumctl.controller.options import Timeouts
from qorumctl.errors import QorumError
from tests.integration.harness import NAME, LiveSet
from tests.integration.picture import refused, status_of
from tests.live import MIB, NbdServer, below, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
HASTY = Timeouts(status_s=0.5, monitor_s=1.0, stop_s=2.0, copy_s=2.0, drain_s=1.5)


def daemons_of(live: LiveSet) -> list[int]:
    """Every process whose command line names the set's runtime directory."""
    needle = os.fsencode(live.runtime.directory)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # A daemon that has ended and is not reaped yet has no command line.
            if needle in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


async def fails(live: LiveSet, words: str) -> None:
    """`start` says this, and nothing is left of it."""
    with pytest.raises(QorumError) as caught:
        await live.start()
    said = str(caught.value)
    assert said == words.format(images=live.images_dir, runtime=live.runtime.directory), said
    assert daemons_of(live) == []
    assert [path.name for path in (*live.runtime.sockets, live.runtime.pidfile) if path.exists()] == []
    spec = live.sets.show(NAME).definition
    who = identity.judge(identity.read_all(spec), spec, identity.this_host().id)
    assert (who.unclean, who.stale) == (False, frozenset())
    assert (await status_of(live.sets)).reason == "The set is not running."


@pytest.fixture
def mount(short_dir: Path) -> Iterator[Callable[..., Path]]:
    """`mount("tmpfs", "size=1m")`: a fresh directory with a file system of that kind."""
    mounted: list[Path] = []

    def make(kind: str, options: str = "rw", *, device: str = "none") -> Path:
        directory = short_dir / f"m{len(mounted)}"
        directory.mkdir()
        done = subprocess.run(["mount", "-t", kind, "-o", options, device, directory], check=False, capture_output=True)
        if done.returncode:
            pytest.skip(f"this user cannot mount {kind}")
        mounted.append(directory)
        return directory

    yield make
    for directory in mounted:
        subprocess.run(["umount", "-l", directory], check=False)


@pytest.mark.parametrize("program", ["/bin/false", "/bin/cat", "/nonexistent/qsd"])
async def test_a_program_that_is_no_storage_daemon(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    live = live_set()
    await live.create()
    monkeypatch.setenv("QORUM_QSD", program)
    log = live.runtime.log
    words = {
        "/bin/false": f"qemu-storage-daemon ended at once: exit 1. The whole story is in {log}.",
        "/bin/cat": "qemu-storage-daemon ended at once: Try '/bin/cat --help' for more information. "
        f"The whole story is in {log}.",
        "/nonexistent/qsd": "QORUM_QSD names /nonexistent/qsd, which is not a program that can be run. "
        "Correct or unset QORUM_QSD.",
    }
    await fails(live, words[program])
    report = await live.sets.check(NAME)
    assert report.ok == (program != "/nonexistent/qsd")
    monkeypatch.delenv("QORUM_QSD")
    assert (await live.sets.start(NAME)).recovery is None


async def test_an_image_that_another_process_has_denied_to_writers(live_set: LiveSets) -> None:
    """Not seen before a daemon is there: nobody writes to it. QEMU's lock for that is byte 200 + BLK_PERM_WRITE."""
    live = live_set()
    await live.create()
    with live.image("c").open("rb") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0))
        await fails(
            live,
            "Copy c ({images}/c.img) cannot be opened: another process is using it. "
            "Stop what uses it: another set, a virtual machine, or qemu-nbd.",
        )
    assert (await live.sets.start(NAME)).recovery is None


async def remote(live_set: LiveSets, nbdkit: Callable[..., NbdServer]) -> tuple[LiveSet, NbdServer]:
    live = live_set(size_bytes=4 * MIB, timeouts=HASTY)
    server = nbdkit("memory", "4M")
    files = [str(live.images_dir / name) for name in ("a.img", "b.img")]
    for path in files:
        Path(path).write_bytes(bytes(4 * MIB))
    await live.create(sources=[*files, server.uri], size_bytes=None)
    return live, server


async def test_a_server_that_is_gone(live_set: LiveSets, nbdkit: Callable[..., NbdServer]) -> None:
    live, server = await remote(live_set, nbdkit)
    server.end()
    socket = server.uri.partition("=")[2]
    await fails(
        live,
        f"Copy c ({server.uri}) cannot be reached: Failed to connect to '{socket}': Connection refused. "
        "Check that its NBD server runs, offers that export, and lets this host in.",
    )


async def test_a_server_that_hangs(live_set: LiveSets, nbdkit: Callable[..., NbdServer]) -> None:
    live, server = await remote(live_set, nbdkit)
    server.pause()
    try:
        await fails(
            live, f"Copy c ({server.uri}) did not answer within 1.5 s. Check its storage, or the network to it."
        )
    finally:
        server.resume()
    assert (await live.sets.start(NAME)).recovery is None


async def test_a_server_with_a_shorter_export(
    live_set: LiveSets, nbdkit: Callable[..., NbdServer], short_dir: Path
) -> None:
    live, server = await remote(live_set, nbdkit)
    server.end()
    Path(server.uri.partition("=")[2]).unlink(missing_ok=True)
    shorter = NbdServer(short_dir / "nbdkit0", ["memory", "3M"])
    try:
        shorter.wait_ready()
        await fails(
            live,
            f"Copy c ({server.uri}) has 3145728 bytes, the set 4194304 (4MiB). "
            "Nothing was changed. Restore the copy's length, or correct the definition's size.",
        )
    finally:
        shorter.end()


async def test_a_sidecar_that_cannot_be_written(live_set: LiveSets, mount: Callable[..., Path]) -> None:
    live = live_set(size_bytes=MIB)
    full = mount("tmpfs", "size=64k")
    paths = [*live.paths(2), str(full / "c.img")]
    await live.create(sources=paths, thin=True, cache="writeback")
    filler = full / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(MIB))
    await fails(
        live,
        f"The identity of an image cannot be written to {full}/c.img.qorum: No space left on device. "
        "Check the directory, its rights and its free space.",
    )
    filler.unlink()
    assert (await live.sets.start(NAME)).recovery is None


async def test_a_file_system_without_direct_io(live_set: LiveSets, mount: Callable[..., Path]) -> None:
    """Invariant 11: the error names the option."""
    live = live_set(size_bytes=MIB)
    plain = mount("ramfs")
    await live.create(sources=[str(plain / name) for name in "abc"], thin=True)
    await fails(
        live,
        f"Copy a ({plain}/a) cannot be opened: its file system does not support direct I/O. "
        'Set `cache = "writeback"` for this copy.',
    )
    definition = live.directories.definition_path(NAME)
    definition.write_text(definition.read_text().replace('cache = "none"', 'cache = "writeback"'))
    assert (await live.sets.start(NAME)).state == "healthy"


@pytest.fixture
def big_blocks(short_dir: Path) -> Iterator[Callable[..., str]]:
    """`big_blocks(MIB)`: a block device of that size whose blocks have 4096 bytes."""
    devices: list[str] = []

    def make(size_bytes: int) -> str:
        backing = short_dir / f"disk{len(devices)}"
        backing.touch()
        os.truncate(backing, size_bytes)
        command = ["losetup", "-b", "4096", "--show", "-f", backing]
        made = subprocess.run(command, check=False, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"losetup: {made.stderr.strip()}")
        devices.append(made.stdout.strip())
        return devices[-1]

    yield make
    for device in devices:
        subprocess.run(["losetup", "-d", device], check=False)


async def test_a_size_that_the_medium_does_not_divide(
    live_set: LiveSets, big_blocks: Callable[..., str], mount: Callable[..., Path]
) -> None:
    """With O_DIRECT the last 512 bytes of such a file could be neither read nor written."""
    live = live_set()
    device = big_blocks(32 * MIB)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", device], check=True)
    there = mount("ext4", device=device)
    paths = [*live.paths(2), str(there / "c.img")]
    await refused(
        live,
        live.create(sources=paths, size_bytes=MIB + 512),
        f"Size {MIB + 512} is not a multiple of 4096, the block size under {there}/c.img. "
        "Choose one that is, or use --cache writeback.",
    )
    await live.create(sources=paths, size_bytes=MIB + 512, cache="writeback")
    definition = live.directories.definition_path(NAME)
    definition.write_text(definition.read_text().replace('cache = "writeback"', 'cache = "none"'))
    await refused(
        live,
        live.sets.start(NAME),
        f"The size of {NAME}, {MIB + 512} bytes, is not a multiple of 4096, the block size under copy c "
        f"({there}/c.img). "
        'Use a size that is, or set cache = "writeback" for this copy.',
    )


async def test_a_device_of_another_length(live_set: LiveSets, big_blocks: Callable[..., str]) -> None:
    live = live_set()
    device = big_blocks(MIB)
    files = [str(live.images_dir / name) for name in ("a.img", "b.img")]
    for path in files:
        Path(path).write_bytes(bytes(MIB - 512))
    await refused(
        live,
        live.create(sources=[*files, device], size_bytes=MIB - 512),
        f"{device} has 1048576 bytes, --size says 1048064. Nothing was changed. All copies must have one length.",
    )
    # By hand, as an operator may write it.
    for path in files:
        os.truncate(path, MIB)
    await live.create(sources=[*files, device], size_bytes=None)
    definition = live.directories.definition_path(NAME)
    definition.write_text(definition.read_text().replace('size = "1MiB"', f"size = {MIB - 512}"))
    for path in files:
        os.truncate(path, MIB - 512)
    await refused(
        live,
        live.sets.start(NAME),
        f"Copy c ({device}) has 1048576 bytes, the set 1048064. "
        "Nothing was changed. Restore the copy's length, or correct the definition's size.",
    )


# -- rights


@pytest.mark.parametrize("mask", [0o000, 0o077])
@pytest.mark.parametrize("group", ["", "daemon"])
async def test_rights_do_not_depend_on_the_umask(live_set: LiveSets, short_dir: Path, mask: int, group: str) -> None:
    live = live_set()
    for name, place in (("config", "c2/qorum/sets"), ("state", "s2/qorum"), ("runtime", "r2/qorum")):
        object.__setattr__(live.directories, name, short_dir / place)
    before = os.umask(mask)
    try:
        await live.create(format="qcow2")
        if group:
            definition = live.directories.definition_path(NAME)
            text = definition.read_text().replace('group = ""', f'group = "{group}"')
            definition.write_text(text.replace('mode = "0600"', 'mode = "0660"'))
            if os.geteuid() != 0:
                pytest.skip("only root may give a socket to any group")
        await live.start()
    finally:
        os.umask(before)
    d = live.directories
    for path in (d.config.parent, d.config, d.state.parent, d.state, d.runtime.parent, d.runtime):
        assert mode_of(path) & 0o022 == 0, path
    assert mode_of(d.definition_path(NAME)) == 0o640
    assert {mode_of(Path(path)) for path in live.sources} == {0o600}
    assert {mode_of(identity.sidecar_path(path)) for path in live.sources} == {0o600}
    assert mode_of(d.state_dir(NAME)) == 0o700
    assert {facts.st_mode & 0o777 for facts in below(d.state_dir(NAME)).values()} == {0o600}
    sockets = {path.name: mode_of(path) for path in live.runtime.sockets}
    assert sockets == {
        "control.sock": 0o600,
        "scrub.sock": 0o600,
        "watch.sock": 0o600,
        "nbd.sock": 0o660 if group else 0o600,
    }
    assert mode_of(live.runtime.directory) == (0o710 if group else 0o700)
    if group:
        assert mode_of(d.runtime) == 0o755, "members of the group have to pass"
        gid = grp.getgrnam(group).gr_gid
        assert (live.runtime.nbd_sock.stat().st_gid, live.runtime.directory.stat().st_gid) == (gid, gid)
    others = [path for path in live.runtime.directory.iterdir() if not path.is_socket()]
    assert {mode_of(path) & 0o077 for path in others} == {0}


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def as_nobody(live: LiveSet, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command += [sys.executable, "-m", "qorumctl.cli.main", *arguments]
    environment = {**live.environment, "HOME": "/nonexistent"}
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_an_ordinary_user_runs_a_set_of_his_own(live_set: LiveSets, short_dir: Path) -> None:
    live = live_set(size_bytes=4 * MIB)
    for directory in (short_dir, live.directories.config, live.images_dir):
        os.chown(directory, 65534, 65534)
    made = as_nobody(live, "create", NAME, *live.paths(), "--size", "4MiB")
    if "ModuleNotFoundError" in made.stderr or "Permission denied" in made.stderr:
        pytest.skip(f"an ordinary user cannot run this checkout: {made.stderr.splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    assert as_nobody(live, "start", NAME).returncode == 0
    assert {Path(path).stat().st_uid for path in live.paths()} == {65534}
    assert as_nobody(live, "stop", NAME).returncode == 0

    definition = live.directories.definition_path(NAME)
    definition.write_text(definition.read_text().replace('group = ""', 'group = "root"'))
    refused_ = as_nobody(live, "start", NAME)
    assert refused_.returncode == 1
    assert "cannot be given to group 'root': this user is not in it" in " ".join(refused_.stderr.split())
    assert daemons_of(live) == []


# -- daemons that are hard to find


async def test_a_daemon_that_lost_its_pidfile_is_found_by_its_socket(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    (pid,) = daemons_of(live)
    live.runtime.pidfile.unlink()
    status = await status_of(live.sets)
    assert (status.state, status.pid) == ("healthy", pid)
    assert not (await live.sets.start(NAME)).changed
    assert (await live.sets.stop(NAME)).warnings == []
    assert daemons_of(live) == []


async def test_a_daemon_whose_sockets_were_removed_is_left_to_its_guests(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    guest = live.link()
    (pid,) = daemons_of(live)
    shutil.rmtree(live.runtime.directory)
    words = (
        f"A daemon of web01 runs (pid {pid}), but its sockets are gone: nobody can tell whether guests use it. "
        f"Shut the guests down, and then run 'kill {pid}'. Nothing was changed."
    )
    try:
        await refused(
            live,
            live.sets.start(NAME),
            "The image of copy a, {images}/a.img, is in use by another process. "
            "Stop what uses it: another set, a virtual machine, or qemu-nbd. Nothing was changed.",
        )
        await refused(live, live.sets.stop(NAME), words)
        await refused(live, live.sets.delete(NAME, images=True), words)
        assert guest.write(0, b"x" * 512)
        guest.close()
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: daemons_of(live) == [], "its end")
    assert (await live.sets.start(NAME)).recovery is not None
