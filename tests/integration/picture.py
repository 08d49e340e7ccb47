"""What a refusal must not change: every file of a set, its daemon, its sockets."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qorumctl.controller.sets import QuorumSets
from qorumctl.daemon import process
from qorumctl.errors import QorumError
from qorumctl.model.status import SetStatus
from tests.integration.harness import NAME, LiveSet


def picture(live: LiveSet) -> dict[str, object]:
    """Path -> what is there, for images, sidecars and definitions; the daemon's pid; its sockets."""
    seen: dict[str, object] = {}
    for root in (live.images_dir, live.directories.config):
        for path in sorted(root.rglob("*")):
            seen[str(path)] = _facts(path)
    runtime = live.runtime
    seen["pid"] = process.running_pid(runtime)
    seen["sockets"] = [path.name for path in (*runtime.sockets, runtime.pidfile) if path.exists()]
    return seen


def _facts(path: Path) -> tuple[object, ...]:
    facts = path.lstat()
    if stat.S_ISREG(facts.st_mode):
        return (oct(facts.st_mode), facts.st_ino, facts.st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    return (oct(facts.st_mode), os.readlink(path) if path.is_symlink() else None)


@contextmanager
def nothing_changes(live: LiveSet) -> Iterator[None]:
    before = picture(live)
    yield
    after = picture(live)
    changed = {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}
    assert not changed, changed


async def refused(live: LiveSet, work: Awaitable[object], words: str) -> QorumError:
    """The command fails with exactly these words (`{images}`: the directory of the images), and changes nothing."""
    with nothing_changes(live):
        with pytest.raises(QorumError) as caught:
            await work
    said = str(caught.value)
    assert said == words.format(images=live.images_dir, config=live.directories.config), said
    return caught.value


async def status_of(sets: QuorumSets, name: str = NAME) -> SetStatus:
    return (await sets.status([name])).sets[0]
