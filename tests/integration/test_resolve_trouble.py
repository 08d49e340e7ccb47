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
from tests.integration.harness import NAME, LiveSet
from tests.integration.test_resolve import SIZE, action, decide, images, is_served, tied, undo

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
    assert (await undo(live, done.id)).state == "damaged"


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
