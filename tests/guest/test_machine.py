"""The guest itself: it boots, does as it is told, says when it cannot, and goes when the tests go."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.guest import Guest, GuestError
from tests.guest.workload import pattern
from tests.integration.harness import SECTOR, LiveSet
from tests.live import MIB, wait_for

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
LiveSets = Callable[..., LiveSet]
Boot = Callable[[LiveSet], Guest]


async def test_linux_takes_the_volume_as_attach_prints_it(live_set: LiveSets, boot: Boot) -> None:
    live = live_set(size_bytes=4 * MIB)
    await live.create()
    await live.start()
    shadow = live.fill()
    guest = boot(live)
    assert guest.run("cat /sys/block/vda/size") == [str(live.size_bytes // SECTOR)]
    # Otherwise Linux would send no flush, and fsync would mean nothing (invariant 9).
    assert guest.run("cat /sys/block/vda/queue/write_cache") == ["write back"]
    digest = guest.run("dd if=/dev/vda bs=1M iflag=direct status=none | sha256sum")[0].split()[0]
    assert digest == hashlib.sha256(shadow).hexdigest()

    first = guest.run("pattern 3 11 1024 2048 & wait_rounds 3 5; stop; cat /run/pattern.3")
    pattern(shadow, job=3, seed=11, first=1024, sectors=2048, rounds=int(first[0]))
    assert all(live.equal_to(shadow).values())


async def test_a_command_that_fails_or_ends_the_guest_is_told_apart(live_set: LiveSets, boot: Boot) -> None:
    live = live_set(size_bytes=4 * MIB)
    await live.create()
    await live.start()
    guest = boot(live)
    with pytest.raises(GuestError, match=r"ended with 3: .*so it is"):
        guest.run("echo so it is; (exit 3)")
    assert guest.run("echo and on") == ["and on"]
    with pytest.raises(GuestError, match="the virtual machine has ended"):
        guest.run("reboot -f")


ORPHANS = """
import os, sys
from pathlib import Path
from tests.guest.guest import Guest
guest = Guest(Path(sys.argv[1]), "", Path(sys.argv[2]))
guest.wait_ready()
print(guest.pid, flush=True)
sys.stdin.read()
"""


def test_a_guest_ends_with_the_process_that_made_it(initramfs: Path, tmp_path: Path) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, initramfs, tmp_path / "console"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert maker.stdout is not None
    guest = int(maker.stdout.readline())
    assert Path(f"/proc/{guest}").exists()
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
    wait_for(lambda: _ended(guest), "the guest's end")


def _ended(pid: int) -> bool:
    """Somebody else reaps it, or nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
