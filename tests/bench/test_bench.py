"""The benchmark measures what it says, and fails where a contender does not do its work. No time is judged here."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qorumctl.copies import blkio
from qorumctl.errors import CommandError
from tests.bench import __main__ as bench
from tests.bench import contenders, situations, table
from tests.bench.bed import MEMORY, Bed, bed
from tests.bench.measure import Row, Sample, Wrong, run
from tests.bench.peers import Peer
from tests.live import MIB

SIZE = 16 * MIB
in_memory = pytest.mark.skipif(not MEMORY.is_dir(), reason=f"there is no {MEMORY}")


@pytest.fixture
def over_nbd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blkio, "why_not", lambda: "this test is about something else")


@pytest.fixture(scope="module")
def made() -> Iterator[Bed]:
    """One for all that leave it as it was."""
    with asyncio.Runner() as runner:
        context = bed(MEMORY, SIZE)
        yield runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


@pytest.fixture
def shared_memory_or_not(monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether libblkio can be used: the benchmark runs without it, too."""
    if (path := os.environ.get("QORUM_TEST_LIBBLKIO")) is not None:
        monkeypatch.setenv(blkio.VARIABLE, path)
    blkio.forget()
    yield blkio.why_not() is None
    monkeypatch.undo()
    blkio.forget()


@pytest.mark.live
@in_memory
def test_a_small_run_gives_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_memory_or_not: bool
) -> None:
    document, page = tmp_path / "bench.json", tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGINS}\nold\n{table.ENDS}\nafter\n")
    words = ["--size", "64MiB", "--rounds", "1", "--only", "scrub,confirmation", "--disk", str(tmp_path)]
    assert bench.main([*words, "--json", str(document), "--write", str(page)]) == 0
    found = json.loads(document.read_text())
    shared = [contenders.SHM] if shared_memory_or_not else []
    assert [row["name"] for row in found["rows"] if not row["skipped"]] == [
        *shared,
        contenders.NBD,
        contenders.COPY,
        contenders.VOTE,
        contenders.COPY_STOCK,
        contenders.VOTE_STOCK,
        contenders.VOTE_THREADS,
        contenders.COMPARE,
        contenders.CAT,
        situations.IDLE,
        situations.WRITTEN,
    ]
    assert all(sample["wall_s"] > 0 for row in found["rows"] for sample in row["samples"])
    assert all(len(row["samples"]) == 1 or row["skipped"] for row in found["rows"])
    verdicts = {verdict["target"]: verdict["met"] for verdict in found["targets"]}
    assert (verdicts["QEMU's vote / scrub over shared memory"] is not None) == shared_memory_or_not
    assert verdicts["scrub over NBD / nbdcopy of the quorum"] is not None
    assert verdicts["`status`"] is None
    text = capsys.readouterr().out
    assert page.read_text() == f"before\n{table.BEGINS}\n\n{text[:-1]}\n{table.ENDS}\nafter\n"


@pytest.mark.live
@in_memory
@pytest.mark.usefixtures("over_nbd")
async def test_what_else_is_measured(made: Bed) -> None:
    rows = await situations.commands(made, 1)
    ways = {name: situations.WAYS[name] for name in (situations.ALONE, situations.FULL)}
    rows += await situations.guests(made, 1, 0.3, ways, warm_up_s=0.1)
    rows += await situations.rejoin(made, 1)
    rows += await situations.damage(made, 1, {"none": 0, "1 %": 0.01})
    assert len(rows) == 3 + 2 + 4 + 2
    assert [len(row.samples) for row in rows] == [1] * len(rows)
    names = {row.name: row for row in rows}
    assert names[situations.ALONE].figure("iops")
    assert names[situations.FULL].figure("scrub_bytes_per_s")
    assert names["8 MiB missed"].figure("bytes") == 8 * MIB
    assert "| no scrub |" in table.markdown(_document(), rows)


@pytest.mark.live
@in_memory
@pytest.mark.usefixtures("over_nbd")
async def test_a_sparse_set() -> None:
    rows = await situations.sparse(SIZE, 1)
    assert [len(row.samples) for row in rows] == [1, 1]


@pytest.mark.live
@in_memory
async def test_who_does_not_do_its_work_is_found_out(made: Bed) -> None:
    made.damage("b", [17])
    with pytest.raises(Wrong, match="a scrub of equal copies: repaired"):
        await contenders.clean_scrub(made, "nbd")()
    with pytest.raises(Wrong, match=r"it read \{'a': "):
        await contenders.clean_scrub(made, "nbd", expected_bytes=2 * SIZE)()
    made.damage("b", [17])
    with pytest.raises(Wrong, match="not equal"):
        made.prove_equal()
    with pytest.raises(Wrong, match="Content mismatch"):
        await contenders.compare(made)()
    peer = Peer(made, tuned=True)
    try:
        made.size_bytes *= 2
        with pytest.raises(CommandError, match="different sizes"):
            await peer.vote()
        with pytest.raises(Wrong, match=r"cat .* read"):
            await contenders.cat(made)()
        with pytest.raises(Wrong, match=r"dd .* read"):
            await contenders.direct(made)()
    finally:
        peer.end()
        made.size_bytes = SIZE


def test_a_program_that_fails_is_no_contender() -> None:
    with pytest.raises(Wrong, match="ended with 3: no"):
        run(["sh", "-c", "echo no; exit 3"])


def test_a_contender_that_fails_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def fails(*_: object) -> tuple[list[Row], dict[str, object]]:
        raise Wrong("nobody read anything")

    monkeypatch.setattr(bench, "measured", fails)
    document = tmp_path / "bench.json"
    assert bench.main(["--size", "64MiB", "--json", str(document)]) == 1
    assert not document.exists()


@pytest.mark.parametrize(
    "words", [["--only", "scrub,all"], ["--size", "17MiB"], ["--rounds", "0"], ["--size", "9PiB"], ["--size", "900TiB"]]
)
def test_what_cannot_be_measured_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(words)


def test_a_disk_that_hides_behind_the_page_cache_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_takes_o_direct", lambda _: False)
    with pytest.raises(SystemExit):
        bench.arguments(["--size", "64MiB", "--disk", str(tmp_path)])
    assert "refuses O_DIRECT" in capsys.readouterr().err
    assert bench.arguments(["--size", "64MiB", "--disk", str(tmp_path), "--only", "commands"]).only == ["commands"]


def test_targets_are_judged_by_rounds_and_without_allowance() -> None:
    def row(name: str, *walls: float) -> Row:
        return Row(table.MEMORY, name, 1 << 30, [Sample(wall, 2 * wall, {"rss_bytes": 151 * MIB}) for wall in walls])

    rows = [
        row(contenders.SHM, 1.0, 4.0, 1.0),
        row(contenders.COPY, 3.0, 12.0, 2.9),
        row(contenders.CAT, 0.6, 2.6, 1.0),
    ]
    found = {verdict.target: (verdict.figure, verdict.met) for verdict in table.judged(rows)}
    assert found["nbdcopy of the quorum / scrub over shared memory"] == (3.0, True)
    assert found["scrub over shared memory / cat of the three files"] == (4.0 / 2.6, False)
    assert found["peak resident memory of any scrub"] == (151.0, False)
    assert found["`status`"] == (None, None)
    text = table.markdown(_document(), rows)
    assert "| scrub over shared memory / cat of the three files | <= 1.5x | 1.54x | **missed** |" in text
    assert "| scrub, shared memory | 1.000 | 1.00 | 2.00 | 300% | 151 |" in text


def test_a_page_without_a_place_for_the_figures_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no place for the figures"):
        table.write(page, "figures")
    assert page.read_text() == "no marks"


def _document() -> dict[str, object]:
    noise = {"cat_before_s": 1.0, "cat_after_s": 1.0, "load_before": 0.1, "load_after": 0.2}
    return {
        "date": "2026-01-01",
        "machine": {"kernel": "Linux"},
        "versions": {"QEMU": "7.2"},
        "rounds": 3,
        "noise": noise,
    }
