"""`copy detach` and `copy rejoin` while guests write: no write is lost, and it costs what was missed."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl import identity
from qorumctl.core.ranges import Range
from qorumctl.errors import CopyError, QorumError, RefusedError
from tests.attack import Attack
from tests.daemon.test_quorum_set import make_certificates
from tests.integration.absence import (
    AT,
    NEW,
    as_if_nothing_had_been,
    cut,
    done,
    lose_the_daemon,
    standing,
    write,
)
from tests.integration.harness import NAME, LiveSet, Writers
from tests.integration.picture import nothing_changes, status_of
from tests.live import MIB, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 8 * MIB
EQUAL = {"a": True, "b": True, "c": True}


async def running(live: LiveSet, **options: str) -> bytearray:
    await live.create(**options)
    await live.start()
    return live.fill()


async def ends_equal(live: LiveSet, shadow: bytearray) -> None:
    """Nothing is left over, everything is stored, and the set starts again as if nothing had been."""
    assert as_if_nothing_had_been(await standing(live))
    assert (await status_of(live.sets)).state == "healthy"
    assert (await live.sets.stop(NAME)).warnings == []
    assert live.equal_to(shadow) == EQUAL
    await live.start()


@pytest.mark.attack("detach and rejoin lose no write", "each copy in turn, under four writers", weight=2)
async def test_copies_come_and_go_under_writers(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=SIZE // 2)
    shadow = await running(live)
    for seed in attack.rounds(1):
        dice = random.Random(seed)
        with Writers(live, shadow, Range(0, SIZE // 2), seed=seed) as writers:
            for copy in "abc":
                await live.sets.detach(NAME, copy)
                enough = writers.writes + dice.randrange(200)
                wait_for(lambda enough=enough: writers.writes >= enough, "writes", deadline_s=60)
                result = done(live, "rejoin", copy)
                assert (result["changed"], result["full"]) == (True, False)
                attack.count(rejoins=1, copied_bytes=result["copied_bytes"], healed_bytes=result["healed_bytes"])
        attack.count(writes=writers.writes)
        await ends_equal(live, shadow)


async def test_it_costs_what_was_missed(live_set: LiveSets) -> None:
    live = live_set(size_bytes=64 << 30)
    await live.create(thin=True)
    await live.start()
    await live.sets.detach(NAME, "b")
    link, missed = live.link(), 32 * MIB
    for n in range(missed // MIB):
        assert link.write(n * 2048 * MIB, b"%d" % (n % 10) * MIB)
    link.close()
    assert (await status_of(live.sets)).copies[1].missed_bytes == missed
    result = await live.sets.rejoin(NAME, "b")
    assert (result.full, result.compared_bytes, result.copied_bytes, result.passes) == (False, 0, missed, 2)
    assert result.verified_bytes == missed
    with live.image("b").open("rb") as image:
        image.seek(7 * 2048 * MIB)
        assert image.read(MIB) == b"7" * MIB
    assert (await status_of(live.sets)).state == "healthy"


async def test_after_the_record_was_lost_all_is_compared_and_only_what_differs_is_written(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    await live.sets.detach(NAME, "b")
    write(live, shadow)
    lose_the_daemon(live)
    assert (await live.sets.start(NAME, degraded=True)).changed
    write(live, shadow, at=3 * MIB)
    assert "rejoin compares all of it" in ((await status_of(live.sets)).copies[1].note or "")
    result = await live.sets.rejoin(NAME, "b")
    assert (result.full, result.compared_bytes, result.copied_bytes) == (True, SIZE, 2 * len(NEW))
    assert result.reason == "the record of what it missed was lost with the daemon"
    await ends_equal(live, shadow)


async def test_while_the_others_are_in_doubt_it_says_so_and_a_scrub_helps(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    await live.sets.detach(NAME, "b")
    with Writers(live, shadow, Range(0, SIZE), seed=3, count=2):
        live.lose_the_state()
        with pytest.raises(RefusedError, match="copy a, c has missed a write and does not count") as caught:
            await live.sets.rejoin(NAME, "b")
    assert "Run 'qorumctl scrub web01'" in (caught.value.remedy or "")
    assert (await live.scrub()).outcome == "clean"
    assert (await live.sets.rejoin(NAME, "b")).changed
    assert as_if_nothing_had_been(await standing(live))
    assert (await live.scrub()).outcome == "clean"
    assert {copy.state for copy in (await status_of(live.sets)).copies} == {"current"}
    assert live.equal_to(shadow) == EQUAL


async def test_a_scrub_meanwhile_compares_the_others_and_leaves_the_record(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    await live.sets.detach(NAME, "b")
    write(live, shadow)
    report = await live.scrub()
    assert (report.outcome, set(report.read_bytes)) == ("clean", {"a", "c"})
    found = (await status_of(live.sets)).copies[1]
    assert (found.state, found.missed_bytes) == ("missing", len(NEW))
    assert (await live.sets.rejoin(NAME, "b")).copied_bytes == len(NEW)
    await ends_equal(live, shadow)


@pytest.mark.parametrize("options", [{"policy": "report"}, {"format": "qcow2"}])
async def test_without_rewriting_and_with_qcow2(live_set: LiveSets, options: dict[str, str]) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live, **options)
    await live.sets.detach(NAME, "b")
    write(live, shadow)
    result = await live.sets.rejoin(NAME, "b")
    assert (result.full, result.copied_bytes) == (False, len(NEW))
    assert as_if_nothing_had_been(await standing(live))
    link = live.link("copy-b")
    held = link.read(Range(0, SIZE))
    link.close()
    assert held == shadow
    assert (await live.scrub()).outcome == "clean"


async def test_what_may_not_be_healed_waits_for_the_guests_to_pause(live_set: LiveSets) -> None:
    """Policy report, five copies, two of them away: under writers no copy comes back that lacks something."""
    live = live_set(size_bytes=2 * MIB)
    await live.create(policy="report", count=5)
    await live.start()
    shadow = live.fill()
    for copy in "bd":
        await live.sets.detach(NAME, copy)
    with (
        Writers(live, shadow, Range(0, 2 * MIB), count=1),
        pytest.raises(RefusedError, match="Copy b cannot come back: guests write too much to web01"),
    ):
        await live.sets.rejoin(NAME, "b")
    assert set((await standing(live)).copies) == {"a", "c", "e"}
    for copy in "bd":
        assert not (await live.sets.rejoin(NAME, copy)).full
    await live.sets.stop(NAME)
    assert set(live.equal_to(shadow).values()) == {True}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_a_copy_behind_tls(nbdkit: Nbdkit, live_set: LiveSets, short_dir: Path) -> None:
    certificates = make_certificates(short_dir / "pki")
    live = live_set(size_bytes=SIZE)
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = nbdkit("--tls=require", f"--tls-certificates={certificates}", "file", paths[1])
    uri = server.uri.replace("nbd+unix", "nbds+unix") + f"&tls-certificates={certificates}"
    await live.create(sources=[paths[0], uri, paths[2]], size_bytes=None)
    live.sources = paths
    await live.start()
    for _ in range(2):
        await live.sets.detach(NAME, "b")
        shadow = live.fill()
        assert (await live.sets.rejoin(NAME, "b")).copied_bytes == SIZE
        assert as_if_nothing_had_been(await standing(live))
        assert live.equal_to(shadow) == EQUAL


async def test_a_copy_whose_server_was_killed_and_is_back(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = nbdkit("file", paths[1])
    await live.create(sources=[paths[0], server.uri, paths[2]], size_bytes=None)
    live.sources = paths
    await live.start()
    shadow = live.fill()
    await live.sets.detach(NAME, "b")
    server.end()
    write(live, shadow)
    with pytest.raises(CopyError, match=r"Copy b .* cannot be reached"):
        await live.sets.rejoin(NAME, "b")
    Path(server.socket).unlink()
    back = nbdkit("file", paths[1])
    Path(server.socket).symlink_to(back.socket)
    result = await live.sets.rejoin(NAME, "b")
    assert (result.full, result.copied_bytes) == (False, len(NEW))
    assert as_if_nothing_had_been(await standing(live))
    assert live.equal_to(shadow) == EQUAL


# -- what comes back has to be the copy that left


def another_set(live: LiveSet) -> None:
    sidecar = identity.read(live.image("b"))
    assert sidecar is not None
    identity.write(live.image("b"), sidecar.model_copy(update={"uuid": "0" * 8 + "-0000-0000-0000-" + "0" * 12}))


WRONG: dict[str, tuple[Callable[[LiveSet], object], str]] = {
    "another length": (lambda live: os.truncate(live.image("b"), SIZE - MIB), "has 7340032 bytes, the set 8388608"),
    "no image": (lambda live: live.image("b").unlink(), "does not exist"),
    "another set's": (another_set, "belongs to set 'web01' of another definition"),
    "another copy's": (
        lambda live: shutil.copy(identity.sidecar_path(live.image("a")), identity.sidecar_path(live.image("b"))),
        "is that of copy 'a'",
    ),
    "no identity": (lambda live: identity.sidecar_path(live.image("b")).unlink(), "has lost its identity file"),
    "the same image twice": (
        lambda live: (live.image("b").unlink(), live.image("b").hardlink_to(live.image("a"))),
        "in use by another process|are the same image",
    ),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_not_the_copy_that_left_is_refused(live_set: LiveSets, what: str) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    await live.sets.detach(NAME, "b")
    write(live, shadow)
    spoil, words = WRONG[what]
    spoil(live)
    before = await standing(live)
    with nothing_changes(live), pytest.raises(QorumError, match=words):
        await live.sets.rejoin(NAME, "b")
    assert await standing(live) == before
    if what == "no identity":
        assert (await live.sets.rejoin(NAME, "b", full=True)).copied_bytes == len(NEW)
        await ends_equal(live, shadow)


async def test_an_image_that_was_restored_from_a_backup_is_compared(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    backups = [live.image("b"), identity.sidecar_path(live.image("b"))]
    for path in backups:
        shutil.copy(path, f"{path}.backup")
    await live.start()
    shadow = live.fill()
    await live.sets.detach(NAME, "b")
    for path in backups:
        shutil.copy(f"{path}.backup", path)
    result = await live.sets.rejoin(NAME, "b")
    assert (result.full, result.reason) == (True, "its image is not the one that left")
    await ends_equal(live, shadow)


async def test_what_the_others_do_not_agree_on_keeps_it_away_until_it_is_mended(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    await live.sets.detach(NAME, "b")
    write(live, shadow)
    # c loses what was written: with the stale b it would be a majority.
    live.poke("c", AT, live.contents("b")[AT : AT + 512])
    with pytest.raises(RefusedError, match=f"do not agree on 512 B that it lacks, at {AT}:512") as caught:
        await live.sets.rejoin(NAME, "b")
    assert caught.value.remedy is not None
    assert live.contents("a")[AT : AT + 4096] == NEW
    assert set((await standing(live)).copies) == {"a", "c"}
    write(live, shadow)
    assert (await live.sets.rejoin(NAME, "b")).full is False
    await ends_equal(live, shadow)


async def test_damage_beside_what_it_missed_does_not_keep_it_away(live_set: LiveSets) -> None:
    """Ranges that lie close together are copied as one. What lies between them the copy has, and it decides there."""
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    await live.sets.detach(NAME, "b")
    write(live, shadow, at=AT)
    write(live, shadow, at=AT + 8192)
    live.poke("a", AT + 4096, bytes(512))
    assert (await live.sets.rejoin(NAME, "b")).full is False
    assert live.contents("b") == shadow
    assert (await live.scrub()).outcome == "repaired"
    await ends_equal(live, shadow)


# -- killed at any instant


@pytest.mark.attack("a killed detach or rejoin is repeated to its end", "kill -9 before any of its steps", weight=2)
async def test_killed_before_any_step_and_repeated(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    for seed in attack.rounds(1):
        dice = random.Random(seed)
        full = ["--full"] if seed % 4 == 3 else []
        killed = cut(live, dice.randrange(1, 35), "copy", "detach", NAME, "b")
        write(live, shadow, at=dice.randrange(SIZE // 4096) * 4096, data=dice.randbytes(4096))
        if seed % 3 != 1:
            done(live, "detach", "b")
        for _ in range(2):
            write(live, shadow, at=dice.randrange(SIZE // 4096) * 4096, data=dice.randbytes(4096))
            killed += cut(live, dice.randrange(1, 80), "copy", "rejoin", NAME, "b", *full)
        write(live, shadow, at=dice.randrange(SIZE // 4096) * 4096, data=dice.randbytes(4096))
        done(live, "rejoin", "b")
        attack.count(kills=killed)
        await ends_equal(live, shadow)


@pytest.mark.attack("a stale copy never counts after a crash", "kill -9 of command and daemon at any step", weight=1)
async def test_command_and_daemon_killed_together(live_set: LiveSets, attack: Attack) -> None:
    """The host fails at any step of a detach: whatever was written since, the copy is never taken for current."""
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    for seed in attack.rounds(1):
        dice = random.Random(seed)
        attack.count(kills=1 + cut(live, dice.randrange(1, 35), "copy", "detach", NAME, "b"))
        write(live, shadow, at=dice.randrange(SIZE // 4096) * 4096, data=dice.randbytes(4096))
        lose_the_daemon(live)
        left_before = "b" in (await status_of(live.sets)).model_dump_json() and live.contents("b") != shadow
        try:
            await live.start()
            assert not left_before
        except RefusedError:
            await live.sets.start(NAME, degraded=True)
        if cut(live, dice.randrange(1, 80), "copy", "rejoin", NAME, "b"):
            done(live, "rejoin", "b")
        await ends_equal(live, shadow)
