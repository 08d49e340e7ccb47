"""Real servers for the tests: each fixture ends by pid what it started, whether the test passed or not."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qorumctl.copies import blkio
from qorumctl.daemon.runtime import RuntimePaths
from tests.attack import Attack
from tests.live import SIZE, Daemons, NbdServer


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test may be `async def`: it runs in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A fixture learns from its item whether the test itself has passed."""
    outcome: Any = yield
    if call.when == "call":
        item.stash[_PASSED] = outcome.get_result().passed


_PASSED = pytest.StashKey[bool]()


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> Iterator[Attack]:
    """For a test that is marked `attack(promise, attack, weight=1)`: its rounds and its counts."""
    mark = request.node.get_closest_marker("attack")
    assert mark is not None, "mark it: @pytest.mark.attack(promise, attack)"
    running = Attack(request.node.nodeid, float(mark.kwargs.get("weight", 1)))
    yield running
    running.note(passed=request.node.stash.get(_PASSED, False))


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory short enough for sockets: pytest's tmp_path is not."""
    directory = Path(tempfile.mkdtemp(prefix="q", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """libblkio can be used, by this process and those that it starts."""
    if (path := os.environ.get(blkio.VARIABLE) or os.environ.get("QORUM_TEST_LIBBLKIO")) is not None:
        monkeypatch.setenv(blkio.VARIABLE, path)
    blkio.forget()
    if (why_not := blkio.why_not()) is not None:
        pytest.skip(f"no shared memory here: {why_not}")
    yield
    monkeypatch.undo()
    blkio.forget()


@pytest.fixture
def daemons(short_dir: Path) -> Iterator[Daemons]:
    factory = Daemons(short_dir)
    yield factory
    factory.end_all()


@pytest.fixture
def image(short_dir: Path) -> Callable[..., Path]:
    """`image("a")`, `image("b", "qcow2", content=...)`: a new image file."""

    def make(name: str, fmt: str = "raw", *, size_bytes: int = SIZE, content: bytes = b"") -> Path:
        path = short_dir / f"{name}.{fmt}"
        if fmt == "raw":
            path.write_bytes(content)
            os.truncate(path, size_bytes)
            return path
        subprocess.run(["qemu-img", "create", "-q", "-f", fmt, path, str(size_bytes)], check=True)
        if content:
            raw = path.with_suffix(".seed")
            raw.write_bytes(content)
            subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", fmt, raw, path], check=True)
        return path

    return make


@pytest.fixture
def connect(daemons: Daemons) -> Iterator[Callable[..., Any]]:
    """`connect(paths, "volume")` -> a libnbd handle; with `context`, one that can ask for block status."""
    nbd = pytest.importorskip("nbd")
    handles = []

    def open_handle(paths: RuntimePaths, export: str, *, context: str | None = None) -> Any:
        handle = nbd.NBD()
        handles.append(handle)
        # With structured replies a failing read closes the connection; with simple ones it is EIO.
        handle.set_request_structured_replies(context is not None)
        if context is not None:
            handle.add_meta_context(context)
        handle.connect_uri(f"nbd+unix:///{export}?socket={paths.nbd_sock}")
        return handle

    yield open_handle
    # Dropping the last reference closes a handle; it has no method for that.
    handles.clear()


@pytest.fixture
def nbdkit(short_dir: Path) -> Iterator[Callable[..., NbdServer]]:
    """`nbdkit("--filter=error", "file", path, ...)`: a server with that command line."""
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is not installed")
    servers: list[NbdServer] = []

    def start(*arguments: object) -> NbdServer:
        servers.append(NbdServer(short_dir / f"nbdkit{len(servers)}", arguments))
        servers[-1].wait_ready()
        return servers[-1]

    yield start
    for server in servers:
        server.end()
