"""Sets for the tests; whatever happens, their daemons and images are gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import LiveSet
from tests.live import MIB


@pytest.fixture
def live_set(short_dir: Path) -> Iterator[Callable[..., LiveSet]]:
    """`live_set(size_bytes=...)`: directories and a name, nothing made yet."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    images_dir = Path(tempfile.mkdtemp(prefix="qorum-test-", dir=memory))
    made: list[LiveSet] = []

    def make(*, size_bytes: int = 16 * MIB, **keys: Any) -> LiveSet:
        made.append(LiveSet(short_dir, images_dir, size_bytes=size_bytes, **keys))
        return made[-1]

    yield make
    for live in made:
        live.end()
    shutil.rmtree(images_dir, ignore_errors=True)
