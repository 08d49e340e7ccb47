"""`grow`: all copies or none, and what is new reads as zero."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from qorumctl import images
from qorumctl.controller import growing
from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.errors import QorumError, RefusedError
from qorumctl.model.spec import FileSource
from qorumctl.units import GIB
from tests.attack import Attack
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.integration.test_killed import Killer
from tests.live import MIB, NbdServer

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
OLD, NEW = 4 * MIB, 6 * MIB


async def made(live: LiveSet, **options: object) -> bytes:
    await live.create(size_bytes=OLD, **options)
    data = random.Random(3).randbytes(OLD)
    if options.get("format") != "qcow2":
        for copy in "abc":
            if live.image(copy).is_absolute():
                live.poke(copy, 0, data)
    return data


def lengths(live: LiveSet) -> set[int]:
    return {live.image(copy).stat().st_size for copy in "abc"}


def is_at_rest(live: LiveSet) -> bool:
    note = live.directories.state_dir(NAME) / "growing.json"
    return process.running_pid(live.runtime) is None and not note.exists()


async def test_raw_images(live_set: LiveSets) -> None:
    live = live_set()
    data = await made(live)
    text = live.directories.definition_path(NAME).read_text() + "# mine\n"
    live.directories.definition_path(NAME).write_text(text)
    assert (await live.sets.grow(NAME, NEW)).changed
    assert all(live.equal_to(data + bytes(NEW - OLD)).values())
    assert is_at_rest(live)
    assert live.directories.definition_path(NAME).read_text() == text.replace('"4MiB"', '"6MiB"')
    assert not (await live.sets.grow(NAME, NEW)).changed
    assert (await live.scrub(mode="report")).outcome == "clean"


async def test_qcow2_images_and_a_guest(live_set: LiveSets) -> None:
    live = live_set(size_bytes=OLD)
    await live.create(format="qcow2")
    await live.start()
    shadow = live.fill()
    with pytest.raises(RefusedError, match="is running"):
        await live.sets.grow(NAME, NEW)
    await live.sets.stop(NAME)
    await live.sets.grow(NAME, NEW)
    live.size_bytes = NEW
    await live.start()
    link = live.link()
    assert link.size_bytes == NEW
    assert link.read(growing.between(0, NEW)) == shadow + bytes(NEW - OLD)
    assert link.write(NEW - SECTOR, b"x" * SECTOR)
    link.close()
    assert (await live.scrub()).outcome == "clean"
    await live.sets.stop(NAME)


async def test_what_lies_behind_the_end_of_an_export_is_zeroed(
    live_set: LiveSets, nbdkit: Callable[..., NbdServer]
) -> None:
    live = live_set()
    backing = live.images_dir / "export.img"
    backing.write_bytes(bytes(OLD))
    server = nbdkit("file", backing)
    for path in live.paths(2):
        Path(path).write_bytes(bytes(OLD))
    await live.create(size_bytes=OLD, sources=[*live.paths(2), server.uri])
    with pytest.raises(RefusedError, match=f"has {OLD} bytes, and is to have {NEW}"):
        await live.sets.grow(NAME, NEW)
    assert live.image("a").stat().st_size == OLD
    with backing.open("ab") as file:
        file.write(b"old bytes" * MIB)
    os.truncate(backing, NEW)
    await live.sets.grow(NAME, NEW)
    assert backing.read_bytes() == live.contents("a") == bytes(NEW)
    assert is_at_rest(live)


async def test_what_cannot_grow_is_refused_before_anything_is_changed(live_set: LiveSets) -> None:
    live = live_set()
    await made(live)
    for size, words in [
        (OLD - SECTOR, "never becomes smaller"),
        (OLD + 100, "not a multiple of 512"),
        (1 << 50, "free"),
    ]:
        with pytest.raises(RefusedError, match=words):
            await live.sets.grow(NAME, size)
    os.truncate(live.image("b"), NEW)
    with pytest.raises(RefusedError, match=rf"Copy b .* has {NEW} bytes, the set {OLD}"):
        await live.sets.grow(NAME, NEW)
    os.truncate(live.image("b"), OLD)
    assert is_at_rest(live)
    assert live.sets.show(NAME).definition.size == OLD


async def test_where_one_copy_does_not_become_larger_none_does(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, resize, calls = live_set(), growing._resize, []
    data = await made(live)

    async def failing(monitor: object, copy: object, size_bytes: int) -> None:
        calls.append(size_bytes)
        if len(calls) == 3:
            raise QorumError("No space left on device.")
        await resize(monitor, copy, size_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(growing, "_resize", failing)
    with pytest.raises(QorumError, match="No space"):
        await live.sets.grow(NAME, NEW)
    assert all(live.equal_to(data).values())
    assert is_at_rest(live)
    assert live.sets.show(NAME).definition.size == OLD


STEPS = ("_carry_out", "_resize", "_prove", "definitions.save", "_conclude")


@pytest.mark.parametrize(("step", "fmt"), [*((step, "raw") for step in STEPS), ("_prove", "qcow2")])
async def test_killed_before_any_step_the_next_command_finishes_it(live_set: LiveSets, step: str, fmt: str) -> None:
    live = live_set()
    data = await made(live, format=fmt)
    live.dies_at(f"growing:{step}", "grow", NAME, str(NEW))
    report = await live.scrub(mode="report")
    assert (report.outcome, report.size) == ("clean", NEW)
    assert is_at_rest(live)
    if fmt == "raw":
        assert all(live.equal_to(data + bytes(NEW - OLD)).values())


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_killed_and_then_a_copy_is_gone_it_is_taken_back(
    live_set: LiveSets, fmt: Literal["raw", "qcow2"]
) -> None:
    live = live_set()
    data = await made(live, format=fmt)
    live.dies_at("growing:_prove", "grow", NAME, str(NEW))
    live.image("b").rename(live.images_dir / "aside")
    with pytest.raises(RefusedError, match="does not exist"):
        await live.scrub(mode="report")
    for copy in "ac":
        path = str(live.image(copy))
        assert images.inspect(FileSource(path=path, format=fmt)).size_bytes == OLD
        assert fmt == "qcow2" or live.contents(copy) == data
    assert is_at_rest(live)


async def test_block_status_is_asked_for_in_parts(live_set: LiveSets, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has one deadline as a whole, past which all that is new would be read."""
    live, ask, asked = live_set(), growing.NbdCopy.zero_ranges, []

    def recorded(reader: growing.NbdCopy, within: Range) -> list[Range]:
        asked.append(within.length)
        return ask(reader, within)

    await made(live)
    monkeypatch.setattr(growing.NbdCopy, "zero_ranges", recorded)
    await live.sets.grow(NAME, 3 * GIB, thin=True)
    assert max(asked) <= GIB
    assert sum(asked) == 3 * (3 * GIB - OLD)


async def test_a_set_that_is_forgotten_half_way_leaves_images_of_one_length(live_set: LiveSets) -> None:
    live = live_set()
    await made(live)
    live.dies_at("growing:_prove", "grow", NAME, str(NEW))
    os.truncate(live.image("c"), OLD)
    await live.sets.delete(NAME)
    assert lengths(live) == {NEW}


async def test_a_longer_copy_without_that_note_is_refused(live_set: LiveSets) -> None:
    live = live_set()
    await made(live)
    live.dies_at("growing:_prove", "grow", NAME, str(NEW))
    report = await live.sets.check(NAME)
    assert any("enlargement" in item.detail for item in report.items if not item.ok)
    (live.directories.state_dir(NAME) / "growing.json").unlink()
    with pytest.raises(QorumError):
        await live.sets.start(NAME)


@pytest.mark.attack("qorumctl killed at any instant harms nothing, and leaves nothing behind", "kill -9 of grow")
async def test_grows_killed_at_random_instants(live_set: LiveSets, attack: Attack) -> None:
    live = live_set()
    data, size = await made(live), OLD
    killer = Killer(live, seed=0)
    killer.complete("grow", NAME, str(size := size + MIB))
    for _ in killer.rounds(attack):
        wanted = size + MIB
        killer.cut("grow", NAME, str(wanted))
        assert (await live.scrub(mode="report")).outcome == "clean"
        size = live.sets.show(NAME).definition.size
        assert size in {wanted, wanted - MIB}
        assert all(live.equal_to(data + bytes(size - OLD)).values())
        assert is_at_rest(live)
