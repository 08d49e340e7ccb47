"""The NBD reader on real servers: order, failure, silence, holes."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from qorumctl.copies.base import CHUNK_BYTES
from qorumctl.copies.nbd import NbdCopy
from qorumctl.copies.nbd_link import ROOMS, NbdLink
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.errors import CopyUnavailableError
from tests.live import MIB, NbdServer, faulty_server, wait_for

Nbdkit = Callable[..., NbdServer]
SIZE = 8 * MIB


@pytest.fixture
def content() -> bytes:
    return random.Random(6).randbytes(SIZE)


@pytest.fixture
def plain(short_dir: Path, nbdkit: Nbdkit, content: bytes) -> Path:
    """The socket of a server that has no faults."""
    path = short_dir / "disk"
    path.write_bytes(content)
    return nbdkit("file", path).socket


@pytest.fixture
def faulty(short_dir: Path, nbdkit: Nbdkit, content: bytes) -> Callable[..., Path]:
    """`faulty((first, last))`: a server that answers EIO to every read that touches these sectors."""

    def serve(*bad: tuple[int, int]) -> Path:
        path = short_dir / "disk"
        path.write_bytes(content)
        return faulty_server(nbdkit, path, bad).socket

    return serve


def read_all(reader: NbdCopy, *ranges: Range) -> dict[int, bytes | None]:
    with reader.stream(ranges) as chunks:
        return {c.range.offset: None if c.failed else bytes(c.data) for c in chunks}


def test_a_stream_is_the_content_in_order_cut_at_chunks(plain: Path, content: bytes) -> None:
    reader = NbdCopy("a", plain, "")
    assert reader.size_bytes == SIZE
    got = read_all(reader, Range(MIB - 512, MIB), Range(4 * MIB, 512))
    assert list(got) == [MIB - 512, MIB, 4 * MIB]
    assert all(data == content[at : at + len(data)] for at, data in got.items() if data is not None)
    assert sum(len(data or b"") for data in got.values()) == MIB + 512
    reader.close()


def test_streams_of_several_copies_move_together(plain: Path, content: bytes) -> None:
    readers = [NbdCopy(name, plain, "") for name in "abc"]
    with ExitStack() as stack:
        streams = [stack.enter_context(reader.stream([Range(0, SIZE)])) for reader in readers]
        for chunks in zip(*streams, strict=True):
            assert chunks[0].data == chunks[1].data == chunks[2].data
            assert chunks[0].range.length <= CHUNK_BYTES
    for reader in readers:
        reader.close()


def test_a_stream_left_early_leaves_the_reader_usable_and_quiet(plain: Path, content: bytes) -> None:
    reader = NbdCopy("a", plain, "")
    with reader.stream([Range(0, SIZE)]) as chunks:
        next(chunks)
    assert threading.active_count() == 1 or all(not t.name.startswith("Thread-") for t in threading.enumerate())
    assert bytes(reader.observe(Range(512, 1024)).data) == content[512:1536]
    assert b"".join(data or b"" for data in read_all(reader, Range(0, SIZE)).values()) == content
    reader.close()


def test_a_failing_sector_fails_its_chunk_and_is_found_exactly(faulty: Callable[..., Path], content: bytes) -> None:
    bad = 3 * MIB // SECTOR_BYTES + 7
    reader = NbdCopy("b", faulty((bad, bad + 1)), "")
    got = read_all(reader, Range(0, SIZE))
    assert [at for at, data in got.items() if data is None] == [3 * MIB]
    seen = reader.observe(Range(3 * MIB, 64 << 10))
    assert seen.unreadable == (Range(7 * SECTOR_BYTES, 2 * SECTOR_BYTES),)
    assert bytes(seen.data[: 7 * SECTOR_BYTES]) == content[3 * MIB : 3 * MIB + 7 * SECTOR_BYTES]
    reader.close()


def test_holes_are_told_without_reading(short_dir: Path, nbdkit: Nbdkit) -> None:
    path = short_dir / "sparse"
    with path.open("wb") as file:
        os.truncate(path, SIZE)
        file.write(b"x" * MIB)
    reader = NbdCopy("a", nbdkit("file", path).socket, "")
    zero = reader.zero_ranges(Range(0, SIZE))
    assert zero == [Range(MIB, SIZE - MIB)]
    reader.close()


def test_a_server_without_block_status_has_no_known_holes(short_dir: Path, nbdkit: Nbdkit) -> None:
    path = short_dir / "disk"
    path.write_bytes(bytes(SIZE))
    reader = NbdCopy("a", nbdkit("--no-sr", "file", path).socket, "")
    assert reader.zero_ranges(Range(0, SIZE)) == []
    reader.close()


def test_a_copy_that_falls_silent_is_named_at_the_deadline(short_dir: Path, nbdkit: Nbdkit) -> None:
    path = short_dir / "disk"
    path.write_bytes(bytes(SIZE))
    server = nbdkit("file", path)
    reader = NbdCopy("b", server.socket, "", timeout_s=0.5)
    server.pause()
    with pytest.raises(
        CopyUnavailableError, match=r"Copy b did not answer a request at offset 512 within 0\.5 s"
    ) as caught:
        reader.observe(Range(512, 512))
    assert caught.value.copy == "b"
    with pytest.raises(CopyUnavailableError, match="Copy b"):
        read_all(reader, Range(0, SIZE))
    reader.close()


def test_an_answer_that_waits_past_the_deadline_is_no_silence(plain: Path, content: bytes) -> None:
    """This process was stopped, say, while the copy answered in time."""
    link = NbdLink(plain, "", who="A test", timeout_s=5)
    first, second = link.submit_read(Range(0, 4096)), link.submit_read(Range(4096, 4096))
    assert link.wait(first, 5) is True
    wait_for(lambda: link.wait(second, 0) is not None, "an answer found without waiting for one")
    link.close()


def test_a_copy_that_goes_away_in_a_stream_is_named(short_dir: Path, nbdkit: Nbdkit) -> None:
    path = short_dir / "disk"
    path.write_bytes(bytes(SIZE))
    server = nbdkit("--filter=delay", "file", path, "delay-read=50ms")
    reader = NbdCopy("c", server.socket, "", timeout_s=10)
    with reader.stream([Range(0, SIZE)]) as chunks:
        next(chunks)
        server.end()
        with pytest.raises(CopyUnavailableError, match="Copy c"):
            list(chunks)
    reader.close()
    reader.close()


def test_a_server_that_never_greets_is_named_at_the_deadline(short_dir: Path) -> None:
    path = short_dir / "mute"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(CopyUnavailableError, match=r"Copy a did not answer a new connection within 0\.3 s"):
            NbdCopy("a", path, "", timeout_s=0.3)


def test_a_socket_that_is_not_there_is_named(short_dir: Path) -> None:
    with pytest.raises(CopyUnavailableError, match="Copy a cannot be reached"):
        NbdCopy("a", short_dir / "nowhere", "")


def test_reading_does_not_hoard_memory(plain: Path) -> None:
    """libnbd 1.14 keeps the memory of every Buffer that it was given for a read."""
    reader = NbdCopy("a", plain, "")

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    reader.observe(Range(0, SIZE))
    before = resident_bytes()
    for _ in range(30):
        reader.observe(Range(0, SIZE))
        read_all(reader, *(Range(at, 1000 * SECTOR_BYTES) for at in range(0, SIZE, MIB)))
    assert resident_bytes() - before < 8 * SIZE
    reader.close()


def test_connections_that_come_and_go_do_not_hoard_memory(plain: Path) -> None:
    """A management stack, or a test suite, runs hundreds of scrubs in one process."""

    def come_and_go(times: int) -> int:
        for _ in range(times):
            reader = NbdCopy("a", plain, "")
            reader.observe(Range(0, SIZE))
            read_all(reader, Range(0, SIZE))
            reader.close()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = come_and_go(5)
    assert come_and_go(60) - before < 60 * MIB


def test_writes_do_not_hoard_memory_and_keep_their_content(nbdkit: Callable[..., NbdServer]) -> None:
    server = nbdkit("memory", str(SIZE))
    link = NbdLink(server.socket, "", who="A guest", timeout_s=20)

    def write(times: int) -> int:
        for n in range(times):
            tickets = [link.submit_write(at * 65536, bytes([n + at & 255]) * 65536) for at in range(4)]
            assert all(link.complete(ticket) for ticket in tickets)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = write(5)
    assert write(400) - before < 50 * MIB
    assert link.read(Range(0, 4 * 65536)) == b"".join(bytes([399 + at & 255]) * 65536 for at in range(4))
    link.close()


class Rooms:
    """Whose memory went back for others to read into."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[bytearray] = []
        monkeypatch.setattr(ROOMS, "give", self.given.append)

    def has_any(self, rooms: Sequence[bytearray]) -> bool:
        return any(given is room for given in self.given for room in rooms)


def test_memory_that_a_request_may_still_write_into_is_nobody_elses(
    nbdkit: Callable[..., NbdServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies that were read into one room would be equal, whatever they hold."""
    server, rooms = nbdkit("memory", str(SIZE)), Rooms(monkeypatch)
    link = NbdLink(server.socket, "", who="Copy a", timeout_s=20)
    server.pause()
    link.submit_read(Range(0, SECTOR_BYTES))
    link.close()
    assert rooms.given == []
    server.resume()


def test_a_copy_that_is_closed_in_the_middle_of_a_stream_keeps_its_memory(
    nbdkit: Callable[..., NbdServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, rooms = nbdkit("--filter=delay", "memory", str(SIZE), "rdelay=50ms"), Rooms(monkeypatch)
    reader = NbdCopy("a", server.socket, "")
    lent = list(reader._buffers)
    with reader.stream([Range(0, SIZE)] * 8) as chunks:
        next(chunks)
        reader.close()
        with pytest.raises(CopyUnavailableError):
            list(chunks)
    reader.close()
    assert not rooms.has_any(lent)


def test_memory_goes_back_once(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = Rooms(monkeypatch)
    reader = NbdCopy("a", plain, "")
    lent = list(reader._buffers)
    reader.close()
    once = len(rooms.given)
    assert once == len(lent) + 1, "its scratch, too"
    reader.close()
    assert len(rooms.given) == once
