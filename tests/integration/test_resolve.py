"""`report --finding`, `resolve` and `resolve --undo`: what an operator sees, decides, and gets back."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qorumctl.controller import maintenance, resolving
from qorumctl.controller.options import ResolveRequest
from qorumctl.core.ranges import Range
from qorumctl.errors import DaemonGoneError, QorumError, RefusedError, StoreError, UsageError
from qorumctl.model.evidence import Evidence, ResolveReport
from qorumctl.store import saved
from tests.attack import Attack
from tests.integration.absence import as_if_nothing_had_been, cut, standing, write
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.live import MIB, NbdServer, faulty_server

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
SIZE = 4 * MIB
AT = 256 * SECTOR
SINCE = "qorumctl.daemon.quorum_set:QuorumSet.withdraw_volume"


def damage(live: LiveSet, sectors: Sequence[int] = (256,)) -> None:
    """One bit of each of these in every copy, another each."""
    for sector in sectors:
        for number, copy in enumerate("abc"):
            live.flip(copy, sector * SECTOR + 100 * number, bit=number)


async def tied(live: LiveSet, sectors: Sequence[int] = (256,)) -> tuple[bytearray, int]:
    """A started set with such damage: what it held, and the finding."""
    await live.create()
    await live.start()
    shadow = live.fill()
    damage(live, sectors)
    report = await live.scrub()
    assert (report.outcome, len(report.findings)) == ("no-majority", 1)
    return shadow, report.findings[0].id


async def decide(live: LiveSet, finding: int, decision: str = "bitwise", **options: Any) -> ResolveReport:
    return await live.sets.resolve(NAME, ResolveRequest(finding, decision, **options))


async def undo(live: LiveSet, saved_id: int | None, **options: Any) -> ResolveReport:
    return await live.sets.resolve(NAME, ResolveRequest(undo=saved_id, **options))


def images(live: LiveSet) -> dict[str, bytes]:
    return {copy: live.contents(copy) for copy in "abc"}


def action(live: LiveSet) -> str:
    return live.sets.report(NAME).findings[0].action


async def is_served(live: LiveSet) -> bool:
    """The volume is there for guests, and nothing is left of a command."""
    return as_if_nothing_had_been(await standing(live))


# -- the straight way


async def test_a_sector_that_every_copy_has_lost_differently_is_resolved_bitwise_and_undone(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    damaged = images(live)
    done = await decide(live, finding)
    assert all(live.equal_to(shadow).values())
    assert (done.state, done.warnings, done.written_bytes) == ("healthy", [], SECTOR)
    assert action(live) == "resolved"
    undone = await undo(live, done.id)
    assert images(live) == damaged
    assert (undone.state, undone.undone, undone.finding) == ("damaged", done.id, finding)
    assert action(live) == "left"
    with pytest.raises(RefusedError, match="restored already"):
        await undo(live, done.id)
    again = await undo(live, undone.id)
    assert all(live.equal_to(shadow).values())
    assert (again.state, action(live)) == ("healthy", "resolved")
    assert await is_served(live)
    assert (await live.scrub()).outcome == "clean"
    # Although that scrub has found nothing there.
    assert (await undo(live, again.id)).state == "damaged"


async def test_a_copy_or_a_file_decides_and_what_has_a_majority_is_not_written(
    live_set: LiveSets, tmp_path: Path
) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live, (256, 257, 258))
    # Of three sectors a guest has written the second anew; the third is sound in two copies, and another guest's.
    write(live, shadow, at=AT + SECTOR, data=b"n" * SECTOR)
    write(live, shadow, at=AT + 2 * SECTOR, data=b"m" * SECTOR)
    live.flip("a", AT + 2 * SECTOR)
    before = images(live)
    contradicting = tmp_path / "x"
    contradicting.write_bytes(bytes(shadow[AT : AT + 2 * SECTOR]) + before["a"][AT + 2 * SECTOR : AT + 3 * SECTOR])
    with pytest.raises(RefusedError, match="differs from what a majority"):
        await decide(live, finding, f"file={contradicting}")
    with pytest.raises(UsageError, match="and the range 1536"):
        await decide(live, finding, f"file={Path(__file__)}")
    assert images(live) == before
    done = await decide(live, finding, "copy=b")
    assert [(r.offset, r.length) for r in done.written] == [(AT, SECTOR)]
    for copy in "abc":
        wanted = bytearray(before[copy])
        wanted[AT : AT + SECTOR] = before["b"][AT : AT + SECTOR]
        assert live.contents(copy) == bytes(wanted)
    await undo(live, done.id)
    assert images(live) == before
    right = tmp_path / "y"
    right.write_bytes(shadow[AT : AT + 3 * SECTOR])
    await decide(live, finding, f"file={right}")
    assert (await live.scrub()).outcome == "repaired"
    assert all(live.equal_to(shadow).values())


async def test_a_dry_run_writes_nothing_and_what_was_shown_is_what_is_written(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    before = images(live)
    shown = await decide(live, finding, dry_run=True)
    assert (shown.dry_run, shown.id, images(live) == before) == (True, None, True)
    assert saved.ids(live.directories.state_dir(NAME)) == []
    live.flip("c", AT + 300)
    with pytest.raises(RefusedError, match="has changed since it was shown"):
        await decide(live, finding, expected_plan=shown.plan)
    assert await is_served(live)
    live.flip("c", AT + 300)
    done = await decide(live, finding, expected_plan=shown.plan)
    assert done.plan == shown.plan
    assert all(live.equal_to(shadow).values())


# -- what is refused


async def test_not_while_a_guest_is_connected_unless_forced(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    before = images(live)
    guest = live.link()
    with pytest.raises(RefusedError, match="A guest is connected"):
        await decide(live, finding)
    assert guest.read(Range(0, SECTOR)) == shadow[:SECTOR]
    assert images(live) == before
    await decide(live, finding, force=True)
    guest.close()
    assert all(live.equal_to(shadow).values())
    assert await is_served(live)


async def test_what_guests_have_written_since_is_not_undone_unless_forced(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    damaged = images(live)
    done = await decide(live, finding)
    write(live, shadow, at=AT, data=b"g" * SECTOR)
    with pytest.raises(RefusedError, match="Guests have written since, at offset 131072"):
        await undo(live, done.id)
    assert all(live.equal_to(shadow).values())
    forced = await undo(live, done.id, force=True)
    assert images(live) == damaged
    # What they had written was saved like anything else.
    await undo(live, forced.id)
    assert all(live.equal_to(shadow).values())
    assert await is_served(live)


async def test_what_is_not_to_be_decided(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    live.flip("b", 8 * SECTOR)
    outvoted = next(one.id for one in (await live.scrub(mode="report")).findings if one.verdict == "outvoted")
    for request, error, words in (
        (ResolveRequest(999, "bitwise"), UsageError, "no finding 999"),
        (ResolveRequest(outvoted, "bitwise"), RefusedError, "has a majority"),
        (ResolveRequest(finding, "copy=x"), RefusedError, "Copy x of web01 cannot be read"),
        (ResolveRequest(finding, "guess"), UsageError, "is no decision"),
        (ResolveRequest(finding), UsageError, "not said what"),
        (ResolveRequest(undo=1), UsageError, "nothing saved as 1"),
    ):
        with pytest.raises(error, match=words):
            await live.sets.resolve(NAME, request)
    write(live, shadow, at=AT, data=b"g" * SECTOR)
    with pytest.raises(RefusedError, match="without a majority any more"):
        await decide(live, finding)
    assert await is_served(live)
    await live.sets.stop(NAME)
    with pytest.raises(DaemonGoneError, match="not running"):
        await decide(live, finding)


async def test_nothing_is_written_where_nothing_can_be_saved(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set(size_bytes=SIZE)
    _, finding = await tied(live)
    before = images(live)

    def full(*_: object) -> None:
        raise StoreError("No space left on device.")

    monkeypatch.setattr(saved.Saving, "finish", full)
    with pytest.raises(StoreError, match="No space"):
        await decide(live, finding)
    monkeypatch.undo()
    assert images(live) == before
    assert saved.ids(live.directories.state_dir(NAME)) == []
    assert await is_served(live)


async def test_a_saved_file_that_is_damaged_is_not_written(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    done = await decide(live, finding)
    assert done.id is not None
    file = saved.directory(live.directories.state_dir(NAME), done.id) / "copy-b.bin"
    file.write_bytes(b"x" * SECTOR)
    with pytest.raises(StoreError, match="does not hold what was saved"):
        await undo(live, done.id)
    assert all(live.equal_to(shadow).values())


async def test_with_a_copy_away_it_is_missed_like_any_write(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    shadow = live.fill()
    for number, copy in enumerate("ab"):
        live.flip(copy, AT + 100 * number)
    await live.sets.detach(NAME, "c")
    (finding,) = (await live.scrub()).findings
    with pytest.raises(RefusedError, match="bits are tied"):
        await decide(live, finding.id)
    done = await decide(live, finding.id, "copy=a")
    shadow[:] = live.contents("a")
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": False}
    with pytest.raises(RefusedError, match="Copy c of web01 is away"):
        await undo(live, done.id)
    back = await live.sets.rejoin(NAME, "c")
    assert not back.full
    assert all(live.equal_to(shadow).values())
    assert await is_served(live)


# -- killed


@pytest.mark.attack(
    "a decision that is killed is finished or undone, and guests get their volume back",
    "kill -9 before any step of resolve and of --undo",
    weight=2,
)
async def test_killed_before_any_step(live_set: LiveSets, attack: Attack) -> None:
    """At every instant each sector of each copy holds what it held before, or what was decided on; and never is one
    written of which nothing is saved."""
    live = live_set(size_bytes=SIZE)
    sectors = range(256, 272)
    shadow, finding = await tied(live, sectors)
    damaged, state_dir = images(live), live.directories.state_dir(NAME)

    def check() -> None:
        now = images(live)
        for copy, held in now.items():
            for at in (sector * SECTOR for sector in sectors):
                part = slice(at, at + SECTOR)
                assert held[part] in (damaged[copy][part], shadow[part])
            assert held[:AT] + held[272 * SECTOR :] == shadow[:AT] + shadow[272 * SECTOR :]
        whole = [n for n in saved.ids(state_dir) if saved.load(state_dir, n) is not None]
        assert now == damaged or whole

    for seed in attack.rounds(2):
        dice, kills = random.Random(seed), 0
        kills += cut(
            live,
            dice.randrange(1, 45),
            "resolve",
            NAME,
            "--finding",
            str(finding),
            "--with",
            "bitwise",
            "--yes",
            since=SINCE,
        )
        check()
        # Whichever command comes next.
        await (live.start if dice.randrange(2) else live.scrub)()
        assert await is_served(live)
        check()
        if images(live) == damaged:
            # A scrub that came next has found it anew.
            await decide(live, live.sets.report(NAME).findings[0].id)
        assert all(live.equal_to(shadow).values())
        newest = max(n for n in saved.ids(state_dir) if saved.load(state_dir, n) is not None)
        kills += cut(live, dice.randrange(1, 100), "resolve", NAME, "--undo", str(newest), "--yes", since=SINCE)
        check()
        await (live.start if dice.randrange(2) else live.scrub)()
        assert await is_served(live)
        if images(live) != damaged:
            assert all(live.equal_to(shadow).values())
            await undo(live, newest)
        assert images(live) == damaged
        finding = (await live.scrub()).findings[0].id
        attack.count(kills=kills)


async def test_what_the_death_of_command_and_daemon_leaves_can_be_undone(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    damaged = images(live)
    live.dies_at("resolving:conclude", "resolve", NAME, "--finding", str(finding), "--with", "bitwise", "--yes")
    assert all(live.equal_to(shadow).values())
    live.end()
    started = await live.sets.start(NAME)
    assert any("resolve web01 --undo 1" in text for text in started.warnings)
    await undo(live, 1)
    assert images(live) == damaged
    assert await is_served(live)


async def test_a_note_that_is_out_of_date_writes_over_no_guest(live_set: LiveSets) -> None:
    """As a state database that was restored, or could not be written to."""
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    done = await decide(live, finding)
    write(live, shadow, at=AT, data=b"g" * SECTOR)
    context = live.sets._defined(NAME)
    with context.store() as store:
        maintenance.put(store, maintenance.Note("writing", done.id))
    async with context.scrub_monitor() as monitor:
        await context.quorum(context.spec(), monitor).withdraw_volume(force=False)
    assert (await live.scrub()).outcome == "clean"
    assert all(live.equal_to(shadow).values())
    assert await is_served(live)


async def test_a_copy_that_does_not_hold_what_is_written_keeps_no_guest_out(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live)
    damaged, writes = images(live), resolving.flush

    def rot(context: Any, export: str) -> bool:
        live.poke("b", AT, b"r" * SECTOR)
        return writes(context, export)

    monkeypatch.setattr(resolving, "flush", rot)
    with pytest.raises(QorumError, match="Copy b does not hold what was written"):
        await decide(live, finding)
    monkeypatch.undo()
    assert await is_served(live)
    assert action(live) == "left"
    assert (await live.scrub()).outcome == "repaired"
    assert all(live.equal_to(shadow).values())
    await undo(live, 1)
    assert images(live) == damaged


# -- evidence


def rows(found: Evidence) -> list[int]:
    return [row.offset for row in found.rows]


async def test_evidence_of_a_set_that_runs_and_of_one_that_is_stopped(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow, finding = await tied(live, (256, 257))
    found = await live.sets.evidence(NAME, finding)
    assert (found.tied_sectors, found.equal_sectors, found.voted_sectors) == (2, 0, 0)
    assert [(copy.name, copy.bits, copy.changed) for copy in found.copies] == [
        ("a", 2, False), ("b", 2, False), ("c", 2, False),
    ]  # fmt: skip
    assert found.bitwise.likelihood == "likely"
    assert rows(found) == [131072, 131168, 131264, 131584, 131680, 131776]
    assert bytes.fromhex(found.rows[0].bitwise or "") == shadow[AT : AT + 16]
    paged = await live.sets.evidence(NAME, finding, most_rows=2, from_bytes=131100)
    assert (rows(paged), paged.more_rows, paged.next_offset) == ([131168, 131264], 3, 131584)
    write(live, shadow, at=AT, data=b"g" * SECTOR)
    await live.sets.stop(NAME)
    stopped = await live.sets.evidence(NAME, finding)
    assert (stopped.state, stopped.tied_sectors, stopped.equal_sectors) == ("stopped", 1, 1)
    assert {copy.changed for copy in stopped.copies} == {True}
    live.poke("c", AT + SECTOR, random.Random(1).randbytes(SECTOR))
    torn = await live.sets.evidence(NAME, finding, most_rows=0)
    assert torn.bitwise.likelihood == "unlikely"
    assert (torn.rows, torn.more_rows) == ([], 32)
    assert (await live.sets.start(NAME)).changed


async def test_a_copy_that_cannot_read_there(live_set: LiveSets, nbdkit: Callable[..., NbdServer]) -> None:
    """Two others that differ are no majority, bit by bit neither. What it held nobody knows, so nothing restores it."""
    live = live_set(size_bytes=SIZE)
    for path in live.paths():
        Path(path).write_bytes(bytes(SIZE))
    bad = live.images_dir / "bad"
    server = faulty_server(nbdkit, Path(live.paths()[2]), [(256, 256)], once=bad)
    await live.create(sources=[*live.paths()[:2], server.uri])
    await live.start()
    shadow = live.fill()
    bad.touch()
    live.flip("a", AT)
    (finding,) = (await live.scrub()).findings
    found = await live.sets.evidence(NAME, finding.id)
    assert [copy.unreadable_bytes for copy in found.copies] == [0, 0, SECTOR]
    assert (found.bitwise.likelihood, found.rows[0].data["c"]) == ("impossible", None)
    with pytest.raises(RefusedError, match="bits are tied"):
        await decide(live, finding.id)
    with pytest.raises(QorumError, match="Copy c does not hold what was written"):
        await decide(live, finding.id, "copy=b")
    assert await is_served(live)
    bad.unlink()
    assert (await live.scrub()).outcome == "clean"
    undone = await undo(live, 1)
    assert any("512 bytes of copy c could not be read" in text for text in undone.warnings)
    assert [live.contents("a") == bytes(shadow), live.contents("b") == bytes(shadow)] == [False, True]
    assert Path(live.paths()[2]).read_bytes() == bytes(shadow)
