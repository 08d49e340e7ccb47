"""NBD servers that lie, stall, or speak nonsense, before the engine's own reader: an answer, a failed read, or a
CopyUnavailableError, always within the deadline."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from qorumctl.copies.nbd import NbdCopy
from qorumctl.copies.nbd_link import ALLOCATION, NbdLink
from qorumctl.core.ranges import Range
from qorumctl.errors import CopyUnavailableError
from tests.attack import Attack
from tests.hostile.common import settle
from tests.hostile.nbd_server import STRUCTURED, Lies, NbdLiar
from tests.live import MIB

SIZE = 3 * MIB
TIMEOUT_S = 0.1
STAGES = ["greeting", "info", "ack", "structured", "context", "contexts", "unsupported", "read", "status", "done"]
Serve = Callable[[Lies], NbdLiar]


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(3).randbytes(SIZE)


@pytest.fixture
def serve(short_dir: Path, content: bytes) -> Iterator[Serve]:
    servers: list[NbdLiar] = []

    def start(lies: Lies) -> NbdLiar:
        servers.append(NbdLiar(short_dir / f"{len(servers)}.sock", content, lies))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def use(server: NbdLiar, timeout_s: float = TIMEOUT_S) -> dict[str, object]:
    """All that a scrub does with a copy. What each gave, where it gave something."""
    given: dict[str, object] = {}
    reader = NbdCopy("c", server.path, "", timeout_s=timeout_s)
    try:
        given["size"] = reader.size_bytes
        with reader.stream([Range(0, 2 * MIB + 512)]) as chunks:
            given["stream"] = [None if chunk.failed else bytes(chunk.data) for chunk in chunks]
        given["observe"] = reader.observe(Range(MIB, 1024))
        given["zero"] = reader.zero_ranges(Range(0, SIZE))
        given["flush"] = reader.flush()
    finally:
        reader.close()
    return given


def test_an_honest_one_is_read(serve: Serve, content: bytes) -> None:
    given = use(serve(Lies()), 20)
    assert given["size"] == SIZE
    assert b"".join(given["stream"]) == content[: 2 * MIB + 512]  # type: ignore[arg-type]
    assert (given["zero"], given["flush"]) == ([], True)


def closes(_: bytes) -> bytes | None:
    return None


FAULTS: dict[str, Callable[[bytes], bytes | None]] = {
    "closes": closes,
    "says nothing": lambda _: b"",
    "stops in the middle": lambda data: data[: len(data) // 2],
    "has a byte too few": lambda data: data[:-1],
    "says more": lambda data: data + b"\xff" * 64,
    "says it twice": lambda data: data + data,
    "has another magic": lambda data: bytes([data[0] ^ 0xFF]) + data[1:],
    "says zeros": lambda data: bytes(len(data)),
    "says garbage": lambda data: random.Random(1).randbytes(len(data)),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_stage_of_the_protocol(serve: Serve, stage: str, fault: str) -> None:
    server = serve(Lies(hook=lambda what, data: FAULTS[fault](data) if what == stage else data))
    error = settle(lambda: use(server))
    assert error is None or isinstance(error, CopyUnavailableError)


@pytest.mark.attack("a hostile NBD server ends in a clear error", "any message spoiled at any place")
def test_messages_spoiled_at_random(serve: Serve, attack: Attack) -> None:
    errors = messages = 0
    for seed in attack.rounds(20):
        dice = random.Random(seed)
        lock = threading.Lock()
        often = dice.choice([0.02, 0.2, 0.5])

        def spoil(
            what: str, data: bytes, dice: random.Random = dice, often: float = often, lock: threading.Lock = lock
        ) -> bytes | None:
            nonlocal messages
            with lock:
                messages += 1
                if dice.random() > often:
                    return data
                spoiled = bytearray(data)
                match dice.randrange(6):
                    case 0:
                        return None
                    case 1:  # in the head, where it matters
                        for _ in range(dice.randint(1, 4)):
                            spoiled[dice.randrange(min(40, len(spoiled)))] = dice.randrange(256)
                    case 2:
                        del spoiled[dice.randrange(len(spoiled)) :]
                    case 3:
                        spoiled[dice.randrange(len(spoiled)) :] = dice.randbytes(40)
                    case 4:
                        spoiled[0:0] = dice.randbytes(dice.randint(1, 40))
                    case _:
                        spoiled *= 2
                return bytes(spoiled)

        lies = Lies(hook=spoil, structured=dice.random() < 0.8, error=dice.choice([0, 0, 5, 1, 28, 99999, 1 << 31]))
        error = settle(partial(use, serve(lies), 0.2))
        assert error is None or isinstance(error, CopyUnavailableError)
        errors += error is not None
    attack.count(messages=messages, clear_errors=errors)


@pytest.mark.parametrize(
    "size", [0, 1, 511, 512, SIZE - 512, SIZE + 512, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
)
def test_sizes_that_are_not_so(serve: Serve, size: int) -> None:
    server = serve(Lies(size=lambda _: size))
    error = settle(lambda: use(server))
    assert error is None or isinstance(error, CopyUnavailableError)


@pytest.mark.parametrize("number", [1, 2, 5, 12, 22, 28, 75, 95, 200, 99999, 0xFFFFFFFF])
def test_any_error_number_is_a_failed_read(serve: Serve, number: int) -> None:
    link = NbdLink(serve(Lies(error=number)).path, "", who="Copy c", timeout_s=20)
    assert link.read(Range(0, 512)) is None
    assert link.read(Range(512, 512)) is None, "the connection still serves"
    link.close()


EXTENTS: dict[str, Callable[[int, int], list[tuple[int, int]]]] = {
    "none": lambda _o, _n: [],
    "of no length": lambda _o, n: [(0, 3), (n, 3)],
    "only of no length": lambda _o, _n: [(0, 3), (0, 3)],
    "one byte": lambda _o, _n: [(1, 3)],
    "beyond the end": lambda _o, _n: [((1 << 32) - 1, 3)] * 5,
    "more than asked": lambda _o, n: [(n, 3), (n, 3)],
    "unknown flags": lambda _o, n: [(n, 0xFFFFFFFC)],
    "a million": lambda _o, _n: [(512, 3)] * 500_000,
    "no sectors": lambda _o, n: [(1000, 3), (n - 1000, 0)],
}


@pytest.mark.parametrize("what", EXTENTS)
def test_block_status_that_makes_no_sense(serve: Serve, what: str) -> None:
    """What is called zero lies within what was asked, in order."""
    server = serve(Lies(extents=EXTENTS[what]))
    link = NbdLink(server.path, "", who="Copy c", timeout_s=0.5, meta_context=ALLOCATION)

    def ask() -> None:
        extents = link.status(Range(MIB, MIB))
        at = MIB
        for r, _ in extents:
            assert r.offset == at
            at = r.end
        assert not extents or at == 2 * MIB

    error = settle(ask)
    assert error is None or isinstance(error, CopyUnavailableError)
    link.close()


def test_block_status_of_another_context_is_not_this_one_s(serve: Serve) -> None:
    def other(what: str, data: bytes) -> bytes:
        return data if what != "status" else data[:20] + struct.pack(">I", 77) + data[24:]

    link = NbdLink(serve(Lies(hook=other)).path, "", who="Copy c", timeout_s=2, meta_context=ALLOCATION)
    error = None
    extents: list[object] = []

    def ask() -> None:
        extents.extend(link.status(Range(0, MIB)))

    error = settle(ask)
    assert error is not None or extents == []
    link.close()


def test_a_connection_that_dies_between_greeting_and_question(serve: Serve) -> None:
    """Asked whether it grants block status, a dead connection is an error of the copy, not of ours."""
    server = serve(Lies())
    reader = NbdCopy("c", server.path, "", timeout_s=2)
    assert reader.zero_ranges(Range(0, MIB)) == []
    server.end()
    asks: list[Callable[[], object]] = [
        lambda: reader.zero_ranges(Range(0, MIB)),
        reader.flush,
        lambda: reader.observe(Range(0, 512)),
    ]
    for ask in 2 * asks:
        assert isinstance(settle(ask), CopyUnavailableError)
    reader.close()


def test_an_answer_byte_by_byte_ends_at_the_deadline(serve: Serve, content: bytes) -> None:
    """Slower than the deadline allows, but never silent."""
    servers: list[NbdLiar] = []

    def trickle(what: str, data: bytes) -> bytes | None:
        if what != "read":
            return data
        client = servers[0]._open[0]
        for byte in data:
            if servers[0].ended.wait(0.01):
                return None
            client.sendall(bytes([byte]))
        return b""

    servers.append(serve(Lies(hook=trickle)))
    reader = NbdCopy("c", servers[0].path, "", timeout_s=0.5)
    assert isinstance(settle(lambda: reader.observe(Range(0, 4096))), CopyUnavailableError)
    reader.close()


def test_an_answer_that_nobody_asked_for(serve: Serve) -> None:
    def more(what: str, data: bytes) -> bytes:
        stray = struct.pack(">IHHQI", STRUCTURED, 1, 0, 0xDEAD, 0)
        return stray + data if what in {"read", "done", "status"} else data

    error = settle(partial(use, serve(Lies(hook=more))))
    assert isinstance(error, CopyUnavailableError)


def test_another_request_s_answer(serve: Serve) -> None:
    def exchanged(what: str, data: bytes) -> bytes:
        return data[:8] + struct.pack(">Q", 3) + data[16:] if what == "read" else data

    assert isinstance(settle(partial(use, serve(Lies(hook=exchanged)))), CopyUnavailableError)
