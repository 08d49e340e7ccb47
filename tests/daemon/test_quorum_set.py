"""A set inside its daemon: it stands whole or is refused by name, and comes apart without a trace."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.errors import CommandError, CopyError, CopyUnavailableError, RefusedError
from qorumctl.model.spec import SetSpec
from tests.live import DEADLINE_S, MIB, SIZE, Daemons, NbdServer, make_spec, wait_for

pytestmark = pytest.mark.live
Image = Callable[..., Path]
Connect = Callable[..., Any]


@contextlib.asynccontextmanager
async def running(daemons: Daemons, spec: SetSpec) -> AsyncIterator[tuple[QuorumSet, RuntimePaths]]:
    """A daemon of the set's own, with nothing in it yet."""
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        yield QuorumSet(spec, monitor), paths


async def refuses(daemons: Daemons, spec: SetSpec, *, read_only: bool = False) -> CopyError:
    """Opens the copies, expects an error, and checks that rolling back leaves nothing."""
    async with running(daemons, spec) as (quorum, _):
        with pytest.raises(CopyError) as caught:
            await quorum.open_copies(read_only=read_only)
        await quorum.dissolve()
        assert (await quorum.describe()).empty
    assert caught.value.remedy
    return caught.value


@contextlib.contextmanager
def written_by_another_program(path: Path) -> Iterator[None]:
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as holder:
        assert holder.stdout
        assert holder.stdout.read(7) == b"qemu-io", "its prompt: the image is open"
        try:
            yield
        finally:
            holder.kill()


def assert_sound(path: Path, starts_with: bytes) -> None:
    """A qcow2 image without leaks or errors, with this content."""
    assert subprocess.run(["qemu-img", "check", "-q", path], check=False).returncode == 0
    raw = path.with_suffix(".out")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    with raw.open("rb") as file:
        assert file.read(len(starts_with)) == starts_with


# --- assembling


@pytest.mark.parametrize(
    "formats", [["raw"] * 3, ["qcow2"] * 3, ["raw", "qcow2", "raw"], ["raw", "qcow2"] * 2 + ["raw"]]
)
async def test_a_set_assembles_votes_and_mirrors(
    daemons: Daemons, image: Image, connect: Connect, formats: list[str]
) -> None:
    names = "abcde"[: len(formats)]
    seed = os.urandom(64 << 10)
    images = {name: image(name, fmt, content=seed) for name, fmt in zip(names, formats, strict=True)}
    async with running(daemons, make_spec(images)) as (quorum, paths):
        assert await quorum.open_copies(read_only=False) == dict.fromkeys(names, SIZE)
        assert not (await quorum.describe()).assembled
        await quorum.assemble()
        await quorum.export_volume()

        state = await quorum.describe()
        assert state.copies == tuple(names)
        assert state.assembled
        assert state.volume_exported
        assert state.exports == {"volume", "heal", *(f"copy-{name}" for name in names)}
        assert state.nodes == {"quorum", "fence", *(f"copy-{n}{end}" for n in names for end in ("", "-file"))}
        assert (state.rewriting, state.threshold, state.watches) == (True, len(names) // 2 + 1, frozenset())

        volume = connect(paths, "volume")
        assert volume.pread(len(seed), 0) == seed
        volume.pwrite(b"new!" * 128, 4096)
        expected = seed[:4096] + b"new!" * 128 + seed[4608:]
        for name in names:
            copy = connect(paths, f"copy-{name}")
            assert copy.pread(len(seed), 0) == expected
            assert copy.is_read_only()
        heal = connect(paths, "heal")
        assert heal.is_read_only()
        assert heal.get_size() == volume.get_size() == SIZE


@pytest.mark.parametrize(("policy", "rewrites"), [("repair", True), ("report", False)])
async def test_only_a_repair_set_rewrites_what_was_outvoted(
    daemons: Daemons, image: Image, connect: Connect, policy: str, rewrites: bool
) -> None:
    images = {name: image(name, content=b"good" * 256) for name in "abc"}
    images["b"].write_bytes(b"evil" + bytes(SIZE - 4))
    async with running(daemons, make_spec(images, policy=policy)) as (quorum, paths):
        await quorum.open_copies(read_only=False)
        await quorum.assemble()
        assert (await quorum.describe()).rewriting is rewrites
        await quorum.export_volume()
        assert (await quorum.describe()).rewriting is rewrites, "a writable volume does not blur it"
        assert connect(paths, "heal").pread(512, 0) == b"good" * 128
        assert connect(paths, "copy-b").pread(4, 0) == (b"good" if rewrites else b"evil")


async def test_nbd_sources(daemons: Daemons, image: Image, nbdkit: Callable[..., NbdServer], connect: Connect) -> None:
    spec = make_spec({"a": nbdkit("file", image("a")).uri, "b": image("b"), "c": nbdkit("memory", SIZE).uri})
    async with running(daemons, spec) as (quorum, paths):
        assert await quorum.open_copies(read_only=False) == dict.fromkeys("abc", SIZE)
        await quorum.assemble()
        await quorum.export_volume()
        connect(paths, "volume").pwrite(b"x" * 512, 512)
        assert connect(paths, "copy-c").pread(512, 512) == b"x" * 512


async def test_copies_opened_read_only_can_be_compared_but_not_written(
    daemons: Daemons, image: Image, connect: Connect
) -> None:
    images = {name: image(name, content=name.encode() * 512) for name in "abc"}
    for path in images.values():
        path.chmod(0o400)
    async with running(daemons, make_spec(images)) as (quorum, paths):
        assert await quorum.open_copies(read_only=True) == dict.fromkeys("abc", SIZE)
        assert [connect(paths, f"copy-{name}").pread(2, 0) for name in "abc"] == [b"aa", b"bb", b"cc"]
        with pytest.raises(CommandError):
            await quorum.assemble()
        await quorum.dissolve()
        assert (await quorum.describe()).empty


async def test_a_running_set_is_found_again_by_the_next_command(daemons: Daemons, image: Image) -> None:
    spec = make_spec({name: image(name) for name in "abc"})
    async with running(daemons, spec) as (quorum, paths):
        await quorum.open_copies(read_only=False)
        await quorum.assemble()
        before = await quorum.describe()
    async with await Monitor.open(paths.scrub_sock) as monitor:
        assert await QuorumSet(spec, monitor).describe() == before


# --- refusing


@pytest.mark.parametrize("wrong", [SIZE - 512, SIZE + 512])
async def test_a_length_that_differs_is_refused_before_the_quorum_exists(
    daemons: Daemons, image: Image, wrong: int
) -> None:
    images = {"a": image("a"), "b": image("b", size_bytes=wrong), "c": image("c")}
    async with running(daemons, make_spec(images)) as (quorum, _):
        assert (await quorum.open_copies(read_only=False))["b"] == wrong
        with pytest.raises(RefusedError, match=f"Copy b .* has {wrong} bytes, the set {SIZE}") as caught:
            await quorum.assemble()
        assert caught.value.copy == "b"
        assert "quorum" not in (await quorum.describe()).nodes


async def test_equal_lengths_that_are_not_the_sets_are_refused_too(daemons: Daemons, image: Image) -> None:
    images = {name: image(name, size_bytes=MIB) for name in "abc"}
    async with running(daemons, make_spec(images)) as (quorum, _):
        await quorum.open_copies(read_only=False)
        with pytest.raises(RefusedError, match="Copy a"):
            await quorum.assemble()


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_an_image_that_another_set_holds_is_named(daemons: Daemons, image: Image, fmt: str) -> None:
    shared = image("shared", fmt)
    first = make_spec({"a": shared, "b": image("b"), "c": image("c")})
    second = make_spec({"x": image("x"), "y": shared, "z": image("z")})
    async with running(daemons, first) as (quorum, _):
        await quorum.open_copies(read_only=False)
        await quorum.assemble()
        error = await refuses(daemons, second)
    assert error.copy == "y"
    assert error.message == f"Copy y ({shared}) cannot be opened: another process is using it."


@pytest.mark.parametrize("policy", ["repair", "report"])
async def test_an_image_that_another_program_writes_is_named(daemons: Daemons, image: Image, policy: str) -> None:
    images = {name: image(name) for name in "abc"}
    with written_by_another_program(images["b"]):
        error = await refuses(daemons, make_spec(images, policy=policy))
    assert (error.copy, error.path) == ("b", str(images["b"]))
    assert "another process is using it" in error.message


async def test_one_image_under_two_names_is_refused_by_its_lock(daemons: Daemons, image: Image) -> None:
    original = image("a")
    link = original.with_name("b.raw")
    os.link(original, link)
    async with running(daemons, make_spec({"a": original, "b": link, "c": image("c")})) as (quorum, _):
        await quorum.open_copies(read_only=False)
        with pytest.raises(RefusedError, match="one image"):
            await quorum.assemble()
        await quorum.dissolve()
        assert (await quorum.describe()).empty


async def test_a_missing_image_is_named(daemons: Daemons, image: Image) -> None:
    absent = Path("/nonexistent/blocks/O_DIRECT.raw")
    error = await refuses(daemons, make_spec({"a": image("a"), "b": absent, "c": image("c")}))
    assert error.message == f"Copy b ({absent}) cannot be opened: it does not exist."
    assert error.copy == "b"


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is denied to root")
async def test_an_image_without_rights_is_named(daemons: Daemons, image: Image) -> None:
    images = {name: image(name) for name in "abc"}
    images["c"].chmod(0o400)
    error = await refuses(daemons, make_spec(images))
    assert error.copy == "c"
    assert "permission was denied" in error.message


async def test_a_file_system_without_direct_io_names_the_option(daemons: Daemons, image: Image) -> None:
    spec = make_spec({"a": image("a"), "b": image("b"), "c": image("c")})
    source = spec.copies[0].source.model_copy(update={"path": "/proc/version"})
    direct = spec.copies[0].model_copy(update={"source": source, "cache": "none"})
    refused = spec.model_copy(update={"copies": (direct, *spec.copies[1:])})
    error = await refuses(daemons, refused, read_only=True)
    assert error.copy == "a"
    assert 'Set `cache = "writeback"`' in str(error)


async def test_a_wrong_format_is_named(daemons: Daemons, image: Image) -> None:
    images = {name: image(name) for name in "abc"}
    images["b"] = images["b"].rename(images["b"].with_suffix(".qcow2"))
    error = await refuses(daemons, make_spec(images))
    assert (error.copy, "not a qcow2 image" in error.message) == ("b", True)


async def test_a_directory_in_an_images_place_is_named(daemons: Daemons, image: Image, short_dir: Path) -> None:
    place = short_dir / "c.raw"
    place.mkdir()
    error = await refuses(daemons, make_spec({"a": image("a"), "b": image("b"), "c": place}))
    assert (error.copy, "directory" in error.message) == ("c", True)


@pytest.mark.parametrize("uri", ["nbd://127.0.0.1:1/x", "nbd+unix:///x?socket=/nonexistent/s"])
async def test_a_server_that_is_away_is_named(daemons: Daemons, image: Image, uri: str) -> None:
    error = await refuses(daemons, make_spec({"a": image("a"), "b": image("b"), "c": uri}))
    assert isinstance(error, CopyUnavailableError)
    assert (error.copy, error.path) == ("c", uri)
    assert "cannot be reached" in error.message


async def test_missing_tls_certificates_are_named(daemons: Daemons, image: Image) -> None:
    uri = "nbds://127.0.0.1:1/x?tls-certificates=/nonexistent"
    error = await refuses(daemons, make_spec({"a": image("a"), "b": image("b"), "c": uri}))
    assert error.copy == "c"
    assert "/nonexistent" in error.message


async def test_a_server_that_hangs_is_named(daemons: Daemons, image: Image, nbdkit: Callable[..., NbdServer]) -> None:
    server = nbdkit("memory", SIZE)
    server.pause()
    spec = make_spec({"a": image("a"), "b": image("b"), "c": server.uri})
    paths, _ = await daemons.spawn()
    async with await Monitor.open(paths.control_sock) as monitor:
        with pytest.raises(CopyUnavailableError, match="did not answer") as caught:
            await QuorumSet(spec, monitor, drain_timeout_s=0.5).open_copies(read_only=False)
        assert caught.value.copy == "c"
        server.end()
        quorum = QuorumSet(spec, monitor)
        await quorum.dissolve()
        assert (await quorum.describe()).empty


# --- the volume


async def test_withdrawing_is_refused_while_a_client_is_connected(
    daemons: Daemons, image: Image, connect: Connect
) -> None:
    async with running(daemons, make_spec({name: image(name) for name in "abc"})) as (quorum, paths):
        await quorum.open_copies(read_only=False)
        await quorum.assemble()
        await quorum.export_volume()
        await quorum.export_volume()
        guest = connect(paths, "volume")

        with pytest.raises(RefusedError, match="A guest is connected") as caught:
            await quorum.withdraw_volume(force=False)
        assert caught.value.set_name == "web01"
        guest.pwrite(b"x" * 512, 0)

        await quorum.withdraw_volume(force=True)
        assert not (await quorum.describe()).volume_exported
        await quorum.withdraw_volume(force=False)

        await quorum.export_volume()
        await quorum.withdraw_volume(force=False)
        assert not (await quorum.describe()).volume_exported


# --- taking apart


async def test_dissolve_leaves_nothing_and_may_be_repeated(daemons: Daemons, image: Image, connect: Connect) -> None:
    async with running(daemons, make_spec({name: image(name) for name in "abc"})) as (quorum, paths):
        for _ in range(2):
            await quorum.open_copies(read_only=False)
            await quorum.assemble()
            await quorum.export_volume()
            await quorum.open_watch("qorum-watch-1", drain=True)
            guest = connect(paths, "volume")
            guest.pwrite(b"x" * 512, 0)
            await quorum.dissolve()
            assert (await quorum.describe()).empty
            await quorum.dissolve()


async def test_quit_ends_the_daemon_with_everything_written(daemons: Daemons, image: Image, connect: Connect) -> None:
    images = {name: image(name, "qcow2") for name in "abc"}
    async with running(daemons, make_spec(images)) as (quorum, paths):
        pid = process.running_pid(paths)
        assert pid
        await quorum.open_copies(read_only=False)
        await quorum.assemble()
        await quorum.export_volume()
        connect(paths, "volume").pwrite(b"last words" + bytes(502), 0)
        await quorum.quit()
        assert await process.wait_gone(paths, pid, deadline_s=DEADLINE_S)
    wait_for(lambda: process.running_pid(paths) is None, "the end")
    for path in images.values():
        assert_sound(path, b"last words")


# --- TLS


def make_certificates(directory: Path) -> Path:
    """A throw-away authority and a server certificate for localhost, under the names that nbdkit and QEMU expect."""
    directory.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=test authority", "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
    openssl(
        *(*new, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"),
        *("-keyout", "server-key.pem", "-out", "server-cert.pem"),
    )
    return directory


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_a_copy_behind_tls(
    daemons: Daemons, image: Image, nbdkit: Callable[..., NbdServer], connect: Connect, short_dir: Path
) -> None:
    certificates = make_certificates(short_dir / "pki")
    server = nbdkit("--tls=require", f"--tls-certificates={certificates}", "memory", SIZE)
    uri = server.uri.replace("nbd+unix", "nbds+unix") + f"&tls-certificates={certificates}"
    async with running(daemons, make_spec({"a": image("a"), "b": image("b"), "c": uri})) as (quorum, paths):
        for _ in range(2):
            assert (await quorum.open_copies(read_only=False))["c"] == SIZE
            await quorum.assemble()
            assert connect(paths, "copy-c").pread(512, 0) == bytes(512)
            await quorum.dissolve()
            assert (await quorum.describe()).empty
