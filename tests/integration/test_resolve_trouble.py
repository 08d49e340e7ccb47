"""`resolve` and `report --finding` where something gets in the way: signals, a full disk, what killed commands left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from qorumctl.controller import export_target, resolving, restoring
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.errors import CopyError, DaemonGoneError, DaemonStalledError, StoreError
from qorumctl.store import saved
from tests.integration.absence import write
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.integration.test_resolve import AT, SIZE, action, decide, images, is_served, tied, undo

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]


async def test_an_undo_that_cannot_be_noted_leaves_the_finding_open(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set(size_bytes=SIZE)
    _, finding = await tied(live)
    damaged = images(live)
    done = await decide(live, finding)

    def full(*_: object) -> None:
        raise StoreError("No space left on device.")

    monkeypatch.setattr(restoring, "note_undone", full)
    with pytest.raises(StoreError, match="No space"):
        await undo(live, done.id)
    monkeypatch.undo()
    assert (images(live) == damaged, action(live)) == (True, "left")
    assert (await live.sets.status([NAME])).sets[0].state == "damaged"
    await undo(live, done.id)
    assert await is_served(live)


async def test_a_copy_that_fails_a_flush_has_missed_a_write(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event tells of it, since no guest has asked for it; but it is what guests had written that may be lost."""
    live = live_set(size_bytes=SIZE)
    _, finding = await tied(live)

    async def missed() -> list[bool]:
        return [copy.missed_writes for copy in (await live.sets.status([NAME])).sets[0].copies]

    flush = resolving.flush
    monkeypatch.setattr(resolving, "flush", lambda context, at: at != "copy-b" and flush(context, at))
    with pytest.raises(CopyError, match="Copy b does not hold"):
        await decide(live, finding)
    monkeypatch.undo()
    assert await missed() == [False, True, False]
    assert (await live.scrub()).outcome == "clean"
    assert await missed() == [False, False, False]
    flushed = NbdLink.flush
    monkeypatch.setattr(NbdLink, "flush", lambda link: link._who != "Copy c" and flushed(link))
    with pytest.raises(CopyError, match="Copy c does not hold"):
        await undo(live, 1)
    monkeypatch.undo()
    assert await missed() == [False, False, True]
    assert await is_served(live)


async def test_what_was_found_again_under_other_numbers_is_resolved_with_it(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    _, finding = await tied(live)
    (again,) = (await live.scrub()).findings
    assert again.id != finding
    done = await decide(live, finding)
    assert (done.state, action(live)) == ("healthy", "resolved")
    assert ((await undo(live, done.id)).state, action(live)) == ("damaged", "left")


async def test_a_drain_that_hangs_leaves_no_guest_without_a_volume(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set(size_bytes=SIZE)
    _, finding = await tied(live)

    async def hangs(_: object) -> None:
        raise DaemonStalledError("The daemon waits for a copy that hangs.")

    monkeypatch.setattr(QuorumSet, "kick", hangs)
    with pytest.raises(DaemonStalledError):
        await decide(live, finding)
    monkeypatch.undo()
    assert await is_served(live)
    assert (await decide(live, finding)).state == "healthy"


async def test_what_killed_commands_left_is_said_or_settled(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    _, finding = await tied(live)
    # An export: what it left would be settled by ending the daemon, were the volume withdrawn by then.
    note = live.directories.state_dir(NAME) / export_target._NAME
    note.write_text(json.dumps({"temporary": "/nonexistent", "inode": 1, "format": "raw", "size": SIZE}))
    done = await decide(live, finding)
    assert not note.exists()
    # An undo, while a copy is out: nobody has to bring it back by hand.
    live.dies_at("restoring:NbdLink", "resolve", NAME, "--undo", str(done.id), "--yes")
    with pytest.raises(DaemonGoneError, match="an earlier command did not finish"):
        await undo(live, done.id, dry_run=True)
    await live.start()
    assert (await is_served(live), action(live)) == (True, "left")
    # A look at a stopped set: its daemon serves nobody.
    await live.sets.stop(NAME)
    live.dies_at("evidence:_read", "report", NAME, "--finding", str(finding))
    with pytest.raises(DaemonGoneError, match="an earlier command did not finish"):
        await decide(live, finding, dry_run=True)
    assert (await live.sets.evidence(NAME, finding)).tied_sectors == 1


async def test_force_that_was_meant_for_guests_tells_what_else_it_costs(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    done = await decide(live, finding)
    assert (await undo(live, done.id, dry_run=True, force=True)).warnings == []
    write(live, shadow, at=AT, data=b"g" * SECTOR)
    for dry in (True, False):
        (told,) = (await undo(live, done.id, dry_run=dry, force=True)).warnings
        assert told.startswith(f"Guests have written since, at offset {AT}: that is lost.")


async def test_saved_contents_that_were_damaged_since_the_kill_are_not_written(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    done = await decide(live, finding)
    live.dies_at("restoring:NbdLink", "resolve", NAME, "--undo", str(done.id), "--yes")
    file = saved.directory(live.directories.state_dir(NAME), 1) / "copy-b.bin"
    file.write_bytes(b"x" * SECTOR)
    await live.start()
    assert (all(live.equal_to(shadow).values()), await is_served(live)) == (True, True)


_SIGNALLED = """
import os, signal, sys, threading
from qorumctl.controller import resolving
from qorumctl.controller.observer import ScrubControl
place, number = sys.argv.pop(1), signal.Signals[sys.argv.pop(1)]
# Whoever runs the tests may ignore it (nohup).
signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
step, stop, heard = getattr(resolving, place), ScrubControl.stop, threading.Event()
def stopping(*arguments):
    stop(*arguments)
    heard.set()
def signalled(*arguments, **keys):
    os.kill(os.getpid(), number)
    heard.wait()
    return step(*arguments, **keys)
ScrubControl.stop = stopping
setattr(resolving, place, signalled)
from qorumctl.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
async def test_a_signal_ends_it_in_order_and_what_was_written_is_told(
    live_set: LiveSets, number: str, code: int
) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    damaged = images(live)

    def signalled(place: str) -> subprocess.CompletedProcess[str]:
        line = ["--json", "resolve", NAME, "--finding", str(finding), "--with", "bitwise", "--yes"]
        command = [sys.executable, "-c", _SIGNALLED, place, number, *line]
        return subprocess.run(
            command, env=live.environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )

    ended = signalled("_save")
    assert (ended.returncode, images(live) == damaged, await is_served(live)) == (code, True, True), ended.stderr
    ended = signalled("write_alike")
    assert (ended.returncode, json.loads(ended.stdout)["id"]) == (0, 1), ended.stderr
    assert (all(live.equal_to(shadow).values()), await is_served(live)) == (True, True)
