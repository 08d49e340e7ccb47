from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# A whole set for a test; the fixture is that of the integration tests.
from tests.integration.conftest import live_set

__all__ = ["live_set"]


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """In memory where there is some: a flush then costs nothing, and hundreds of databases can be made."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="qorum-test-", dir=memory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
