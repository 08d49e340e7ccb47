"""Hooks of a real set: what scrub, watcher and daemon tell arrives, in order, and is what the report says."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qorumctl.controller.sets import QuorumSets
from qorumctl.controller.waking import LOCK_NAME
from qorumctl.daemon import process
from qorumctl.model.hooks import HookFailure
from qorumctl.model.schema import schema_of
from qorumctl.store import SetLock, Store
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.live import MIB, faulty_server, is_dead, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
NEVER = "of the guest"
FAR_S = 120.0


class Told:
    """A set with a hook that keeps what it is told."""

    def __init__(self, live: LiveSet, place: Path) -> None:
        self.live = live
        self.directory = place / "hooks.d"
        self.directory.mkdir(mode=0o755)
        self.kept = place / "kept"
        live.directories = replace(live.directories, hooks=self.directory)
        live.sets = QuorumSets(live.directories)
        self.hook("50-keep", f"cat >> {self.kept}")

    def hook(self, name: str, script: str) -> None:
        (self.directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.directory / name).chmod(0o755)

    def documents(self) -> list[dict[str, Any]]:
        if not self.kept.exists():
            return []
        # The last line may be under way.
        lines = self.kept.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        for document in found:
            jsonschema.validate(document, schema_of("hook-event"))
            assert document["set"] == NAME
        return found

    def wait(self, *events: str) -> list[dict[str, Any]]:
        """Once exactly these were told; they are forgotten then."""
        count = len(events)
        wait_for(lambda: len(self.documents()) >= count, f"{events}, not {self.documents()}", deadline_s=FAR_S)
        found = self.documents()
        assert [document["event"] for document in found] == list(events)
        self.kept.unlink()
        return found

    def deliverer(self) -> int:
        holder = SetLock.held_by(self.live.directories.state_dir(NAME), file_name=LOCK_NAME)
        return 0 if holder is None else holder[0]

    def end(self) -> None:
        if self.live.directories.state_dir(NAME).is_dir():
            for path in self.directory.iterdir():
                path.unlink()
            while pid := self.deliverer():
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda pid=pid: self.deliverer() != pid, "the end of the delivery")


@pytest.fixture
def told(live_set: LiveSets, short_dir: Path) -> Iterator[Told]:
    made = Told(live_set(size_bytes=4 * MIB), short_dir)
    yield made
    made.end()


async def test_hooks_are_told_what_the_report_says(told: Told) -> None:
    live = told.live
    await live.create(cache="writeback")
    await live.start()
    live.fill()
    live.poke("b", 100 * SECTOR, NEVER.encode() * 100)
    live.flip("a", 500 * SECTOR)
    live.flip("b", 500 * SECTOR, 1)
    report = json.loads((await live.scrub()).model_dump_json(by_alias=True))
    found = told.wait("finding", "finding", "run-finished")
    assert [document["finding"] for document in found[:2]] == report["findings"]
    assert {document["run"] for document in found} == {report["run"]}
    assert {key: found[2]["summary"][key] for key in ("outcome", "finished", "scanned_bytes", "findings")} == {
        "outcome": "no-majority",
        "finished": report["finished"],
        "scanned_bytes": report["scanned_bytes"],
        "findings": {"repaired": 1, "left": 1},
    }
    text = json.dumps(found)
    assert NEVER not in text
    assert NEVER.encode().hex() not in text

    await live.sets.detach(NAME, "c")
    await live.sets.rejoin(NAME, "c")
    left, back = told.wait("copy-detached", "copy-rejoined")
    assert (left["copy"], left["entry"], back["copy"]) == ("c", "detached", "c")

    pid = process.running_pid(live.runtime) or 0
    process.kill(live.runtime, pid)
    (gone,) = told.wait("daemon-gone")
    assert gone["pid"] == pid
    await live.start(now=True)
    await live.sets.stop(NAME)
    assert [document["event"] for document in told.documents() if document["event"] == "daemon-gone"] == []


async def test_a_copy_that_misses_a_write_is_told_of(told: Told, nbdkit: Callable[..., Any], short_dir: Path) -> None:
    live, once = told.live, short_dir / "bad"
    paths = [short_dir / f"{name}.img" for name in "abc"]
    for path in paths:
        path.write_bytes(bytes(4 * MIB))
    server = faulty_server(nbdkit, paths[2], [], once=once)
    await live.create(sources=[str(paths[0]), str(paths[1]), server.uri], cache="writeback", size_bytes=None)
    told.kept.unlink(missing_ok=True)
    await live.start()
    once.touch()
    Path(f"{once}.write").touch()
    link = live.link()
    assert link.write(0, b"x" * SECTOR)
    link.close()
    wait_for(lambda: any(d["event"] == "copy-stale" for d in told.documents()), "copy-stale", deadline_s=FAR_S)
    stale = next(d for d in told.documents() if d["event"] == "copy-stale")
    assert (stale["copy"], stale["entry"]) == ("c", "missed-write")
    # So that its server can end.
    process.kill(live.runtime, process.running_pid(live.runtime) or 0)


async def test_a_hook_that_hangs_holds_up_nobody(told: Told, short_dir: Path) -> None:
    """Not the scrub, not the guest, not `stop`, not `delete`; and `status` answers."""
    live = told.live
    told.hook("10-hang", f"echo $$ > {short_dir}/pid; exec sleep 600")
    await live.create(cache="writeback")
    await live.start()
    shadow = live.fill()
    live.flip("b", 100 * SECTOR)
    assert (await live.scrub()).outcome == "repaired"
    wait_for((short_dir / "pid").exists, "the hook", deadline_s=FAR_S)
    live.flip("b", 200 * SECTOR)
    assert (await live.scrub()).outcome == "repaired"
    (status,) = (await live.sets.status([NAME])).sets
    assert (status.state, status.hook_failures) == ("healthy", [])
    assert all(live.equal_to(shadow).values())
    await live.sets.stop(NAME)
    hook = int((short_dir / "pid").read_text())
    await live.sets.delete(NAME)
    wait_for(lambda: is_dead(hook), "the end of the hook", deadline_s=FAR_S)
    assert not live.directories.state_dir(NAME).exists()


async def test_one_that_fails_is_seen_in_status(told: Told) -> None:
    live = told.live
    told.hook("60-bad", "echo no route; exit 7")
    await live.create(cache="writeback")
    await live.start()
    await live.scrub()
    told.wait("run-finished")

    def failing() -> list[HookFailure]:
        with Store.open(live.directories.state_dir(NAME), read_only=True) as store:
            return store.outbox.failures()

    wait_for(failing, "a failure", deadline_s=FAR_S)
    (status,) = (await live.sets.status([NAME])).sets
    (failure,) = status.hook_failures
    assert (failure.hook, failure.reason, failure.output) == ("60-bad", "it ended with exit code 7", "no route\n")
    assert status.state == "healthy"
