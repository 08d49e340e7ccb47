"""Guests for the tests; whatever happens, they are gone before their set is."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.guest import image
from tests.guest.appliances import Appliances
from tests.guest.guest import Guest
from tests.integration.conftest import live_set
from tests.integration.harness import NAME, LiveSet

__all__ = ["live_set"]


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (reason := image.lacking()) is not None:
        pytest.skip(f"no Linux guest: {reason}")
    return image.build(tmp_path_factory.mktemp("guest") / "initramfs")


@pytest.fixture
def appliances(
    live_set: Callable[..., LiveSet], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[LiveSet], Appliances]]:
    if os.access("/dev/shm", os.W_OK):
        # There nbdkit keeps its caches, in files without a name.
        monkeypatch.setenv("TMPDIR", "/dev/shm")
    made: list[Appliances] = []

    def make(live: LiveSet) -> Appliances:
        made.append(Appliances(live))
        return made[-1]

    yield make
    for racks in made:
        racks.power_off()


@pytest.fixture
def boot(initramfs: Path, live_set: object, tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    """`boot(live)`: a guest with the set's volume for its disk, ready for commands. `form`: of `attach --as`; `more`:
    further arguments of QEMU."""
    assert shutil.which("qemu-system-x86_64"), "apt-get install --no-install-recommends qemu-system-x86"
    guests: list[Guest] = []

    def start(live: LiveSet, form: str = "qemu", *, more: Sequence[str] = ()) -> Guest:
        asked = live.cli("attach", NAME, "--as", form, "--memory", "256MiB")
        words = asked.communicate()[0].decode()
        assert asked.returncode == 0
        words = f"{words.rstrip()} {shlex.join(more)}"
        guests.append(Guest(initramfs, words, tmp_path / f"console{len(guests)}"))
        guests[-1].wait_ready()
        return guests[-1]

    yield start
    for guest in guests:
        guest.kill()
