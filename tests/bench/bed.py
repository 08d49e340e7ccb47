"""A set to measure on: equal images full of random data, and a daemon."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.bench.measure import proven
from tests.integration.harness import NAME, LiveSet

MEMORY = Path("/dev/shm")
SECTOR = 512
_BLOCK_BYTES = 4 << 20
_LETTERS = "abcdefghi"


class Bed(LiveSet):
    """`data`: (offset, length) of what the images hold; the rest of them is a hole."""

    def __init__(self, directory: Path, images: Path, size_bytes: int, count: int) -> None:
        super().__init__(directory, images, size_bytes=size_bytes)
        self.count = count

    @property
    def images(self) -> list[Path]:
        return [Path(source) for source in self.sources]

    @property
    def pid(self) -> int:
        return int(self.runtime.pidfile.read_text())

    async def prepare(self, data: Iterable[tuple[int, int]]) -> None:
        """Written into the files before the daemon opens them: the same into each, so they are equal."""
        await self.create(count=self.count, thin=True)
        block = random.Random(7).randbytes(_BLOCK_BYTES)
        spans = list(data)
        for image in self.images:
            with image.open("r+b") as file:
                for offset, length in spans:
                    file.seek(offset)
                    for at in range(0, length, _BLOCK_BYTES):
                        file.write(block[: length - at])
                file.flush()
                os.fsync(file.fileno())
        await self.start()

    def forget_pages(self) -> None:
        """Whoever reads an image on disk next reads the disk. (In memory it does nothing.)"""
        for image in self.images:
            with image.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def damage(self, copy: str, sectors: Sequence[int]) -> None:
        """Each of these sectors gets another first byte. The daemon reads the files directly: nothing hides it."""
        with self.image(copy).open("r+b", buffering=0) as file:
            for sector in sectors:
                byte = os.pread(file.fileno(), 1, sector * SECTOR)[0]
                os.pwrite(file.fileno(), bytes([byte ^ 0xFF]), sector * SECTOR)

    def prove_equal(self) -> None:
        """After what repairs or brings back."""
        files = [image.open("rb") for image in self.images]
        try:
            while first := files[0].read(_BLOCK_BYTES):
                proven(all(other.read(_BLOCK_BYTES) == first for other in files[1:]), "the copies are not equal")
        finally:
            for file in files:
                file.close()


@asynccontextmanager
async def bed(
    where: Path, size_bytes: int, *, count: int = 3, data: Iterable[tuple[int, int]] | None = None
) -> AsyncIterator[Bed]:
    """A running set whose images lie below `where`; all of it is gone afterwards."""
    images = Path(tempfile.mkdtemp(prefix="qorum-bench-", dir=where))
    directory = Path(tempfile.mkdtemp(prefix="q", dir="/tmp"))
    made = Bed(directory, images, size_bytes, count)
    try:
        await made.prepare([(0, size_bytes)] if data is None else data)
        yield made
    finally:
        try:
            made.end()
        finally:
            shutil.rmtree(images)
            shutil.rmtree(directory)


def scattered(count: int, sectors: int) -> list[int]:
    """So many different sectors, the same every time."""
    return sorted(random.Random(11).sample(range(sectors), count))


__all__ = ["MEMORY", "NAME", "SECTOR", "Bed", "bed", "scattered"]
