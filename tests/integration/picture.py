"""What a refusal must not change: every file of a set, its daemon, its sockets."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qorumctl.controller import watcher
from qorumctl.controller.sets import QuorumSets
from qorumctl.daemon import process
from qorumctl.daemon.client import Monitor
from qorumctl.errors import QorumError
from qorumctl.model.status import SetStatus
from qorumctl.store import SetLock
from tests.integration.harness import NAME, LiveSet
from tests.live import below


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


async def daemon_picture(live: LiveSet) -> dict[str, object]:
    """What a running set consists of, apart from its data: the same between any two commands, whatever was killed.

    Block nodes, exports, bitmaps and jobs of the daemon; the processes; who holds a lock; what lies in which directory.
    """
    seen: dict[str, object] = {}
    async with await Monitor.open(live.runtime.control_sock) as monitor:
        nodes = await monitor.execute("query-named-block-nodes", {"flat": True}, timeout_s=20)
        seen["nodes"] = sorted((node["node-name"], node["drv"], node["ro"]) for node in nodes)
        seen["bitmaps"] = [bitmap for node in nodes for bitmap in node.get("dirty-bitmaps", [])]
        exports = await monitor.execute("query-block-exports", timeout_s=20)
        seen["exports"] = sorted((export["id"], export["type"], export["node-name"]) for export in exports)
        seen["jobs"] = await monitor.execute("query-jobs", timeout_s=20)
    seen["daemons"] = len(process.processes(live.runtime))
    seen["lock"] = SetLock.held_by(live.directories.state_dir(NAME))
    seen["watcher"] = (SetLock.held_by(live.directories.state_dir(NAME), file_name=watcher.LOCK_NAME) or (0, ""))[1]
    return seen | {"files": listing(live)}


def listing(live: LiveSet) -> list[tuple[str, str]]:
    """Path and mode of everything that a set has on disk. SQLite's own files come and go."""
    directories = live.directories
    roots = (directories.config, directories.state, directories.runtime, live.images_dir)
    found = below(*roots).items()
    return sorted((str(path), oct(facts.st_mode)) for path, facts in found if not path.name.startswith("state.db-"))


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
