"""The page of a real set that was damaged, repaired, and damaged beyond repair: it tells what the document tells."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from qorumctl.core.ranges import SECTOR_BYTES as S
from tests.cli.conftest import MIB, Machine
from tests.cli.dossiers import Page, marked, table_rows

SECRET = (b"what only a guest may read, and nobody else. " * 12)[:S]


def poke(machine: Machine, copies: str, offset: int, data: bytes) -> None:
    for copy in copies:
        with machine.images[copy].open("r+b") as image:
            image.seek(offset)
            image.write(data)


def check(document: dict[str, Any], parsed: Page) -> None:
    parsed.check_alone()
    assert table_rows(parsed) == {one["id"] for one in document["findings"]}
    titles = marked(parsed)
    for one in document["findings"]:
        assert f"{one['offset']}:{one['length']}" in parsed.text
        assert all(digest in parsed.text for digest in one["votes"])
        for copy in one["copies"]:
            cells = [title for title in titles if title.startswith(f"copy {copy}, ") and holds(title, one["offset"])]
            assert len(cells) == 2, "one in each width"


def holds(title: str, offset: int) -> bool:
    first, last = title.split("(bytes ")[1].split(")", maxsplit=1)[0].split(" to ")
    return int(first) <= offset <= int(last)


@pytest.mark.live
def test_the_page_tells_what_the_document_tells_and_holds_no_data_unless_asked(
    machine: Machine, tmp_path: Path
) -> None:
    machine.create()
    poke(machine, "abc", 3 * MIB, SECRET)
    machine.document("start", "w")
    machine.flip("b", 3 * MIB + 5)
    poke(machine, "b", 6 * MIB, bytes(3 * S))
    machine.document("scrub", "w", code=3)
    poke(machine, "c", 3 * MIB, b"torn" * 128)
    for copy in "ab":
        poke(machine, copy, 21 * MIB, copy.encode() * S)
    machine.document("scrub", "w", "--report", code=5)

    path = tmp_path / "r.html"
    check(machine.document("report", "w", "1", "--html", str(path)), repaired := Page(path.read_text()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "2 ranges (2 KiB) of copy b were damaged; all of it was repaired." in repaired.text
    assert "the newest is run 2" in repaired.text
    document = machine.document("report", "w", "--html", str(path))
    check(document, left := Page(path.read_text()))
    assert "1 range (512 B) has no majority" in left.text
    assert "damaged. No majority at" in left.text
    for page in (repaired, left):
        assert SECRET[:16].decode() not in page.html
        assert SECRET[:4].hex(" ") not in page.html
        assert "no data of guests" in page.text

    told = machine.run("report", "w", "--html", str(path), "--with-data")
    assert told.stdout == f"{path} tells of run 2 of w. Only its owner may read it.\n"
    assert "The page holds data of guests" in told.stderr
    check(document, shown := Page(path.read_text()))
    assert "This page holds data of guests" in shown.text
    assert b"torntorntorntorn".hex(" ") in shown.text
    assert SECRET[:16].decode() in shown.text

    printed = machine.run("report", "w", "--html", "-")
    assert Page(printed.stdout).text.startswith("w, run 2: no-majority")
    lines = machine.run("report", "w").stdout.splitlines()
    assert f"  c {'─' * 8}▲{'─' * 47}✕{'─' * 7}" in lines
    assert f"  b {'─' * 56}✕{'─' * 7}" in lines


@pytest.mark.live
def test_what_is_asked_wrongly_writes_nothing(machine: Machine, tmp_path: Path) -> None:
    machine.create()
    path = str(tmp_path / "r.html")
    assert "has never been scrubbed" in machine.document("report", "w", "--html", path, code=1)["message"]
    assert "Give --html FILE" in machine.document("report", "w", "--with-data", code=2)["remedy"]
    assert "Give --html a file" in machine.document("report", "w", "--html", "-", code=2)["remedy"]
    assert list(tmp_path.iterdir()) == []
