"""`create --from`: a set that holds what an image held, or no set at all."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.controller import importing
from qorumctl.controller.observer import ScrubControl, Silent, StopReason
from qorumctl.controller.options import CreateOptions
from qorumctl.daemon import process
from qorumctl.errors import CopyError, DefinitionError, QorumError, RefusedError, UsageError
from tests.attack import Attack
from tests.integration.harness import NAME, LiveSet
from tests.integration.test_killed import Killer
from tests.live import MIB, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc")


def content(size_bytes: int = 8 * MIB, *, seed: int = 1) -> bytes:
    """Data at the beginning and the end, a hole between them."""
    dice = random.Random(seed)
    return dice.randbytes(MIB) + bytes(size_bytes - 2 * MIB) + dice.randbytes(MIB)


def image(live: LiveSet, data: bytes, fmt: str = "raw", *arguments: str) -> str:
    """A source image outside the directory that is looked at for leftovers."""
    raw, path = live.directories.config.parent / "source.raw", live.directories.config.parent / f"source.{fmt}"
    raw.write_bytes(data)
    if fmt != "raw":
        options = ["-o", "force_size=on"] if fmt == "vpc" else []
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", fmt, *options, *arguments, raw, path], check=True)
    return str(path)


def leftovers(live: LiveSet) -> set[str]:
    return {path.name for path in live.images_dir.iterdir()}


async def fill(live: LiveSet, source: str, fmt: str = "raw", **options: object) -> None:
    await live.create(size_bytes=None, import_from=source, import_format=fmt, **options)


def as_raw(path: Path, fmt: str) -> bytes:
    if fmt == "raw":
        return path.read_bytes()
    target = path.with_suffix(".flat")
    subprocess.run(["qemu-img", "convert", "-f", fmt, "-O", "raw", path, target], check=True)
    data = target.read_bytes()
    target.unlink()
    return data


@pytest.mark.parametrize(("source_format", "fmt"), [*((fmt, "raw") for fmt in FORMATS), ("raw", "qcow2")])
async def test_every_copy_holds_what_the_image_held_and_holes_stay_holes(
    live_set: LiveSets, source_format: str, fmt: str
) -> None:
    live, data = live_set(), content()
    await fill(live, image(live, data, source_format), source_format, format=fmt)
    for copy in "abc":
        assert as_raw(live.image(copy), fmt) == data
        assert live.image(copy).stat().st_blocks * 512 < 4 * MIB
    assert live.sets.show(NAME).definition.size == len(data)
    assert (await live.scrub(mode="report")).outcome == "clean"


async def test_a_length_that_is_no_multiple_of_a_sector_is_rounded_up(live_set: LiveSets) -> None:
    live = live_set()
    await fill(live, image(live, b"x" * 1000), cache="writeback")
    assert live.contents("a") == live.contents("c") == b"x" * 1000 + bytes(24)


async def test_devices_and_exports_are_only_overwritten_when_that_is_said(
    live_set: LiveSets, nbdkit: Callable[..., NbdServer]
) -> None:
    live, data = live_set(), content(4 * MIB)
    old = live.images_dir / "export.img"
    old.write_bytes(b"old" * MIB + bytes(MIB))
    sources = [*live.paths(2), nbdkit("file", old).uri]
    source = image(live, data)
    with pytest.raises(RefusedError, match="writes over all of"):
        await fill(live, source, sources=sources)
    assert old.read_bytes().startswith(b"old")
    assert leftovers(live) == {"export.img"}
    await fill(live, source, sources=sources, overwrite=True)
    assert old.read_bytes() == data


REFUSALS: list[tuple[str, dict[str, object], type[QorumError], str]] = [
    ("raw", {"import_format": None}, UsageError, "format of the image to import was not said"),
    ("raw", {"size_bytes": MIB}, UsageError, "size of an imported set is that of its source"),
    ("raw", {"import_format": "qcow2"}, RefusedError, "not a qcow2 image"),
    ("raw", {"import_format": "vmdk"}, RefusedError, "no VMDK that stands for itself"),
    ("raw", {"import_format": "vdi"}, RefusedError, "vdi image to import"),
    ("raw", {"import_from": "/nowhere/at.all"}, RefusedError, "does not exist"),
]


@pytest.mark.parametrize(("fmt", "options", "error", "words"), REFUSALS)
async def test_what_cannot_be_imported_is_refused_before_anything_is_made(
    live_set: LiveSets, fmt: str, options: dict[str, object], error: type[QorumError], words: str
) -> None:
    live = live_set()
    asked = {"size_bytes": None, "import_from": image(live, content(), fmt), "import_format": fmt} | options
    with pytest.raises(error, match=words):
        await live.create(**asked)
    assert leftovers(live) == set()
    assert live.sets.names() == []


async def test_an_image_that_leads_to_other_files_is_refused(live_set: LiveSets) -> None:
    live = live_set()
    base = image(live, content())
    overlay = live.directories.config.parent / "overlay"
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", "-b", base, "-F", "raw", overlay], check=True)
    with pytest.raises(RefusedError, match="backing file"):
        await fill(live, str(overlay), "qcow2")
    flat = image(live, content(), "vmdk", "-o", "subformat=monolithicFlat")
    with pytest.raises(RefusedError, match="stands for itself"):
        await fill(live, flat, "vmdk")
    assert leftovers(live) == set()


async def test_a_source_that_is_in_use_or_a_copy_is_refused(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    source = image(live, content(4 * MIB))
    writer = subprocess.Popen(
        ["qemu-storage-daemon", "--blockdev", f"file,node-name=f,filename={source}",
         "--blockdev", "raw,node-name=r,file=f",
         "--nbd-server", f"addr.type=unix,addr.path={live.directories.config.parent}/x.sock",
         "--export", "nbd,id=e,node-name=r,writable=on", "--pidfile", f"{source}.pid"]
    )  # fmt: skip
    try:
        wait_for(lambda: Path(f"{source}.pid").exists(), "a writer")
        with pytest.raises(RefusedError, match="in use"):
            await fill(live, source)
    finally:
        writer.kill()
        writer.wait()
    with pytest.raises(RefusedError, match="same image"):
        await fill(live, source, sources=[*live.paths(2), source])
    await live.create()
    with pytest.raises(RefusedError, match="copy a of set 'web01'"):
        await live.sets.create(
            "other", [f"{p}.2" for p in live.paths()], CreateOptions(import_from=live.paths()[0], import_format="raw")
        )


async def test_repeated_it_has_nothing_to_do_and_another_image_is_refused(live_set: LiveSets) -> None:
    live = live_set()
    await fill(live, image(live, content()))
    again = CreateOptions(import_from=image(live, content()), import_format="raw")
    assert not (await live.sets.create(NAME, live.paths(), again)).changed
    with pytest.raises(RefusedError, match="defined otherwise"):
        await fill(live, image(live, content(), "qcow2"), "qcow2")


async def test_nothing_that_exists_is_touched(live_set: LiveSets) -> None:
    live = live_set()
    Path(live.paths()[1]).write_bytes(b"mine")
    with pytest.raises(RefusedError, match="exists already"):
        await fill(live, image(live, content()))
    assert Path(live.paths()[1]).read_bytes() == b"mine"
    assert leftovers(live) == {"b.img"}


@pytest.mark.parametrize("when", ["importing", "comparing"])
async def test_who_stops_it_gets_no_set_and_no_images(live_set: LiveSets, when: str) -> None:
    live, control = live_set(), ScrubControl()

    class Stopper(Silent):
        def started(self, start: object) -> None:
            if str(start.work).startswith(when):  # type: ignore[attr-defined]
                control.stop(StopReason.INTERRUPTED)

    options = CreateOptions(import_from=image(live, content()), import_format="raw")
    with pytest.raises(QorumError, match="Interrupted: no set was created"):
        await live.sets.create(NAME, live.paths(), options, observer=Stopper(), control=control)
    assert leftovers(live) == set()
    assert live.sets.names() == []
    assert process.running_pid(live.runtime) is None


async def test_what_the_storage_did_not_keep_is_noticed(live_set: LiveSets, monkeypatch: pytest.MonkeyPatch) -> None:
    live, copy = live_set(), importing._copy

    async def spoiled(*arguments: object) -> None:
        await copy(*arguments)  # type: ignore[arg-type]
        live.poke("b", 4096, b"rot")

    monkeypatch.setattr(importing, "_copy", spoiled)
    with pytest.raises(CopyError, match=r"first at offset 4096 \(at fault: b\)"):
        await fill(live, image(live, content()))
    assert leftovers(live) == set()
    assert live.sets.names() == []


async def test_a_source_that_became_longer_meanwhile_is_noticed(
    live_set: LiveSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that goes on: all that the copies have place for is alike."""
    live, copy = live_set(), importing._copy
    source = image(live, content())

    async def appended(*arguments: object) -> None:
        await copy(*arguments)  # type: ignore[arg-type]
        with Path(source).open("ab") as file:
            file.write(b"more" * 1024)

    monkeypatch.setattr(importing, "_copy", appended)
    with pytest.raises(CopyError, match=rf"has {8 * MIB + 4096} bytes now, and had {8 * MIB}"):
        await fill(live, source)
    assert leftovers(live) == set()
    assert live.sets.names() == []


async def test_a_medium_without_room_costs_nothing_that_was_there(live_set: LiveSets) -> None:
    """The space is asked for before anything is made."""
    live = live_set()
    source = live.directories.config.parent / "huge"
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", source, "16T"], check=True)
    with pytest.raises(RefusedError, match="free"):
        await fill(live, str(source), "qcow2")
    assert leftovers(live) == set()


STEPS = ("importing:_make", "importing:_copy", "importing:_verify", "importing:definitions.save")


@pytest.mark.parametrize("step", STEPS)
async def test_killed_before_any_step_it_is_no_set_and_begins_anew(live_set: LiveSets, step: str) -> None:
    live, data = live_set(size_bytes=4 * MIB), content(4 * MIB)
    command = ("create", NAME, *live.paths(), "--from", image(live, data), "--from-format", "raw")
    live.dies_at(step, *command)
    assert live.sets.names() == []
    with pytest.raises(DefinitionError, match=r"unfinished|no set"):
        await live.sets.start(NAME)
    await fill(live, command[command.index("--from") + 1])
    assert all(live.equal_to(data).values())


async def test_killed_and_given_up_it_leaves_nothing_of_its_own(live_set: LiveSets) -> None:
    live = live_set(size_bytes=4 * MIB)
    command = ("create", NAME, *live.paths(), "--from", image(live, content(4 * MIB)), "--from-format", "raw")
    live.dies_at("importing:_verify", *command)
    # Somebody puts a file of their own in the place of one.
    Path(live.paths()[2]).unlink()
    Path(live.paths()[2]).write_bytes(b"mine")
    await live.sets.delete(NAME, images=True)
    assert leftovers(live) == {"c.img"}
    assert Path(live.paths()[2]).read_bytes() == b"mine"


@pytest.mark.attack("qorumctl killed at any instant harms nothing, and leaves nothing behind", "kill -9 of an import")
async def test_imports_killed_at_random_instants(live_set: LiveSets, attack: Attack) -> None:
    live, data = live_set(size_bytes=16 * MIB), content(16 * MIB)
    source = image(live, data, "qcow2")
    live.sources = live.paths()
    command = ("create", NAME, *live.sources, "--from", source, "--from-format", "qcow2")
    killer = Killer(live, seed=0)
    killer.complete(*command)
    await live.sets.delete(NAME, images=True)
    for _ in killer.rounds(attack):
        killer.cut(*command)
        killer.complete(*command)
        assert all(live.equal_to(data).values())
        await live.sets.delete(NAME, images=True)
        assert leftovers(live) == set()


def test_progress_and_result_are_told(live_set: LiveSets) -> None:
    live = live_set()
    source = image(live, content(), "qcow2")
    command = ("create", NAME, *live.paths(), "--from", source, "--from-format", "qcow2")
    done = live.cli(*command, "--json", stderr=subprocess.PIPE)
    out, said = (stream.decode() for stream in done.communicate(timeout=60))
    assert re.search(rf"{NAME}: importing {re.escape(source)}, 8 MiB", said)
    assert re.search(rf"{NAME}: comparing with {re.escape(source)}", said)
    assert '"imported"' in out
    assert '"format": "qcow2"' in out
