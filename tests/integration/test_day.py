"""A day in the life of a set: copies leave, come back, lose a sector, are replaced and die, and the guests work on."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.ranges import Range
from qorumctl.errors import CopyUnavailableError
from tests.attack import Attack
from tests.integration.bad_disk import BadDisk, bad_disks
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.live import DEADLINE_S, MIB, NbdServer, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 16 * MIB
BUSY = Range(0, 12 * MIB)
DEAD_SECTOR = 14 * MIB // SECTOR


class Guests:
    """They write and read back without a pause. Where the connection breaks they connect again and send anew what was
    not acknowledged, as QEMU's NBD client does with `reconnect-delay`."""

    def __init__(self, live: LiveSet, shadow: bytearray, within: Range, *, count: int, seed: int) -> None:
        self._live = live
        self._shadow = shadow
        self._ends = threading.Event()
        self._failures: list[BaseException] = []
        self.writes = 0
        self.reconnects = 0
        part = within.length // count // SECTOR * SECTOR
        self._threads = [
            threading.Thread(target=self._work, args=(seed + n, Range(within.offset + n * part, part)))
            for n in range(count)
        ]

    def write_on(self, number: int = 200) -> None:
        """Returns when so many more writes were acknowledged."""
        enough = self.writes + number
        wait_for(lambda: self.writes >= enough or self._failures, "guests' writes", deadline_s=4 * DEADLINE_S)
        assert self._failures == []

    def _work(self, seed: int, within: Range) -> None:
        dice, link = random.Random(seed), self._live.link()
        try:
            while not self._ends.is_set():
                at = within.offset + dice.randrange(within.length // SECTOR - 64) * SECTOR
                data = dice.randbytes(SECTOR * dice.choice([1, 8, 8, 16, 64]))
                link = self._insist(link, partial(_write, at, data))
                self._shadow[at : at + len(data)] = data
                self.writes += 1
                if self.writes % 8 == 0:
                    back = Range(within.offset + dice.randrange(within.length // SECTOR - 64) * SECTOR, 8 * SECTOR)
                    link = self._insist(link, partial(self._is_right, back))
            assert link.flush()
        except BaseException as error:
            self._failures.append(error)
        finally:
            link.close()

    def _is_right(self, at: Range, link: NbdLink) -> bool:
        held = link.read(at)
        if held is None:
            return False
        assert bytes(held) == self._shadow[at.offset : at.end], f"a guest read other data at {at}"
        return True

    def _insist(self, link: NbdLink | None, request: Callable[[NbdLink], bool]) -> NbdLink:
        """Returns the connection over which it succeeded."""

        def attempt() -> bool:
            nonlocal link
            try:
                if link is None:
                    link = self._live.link()
                    self.reconnects += 1
                return request(link)
            except CopyUnavailableError:
                if link is not None:
                    link.close()
                link = None
                return False

        wait_for(attempt, "an acknowledgement", deadline_s=4 * DEADLINE_S)
        assert link is not None
        return link

    def __enter__(self) -> Guests:
        for thread in self._threads:
            thread.start()
        self.write_on(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()


def _write(at: int, data: bytes, link: NbdLink) -> bool:
    return link.write(at, data)


def qorumctl(live: LiveSet, *arguments: str, code: int = 0) -> dict[str, Any]:
    running = live.cli("--json", *arguments, stderr=subprocess.PIPE)
    said, complaints = running.communicate(timeout=4 * DEADLINE_S)
    assert running.returncode == code, f"{arguments}: {running.returncode}\n{said.decode()}\n{complaints.decode()}"
    document: dict[str, Any] = json.loads(said)
    return document


def state(live: LiveSet, code: int = 0) -> str:
    return str(qorumctl(live, "status", NAME, code=code)["sets"][0]["state"])


@pytest.mark.attack("a day's work on the copies loses no write", "one leaves, breaks, is replaced, dies", weight=2)
async def test_a_day(live_set: LiveSets, nbdkit: Nbdkit, short_dir: Path, attack: Attack) -> None:
    """Every command as it is typed; guests work from the first to the last."""
    live = live_set(size_bytes=SIZE)
    _, on_b, on_c = live.paths()
    for path in (on_b, on_c):
        Path(path).write_bytes(bytes(SIZE))
    with bad_disks(short_dir, [bytes(SIZE)]) as (disk,):
        server = nbdkit("file", on_b)
        await live.create(sources=[disk.uri, server.uri, on_c], size_bytes=None)
        await live.start()
        shadow = live.fill()
        for seed in attack.rounds(1):
            with Guests(live, shadow, BUSY, count=3, seed=seed) as guests:
                a_copy_goes_for_a_while(live, guests)
                a_sector_dies(live, guests, disk, DEAD_SECTOR + seed % 1000)
                on_c = a_copy_is_replaced(live, guests, Path(on_c), seed)
                server = a_server_dies(live, guests, nbdkit, server, on_b)
                assert qorumctl(live, "scrub", NAME)["findings"] == []
                assert state(live) == "healthy"
                attack.count(days=1, writes=guests.writes, reconnects=guests.reconnects)
        assert qorumctl(live, "stop", NAME)["warnings"] == []
        assert disk.content == Path(on_b).read_bytes() == Path(on_c).read_bytes() == shadow


def a_copy_goes_for_a_while(live: LiveSet, guests: Guests) -> None:
    assert qorumctl(live, "copy", "detach", NAME, "b")["state"] == "degraded"
    guests.write_on()
    back = qorumctl(live, "copy", "rejoin", NAME, "b")
    assert (back["state"], back["full"]) == ("healthy", False)
    assert (back["compared_bytes"], back["copied_bytes"] > 0) == (0, True)


def a_sector_dies(live: LiveSet, guests: Guests, disk: BadDisk, sector: int) -> None:
    disk.lose([sector])
    (found,) = qorumctl(live, "scrub", NAME, code=3)["findings"]
    assert (found["offset"], found["length"], found["copies"]) == (sector * SECTOR, SECTOR, ["a"])
    assert (found["verdict"], found["action"]) == ("unreadable", "repaired")
    assert disk.bad == set()
    guests.write_on()


def a_copy_is_replaced(live: LiveSet, guests: Guests, old: Path, seed: int) -> str:
    new = live.images_dir / f"c-{seed}.img"
    done = qorumctl(live, "copy", "replace", NAME, "c", str(new))
    assert (done["state"], done["source"], done["old_source"]) == ("healthy", str(new), str(old))
    assert qorumctl(live, "show", NAME)["definition"]["copies"][2]["source"]["path"] == str(new)
    guests.write_on()
    old.unlink()
    return str(new)


def a_server_dies(live: LiveSet, guests: Guests, nbdkit: Nbdkit, server: NbdServer, image: str) -> NbdServer:
    """The guests write on; the daemon is started anew without the copy, and takes it back when its server is there."""
    server.kill()
    guests.write_on()
    assert state(live, code=4) == "degraded"
    started = qorumctl(live, "restart", NAME, "--force", "--degraded")
    assert started["state"] == "degraded"
    guests.write_on()
    back = nbdkit("file", image)
    server.socket.unlink(missing_ok=True)
    server.socket.symlink_to(back.socket)
    found = qorumctl(live, "copy", "rejoin", NAME, "b")
    assert (found["state"], found["full"]) == ("healthy", True)
    guests.write_on()
    return back
