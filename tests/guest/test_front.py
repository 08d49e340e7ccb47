"""A real Linux guest behind a front: what it takes its disk for, and what its fsync is worth."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from qorumctl.controller.attach import vhost_user_arguments
from qorumctl.daemon.front import FrontOptions, arguments
from qorumctl.daemon.runtime import FrontPaths
from tests.attack import UNIT_S
from tests.guest.appliances import Appliances
from tests.guest.guest import Guest
from tests.guest.test_guest import IN_USE, MAKE_FILES, SIZE, digest, synced
from tests.integration.harness import NAME, LiveSet, kill_daemon
from tests.live import Daemons
from tests.vhost_user import Disk

pytestmark = [pytest.mark.live, *([] if UNIT_S in os.environ else [pytest.mark.timeout(600)])]
LiveSets = Callable[..., LiveSet]
Boot = Callable[..., Guest]
FORM = "vhost-user-blk"


def write_cache(guest: Guest, disk: str) -> str:
    """Other jobs of the guest may speak in between."""
    said = guest.run(f"cat /sys/block/{disk}/queue/write_cache")
    return next(line for line in said if line.startswith("write "))


async def test_fsync_means_fsync(
    live_set: LiveSets, appliances: Callable[[LiveSet], Appliances], boot: Boot, daemons: Daemons
) -> None:
    """Behind three caches that only a flush empties: the guest sends none, or sends its own, and loses nothing that
    was synced as everything loses power at once."""
    live = live_set(size_bytes=SIZE)
    racks = appliances(live)
    await racks.start(1)
    await live.sets.front(NAME)
    guest = boot(live, FORM, more=await with_config_wce_off(live, daemons))
    assert write_cache(guest, "vda") == "write through"
    # The operator's word: the guest's device has config-wce=off, as is printed then.
    assert write_cache(guest, "vdb") == "write back"

    guest.run(MAKE_FILES)
    for job in range(2):
        guest.run(f"files {job} {job} &")
    guest.wait_for(lambda lines: len(synced(lines)) >= 8, "files on disk")
    # A guest may ask for a cache: then it flushes, and the front relies on that.
    guest.run("echo write back >/sys/block/vda/cache_type")
    assert write_cache(guest, "vda") == "write back"
    # Pages that change under I/O, as swap's and mmap's do: nothing in Linux keeps those of a virtual disk still.
    guest.run(f"scribble {IN_USE.end // 4096} 64 & wait_rounds scribble 8")
    guest.wait_for(lambda lines: len(synced(lines)) >= 16, "more files on disk")
    racks.lose_power(random.Random(1), 0)
    kill_daemon(live.front)
    guest.kill()
    promised = synced(guest.lines)

    racks.power_on()
    await live.start()
    assert (await live.scrub()).outcome == "clean"
    await live.sets.stop(NAME)
    assert len({live.contents(copy) for copy in "abc"}) == 1
    there = files_in(live.image("a"))
    assert {name: there.get(name) for name in promised} == promised


async def with_config_wce_off(live: LiveSet, daemons: Daemons) -> list[str]:
    """Another front of the same volume, and the arguments that make it the guest's second disk."""
    paths, options = FrontPaths(daemons.paths().directory), FrontOptions(config_wce_off=True)
    await daemons.spawn_at(paths, arguments(paths, live.runtime.nbd_sock, options))
    return vhost_user_arguments("second", paths.server, options)[-4:]


def files_in(image: Path) -> dict[str, str]:
    """As `files_of`, of an ext4 file system whose journal is replayed in place."""
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    tool = partial(subprocess.run, env=environment, capture_output=True, check=True)
    assert tool(["e2fsck", "-fy", image], check=False).returncode <= 1
    listed = tool(["debugfs", "-R", "ls -p /", image]).stdout.decode().splitlines()
    # /INODE/MODE/UID/GID/NAME/SIZE/
    names = [name for line in listed for name in line.split("/")[5:6] if re.fullmatch(r"\d-\d+", name)]
    return {name: digest(tool(["debugfs", "-R", f"cat /{name}", image]).stdout) for name in names}


async def test_only_a_flush_or_the_front_s_own_writes_through(
    live_set: LiveSets, appliances: Callable[[LiveSet], Appliances]
) -> None:
    """What the options of a front do, and that the caches of this file's other test would have shown it."""
    live = live_set(size_bytes=SIZE)
    racks = appliances(live)
    await racks.start(2)
    lost = []
    for config_wce_off, flush in ((False, False), (True, True), (True, False)):
        await live.sets.front(NAME, config_wce_off=config_wce_off)
        disk, data = Disk(live.front.server), random.Random(config_wce_off * 2 + flush).randbytes(4096)
        assert disk.write(0, data)
        if flush:
            assert disk.flush()
        racks.lose_power(random.Random(2), 0)
        disk.close()
        kill_daemon(live.front)
        lost.append([copy for copy in "abc" if live.contents(copy)[:4096] != data])
        racks.power_on()
        await live.start()
        await live.sets.stop_front(NAME)
    assert lost == [[], [], ["a", "b", "c"]]
