"""NBD servers that lie, as copies of a set: QEMU's own client speaks with them. The set refuses them, fails with a
sentence, or finds what is wrong; the honest copies are never written, and nothing waits for ever."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qorumctl.controller.options import Timeouts
from qorumctl.errors import CopyError, QorumError, RefusedError
from tests.attack import Attack
from tests.hostile.common import fingerprint, settle
from tests.hostile.nbd_server import Lies, NbdLiar
from tests.integration.harness import NAME, LiveSet
from tests.live import MIB

pytestmark = pytest.mark.live

SIZE = 2 * MIB
QUICK = Timeouts(drain_s=3, copy_s=3, heal_s=1, monitor_s=5, status_s=1, stop_s=4)
ZERO = 3
"""NBD_STATE_HOLE and NBD_STATE_ZERO."""
Serve = Callable[..., NbdLiar]


@pytest.fixture
def content() -> bytes:
    return random.Random(5).randbytes(SIZE)


@pytest.fixture
def serve(short_dir: Path, content: bytes) -> Iterator[Serve]:
    servers: list[NbdLiar] = []

    def start(lies: Lies | None = None, data: bytes = content) -> NbdLiar:
        servers.append(NbdLiar(short_dir / f"{len(servers)}.sock", data, lies))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture
def live(live_set: Callable[..., LiveSet]) -> LiveSet:
    return live_set(size_bytes=SIZE, timeouts=QUICK)


def honest_images(live: LiveSet, content: bytes) -> list[Path]:
    paths = [live.images_dir / "a.img", live.images_dir / "b.img"]
    for path in paths:
        path.write_bytes(content)
    return paths


async def created(live: LiveSet, server: NbdLiar, content: bytes) -> list[Path]:
    honest = honest_images(live, content)
    await live.create(sources=[*map(str, honest), server.uri], size_bytes=None)
    return honest


async def refused(work: Any) -> QorumError:
    with pytest.raises(QorumError) as caught:
        await work
    error = caught.value
    assert error.message.endswith(".")
    assert error.remedy, error.message
    return error


@pytest.mark.parametrize("size", [0, 512, SIZE - 512, SIZE + 512, SIZE + 100, 1 << 62, (1 << 63) - 1, 1 << 63])
async def test_another_size_is_refused_and_named(live: LiveSet, serve: Serve, content: bytes, size: int) -> None:
    honest = honest_images(live, content)
    before = fingerprint(honest)
    server = serve(Lies(size=lambda _: size))
    error = await refused(live.create(sources=[*map(str, honest), server.uri], size_bytes=None))
    assert isinstance(error, CopyError | RefusedError)
    assert "nbd+unix" in error.message + str(error.path)
    assert fingerprint(honest) == before
    assert not live.directories.definition_path(NAME).exists()


async def test_a_size_that_changes_with_each_connection(live: LiveSet, serve: Serve, content: bytes) -> None:
    """Right at `create`; shorter at a scrub of the stopped set, and at `start`."""
    server = serve(Lies(size=lambda connection: SIZE if connection == 0 else SIZE - 4096))
    honest = await created(live, server, content)
    before = fingerprint(honest)
    for work in (live.scrub(mode="report"), live.start()):
        error = await refused(work)
        assert error.copy == "c"
        assert f"has {SIZE - 4096} bytes, the set {SIZE}" in error.message
    assert fingerprint(honest) == before


@pytest.mark.parametrize("stage", ["greeting", "structured", "context", "info", "ack"])
@pytest.mark.parametrize("fault", ["closes", "garbage"])
async def test_a_server_that_fails_in_the_handshake(
    live: LiveSet, serve: Serve, content: bytes, stage: str, fault: str
) -> None:
    """One that says nothing is a copy that hangs: tests/daemon/test_quorum_set.py."""
    said = {"closes": None, "garbage": b"\xa5" * 40}[fault]
    server = serve(Lies(hook=lambda what, data: said if what == stage else data))
    honest = honest_images(live, content)
    before = fingerprint(honest)
    error = await refused(live.create(sources=[*map(str, honest), server.uri], size_bytes=None))
    assert isinstance(error, CopyError)
    assert error.copy == "c"
    assert fingerprint(honest) == before
    assert not list(live.directories.runtime.glob("*/*.sock"))


@pytest.mark.attack("a lying NBD copy never makes a wrong repair", "a server that spoils its messages", weight=2)
def test_a_server_that_turns_hostile(
    live_set: Callable[..., LiveSet], short_dir: Path, content: bytes, attack: Attack
) -> None:
    """Honest at `create` and `start`; then it spoils what it says while guests read and write, and scrubs repair."""
    errors = commands = 0
    live = live_set(size_bytes=SIZE, timeouts=QUICK)
    for seed in attack.rounds(1):
        server = NbdLiar(short_dir / f"h{seed}.sock", content)
        try:
            done, failed = _turn_hostile(live, server, content, random.Random(seed))
            commands, errors = commands + done, errors + failed
        finally:
            server.end()
            live.end()
        for directory in (live.images_dir, live.directories.config):
            for left in directory.iterdir():
                left.unlink()
        shutil.rmtree(live.directories.state)
    attack.count(commands=commands, clear_errors=errors)


def _turn_hostile(live: LiveSet, server: NbdLiar, content: bytes, dice: random.Random) -> tuple[int, int]:
    honest = honest_images(live, content)
    lock = threading.Lock()
    often = 0.0

    def spoil(_what: str, data: bytes) -> bytes | None:
        with lock:
            if dice.random() >= often:
                return data
            spoiled = bytearray(data)
            match dice.randrange(5):
                case 0:
                    return None
                case 1:
                    spoiled[dice.randrange(min(24, len(spoiled)))] ^= 1 << dice.randrange(8)
                case 2:
                    spoiled[dice.randrange(len(spoiled))] ^= 1 << dice.randrange(8)
                case 3:
                    del spoiled[dice.randrange(len(spoiled)) :]
                case _:
                    spoiled[:] = dice.randbytes(len(spoiled))
            return bytes(spoiled)

    server.lies = Lies(hook=spoil)
    assert settle(lambda: live.create(sources=[*map(str, honest), server.uri], size_bytes=None)) is None
    assert settle(live.start) is None
    shadow = bytearray(content)
    link = live.link()
    for at in (0, MIB):
        data = dice.randbytes(4096)
        assert link.write(at, data)
        shadow[at : at + 4096] = data
    assert link.flush()
    link.close()
    often = dice.choice([0.02, 0.1, 0.5])
    works: list[Callable[[], Any]] = [
        lambda: live.scrub(fresh=True),
        lambda: live.sets.status([NAME]),
        lambda: live.scrub(mode="report", thorough=True),
        lambda: live.sets.stop(NAME),
        lambda: live.sets.stop(NAME, force=True),
        live.start,
        lambda: live.sets.stop(NAME, force=True),
    ]
    errors = [settle(work) for work in works]
    assert [path.read_bytes() == shadow for path in honest] == [True, True], "the honest majority stays as it was"
    return len(works), sum(error is not None for error in errors)


async def test_one_copy_that_calls_everything_zero_hides_nothing(live: LiveSet, serve: Serve, content: bytes) -> None:
    """What one copy reports as zero is read all the same, unless all of them do: so its damage is found."""
    server = serve(Lies(extents=lambda _, length: [(length, ZERO)]))
    honest = await created(live, server, content)
    await live.start()
    assert read_through_structured_replies(live) == content, "guests get data where any copy has some"
    server.content[4096] ^= 1
    report = await live.scrub()
    assert (report.skipped_bytes, report.outcome) == (0, "repaired")
    assert [(f.offset, f.copies) for f in report.findings] == [(4096, ["c"])]
    assert server.content == content
    assert {path.read_bytes() == content for path in honest} == {True}


async def test_where_all_copies_call_it_zero_only_a_thorough_scrub_looks(live: LiveSet, serve: Serve) -> None:
    """The residual assumption of docs/safety.md, in both halves: three servers lie alike."""
    zeros = bytes(SIZE)
    servers = [serve(Lies(extents=lambda _, length: [(length, ZERO)]), zeros) for _ in "abc"]
    await live.create(sources=[server.uri for server in servers], size_bytes=None)
    await live.start()
    servers[1].content[4096] ^= 1
    report = await live.scrub()
    assert (report.outcome, report.skipped_bytes, report.findings) == ("clean", SIZE, [])
    report = await live.scrub(thorough=True)
    assert [(f.offset, f.copies) for f in report.findings] == [(4096, ["b"])]
    assert servers[1].content == zeros


@pytest.mark.parametrize("what", ["of no length", "far too long", "tiny", "unknown flags"])
async def test_block_status_that_makes_no_sense(live: LiveSet, serve: Serve, content: bytes, what: str) -> None:
    extents: Callable[[int, int], list[tuple[int, int]]] = {
        "of no length": lambda _o, _n: [(0, ZERO)],
        "far too long": lambda _o, _n: [((1 << 32) - 512, ZERO)],
        "tiny": lambda _o, _n: [(512, ZERO)],
        "unknown flags": lambda _o, n: [(n, 0xFFFFFFF8)],
    }[what]
    server = serve(Lies(extents=extents))
    server.content[4096] ^= 1
    honest = honest_images(live, content)
    before = fingerprint(honest)
    error = await refused(live.create(sources=[*map(str, honest), server.uri], size_bytes=None))
    if isinstance(error, RefusedError):
        assert "they differ in 512 B, first at offset 4096" in error.message
        assert "at fault: c" in error.message
    assert fingerprint(honest) == before


def read_through_structured_replies(live: LiveSet) -> bytes:
    """As a guest does that asks for them: QEMU's server then answers zeros by block status, unread."""
    uri = f"nbd+unix:///volume?socket={live.runtime.nbd_sock}"
    target = live.images_dir / "read"
    subprocess.run(["nbdcopy", "--request-size=262144", uri, str(target)], check=True, timeout=60)
    return target.read_bytes()[: live.size_bytes]
