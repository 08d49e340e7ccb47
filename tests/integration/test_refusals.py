"""Invariant 10: what cannot be right is refused before anything is changed, with the culprit's name and the way out."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qorumctl import identity
from qorumctl.errors import DefinitionError
from qorumctl.image_use import is_used
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.integration.picture import picture, refused
from tests.live import MIB, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]


@pytest.fixture
def live(live_set: LiveSets) -> LiveSet:
    return live_set(size_bytes=4 * MIB)


def existing(live: LiveSet, *lengths: int, content: bytes = b"") -> list[str]:
    """Images that exist already, of these lengths."""
    for path, length in zip(live.paths(len(lengths)), lengths, strict=True):
        Path(path).write_bytes(content)
        os.truncate(path, length)
    return live.paths(len(lengths))


@contextlib.contextmanager
def used_by_another(path: str) -> Iterator[None]:
    """A QEMU program that writes to the image."""
    user = subprocess.Popen(["qemu-io", "-f", "raw", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        wait_for(lambda: is_used(path, writers_only=True), "qemu-io")
        yield
    finally:
        user.kill()
        user.communicate()


def edit(live: LiveSet, old: str, new: str) -> None:
    path = live.directories.definition_path(NAME)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# -- create


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"count": 2},
            "A set has 3, 5, 7 or 9 copies, not 2. With an even number a vote can be tied.",
        ),
        (
            {"count": 4},
            "A set has 3, 5, 7 or 9 copies, not 4. With an even number a vote can be tied.",
        ),
        ({"threshold": 1}, "Threshold 1 is no strict majority of 3 copies. Use 2 to 3."),
        ({"count": 5, "threshold": 2}, "Threshold 2 is no strict majority of 5 copies. Use 3 to 5."),
        ({"size_bytes": 0}, "A disk of no size holds nothing. Choose a size, a multiple of 512."),
        ({"size_bytes": 1000}, "Size 1000 is not a multiple of 512. Choose one that is."),
        (
            {"size_bytes": None},
            "The images do not exist yet, and no size was given. Add --size, such as --size 20GiB.",
        ),
    ],
)
async def test_numbers_that_make_no_set(live: LiveSet, arguments: dict[str, int], words: str) -> None:
    await refused(live, live.create(**arguments), words)


async def test_a_relative_path(live: LiveSet) -> None:
    await refused(
        live,
        live.create(sources=["a.img", *live.paths()[1:]]),
        f"'a.img' is not an absolute path. Write {Path.cwd()}/a.img.",
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("http://host/disk", "'http://host/disk' is not an NBD URI: use nbd://, nbds:// or nbd+unix://."),
        ("nbd://host:port/disk", "'nbd://host:port/disk': the port is not a number up to 65535."),
        ("nbd+unix:///disk", "'nbd+unix:///disk' names no socket: add ?socket=/path."),
    ],
)
async def test_a_uri_that_is_none(live: LiveSet, source: str, words: str) -> None:
    remedy = "A source is an absolute path, a block device or an NBD URI."
    await refused(live, live.create(sources=[source, *live.paths()[1:]]), f"{words} {remedy}")


async def test_a_typing_error_under_dev(live: LiveSet) -> None:
    await refused(
        live,
        live.create(sources=["/dev/no-such-disk", *live.paths()[1:]]),
        "The device /dev/no-such-disk cannot be opened: No such file or directory. "
        "Check that it is there, and its rights.",
    )


async def test_existing_and_missing_images_are_never_mixed(live: LiveSet) -> None:
    """One fenced read of one good image and two blank ones would overwrite the good one."""
    existing(live, 4 * MIB, content=b"the only one")
    await refused(
        live,
        live.create(),
        "{images}/a.img exists and {images}/b.img does not. "
        "Nothing was changed. Name images that all exist and hold the same data, or none that exists.",
    )


async def test_existing_images_of_different_lengths(live: LiveSet) -> None:
    existing(live, 4 * MIB, 4 * MIB, 3 * MIB)
    await refused(
        live,
        live.create(size_bytes=None),
        "{images}/c.img has 3145728 bytes, {images}/a.img has 4194304. "
        "Nothing was changed. All copies must have one length.",
    )
    await refused(
        live,
        live.create(size_bytes=3 * MIB),
        "{images}/a.img has 4194304 bytes, --size says 3145728. Nothing was changed. All copies must have one length.",
    )


async def test_existing_images_that_end_within_a_sector(live: LiveSet) -> None:
    existing(live, *[4 * MIB + 100] * 3)
    await refused(
        live,
        live.create(size_bytes=None, cache="writeback"),
        "{images}/a.img has 4194404 bytes, which is no multiple of 512. "
        "Nothing was changed. Bring the image to its right length.",
    )


async def test_existing_images_that_differ(live: LiveSet) -> None:
    paths = existing(live, *[4 * MIB] * 3, content=b"same")
    with Path(paths[1]).open("r+b") as file:
        file.seek(5 * SECTOR)
        file.write(b"other")
    await refused(
        live,
        live.create(size_bytes=None),
        "The images are not equal: they differ in 512 B, first at offset 2560, 512 bytes (at fault: b). "
        "Nothing was changed. Copy the right image over the others, then create the set.",
    )


@pytest.mark.parametrize("kind", ["symlink", "hard link", "other spelling"])
async def test_one_image_under_two_names(live: LiveSet, kind: str) -> None:
    paths = existing(live, *[4 * MIB] * 3)
    match kind:
        case "symlink":
            Path(paths[2]).unlink()
            Path(paths[2]).symlink_to("a.img")
        case "hard link":
            Path(paths[2]).unlink()
            Path(paths[2]).hardlink_to(paths[0])
        case _:
            paths[2] = f"{live.images_dir}/../{live.images_dir.name}/./a.img"
    await refused(
        live,
        live.create(sources=paths, size_bytes=None),
        f"Copies 'a' and 'c' are the same image: {{images}}/a.img and {paths[2]}. Give each copy an image of its own.",
    )


async def test_an_image_that_somebody_uses(live: LiveSet) -> None:
    paths = existing(live, *[4 * MIB] * 3)
    with used_by_another(paths[1]):
        await refused(
            live,
            live.create(size_bytes=None),
            "{images}/b.img is in use by another process. "
            "Nothing was changed. Stop what uses it: another set, a virtual machine, or qemu-nbd.",
        )


async def test_images_of_another_set(live: LiveSet) -> None:
    await live.create()
    from qorumctl.controller.options import CreateOptions

    await refused(
        live,
        live.sets.create("other", live.paths(), CreateOptions()),
        "{images}/a.img belongs to set 'web01'. "
        "Nothing was changed. Delete that set, or, if it is gone for good, remove {images}/a.img.qorum.",
    )


async def test_a_name_that_is_taken(live: LiveSet) -> None:
    await live.create()
    definition = live.directories.definition_path(NAME)
    await refused(
        live,
        live.create(size_bytes=8 * MIB),
        f"There is a set web01 already, defined otherwise in {definition}. "
        "Nothing was changed. See 'qorumctl show web01', or choose another name.",
    )


async def test_a_link_to_nowhere_is_not_written_through(live: LiveSet) -> None:
    elsewhere = live.images_dir / "elsewhere"
    (live.images_dir / "b.img").symlink_to(elsewhere)
    await refused(
        live,
        live.create(),
        "{images}/b.img is a symbolic link to something that does not exist. "
        "Remove the link, or make what it points to available.",
    )
    assert not elsewhere.exists()


async def test_a_directory_is_no_image(live: LiveSet) -> None:
    (live.images_dir / "b.img").mkdir()
    await refused(live, live.create(), "{images}/b.img is not a regular file. Name an image file.")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-b", "base", "-F", "raw"], "has a backing file, through which a set could expose other files."),
        (["-o", "data_file=data"], "keeps its data in another file, through which a set could expose other files."),
    ],
)
async def test_a_qcow2_that_leads_to_other_files(live: LiveSet, options: list[str], words: str) -> None:
    (live.images_dir / "base").write_bytes(bytes(4 * MIB))
    for path in live.paths():
        more = options if path == live.paths()[1] else []
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *more, path, str(4 * MIB)]
        subprocess.run(command, check=True, cwd=live.images_dir)
    await refused(
        live,
        live.create(size_bytes=None, format="qcow2"),
        f"{{images}}/b.img {words} Make it independent with qemu-img convert -O qcow2.",
    )


async def test_more_than_the_disk_holds(live: LiveSet) -> None:
    free = shutil.disk_usage(live.images_dir).free
    error = await refused_for_space(live, free // 3 // MIB * MIB + MIB)
    assert "and the new images there need" in error
    await live.create(size_bytes=free // 3 // MIB * MIB + MIB, thin=True)


async def refused_for_space(live: LiveSet, size_bytes: int) -> str:
    from qorumctl.errors import RefusedError

    before = picture(live)
    with pytest.raises(RefusedError) as caught:
        await live.create(size_bytes=size_bytes)
    assert picture(live) == before
    assert caught.value.remedy.startswith("Free some space, choose a smaller size, or other directories; --thin ")
    return caught.value.message


async def test_a_socket_path_that_the_kernel_does_not_take(live_set: LiveSets, short_dir: Path) -> None:
    live = live_set()
    deep = short_dir / ("d" * 90)
    object.__setattr__(live.directories, "runtime", deep)
    path = f"{deep}/web01/control.sock"
    await refused(
        live,
        live.create(),
        f"The socket path {path} has {len(path)} bytes; the kernel allows 107. "
        "Choose a shorter runtime directory with QORUM_RUNTIME_DIR, or a shorter set name.",
    )


# -- start


START_REFUSALS: dict[str, tuple[Callable[[LiveSet], object], str]] = {
    "a missing image": (
        lambda live: live.image("b").rename(live.images_dir / "away"),
        "The image of copy b, {images}/b.img, does not exist. "
        "Mount what it lives on, or bring it back; or start without it: 'qorumctl start web01 --degraded'. "
        "Nothing was changed.",
    ),
    "a shorter copy": (
        lambda live: os.truncate(live.image("c"), 3 * MIB),
        "Copy c ({images}/c.img) has 3145728 bytes, the set 4194304. "
        "Nothing was changed. Restore the copy's length, or correct the definition's size.",
    ),
    "one image twice": (
        lambda live: (live.image("c").unlink(), live.image("c").hardlink_to(live.image("a"))),
        "Copies 'a' and 'c' are the same image: {images}/a.img and {images}/c.img. Give each copy an image of its own.",
    ),
    "an unknown key": (
        lambda live: edit(live, "threshold = 2", "treshold = 2"),
        "web01.toml: unknown key 'treshold'. Did you mean 'threshold'?",
    ),
    "a threshold that is no majority": (
        lambda live: edit(live, "threshold = 2", "threshold = 1"),
        "web01.toml: threshold 1 is no strict majority of 3 copies: use 2 to 3. Correct it.",
    ),
    "a file of another name": (
        lambda live: edit(live, 'name = "web01"', 'name = "web02"'),
        "web01.toml: the set is named 'web02', but its file 'web01'. Make them equal.",
    ),
    "a definition that others may write": (
        lambda live: live.directories.definition_path(NAME).chmod(0o662),
        "{config}/web01.toml can be written by other users. Run chmod go-w {config}/web01.toml.",
    ),
    "an unknown group": (
        lambda live: edit(live, 'group = ""', 'group = "no-such-group"'),
        "There is no group 'no-such-group', which [volume] of web01 names. Create it, or correct the definition.",
    ),
    "a lost identity": (
        lambda live: (started_once(live), identity.sidecar_path(live.image("b")).unlink()),
        "Copy b ({images}/b.img) has lost its identity file: nobody can tell whether it has every write. "
        "Put the image and the .qorum file that belong together back in place; or run "
        "'qorumctl start web01 --degraded', then 'qorumctl copy rejoin web01 b --full'.",
    ),
    "exchanged copies": (
        lambda live: exchange(live.image("a"), live.image("b")),
        "The image of copy 'a', {images}/a.img, is that of copy 'b'. "
        "Exchange the paths in the definition, or bring the images back to their places.",
    ),
    "another set's image": (
        lambda live: rewrite_sidecar(live, "c", set="db", uuid="00000000-0000-0000-0000-000000000000"),
        "The image of copy 'c', {images}/c.img, belongs to set 'db'. "
        "Name the right image. If that set is gone for good, remove {images}/c.img.qorum.",
    ),
    "a copy from an older generation": (
        lambda live: (keep_sidecar(live, "b"), started_once(live), restore_sidecar(live, "b")),
        "Copy b ({images}/b.img) has missed writes (generation 0, the others 1); its votes would be wrong. "
        "Put the image and the .qorum file that belong together back in place; or run "
        "'qorumctl start web01 --degraded', then 'qorumctl copy rejoin web01 b'.",
    ),
    "an owner on another host": (
        lambda live: [rewrite_sidecar(live, c, clean=False, host="nas2", host_id="f" * 32) for c in "abc"],
        "web01 was started on host nas2 and never stopped there in order. "
        "Stop it there. If that host is certainly down, use --takeover: two daemons on one set destroy it.",
    ),
}


def exchange(one: Path, other: Path) -> None:
    for suffix in ("", ".qorum"):
        a, b = Path(f"{one}{suffix}"), Path(f"{other}{suffix}")
        aside = Path(f"{a}.aside")
        a.rename(aside)
        b.rename(a)
        aside.rename(b)


def started_once(live: LiveSet) -> None:
    """Through programs of their own: the test's event loop runs already."""
    for command in ("start", "stop"):
        assert live.cli(command, NAME).wait(30) == 0


def rewrite_sidecar(live: LiveSet, copy: str, **changes: object) -> None:
    sidecar = identity.read(live.image(copy))
    assert sidecar is not None
    identity.write(live.image(copy), sidecar.model_copy(update=changes))


def keep_sidecar(live: LiveSet, copy: str) -> None:
    shutil.copy(identity.sidecar_path(live.image(copy)), live.images_dir / "kept")


def restore_sidecar(live: LiveSet, copy: str) -> None:
    (live.images_dir / "kept").rename(identity.sidecar_path(live.image(copy)))


@pytest.mark.parametrize("what", START_REFUSALS)
async def test_start_refuses(live: LiveSet, what: str) -> None:
    spoil, words = START_REFUSALS[what]
    await live.create()
    spoil(live)
    await refused(live, live.sets.start(NAME), words)
    if not words.startswith(("web01.toml", "{config}")):
        report = await live.sets.check(NAME)
        assert not report.ok, "check must say what start refuses"


async def test_start_refuses_an_image_that_somebody_uses(live: LiveSet) -> None:
    await live.create()
    with used_by_another(live.sources[2]):
        await refused(
            live,
            live.sets.start(NAME),
            "The image of copy c, {images}/c.img, is in use by another process. "
            "Stop what uses it: another set, a virtual machine, or qemu-nbd. Nothing was changed.",
        )


async def test_a_directory_in_which_others_may_replace_the_definition(live: LiveSet) -> None:
    await live.create()
    live.directories.config.chmod(0o777)
    with pytest.raises(DefinitionError, match="can be replaced by other users"):
        await live.start()
