"""Reading through shared memory, from real daemons: order, failure, silence, death."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qorumctl.copies.base import CHUNK_BYTES, CopyReader
from qorumctl.copies.nbd import NbdCopy
from qorumctl.copies.vhost import VhostCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.daemon import graph, process, reader
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.reader import Image, ReaderPaths
from qorumctl.errors import CopyUnavailableError
from tests.live import MIB, Daemons, wait_for

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("shared_memory")]
SIZE = 8 * MIB
CONTENT = random.Random(6).randbytes(SIZE)


class Served:
    """Copies of a daemon, exported over NBD; and readers, a daemon each, that share their memory."""

    def __init__(self, daemons: Daemons, directory: Path) -> None:
        self.directory = directory
        self._daemons = daemons
        self._bad: Range | None = None
        self._open: list[NbdCopy | VhostCopy] = []
        self._readers: list[tuple[ReaderPaths, int]] = []

    async def begin(self, *, count: int = 1, size_bytes: int = SIZE, bad: Range | None = None) -> None:
        """`bad`: the readers of this test cannot read it, nor can the daemon."""
        self._bad = bad
        self.paths, self.pid = await self._daemons.spawn()
        async with await Monitor.open(self.paths.control_sock) as monitor:
            for name in "abc"[:count]:
                (self.directory / name).write_bytes(CONTENT[:size_bytes])
                node = {"driver": "raw", "node-name": graph.copy_node(name), "file": self._file(name)}
                await monitor.execute("blockdev-add", node)
                await monitor.execute("block-export-add", graph.copy_export(name))

    def _file(self, name: str) -> dict[str, object]:
        file: dict[str, object] = {"driver": "file", "filename": str(self.directory / name)}
        if self._bad is None:
            return file
        sectors = range(self._bad.offset // SECTOR_BYTES, self._bad.end // SECTOR_BYTES)
        errors = [{"event": "none", "iotype": "read", "errno": 5, "sector": s, "once": False} for s in sectors]
        return {"driver": "blkdebug", "image": file, "inject-error": errors}

    def poke(self, name: str, offset: int, data: bytes) -> None:
        with (self.directory / name).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def nbd(self, name: str, *, timeout_s: float = 20.0) -> NbdCopy:
        made = NbdCopy(name, self.paths.nbd_sock, graph.copy_node(name), timeout_s=timeout_s)
        self._open.append(made)
        return made

    async def share(self, name: str = "a") -> tuple[ReaderPaths, int]:
        """A reader of one copy."""
        paths = ReaderPaths(self._daemons.paths().directory)
        words = reader.arguments(paths, [Image(name, str(self.directory / name), (0, 0), device=False, direct=False)])
        at = words.index("--blockdev") + 1
        node = json.loads(words[at])
        node["file"] = {**node["file"], **self._file(name)} if self._bad is None else self._file(name)
        words[at] = json.dumps(node)
        self._readers.append((paths, await process.spawn(paths, words)))
        return self._readers[-1]

    async def reader(self, name: str = "a", *, timeout_s: float = 20.0) -> VhostCopy:
        paths, pid = await self.share(name)
        return self.connect(name, paths, pid, timeout_s=timeout_s)

    def connect(self, name: str, paths: ReaderPaths, pid: int, *, timeout_s: float = 20.0) -> VhostCopy:
        nbd = self.nbd(name)
        made = VhostCopy(nbd, paths.socket(name), lambda: process.running_pid(paths) == pid, timeout_s=timeout_s)
        self._open.append(made)
        return made

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The readers answer nothing."""
        pids = [pid for _, pid in self._readers]
        try:
            for stat in [Path(f"/proc/{pid}/stat") for pid in pids]:
                os.kill(int(stat.parent.name), signal.SIGSTOP)
                wait_for(lambda stat=stat: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", "a stopped reader")
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def close_readers(self) -> None:
        while self._open:
            self._open.pop().close()

    def end_all(self) -> None:
        self.close_readers()
        for paths, pid in self._readers:
            process.kill(paths, pid)
        for paths, _ in self._readers:
            wait_for(lambda paths=paths: process.find_pid(paths) is None, "the end of a reader")


def read_all(reader: CopyReader, *ranges: Range) -> dict[int, bytes | None]:
    with reader.stream(ranges) as chunks:
        return {c.range.offset: None if c.failed else bytes(c.data) for c in chunks}


@pytest.fixture
def served(daemons: Daemons, short_dir: Path) -> Iterator[Served]:
    made = Served(daemons, short_dir)
    yield made
    made.end_all()


async def test_a_stream_is_the_content_in_order_cut_at_chunks(served: Served) -> None:
    await served.begin()
    reader = await served.reader()
    assert reader.size_bytes == SIZE
    got = read_all(reader, Range(MIB - 512, MIB), Range(4 * MIB, 512))
    assert list(got) == [MIB - 512, MIB, 4 * MIB]
    assert all(data == CONTENT[at : at + len(data)] for at, data in got.items() if data is not None)
    assert b"".join(data or b"" for data in read_all(reader, Range(0, SIZE)).values()) == CONTENT


@pytest.mark.parametrize("name", ["1", "0-of_a-long-"])
async def test_a_copy_may_have_any_name(served: Served, name: str) -> None:
    """Names of nodes and exports begin with a letter."""
    (served.directory / name).write_bytes(CONTENT)
    paths, _ = await served.share(name)
    assert paths.socket(name).is_socket()


async def test_streams_of_several_copies_compare(served: Served) -> None:
    await served.begin(count=3)
    served.poke("b", 5 * MIB + 77, b"!")
    readers = [await served.reader(name) for name in "abc"]
    unequal = []
    with ExitStack() as stack:
        streams = [stack.enter_context(reader.stream([Range(0, SIZE)])) for reader in readers]
        for chunks in zip(*streams, strict=True):
            assert chunks[0].range.length <= CHUNK_BYTES
            if any(chunk.data != chunks[0].data for chunk in chunks):
                unequal.append(chunks[0].range.offset)
                said = [chunk.observation().data for chunk in chunks]
                assert said[0] == said[2] != said[1]
    assert unequal == [5 * MIB]


async def test_a_stream_left_early_leaves_the_reader_usable(served: Served) -> None:
    await served.begin()
    reader = await served.reader()
    for _ in range(3):
        with reader.stream([Range(0, SIZE)]) as chunks:
            next(chunks)
    with pytest.raises(ZeroDivisionError), reader.stream([Range(0, SIZE)]) as chunks:
        _ = 1 / next(chunks).range.offset
    assert bytes(reader.observe(Range(512, 1024)).data) == CONTENT[512:1536]
    assert b"".join(data or b"" for data in read_all(reader, Range(0, SIZE)).values()) == CONTENT


async def test_a_failing_sector_fails_its_chunk_and_is_found_exactly(served: Served) -> None:
    bad = Range(3 * MIB + 7 * SECTOR_BYTES, 2 * SECTOR_BYTES)
    await served.begin(bad=bad)
    reader = await served.reader()
    got = read_all(reader, Range(0, SIZE))
    assert [at for at, data in got.items() if data is None] == [3 * MIB]
    assert all(data == CONTENT[at : at + MIB] for at, data in got.items() if data is not None)
    seen = reader.observe(Range(3 * MIB, 64 << 10))
    assert seen.unreadable == (bad.shifted(-3 * MIB),)


async def test_the_end_of_a_disk_that_is_not_of_whole_sectors(served: Served) -> None:
    await served.begin(size_bytes=2 * MIB + 1234)
    reader = await served.reader()
    got = read_all(reader, Range(0, reader.size_bytes))
    assert reader.size_bytes == 2 * MIB + 3 * SECTOR_BYTES
    assert b"".join(data or b"" for data in got.values()) == CONTENT[: 2 * MIB + 1234] + bytes(302)


async def test_holes_and_flushes_go_over_nbd(served: Served) -> None:
    await served.begin()
    with (served.directory / "a").open("r+b") as file:
        file.truncate(MIB)
        file.truncate(SIZE)
    reader = await served.reader()
    assert reader.zero_ranges(Range(0, SIZE)) == [Range(MIB, SIZE - MIB)]
    assert reader.flush()
    assert read_all(reader, Range(7 * MIB, MIB)) == {7 * MIB: bytes(MIB)}


async def test_a_reader_that_dies_in_a_stream_is_named_at_once(served: Served) -> None:
    await served.begin()
    paths, pid = await served.share()
    copy = served.connect("a", paths, pid, timeout_s=3600)
    with copy.stream([Range(0, SIZE)] * 3) as chunks:
        next(chunks)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(CopyUnavailableError, match=r"Copy a cannot be read .* the reader has ended") as caught:
            list(chunks)
    assert caught.value.copy == "a"
    with pytest.raises(CopyUnavailableError, match="Copy a"), copy.stream([Range(0, SIZE)]):
        pass


async def test_a_reader_that_falls_silent_is_named_at_the_deadline(served: Served) -> None:
    await served.begin()
    copy = await served.reader(timeout_s=0.5)
    with served.stopped():
        with (
            pytest.raises(CopyUnavailableError, match=r"Copy a did not answer a read within 0\.5 s"),
            copy.stream([Range(0, SIZE)]) as chunks,
        ):
            list(chunks)
        copy.close()


async def test_of_copies_that_fall_silent_together_only_one_is_waited_for(served: Served) -> None:
    await served.begin(count=2)
    first, second = await served.reader("a", timeout_s=0.5), await served.reader("b", timeout_s=3600)
    with (
        served.stopped(),
        pytest.raises(CopyUnavailableError, match="Copy a did not answer"),
        second.stream([Range(0, SIZE)]),
        first.stream([Range(0, SIZE)]) as chunks,
    ):
        list(chunks)


async def test_a_reader_that_never_connects_is_named_at_the_deadline(served: Served) -> None:
    await served.begin()
    paths, pid = await served.share()
    with served.stopped(), pytest.raises(CopyUnavailableError, match=r"Copy a did not share its memory within 0\.5 s"):
        served.connect("a", paths, pid, timeout_s=0.5)


async def test_a_socket_that_is_not_there_is_named(served: Served) -> None:
    await served.begin()
    with pytest.raises(CopyUnavailableError, match="Copy a cannot be read through shared memory: connect"):
        VhostCopy(served.nbd("a"), served.directory / "nowhere", lambda: True)


async def test_connections_that_come_and_go_do_not_hoard_memory(served: Served) -> None:
    await served.begin()
    paths, pid = await served.share()

    def come_and_go(times: int) -> int:
        for _ in range(times):
            read_all(served.connect("a", paths, pid), Range(0, SIZE))
            served.close_readers()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = come_and_go(5)
    assert come_and_go(30) - before < 30 * MIB
    assert len(os.listdir("/proc/self/fd")) < 60
