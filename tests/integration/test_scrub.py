"""One scrub of a real set: what is found, what is repaired, what is said."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from qorumctl.core.diagnosis import Kind
from qorumctl.core.findings import Action, FindingVerdict, Source
from qorumctl.core.ranges import Range
from qorumctl.errors import RefusedError
from tests.integration.harness import NAME, SECTOR, LiveSet
from tests.live import MIB

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
KIB64 = 64 << 10


async def prepared(live_set: LiveSets, **options: object) -> tuple[LiveSet, bytearray]:
    live = live_set(size_bytes=16 * MIB)
    await live.create(**options)
    await live.start()
    return live, live.fill()


async def test_a_clean_set_scrubs_clean(live_set: LiveSets) -> None:
    live, shadow = await prepared(live_set)
    report = await live.scrub()
    assert (report.outcome, report.findings, report.suspects) == ("clean", [], 0)
    assert report.scanned_bytes == live.size_bytes == report.read_bytes["b"]
    assert all(live.equal_to(shadow).values())


@pytest.mark.parametrize("count", [3, 5])
async def test_every_flipped_sector_is_found_once_and_repaired(live_set: LiveSets, count: int) -> None:
    live, shadow = await prepared(live_set, count=count)
    dice = random.Random(3)
    sectors = sorted(dice.sample(range(live.size_bytes // SECTOR // 2), 60))
    sectors = [2 * s for s in sectors]  # never adjacent: adjacent ones would be one finding
    for n, sector in enumerate(sectors):
        live.flip("abcde"[n % count], sector * SECTOR + dice.randrange(SECTOR), dice.randrange(8))
    report = await live.scrub()
    assert report.outcome == "repaired"
    assert [f.offset // SECTOR for f in report.findings] == sectors
    assert {
        (f.verdict, f.action, f.diagnosis.kind, f.diagnosis.flipped_bits, len(f.copies)) for f in report.findings
    } == {(FindingVerdict.OUTVOTED, Action.REPAIRED, Kind.BIT_FLIPS, 1, 1)}
    assert all(live.equal_to(shadow).values())
    assert (await live.scrub()).outcome == "clean"


async def test_each_kind_of_damage_is_named(live_set: LiveSets) -> None:
    live, shadow = await prepared(live_set)
    live.flip("a", 100 * SECTOR + 7)
    live.poke("b", 200 * SECTOR, bytes(SECTOR))
    live.poke("c", 300 * SECTOR, b"\xff" * SECTOR)
    live.poke("a", 400 * SECTOR + 200, random.Random(5).randbytes(2 * SECTOR - 200))
    report = await live.scrub()
    said = {f.offset // SECTOR: (f.copies, f.length // SECTOR, f.diagnosis) for f in report.findings}
    assert said[100][2].kind is Kind.BIT_FLIPS
    assert (said[200][2].kind, said[300][2].kind, said[300][2].fill_byte) == (Kind.ZEROED, Kind.FILLED, 0xFF)
    assert said[400] == (["a"], 2, said[400][2])
    assert (said[400][2].kind, said[400][2].torn_at_bytes) == (Kind.TORN, 200)
    assert all(live.equal_to(shadow).values())


async def test_two_copies_damaged_in_one_request_lose_nothing(live_set: LiveSets) -> None:
    """QEMU votes on whole requests and answers EIO; sector by sector each has its majority."""
    live, shadow = await prepared(live_set)
    at = 4 * MIB
    live.flip("a", at + 3 * SECTOR)
    live.flip("b", at + 90 * SECTOR)
    link = live.link("heal")
    assert link.read(Range(at, KIB64)) is None
    link.close()
    report = await live.scrub()
    assert [(f.copies, f.action) for f in report.findings] == [(["a"], "repaired"), (["b"], "repaired")]
    assert all(live.equal_to(shadow).values())


async def test_without_a_majority_nothing_is_written(live_set: LiveSets) -> None:
    live, _ = await prepared(live_set)
    at = 1000 * SECTOR
    for n, copy in enumerate("abc"):
        live.flip(copy, at + 10 + n)
    live.flip("a", 2000 * SECTOR)
    before = {copy: live.contents(copy)[at : at + SECTOR] for copy in "abc"}
    report = await live.scrub()
    assert report.outcome == "no-majority"
    lost, healed = report.findings
    assert (lost.offset, lost.length, lost.verdict, lost.action) == (at, SECTOR, "no-majority", "left")
    assert sorted(name for names in lost.votes.values() for name in names) == ["a", "b", "c"]
    assert len(lost.votes) == 3
    assert (healed.copies, healed.action) == (["a"], "repaired")
    assert {copy: live.contents(copy)[at : at + SECTOR] for copy in "abc"} == before
    assert (await live.sets.status([NAME])).sets[0].state == "damaged"


async def test_report_mode_and_report_policy_write_nothing(live_set: LiveSets) -> None:
    live, shadow = await prepared(live_set, policy="report")
    live.flip("b", 5 * SECTOR)
    damaged = live.contents("b")
    report = await live.scrub()
    assert (report.mode, report.outcome) == ("report", "damaged")
    assert [(f.copies, f.action) for f in report.findings] == [(["b"], "left")]
    link = live.link()
    assert link.read(Range(0, KIB64)) == shadow[:KIB64]
    link.close()
    assert live.contents("b") == damaged
    with pytest.raises(RefusedError, match='policy "report"'):
        await live.scrub(mode="repair")


async def test_adjacent_damage_is_one_finding_even_across_chunks(live_set: LiveSets) -> None:
    live, shadow = await prepared(live_set)
    live.poke("c", 3 * MIB - 2 * SECTOR, random.Random(1).randbytes(4 * SECTOR))
    report = await live.scrub()
    assert [(f.offset, f.length) for f in report.findings] == [(3 * MIB - 2 * SECTOR, 4 * SECTOR)]
    assert all(live.equal_to(shadow).values())


async def test_a_copy_that_is_wrong_everywhere_is_repaired(live_set: LiveSets) -> None:
    live, shadow = await prepared(live_set)
    live.poke("b", 0, random.Random(99).randbytes(live.size_bytes))
    report = await live.scrub()
    assert report.outcome == "repaired"
    assert sum(f.length for f in report.findings) == live.size_bytes
    assert {tuple(f.copies) for f in report.findings} == {("b",)}
    assert all(live.equal_to(shadow).values())


async def test_holes_are_skipped_unless_thorough(live_set: LiveSets) -> None:
    live = live_set(size_bytes=16 * MIB)
    await live.create()
    await live.start()
    live.fill(length_bytes=4 * MIB)
    report = await live.scrub()
    assert (report.scanned_bytes, report.skipped_bytes) == (4 * MIB, 12 * MIB)
    report = await live.scrub(thorough=True)
    assert (report.scanned_bytes, report.skipped_bytes) == (16 * MIB, 0)


async def test_damage_in_a_hole_of_the_others_is_found(live_set: LiveSets) -> None:
    live = live_set(size_bytes=16 * MIB)
    await live.create()
    await live.start()
    live.fill(length_bytes=4 * MIB)
    live.poke("c", 12 * MIB, b"garbage")
    report = await live.scrub()
    assert [(f.offset, f.copies, f.action) for f in report.findings] == [(12 * MIB, ["c"], "repaired")]


async def test_a_range_is_scrubbed_alone(live_set: LiveSets) -> None:
    live, _ = await prepared(live_set)
    live.flip("a", 0)
    live.flip("a", 8 * MIB)
    report = await live.scrub(within=Range(4 * MIB, 8 * MIB))
    assert [f.offset for f in report.findings] == [8 * MIB]
    assert report.scanned_bytes == 8 * MIB


async def test_a_stopped_set_is_compared_without_being_touched(live_set: LiveSets) -> None:
    live, _ = await prepared(live_set)
    await live.sets.stop(NAME)
    live.flip("a", 0)
    before = live.contents("a")
    with pytest.raises(RefusedError, match="is not running"):
        await live.scrub()
    report = await live.scrub(mode="report")
    assert [(f.offset, f.copies, f.action) for f in report.findings] == [(0, ["a"], "left")]
    assert live.contents("a") == before
    assert live.sets.show(NAME)
    assert (await live.sets.status([NAME])).sets[0].pid is None


async def test_what_a_guest_reads_first_is_still_on_record(live_set: LiveSets) -> None:
    """A guest's read repairs the sector between the scan and its confirmation: the scan's evidence is kept."""
    live, shadow = await prepared(live_set)
    live.flip("b", 6 * MIB)

    class GuestReads:
        """Reads the damaged place once the scan has passed it, before the confirmation."""

        done = False

        def started(self, start: object) -> None: ...

        def moved(self, position: object) -> None:
            if not self.done and position.position_bytes >= live.size_bytes:  # type: ignore[attr-defined]
                link = live.link()
                assert link.read(Range(6 * MIB, SECTOR)) is not None
                link.close()
                self.done = True

    report = await live.scrub(observer=GuestReads())
    (found,) = report.findings
    assert (found.offset, found.copies, found.action, found.source) == (6 * MIB, ["b"], "repaired", Source.GUEST_READ)
    assert all(live.equal_to(shadow).values())


@pytest.mark.parametrize("count", [3, 5])
async def test_qcow2_copies_are_compared_by_what_they_hold(live_set: LiveSets, count: int) -> None:
    live = live_set(size_bytes=16 * MIB)
    await live.create(format="qcow2", count=count)
    await live.start()
    shadow = live.fill()
    marker = bytes(shadow[5 * MIB : 5 * MIB + SECTOR])
    at = live.contents("b").index(marker)
    live.flip("b", at + 9)
    report = await live.scrub()
    assert [(f.offset, f.copies, f.action) for f in report.findings] == [(5 * MIB, ["b"], "repaired")]
    assert live.contents("b")[at : at + SECTOR] == marker


async def test_nothing_of_a_scrub_is_left_in_the_daemon(live_set: LiveSets) -> None:
    live, _ = await prepared(live_set)
    live.flip("a", 0)
    await live.scrub()
    state = await live.sets.qmp(NAME, "query-block-exports")
    assert {export["id"] for export in state.result} == {"volume", "heal", "copy-a", "copy-b", "copy-c"}
    nodes = await live.sets.qmp(NAME, "query-named-block-nodes", {"flat": True})
    assert not any(node.get("dirty-bitmaps") for node in nodes.result)
