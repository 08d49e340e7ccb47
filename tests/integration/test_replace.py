"""`copy replace` while guests write: no write is lost, the old image stays whole, and killed anywhere it goes on."""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qorumctl import identity
from qorumctl.controller.observer import ScrubControl, Silent, StopReason
from qorumctl.controller.options import ReplaceOptions, Timeouts
from qorumctl.core.ranges import Range
from qorumctl.daemon.children import Children
from qorumctl.errors import CopyError, DaemonGoneError, DaemonStalledError, QorumError, RefusedError, UsageError
from qorumctl.model.spec import CopySpec
from qorumctl.store import Store
from tests.attack import Attack
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
from tests.live import MIB, NbdServer, faulty_server, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 8 * MIB


async def running(live: LiveSet, **options: str) -> bytearray:
    await live.create(**options)
    await live.start()
    return live.fill()


async def replaced(live: LiveSet, copy: str, source: Path | str) -> None:
    """As it should be after that: the definition names it, nothing is left over, and the set is healthy."""
    live.sources["abc".index(copy)] = str(source)
    assert live.sets.show(NAME).definition.copy_named(copy).source.label == str(source)
    state = await standing(live)
    assert (set(state.copies), state.further, state.missed, state.watches) == ({"a", "b", "c"}, (), (), frozenset())
    assert state.exports == {"volume", "heal", "copy-a", "copy-b", "copy-c"}
    assert len([node for node in state.nodes if node.startswith("copy-")]) == 6
    status = await status_of(live.sets)
    assert (status.state, status.definition_differs) == ("healthy", False), status.reason


async def holds(live: LiveSet, shadow: bytearray) -> None:
    """Every copy, read by itself."""
    for copy in "abc":
        link = live.link(f"copy-{copy}")
        assert link.read(Range(0, SIZE)) == shadow, copy
        link.close()


async def test_a_copy_is_replaced(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    old, new = live.contents("c"), live.images_dir / "c2.img"
    result = await live.sets.replace(NAME, "c", str(new))
    assert (result.changed, result.source, result.old_source) == (True, str(new), str(live.image("c")))
    assert (result.full, result.compared_bytes, result.copied_bytes, result.verified_bytes) == (False, SIZE, SIZE, SIZE)
    before = live.image("c")
    await replaced(live, "c", new)
    write(live, shadow, data=NEW)
    await holds(live, shadow)
    assert before.read_bytes() == old != bytes(shadow)
    assert (await live.scrub()).outcome == "clean"
    await live.sets.restart(NAME)
    assert "copy-c" in (await standing(live)).nodes
    await replaced(live, "c", new)
    await live.sets.stop(NAME)
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}


@pytest.mark.attack("a replaced copy holds every acknowledged write", "each copy in turn, under four writers", weight=2)
async def test_copies_are_replaced_under_writers(
    live_set: LiveSets, nbdkit: Nbdkit, short_dir: Path, attack: Attack
) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    for seed in attack.rounds(1):
        servers: list[NbdServer] = []
        with Writers(live, shadow, Range(0, MIB), seed=seed) as writers:
            for turn, (copy, kind) in enumerate((("c", "qcow2"), ("a", "nbd"))):
                new: Path | str = live.images_dir / f"{seed}-{turn}.img"
                if kind == "nbd":
                    backing = live.images_dir / f"{seed}-{turn}.backing"
                    with backing.open("wb") as file:
                        file.truncate(SIZE)
                    servers.append(nbdkit("file", backing))
                    new = servers[-1].uri
                options = ["--format", "qcow2"] if kind == "qcow2" else []
                result = done(live, "replace", copy, str(new), *options)
                assert (result["changed"], result["full"]) == (True, False)
                attack.count(replacements=1, healed_bytes=result["healed_bytes"])
                await replaced(live, copy, new)
        attack.count(writes=writers.writes)
        await holds(live, shadow)
        assert (await live.scrub()).outcome == "clean"
        # Its server ends with the round.
        done(live, "replace", "a", str(live.images_dir / f"{seed}-last.img"))
        for server in servers:
            server.end()
        await live.sets.restart(NAME)
        await holds(live, shadow)


@pytest.mark.attack("a killed replacement is repeated to its end", "kill -9 before any of its steps", weight=2)
async def test_killed_before_any_step_and_repeated(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    for seed in attack.rounds(2):
        dice = random.Random(seed)
        copy, new = dice.choice("abc"), live.images_dir / f"{seed}.img"
        if seed % 3 == 1:
            done(live, "detach", copy)
        killed = 0
        for _ in range(1 + seed % 2):
            killed += cut(live, dice.randrange(1, 130), "copy", "replace", NAME, copy, str(new))
            write(live, shadow, at=dice.randrange(SIZE // 4096) * 4096, data=dice.randbytes(4096))
        if seed % 4 == 3:
            # What is in its way when another command comes first.
            assert (await live.scrub()).outcome == "clean"
        result = done(live, "replace", copy, str(new))
        write(live, shadow, at=dice.randrange(SIZE // 4096) * 4096, data=dice.randbytes(4096))
        attack.count(kills=killed, copied_bytes=result["copied_bytes"])
        before = live.image(copy)
        await replaced(live, copy, new)
        await holds(live, shadow)
        before.unlink()


@pytest.mark.attack("an unproven image never counts after a crash", "kill -9 of command and daemon", weight=1)
async def test_command_and_daemon_killed_together(live_set: LiveSets, attack: Attack) -> None:
    """The host fails at any step of a replacement: either set stands whole, the old one or the new one."""
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    for seed in attack.rounds(1):
        dice = random.Random(seed)
        copy, new = dice.choice("abc"), live.images_dir / f"{seed}.img"
        attack.count(kills=1 + cut(live, dice.randrange(1, 130), "copy", "replace", NAME, copy, str(new)))
        write(live, shadow, at=dice.randrange(SIZE // 4096) * 4096, data=dice.randbytes(4096))
        lose_the_daemon(live)
        await live.start()
        await holds(live, shadow)
        if dice.randrange(2):
            done(live, "replace", copy, "--cancel")
        done(live, "replace", copy, str(new))
        await replaced(live, copy, new)
        await holds(live, shadow)


async def test_a_cancelled_one_leaves_the_old_copy_in_place(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    new, command = live.images_dir / "new.img", ("copy", "replace", NAME, "c", str(live.images_dir / "new.img"))
    for n, place in enumerate(("newcomer:make", 20, 50, "detaching:flush", "succession:begin", "succession:_announce")):
        if isinstance(place, str):
            live.dies_at(place, *command)
        else:
            assert cut(live, place, *command)
        write(live, shadow, at=n * 4096)
        copy = (await status_of(live.sets)).copies[2]
        assert (copy.state, copy.replaced_by) == ("current", str(new))
        assert copy.note == f"being replaced by {new}: 'qorumctl copy replace web01 c' goes on"
        with pytest.raises(RefusedError, match=f"is being replaced by {new} already"):
            await live.sets.replace(NAME, "c", str(live.images_dir / "other.img"))
        stopped = place in {50, "succession:begin"}
        if stopped:
            await live.sets.stop(NAME)
        result = await live.sets.replace(NAME, "c", None, ReplaceOptions(cancel=True))
        assert (result.changed, result.cancelled) == (True, True)
        if stopped:
            await live.start()
        assert not new.exists()
        assert not identity.sidecar_path(new).exists()
        assert as_if_nothing_had_been(await standing(live))
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}
    assert (await live.sets.replace(NAME, "c", None, ReplaceOptions(cancel=True))).changed is False
    with pytest.raises(UsageError, match="no new image was named"):
        await live.sets.replace(NAME, "c")


async def test_of_a_copy_that_has_gone_from_the_definition(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create(count=5)
    await live.start()
    shadow = live.fill()
    new = live.images_dir / "new.img"
    assert cut(live, 50, "copy", "replace", NAME, "e", str(new))
    await live.sets.stop(NAME)
    definition = live.directories.config / f"{NAME}.toml"
    kept, _, _ = definition.read_text().partition('[[copies]]\nname = "d"')
    definition.write_text(kept.replace("threshold = 3", "threshold = 2"))
    await live.start(now=True)
    other = live.images_dir / "other.img"
    assert (await live.sets.replace(NAME, "c", str(other))).changed
    result = await live.sets.replace(NAME, "e", None, ReplaceOptions(cancel=True))
    assert (result.changed, result.cancelled, result.warnings) == (True, True, [])
    assert not new.exists()
    await replaced(live, "c", other)
    await holds(live, shadow)


async def test_a_cancelled_one_says_that_the_copy_itself_is_away(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await running(live)
    await live.sets.detach(NAME, "c")
    assert cut(live, 50, "copy", "replace", NAME, "c", str(live.images_dir / "new.img"))
    result = await live.sets.replace(NAME, "c", None, ReplaceOptions(cancel=True))
    assert result.warnings == ["Copy c itself is away: 'qorumctl copy rejoin web01 c' brings it back."]
    await live.sets.rejoin(NAME, "c")
    assert as_if_nothing_had_been(await standing(live))


@pytest.mark.parametrize("host_fails", [True, False])
async def test_the_mark_of_an_old_image_that_had_left_does_not_keep_the_new_one_out(
    live_set: LiveSets, host_fails: bool
) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    new = live.images_dir / "new.img"
    await live.sets.detach(NAME, "c")
    write(live, shadow)
    succeed = "qorumctl.daemon.children:Children.succeed"
    assert cut(live, 1, "copy", "replace", NAME, "c", str(new), since=succeed)
    if host_fails:
        lose_the_daemon(live)
        await live.start()
    else:
        await live.sets.restart(NAME)
    await replaced(live, "c", new)
    await holds(live, shadow)


async def test_a_record_that_is_lost_on_the_way_leaves_no_two_images_for_one_copy(live_set: LiveSets) -> None:
    """Without the note nobody could tell them apart: the one would be detached, and the other told to be back."""
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    new = live.images_dir / "new.img"
    live.dies_at("succession:begin", "copy", "replace", NAME, "c", str(new))
    live.lose_the_state()
    for work in (live.sets.detach(NAME, "c"), live.sets.rejoin(NAME, "c"), live.sets.replace(NAME, "c", str(new))):
        with pytest.raises(RefusedError, match="Two images stand for copy c of web01"):
            await work
    write(live, shadow)
    assert (await live.scrub()).outcome == "clean"
    await live.sets.restart(NAME)
    assert as_if_nothing_had_been(await standing(live))
    await holds(live, shadow)


async def test_killed_as_the_images_change_places_nobody_is_said_to_hang(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    gone = set()
    for step in range(3, 9, 2):
        new = live.images_dir / f"{step}.img"
        succeed = "qorumctl.daemon.children:Children.succeed"
        assert cut(live, step, "copy", "replace", NAME, "c", str(new), since=succeed)
        gone.add("copy-c" not in (await standing(live)).exports)
        status = await status_of(live.sets)
        assert (status.state, status.copies[2].state) == ("healthy", "current")
        assert (await live.sets.replace(NAME, "c")).changed
        await replaced(live, "c", new)
    assert True in gone
    await holds(live, shadow)


async def test_too_late_to_cancel(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    new = live.images_dir / "new.img"
    live.dies_at("succession:finish", "copy", "replace", NAME, "c", str(new))
    write(live, shadow)
    with pytest.raises(RefusedError, match="too late to cancel: copy c of web01 has been replaced"):
        await live.sets.replace(NAME, "c", None, ReplaceOptions(cancel=True))
    await replaced(live, "c", new)
    await holds(live, shadow)


async def test_interrupted_it_goes_on(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    control = ScrubControl()

    class Impatient(Silent):
        def moved(self, position: object) -> None:
            control.stop(StopReason.INTERRUPTED)

    new = str(live.images_dir / "new.img")
    options = ReplaceOptions(rate_bytes_per_s=64 * MIB)
    with pytest.raises(QorumError, match="Interrupted: copy c of web01 is not replaced yet"):
        await live.sets.replace(NAME, "c", new, options, observer=Impatient(), control=control)
    write(live, shadow)
    assert (await live.sets.replace(NAME, "c")).changed
    await replaced(live, "c", new)
    await holds(live, shadow)


async def test_a_copy_that_is_gone_for_good(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    await live.sets.stop(NAME)
    live.image("b").unlink()
    identity.sidecar_path(live.image("b")).unlink()
    await live.sets.start(NAME, degraded=True)
    write(live, shadow)
    with pytest.raises(RefusedError, match="is where copy b of web01 lies now"):
        await live.sets.replace(NAME, "b", str(live.image("b")))
    new = live.images_dir / "b2.img"
    assert (await live.sets.replace(NAME, "b", str(new))).changed
    await replaced(live, "b", new)
    await holds(live, shadow)
    assert (await live.sets.restart(NAME)).state == "healthy"


async def with_a_failing_copy(live: LiveSet, nbdkit: Nbdkit, trouble: Path) -> bytearray:
    """c is behind a server that refuses writes while `trouble` and `trouble`.write exist."""
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = faulty_server(nbdkit, Path(paths[2]), [], once=trouble)
    await live.create(sources=[*paths[:2], server.uri], size_bytes=None)
    live.sources = paths
    await live.start()
    return live.fill(length_bytes=MIB)


def miss_a_write(live: LiveSet, shadow: bytearray, trouble: Path) -> None:
    trouble.touch()
    Path(f"{trouble}.write").touch()
    write(live, shadow)
    with Store.open(live.directories.state_dir(NAME), read_only=True) as store:
        wait_for(lambda: any(s.copy == "c" for s in store.suspicions()), "the mark of a copy that missed a write")


async def test_an_old_image_that_missed_writes_leaves_first(
    live_set: LiveSets, nbdkit: Nbdkit, short_dir: Path
) -> None:
    """QEMU counts every child: two that lack the same write could win against the two that have it."""
    live = live_set(size_bytes=SIZE)
    shadow = await with_a_failing_copy(live, nbdkit, short_dir / "trouble")
    miss_a_write(live, shadow, short_dir / "trouble")
    live.dies_at("succession:begin", "copy", "replace", NAME, "c", str(live.images_dir / "new.img"))
    assert "copy-c" not in (await standing(live)).nodes
    assert (await live.sets.replace(NAME, "c")).warnings == []
    await replaced(live, "c", live.images_dir / "new.img")
    await holds(live, shadow)


async def test_an_old_image_that_misses_a_write_as_the_new_one_comes_in_leaves_at_once(
    live_set: LiveSets, nbdkit: Nbdkit, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await with_a_failing_copy(live, nbdkit, short_dir / "trouble")
    bring_in, there = Children.bring_in, []

    async def miss_first(children: Children, copy: CopySpec) -> None:
        await asyncio.to_thread(miss_a_write, live, shadow, short_dir / "trouble")
        await bring_in(children, copy)
        there.append((await standing(live)).copies)

    monkeypatch.setattr(Children, "bring_in", miss_first)
    result = await live.sets.replace(NAME, "c", str(live.images_dir / "new.img"))
    assert (there, result.healed_bytes) == ([("a", "b", "c")], len(NEW))
    await replaced(live, "c", live.images_dir / "new.img")
    await holds(live, shadow)


@pytest.mark.parametrize("options", [{"policy": "report"}, {"format": "qcow2"}])
async def test_without_rewriting_and_with_qcow2(live_set: LiveSets, options: dict[str, str]) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live, **options)
    new = live.images_dir / "new.img"
    assert (await live.sets.replace(NAME, "b", str(new))).changed
    await replaced(live, "b", new)
    await holds(live, shadow)


async def test_a_second_qcow2_waits_for_a_restart(live_set: LiveSets) -> None:
    """The volume is not written through: what two of them have in memory dies with the daemon, flushed or not."""
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    first, second = live.images_dir / "first.qcow2", live.images_dir / "second.qcow2"
    qcow2 = ReplaceOptions(format="qcow2")
    assert (await live.sets.replace(NAME, "b", str(first), qcow2)).changed
    live.sources[1] = str(first)
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"Copy b of web01 .* a qcow2 image") as caught:
            await live.sets.replace(NAME, "c", str(second), qcow2)
        assert "Restart web01 first, or use a raw image." in str(caught.value)
        assert not second.exists()
        # Opened anew, the copy's nodes are called as if it had been there from the start.
        await live.sets.detach(NAME, "b")
        await live.sets.rejoin(NAME, "b")
    await live.sets.restart(NAME)
    assert (await live.sets.replace(NAME, "c", str(second), qcow2)).changed
    write(live, shadow)
    assert (await live.scrub()).outcome == "clean"


async def test_damage_in_different_copies_of_one_request_is_not_copied(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    for n, copy in enumerate("abc"):
        live.poke(copy, AT + n * 512, b"\xee" * 512)
    new = live.images_dir / "new.img"
    assert (await live.sets.replace(NAME, "c", str(new))).changed
    assert new.read_bytes() == bytes(shadow)


async def test_what_has_no_majority_is_refused_and_the_old_copy_stays(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    live.poke("a", AT, b"\x01" * 512)
    live.poke("b", AT, b"\x02" * 512)
    new = live.images_dir / "new.img"
    with pytest.raises(RefusedError, match=f"do not agree on 512 B that it lacks, at {AT}:512") as caught:
        await live.sets.replace(NAME, "c", str(new))
    assert "Copy c keeps its old image" in (caught.value.remedy or "")
    assert set((await standing(live)).copies) == {"a", "b", "c"}
    write(live, shadow)
    assert (await live.sets.replace(NAME, "c")).changed
    await replaced(live, "c", new)
    await holds(live, shadow)


@pytest.mark.parametrize("mode", ["fastzeromode=none", "zeromode=none"])
async def test_fast_zeroes_reach_a_copy_that_has_none(
    live_set: LiveSets, nbdkit: Nbdkit, connect: Callable[..., Any], mode: str
) -> None:
    """A quorum works out what its children can do when one is added. With a mirror that swaps them it does not: then
    zeroes that were acknowledged are missing on the new copy."""
    nbd = pytest.importorskip("nbd")
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    backing = live.images_dir / "backing"
    with backing.open("wb") as file:
        file.truncate(SIZE)
    guests = [connect(live.runtime, "volume")]
    assert guests[0].can_fast_zero()
    server = nbdkit("--filter=nozero", "file", backing, mode)
    assert (await live.sets.replace(NAME, "c", server.uri)).changed
    await replaced(live, "c", server.uri)
    guests.append(connect(live.runtime, "volume"))
    for n, guest in enumerate(guests):
        guest.set_strict_mode(0)
        try:
            guest.zero(MIB, n * MIB, nbd.CMD_FLAG_FAST_ZERO)
            shadow[n * MIB : (n + 1) * MIB] = bytes(MIB)
        except nbd.Error as refused:
            if refused.errnum not in {errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}:
                raise
        guest.zero(MIB, (4 + n) * MIB)
        shadow[(4 + n) * MIB : (5 + n) * MIB] = bytes(MIB)
    await holds(live, shadow)
    assert (await live.scrub()).outcome == "clean"
    live.end()


async def test_the_definition_keeps_its_comments_and_the_old_image_is_refused_later(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    await live.sets.stop(NAME)
    definition = live.directories.config / f"{NAME}.toml"
    text = definition.read_text().replace('name = "c"', 'name = "c"  # on the third appliance')
    definition.write_text(text)
    await live.start()
    new, old = live.images_dir / "new.img", live.image("c")
    assert (await live.sets.replace(NAME, "c", str(new))).changed
    assert definition.read_text() == text.replace(str(old), str(new))
    write(live, shadow)
    await live.sets.stop(NAME)
    definition.write_text(text)
    with pytest.raises(RefusedError, match=r"Copy c .* has missed writes"):
        await live.start()
    definition.write_text(text.replace(str(old), str(new)))
    await live.start()
    await replaced(live, "c", new)


async def test_detached_and_back_after_it_was_replaced(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    for turn in range(2):
        new = live.images_dir / f"{turn}.img"
        assert (await live.sets.replace(NAME, "c", str(new))).changed
        await replaced(live, "c", new)
    assert "copy-c.3" in (await standing(live)).nodes
    await live.sets.detach(NAME, "c")
    write(live, shadow)
    assert not [node for node in (await standing(live)).nodes if node.startswith("copy-c")]
    assert (await live.sets.rejoin(NAME, "c")).copied_bytes == len(NEW)
    await replaced(live, "c", new)
    await holds(live, shadow)


async def test_an_export_that_holds_something(live_set: LiveSets, nbdkit: Nbdkit) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    backing = live.images_dir / "backing"
    backing.write_bytes(bytes(SIZE - 512) + b"precious" * 64)
    server = nbdkit("file", backing)
    before = await standing(live)
    with nothing_changes(live), pytest.raises(RefusedError, match=rf"is not blank: something stands at .* {7 * MIB}"):
        await live.sets.replace(NAME, "c", server.uri)
    assert await standing(live) == before
    assert (await live.sets.replace(NAME, "c", server.uri, ReplaceOptions(overwrite=True))).changed
    await replaced(live, "c", server.uri)
    await holds(live, shadow)
    live.end()


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


REFUSED: dict[str, tuple[Callable[[LiveSet, Path], object], str]] = {
    "another length": (lambda _, new: _sparse(new, MIB), "has 1048576 bytes, the set 8388608"),
    "data": (lambda _, new: new.write_bytes(b"x" * SIZE), "exists, and something was written to it"),
    "another set's": (
        lambda live, new: (_sparse(new, SIZE), shutil.copy(f"{live.image('a')}.qorum", f"{new}.qorum")),
        "belongs to set 'web01', as copy a",
    ),
    "another copy's": (lambda live, new: new.symlink_to(live.image("a")), "are the same image"),
    "its own": (lambda live, new: new.hardlink_to(live.image("c")), "are the same image"),
    "no directory": (lambda _, new: new.mkdir(), "not a regular file|is a directory|cannot be"),
}


async def test_what_cannot_take_a_copys_place(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await running(live)
    before = await standing(live)
    for n, (spoil, words) in enumerate(REFUSED.values()):
        new = live.images_dir / f"new{n}.img"
        spoil(live, new)
        with nothing_changes(live), pytest.raises(QorumError, match=words):
            await live.sets.replace(NAME, "c", str(new))
        assert await standing(live) == before
        assert (await status_of(live.sets)).copies[2].replaced_by is None


async def test_an_empty_image_that_was_made_beforehand_is_taken(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    new = live.images_dir / "new.img"
    _sparse(new, SIZE)
    assert (await live.sets.replace(NAME, "c", str(new))).changed
    assert (await live.sets.replace(NAME, "c", str(new))).changed is False
    await replaced(live, "c", new)
    await holds(live, shadow)


async def test_too_few_others_and_unknown_copies(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await running(live)
    new = str(live.images_dir / "new.img")
    with pytest.raises(UsageError, match="has no copy 'x'"):
        await live.sets.replace(NAME, "x", new)
    await live.sets.detach(NAME, "b")
    with pytest.raises(RefusedError, match=r"1 current copy would remain \(copy b is away\)"):
        await live.sets.replace(NAME, "c", new)
    await live.sets.stop(NAME)
    with pytest.raises(DaemonGoneError):
        await live.sets.replace(NAME, "b", new)


async def test_delete_takes_the_unfinished_image_along(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await running(live)
    new = live.images_dir / "new.img"
    assert cut(live, 50, "copy", "replace", NAME, "c", str(new))
    assert new.exists()
    await live.sets.stop(NAME)
    await live.sets.delete(NAME, images=True)
    assert list(live.images_dir.iterdir()) == []


async def test_what_was_found_in_the_old_image_is_no_matter_any_more(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    live.flip("c", AT)
    assert (await live.scrub(mode="report")).outcome == "damaged"
    assert (await status_of(live.sets)).copies[2].state == "suspect"
    new = live.images_dir / "new.img"
    assert (await live.sets.replace(NAME, "c", str(new))).changed
    await replaced(live, "c", new)
    status = await status_of(live.sets)
    assert (status.unrepaired, status.copies[2].outvoted) == (0, 0)
    await holds(live, shadow)


async def test_an_image_that_vanished_on_the_way_is_made_anew(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    new = live.images_dir / "new.img"
    live.dies_at("succession:begin", "copy", "replace", NAME, "c", str(new))
    new.unlink()
    assert (await live.sets.replace(NAME, "c")).compared_bytes == SIZE
    await replaced(live, "c", new)
    await holds(live, shadow)


async def test_an_image_that_was_being_made_is_made_anew(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    new = live.images_dir / "new.qcow2"
    live.dies_at("newcomer:format_image", "copy", "replace", NAME, "c", str(new), "--format", "qcow2")
    assert new.stat().st_size == 0
    assert (await live.sets.replace(NAME, "c")).changed
    await replaced(live, "c", new)
    await holds(live, shadow)


async def test_a_new_image_that_does_not_store_what_it_gets(
    live_set: LiveSets, nbdkit: Nbdkit, short_dir: Path
) -> None:
    live = live_set(size_bytes=SIZE)
    shadow = await running(live)
    backing, trouble = live.images_dir / "backing", short_dir / "trouble"
    _sparse(backing, SIZE)
    server = faulty_server(nbdkit, backing, [], once=trouble)
    trouble.touch()
    for kind, words in (("write", "a write failed"), ("flush", "it does not confirm a flush")):
        Path(f"{trouble}.{kind}").touch()
        with pytest.raises(CopyError, match=f"The new image of copy c cannot be brought up to date: {words}"):
            await live.sets.replace(NAME, "c", server.uri)
        Path(f"{trouble}.{kind}").unlink()
    assert (set((await standing(live)).copies), (await status_of(live.sets)).state) == ({"a", "b", "c"}, "healthy")
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}
    assert (await live.sets.replace(NAME, "c")).changed
    await replaced(live, "c", server.uri)
    await holds(live, shadow)
    live.end()


async def test_an_old_image_that_hangs_leaves_once_its_server_is_killed(
    live_set: LiveSets, nbdkit: Nbdkit, short_dir: Path
) -> None:
    live = live_set(size_bytes=SIZE, timeouts=Timeouts(drain_s=2.0))
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = nbdkit("file", paths[2])
    await live.create(sources=[*paths[:2], server.uri], size_bytes=None)
    await live.start()
    shadow = live.fill()
    new = live.images_dir / "new.img"
    live.dies_at("succession:finish", "copy", "replace", NAME, "c", str(new))
    server.pause()
    guest = live.link()
    ticket = guest.submit_write(AT, NEW)
    shadow[AT : AT + len(NEW)] = NEW
    with pytest.raises(DaemonStalledError, match=r"is replaced by .*, but the daemon waits for a copy that hangs"):
        await live.sets.replace(NAME, "c")
    server.kill()
    assert guest.complete(ticket)
    guest.close()
    assert (await live.sets.replace(NAME, "c")).changed
    await replaced(live, "c", new)
    await holds(live, shadow)
