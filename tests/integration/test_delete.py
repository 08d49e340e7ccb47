"""Delete: what goes, what stays, and when it is refused."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl import identity
from qorumctl.image_use import is_used
from tests.integration.harness import NAME, LiveSet
from tests.integration.picture import refused
from tests.live import wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]


async def test_delete_is_refused_while_the_set_runs(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    await refused(live, live.sets.delete(NAME, images=True), f"{NAME} is running. Run 'qorumctl stop {NAME}' first.")


async def test_delete_keeps_the_images_and_they_make_a_set_again(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    shadow = live.fill()
    await live.sets.stop(NAME)
    await live.sets.delete(NAME)
    assert sorted(path.name for path in live.images_dir.iterdir()) == ["a.img", "b.img", "c.img"]
    await live.create(size_bytes=None)
    await live.start()
    assert all(live.equal_to(shadow).values())


async def test_delete_leaves_what_is_not_the_sets_own(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    identity.sidecar_path(live.image("b")).unlink()
    result = await live.sets.delete(NAME, images=True)
    assert [path.name for path in live.images_dir.iterdir()] == ["b.img"]
    assert result.warnings == [f"{live.image('b')} was left: no identity file says that it is this set's."]


async def test_delete_does_not_follow_links(live_set: LiveSets) -> None:
    live = live_set()
    real = live.images_dir / "real"
    real.write_bytes(bytes(live.size_bytes))
    for path in live.paths()[1:]:
        shutil.copy(real, path)
    Path(live.paths()[0]).symlink_to(real)
    await live.create(size_bytes=None)
    result = await live.sets.delete(NAME, images=True)
    assert [path.name for path in live.images_dir.iterdir()] == ["real"]
    assert result.warnings == [f"{live.image('a')} was a symbolic link: it is gone, {real} was left."]


async def test_delete_refuses_images_that_somebody_uses(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    reader = subprocess.Popen(
        ["qemu-io", "-r", "-f", "raw", live.sources[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        wait_for(lambda: is_used(live.sources[1]), "qemu-io")
        await refused(
            live,
            live.sets.delete(NAME, images=True),
            "{images}/b.img is in use by another process. "
            "Nothing was changed. Stop what uses it: a virtual machine, qemu-nbd, or a backup.",
        )
    finally:
        reader.kill()
        reader.communicate()


async def test_takeover_is_the_operators_word_that_the_other_host_is_dead(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    for copy in "abc":
        sidecar = identity.read(live.image(copy))
        assert sidecar is not None
        changes = {"clean": False, "host": "nas2", "host_id": "f" * 32}
        identity.write(live.image(copy), sidecar.model_copy(update=changes))
    await refused(
        live,
        live.sets.delete(NAME, images=True),
        "web01 was started on host nas2 and never stopped there in order. Stop it there. "
        "If that host is certainly down, start it here with --takeover and stop it, then delete.",
    )
    result = await live.sets.start(NAME, takeover=True)
    assert result.warnings == ["Taken over from nas2: make sure that it no longer runs the set there."]
    assert result.recovery == 1
    sidecar = identity.read(live.image("a"))
    assert sidecar is not None
    assert sidecar.host == socket.gethostname()
