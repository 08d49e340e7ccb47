"""Faults of copies: errors, hangs, servers that go away. What is said of them, and that nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qorumctl.controller.observer import ScrubPosition, Silent
from qorumctl.controller.options import ScrubOptions
from qorumctl.controller.sets import QuorumSets
from qorumctl.core.ranges import Range
from qorumctl.errors import CopyUnavailableError, DaemonStalledError, QorumError
from tests.attack import Attack
from tests.integration.faults import HASTY, ComesBack, Guests, Nbdkit, SelfStopping, after, missed, rot, say
from tests.integration.harness import NAME, SECTOR, LiveSet, Writers
from tests.integration.picture import status_of
from tests.live import MIB, faulty_server, wait_for

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
SIZE = 4 * MIB
OLD, NEW = b"\x5a" * 4096, b"\xc3" * 4096
AT = MIB


def blank(live: LiveSet) -> list[str]:
    paths = live.paths()
    for path in paths:
        Path(path).write_bytes(OLD[:1] * live.size_bytes)
    return paths


async def assembled(live: LiveSet, sources: dict[str, str]) -> None:
    """A set whose copies are files, but for those named; nothing but OLD in it."""
    paths = live.paths()
    await live.create(
        sources=[sources.get(copy, path) for copy, path in zip("abc", paths, strict=True)], size_bytes=None
    )
    live.sources = paths
    await live.start()


def shadow_of(live: LiveSet) -> bytearray:
    return bytearray(OLD[:1] * live.size_bytes)


async def healthy_again(live: LiveSet, copies: str) -> None:
    """A report of a failed write can be a second late, and sets the mark anew: the next scrub clears that, too."""
    ends_at_s = time.monotonic() + 30
    while (status := await status_of(live.sets)).state != "healthy":
        late = [f"Copy {copy}: has missed a write" for copy in copies]
        assert any((status.reason or "").startswith(words) for words in late), status.reason
        assert time.monotonic() < ends_at_s, status.reason
        assert (await live.scrub()).outcome == "clean"


# -- errors of two copies (of one: test_unreadable.py, test_watch.py)


async def with_two_bad(live: LiveSet, nbdkit: Nbdkit, bad: dict[str, list[tuple[int, int]]]) -> dict[str, Path]:
    paths = blank(live)
    triggers = {copy: live.images_dir / f"bad-{copy}" for copy in bad}
    sources = {
        copy: faulty_server(nbdkit, Path(paths["abc".index(copy)]), sectors, once=triggers[copy]).uri
        for copy, sectors in bad.items()
    }
    await assembled(live, sources)
    return triggers


async def test_what_two_copies_cannot_read_has_no_majority(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    triggers = await with_two_bad(live, nbdkit, {"b": [(100, 100), (300, 300)], "c": [(100, 100), (600, 600)]})
    for trigger in triggers.values():
        trigger.touch()
    said = await say(live, "scrub")
    assert said.summary == (5, "no-majority")
    assert [
        (f["offset"] // SECTOR, f["verdict"], f["copies"], f["action"], f["votes"] != {})
        for f in said.document["findings"]
    ] == [
        (100, "no-majority", ["a", "b", "c"], "left", True),
        (300, "unreadable", ["b"], "failed", True),
        (600, "unreadable", ["c"], "failed", True),
    ]
    status = await status_of(live.sets)
    assert (status.state, status.reason) == (
        "damaged",
        f"No majority at offset {100 * SECTOR} (512 bytes): reading there fails.",
    )
    assert all(live.equal_to(shadow_of(live)).values()), "nothing was written"
    for trigger in triggers.values():
        trigger.unlink()
    assert (await live.scrub()).outcome == "clean"
    assert (await status_of(live.sets)).state == "healthy"


async def test_a_write_that_two_copies_refuse_is_refused_and_both_are_marked(
    nbdkit: Nbdkit, live_set: LiveSets
) -> None:
    live = live_set(size_bytes=SIZE)
    triggers = await with_two_bad(live, nbdkit, {"b": [], "c": []})
    fails = [Path(f"{trigger}.write") for trigger in triggers.values()]
    for path in fails:
        path.touch()
    link = live.link()
    assert link.write(AT, NEW) is False, "threshold copies have not got it: the guest is told"
    wait_for(lambda: missed(live) == {"b", "c"}, "both marks")
    for path in fails:
        path.unlink()
    status = await status_of(live.sets)
    assert (status.state, [copy.state for copy in status.copies]) == ("degraded", ["current", "suspect", "suspect"])
    assert (status.reason or "").startswith("Copy b: has missed a write: a write failed (Input/output error), first at")
    said = await say(live, "scrub")
    assert (said.summary, said.document["uncounted"]) == ((5, "no-majority"), ["b", "c"])
    (found,) = said.document["findings"]
    assert (found["offset"], found["length"], found["action"]) == (AT, len(NEW), "left")
    assert [live.contents(copy)[AT : AT + 4096] for copy in "abc"] == [NEW, OLD, OLD], "nothing was written"
    assert (await status_of(live.sets)).state == "damaged"
    # What the guest was told has failed it writes again.
    assert link.write(AT, NEW)
    link.close()
    assert (await live.scrub()).outcome == "clean"
    assert (await status_of(live.sets)).state == "healthy"


async def test_a_flush_that_two_copies_refuse_is_refused_and_a_stop_says_so(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    triggers = await with_two_bad(live, nbdkit, {"b": [], "c": []})
    fails = [Path(f"{trigger}.flush") for trigger in triggers.values()]
    link = live.link()
    assert link.write(AT, NEW)
    for path in fails:
        path.touch()
    assert link.flush() is False
    link.close()
    wait_for(lambda: missed(live) == {"b", "c"}, "both marks")
    stopped = await live.sets.stop(NAME)
    assert stopped.warnings == ["Not every copy confirmed its flush: the next start compares the copies."]
    for path in fails:
        path.unlink()
    started = await live.sets.start(NAME)
    assert started.recovery is not None
    assert [live.contents(copy)[AT : AT + 4096] for copy in "abc"] == [NEW] * 3
    assert (await status_of(live.sets)).state == "healthy"


async def test_a_stop_whose_flush_one_copy_refuses_leaves_the_set_unclean(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    trigger = (await with_two_bad(live, nbdkit, {"c": []}))["c"]
    Path(f"{trigger}.flush").touch()
    said = await say(live, "stop")
    warning = "Not every copy confirmed its flush: the next start compares the copies."
    assert (said.summary, said.document["warnings"]) == ((0, "stopped"), [warning])
    assert said.words == f"qorumctl: warning: {warning}"
    Path(f"{trigger}.flush").unlink()
    assert (await live.sets.start(NAME)).recovery is not None


@pytest.mark.attack("errors that come and go invent nothing and lose nothing", "random EIO of one copy", weight=1)
async def test_a_copy_that_fails_now_and_then(nbdkit: Nbdkit, live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=16 * MIB)
    paths = blank(live)
    trigger = live.images_dir / "flaky"
    rates = [f"error-{what}-{key}" for what in ("pread", "pwrite") for key in ("rate=20%", f"file={trigger}")]
    await assembled(live, {"c": nbdkit("--filter=error", "file", paths[2], "error=EIO", *rates).uri})
    shadow = shadow_of(live)
    for seed in attack.rounds(1):
        injected = rot(live, "c", random.Random(seed), 20, Range(4 * MIB, 12 * MIB))
        trigger.touch()
        with Guests(live, shadow, Range(0, 4 * MIB), seed=seed) as guests:
            first = await live.scrub()
        trigger.unlink()
        assert set(first.recovered_reads) <= {"c"}
        assert guests.refused == 0, "two copies had every write"
        assert {(f.verdict, *f.copies) for f in first.findings} <= {("outvoted", "c"), ("unreadable", "c")}
        second = await live.scrub()
        assert {(f.verdict, *f.copies, f.action) for f in second.findings} <= {("outvoted", "c", "repaired")}
        found = {f.offset // SECTOR for f in (*first.findings, *second.findings) if f.verdict == "outvoted"}
        assert set(injected) <= found
        assert (await live.scrub()).outcome == "clean"
        assert all(live.equal_to(shadow).values())
        await healthy_again(live, "c")
        attack.count(writes=guests.acknowledged, flips=len(injected))


async def test_a_read_that_fails_and_then_succeeds_is_no_finding_and_is_told(
    nbdkit: Nbdkit, live_set: LiveSets
) -> None:
    """A copy that cannot read a MiB at once, but each half of it."""
    live = live_set(size_bytes=SIZE)
    path = blank(live)[2]
    read = f"if [ $3 -ge 1048576 ]; then echo EIO once >&2; exit 1; fi; tail -c +$(($4 + 1)) {path} | head -c $3"
    writable = ("can_write=exit 0", "pwrite=exit 0", "can_flush=exit 0", "flush=exit 0")
    await assembled(live, {"c": nbdkit("eval", f"get_size=echo {SIZE}", f"pread={read}", *writable).uri})
    said = await say(live, "scrub")
    assert (said.summary, said.document["findings"], said.document["recovered_reads"]) == ((0, "clean"), [], {"c": 4})
    with live.cli("report", NAME) as told:
        words = " ".join(told.communicate()[0].decode().split())
    assert "4 reads of copy c failed, and succeeded when made again" in words, words


# -- hangs


async def with_a_self_stopping_copy(live: LiveSet, nbdkit: Nbdkit) -> SelfStopping:
    stops = SelfStopping(nbdkit, Path(blank(live)[2]))
    await assembled(live, {"c": stops.server.uri})
    return stops


async def test_a_copy_that_hangs_in_a_confirmation(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    """Between the opening and the freezing of the watch."""
    live = live_set(size_bytes=SIZE)
    stops = await with_a_self_stopping_copy(live, nbdkit)
    for copy, at in (("a", 3 * MIB), ("c", 2 * MIB)):
        live.flip(copy, at)
    before = {copy: live.contents(copy) for copy in "abc"}
    stops.in_confirmation()
    said = await say(live, "scrub")
    assert (said.summary, said.document["copy"]) == ((1, "copy-unavailable"), "c")
    assert said.document["message"] == f"Copy c did not answer a request at offset {2 * MIB} within 1 s."
    assert {copy: live.contents(copy) for copy in "abc"} == before, "nothing was written"
    said = await say(live, "status")
    (status,) = said.document["sets"]
    assert (said.code, status["state"], status["reason"]) == (
        1,
        "stalled",
        "Copy c does not answer; reads and writes of the volume wait for it.",
    )
    assert status["last_scrub"]["resumable"]
    stops.server.resume()
    report = await live.scrub()
    assert [(f.offset, f.copies, f.action) for f in report.findings] == [
        (2 * MIB, ["c"], "repaired"),
        (3 * MIB, ["a"], "repaired"),
    ]
    assert all(live.equal_to(shadow_of(live)).values())
    assert (await asyncio.to_thread(live.leftovers))["watches"] == frozenset()


async def test_a_copy_that_hangs_in_a_repair_blocks_no_monitor(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    """In the rewrite: the fenced read waits for it, and a drain would, too."""
    live = live_set(size_bytes=SIZE)
    stops = await with_a_self_stopping_copy(live, nbdkit)
    for copy, at in (("a", 3 * MIB), ("c", 2 * MIB)):
        live.flip(copy, at)
    winners = live.contents("b")
    stops.in_write()
    said = await say(live, "scrub")
    assert (said.summary, said.document["copy"]) == ((1, "copy-unavailable"), "c")
    assert said.document["message"] == "Copy c did not answer a request at offset 0 within 1 s."
    assert {f.action for f in live.sets.report(NAME).findings} == {"pending"}
    hasty = QuorumSets(live.directories, timeouts=HASTY)
    status = await status_of(hasty)
    assert (status.state, [copy.state for copy in status.copies]) == ("stalled", ["suspect", "current", "stalled"])
    said = await say(live, "scrub")
    assert (said.summary, said.document["copy"]) == ((1, "copy-unavailable"), "c")
    assert live.contents("b") == winners
    stops.server.resume()
    report = await live.scrub()
    assert [(f.offset, f.copies, f.action) for f in report.findings] == [
        (2 * MIB, ["c"], "repaired"),
        (3 * MIB, ["a"], "repaired"),
    ]
    assert all(live.equal_to(shadow_of(live)).values())


async def test_a_stop_is_refused_while_a_copy_hangs_and_takes_nothing_away(nbdkit: Nbdkit, live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    server = nbdkit("file", blank(live)[2])
    await assembled(live, {"c": server.uri})
    server.pause()
    try:
        said = await say(live, "stop")
        assert (said.summary, said.document["copy"]) == ((1, "copy-unavailable"), "c")
        assert said.words == (
            "qorumctl: Copy c did not answer within 1 s: a stop would hang, too, and was not begun. Bring its storage "
            "back. --force kills the daemon instead, and the next start compares the copies."
        )
    finally:
        server.resume()
    status = await status_of(live.sets)
    assert (status.state, status.volume is None) == ("healthy", False)
    link = live.link()
    assert link.write(AT, NEW)
    link.close()
    assert (await live.sets.stop(NAME)).warnings == []
    assert (await live.sets.start(NAME)).recovery is None
    server.pause()
    try:
        said = await say(live, "stop", "--force")
    finally:
        server.resume()
    warning = "The daemon did not answer and was ended: the next start compares the copies."
    assert (said.summary, said.words) == ((0, "stopped"), f"qorumctl: warning: {warning}")
    assert (await live.sets.start(NAME)).recovery is not None
    assert [live.contents(copy)[AT : AT + 4096] for copy in "abc"] == [NEW] * 3


@pytest.fixture
def comes_back(short_dir: Path) -> Iterator[Callable[[Path], ComesBack]]:
    """`comes_back(path)`: an image behind a server that can go away, come back, and hang."""
    servers: list[ComesBack] = []

    def make(path: Path) -> ComesBack:
        servers.append(ComesBack(short_dir / f"back{len(servers)}", path))
        return servers[-1]

    yield make
    for server in servers:
        server.gone()


ComingBack = Callable[[Path], ComesBack]


@pytest.mark.attack("a hang costs a scrub its time, and nothing else", "a copy stopped at any instant", weight=2)
async def test_a_copy_that_hangs_at_any_instant(comes_back: ComingBack, live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=16 * MIB)
    server = comes_back(Path(blank(live)[2]))
    await assembled(live, {"c": server.uri})
    shadow = shadow_of(live)
    hasty = QuorumSets(live.directories, timeouts=HASTY)
    for seed in attack.rounds(2):
        dice = random.Random(seed)
        injected = rot(live, "abc", dice, 80, Range(4 * MIB, 12 * MIB))
        with Guests(live, shadow, Range(0, 4 * MIB), seed=seed) as guests:
            hang = asyncio.ensure_future(after(dice.uniform(0, 0.4), server.hang))
            cut_off = 0
            try:
                await hasty.scrub(NAME, ScrubOptions())
            except (CopyUnavailableError, DaemonStalledError):
                cut_off = 1
            await hang
            status = await status_of(hasty)
            assert status.state == "stalled"
            server.answer()
            assert (await live.scrub()).resumable is False
        # What the run that hung has settled is in the same run's report: it was resumed.
        assert (await live.scrub()).outcome in {"clean", "repaired"}
        found = {
            f.offset // SECTOR for r in live.sets.history(NAME).runs[:3] for f in live.sets.report(NAME, r.run).findings
        }
        assert set(injected) <= found
        assert guests.refused == 0
        assert all(live.equal_to(shadow).values())
        assert (await asyncio.to_thread(live.leftovers))["watches"] == frozenset()
        attack.count(hangs=1, cut_off=cut_off, writes=guests.acknowledged, flips=len(injected))


# -- servers that go away and come back


async def answers_again(live: LiveSet, copy: str) -> None:
    """QEMU looks for a server that is gone after 1, 2, 4, 8 and then every 16 s, in the background; a request that
    comes meanwhile fails at once."""
    ends_at_s = time.monotonic() + 60
    while next(c.state for c in (await status_of(live.sets)).copies if c.name == copy) == "missing":
        assert time.monotonic() < ends_at_s, f"copy {copy} was not found again"
        await asyncio.sleep(0.1)


async def test_a_server_that_goes_and_comes_back_while_nobody_writes_has_missed_nothing(
    comes_back: ComingBack, live_set: LiveSets
) -> None:
    live = live_set(size_bytes=SIZE)
    server = comes_back(Path(blank(live)[2]))
    await assembled(live, {"c": server.uri})
    server.gone()
    said = await say(live, "status")
    (status,) = said.document["sets"]
    assert (said.code, status["state"], status["reason"]) == (4, "degraded", "Copy c: every read fails.")
    said = await say(live, "scrub")
    assert (said.summary, said.document["copy"]) == ((1, "copy-unavailable"), "c")
    server.back()
    await answers_again(live, "c")
    assert (await status_of(live.sets)).state == "healthy"
    assert (await live.scrub()).outcome == "clean"


async def test_a_server_that_goes_in_the_middle_of_a_scrub(comes_back: ComingBack, live_set: LiveSets) -> None:
    live = live_set(size_bytes=32 * MIB)
    server = comes_back(Path(blank(live)[2]))
    await assembled(live, {"c": server.uri})
    live.flip("a", 0)

    class Goes(Silent):
        def moved(self, position: ScrubPosition) -> None:
            if position.position_bytes >= 2 * MIB:
                server.gone()

    with pytest.raises(QorumError) as caught:
        await live.scrub(observer=Goes(), rate_bytes_per_s=16 * MIB)
    assert (caught.value.exit_code, caught.value.copy) == (1, "c")
    server.back()
    await answers_again(live, "c")
    report = await live.scrub()
    assert [(f.offset, f.action) for f in report.findings] == [(0, "repaired")]
    assert all(live.equal_to(shadow_of(live)).values())


@pytest.mark.attack("two stale copies never outvote a current one", "servers that go away and come back", weight=3)
async def test_copies_that_go_away_under_writers(comes_back: ComingBack, live_set: LiveSets, attack: Attack) -> None:
    """c misses writes; then b loses some of the very same ones, or goes away, too. a has them all, always."""
    live = live_set(size_bytes=8 * MIB)
    paths = blank(live)
    servers = {copy: comes_back(Path(path)) for copy, path in zip("bc", paths[1:], strict=True)}
    await assembled(live, {copy: server.uri for copy, server in servers.items()})
    shadow, hot = shadow_of(live), Range(0, 4 * MIB)
    for seed in attack.rounds(2):
        dice = random.Random(seed)
        scrubs = 0
        with Guests(live, shadow, hot, seed=seed) as guests:
            gone = asyncio.ensure_future(after(dice.uniform(0, 0.2), servers["c"].gone))
            if dice.random() < 0.5:
                scrubs += await scrubbed(live)
            await gone
            await guests.go_on()
        assert guests.refused == 0
        await asyncio.to_thread(wait_for, lambda: "c" in missed(live), "the mark of c")
        servers["c"].back()
        await answers_again(live, "c")
        assert guests.wrong(live.contents("a")) == []
        first, stale = live.contents("a"), live.contents("c")
        lost = [at for at in range(0, len(first), SECTOR) if first[at : at + SECTOR] != stale[at : at + SECTOR]]
        assert lost, "c missed nothing: the round proves nothing"
        if dice.random() < 0.5:
            # b acknowledged them, and returns what was there before.
            for at in dice.sample(lost, min(len(lost), 20)):
                live.poke("b", at, stale[at : at + SECTOR])
        else:
            with Guests(live, shadow, hot, seed=seed + 7) as guests:
                servers["b"].gone()
                await guests.go_on()
            await asyncio.to_thread(wait_for, lambda: "b" in missed(live), "the mark of b")
            servers["b"].back()
            await answers_again(live, "b")
        for _ in range(2):
            report = await live.scrub()
            assert report.outcome in {"no-majority", "damaged", "repaired", "clean"}
            assert "c" in report.uncounted
            assert guests.wrong(live.contents("a")) == [], "two stale copies outvoted the current one"
            scrubs += 1
        # Somebody decides: here the guest, who writes it all anew.
        shadow[:] = await asyncio.to_thread(live.fill, seed=seed)
        assert (await live.scrub()).outcome == "clean"
        await healthy_again(live, "bc")
        assert all(live.equal_to(shadow).values())
        attack.count(away=2, lost_sectors=len(lost), scrubs=scrubs, writes=guests.acknowledged)


async def scrubbed(live: LiveSet) -> int:
    """While a copy may go away: it ends, one way or the other."""
    with contextlib.suppress(CopyUnavailableError):
        await live.scrub()
    return 1


# -- fenced reads among writers


async def test_repairs_among_writers_that_never_pause(live_set: LiveSets) -> None:
    """Sixteen writers on the damaged 64 KiB. Whatever became of the damage there, each cold sector is found once."""
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    shadow = await asyncio.to_thread(live.fill)
    hot = Range(AT, 64 << 10)
    injected = rot(live, "abc", random.Random(3), 12, Range(2 * MIB, 2 * MIB))
    with Writers(live, shadow, hot, count=16) as writers:
        rot(live, "abc", random.Random(4), 12, hot)
        report = await live.scrub()
        assert report.outcome in {"repaired", "damaged"}
        cold = [(f.offset // SECTOR, f.action) for f in report.findings if f.offset >= 2 * MIB]
        assert cold == [(sector, "repaired") for sector in injected]
        assert {f.action for f in report.findings} <= {"repaired", "left"}
        assert writers.writes > 100
    await live.scrub()
    assert (await live.scrub()).outcome == "clean"
    assert all(live.equal_to(shadow).values())
