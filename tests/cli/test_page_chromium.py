"""The page in a real browser: light and dark, in a narrow window, on paper. Skipped where there is no Chromium: it is
300 MB that nothing else needs, so `make test` does not install it ('apt-get install chromium' does)."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qorumctl.cli import page
from qorumctl.core.findings import Fate
from qorumctl.model.report import History
from tests.cli.documents import finding, report, run_summary, set_status
from tests.cli.dossiers import dossier
from tests.cli.test_render_scrub import of_every_kind

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
_DEADLINE_S = 120


@pytest.fixture
def chromium() -> Iterator[Callable[..., str]]:
    """`chromium(URL, option...)`: what it prints."""
    profile = tempfile.mkdtemp(prefix="q-chromium-", dir="/tmp")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", *arguments],
            env=os.environ | {"HOME": profile},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    yield run
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A page with everything on it, long words too."""
    runs = [run_summary(run=n, outcome="repaired") for n in range(24, 0, -1)]
    found = [*of_every_kind(), *(finding(n, n << 20) for n in range(100, 160))]
    source = f"nbd://storage-c.example.org:10809/{'a-very-long-name-of-an-export-' * 6}"
    status = set_status()
    last = status.copies[2].model_copy(update={"source": source})
    one = dossier(
        report(*found, outcome="no-majority", run=24),
        status=status.model_copy(update={"copies": [*status.copies[:2], last], "reason": "x" * 200}),
        history=History(set="web01", runs=runs),
        fates={n: {"b": {Fate.REPAIRED: n * n}, "c": {Fate.LEFT: 1}} for n in range(1, 25)},
    )
    (tmp_path / "page.html").write_text(page.page(one, with_data=False))
    return tmp_path


def corner(png: bytes) -> tuple[int, ...]:
    """The first pixel: of the first line, which no filter changes at its beginning."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, data = 8, b""
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return tuple(zlib.decompress(data)[1:4])


def test_it_is_light_or_dark_as_the_reader_wants_it(place: Path, chromium: Callable[..., str]) -> None:
    corners = []
    for scheme in ("1", "0"):
        shot = place / f"{scheme}.png"
        # A narrow window: what lies beside the page is not seen, the page is.
        chromium(
            f"--blink-settings=preferredColorScheme={scheme}", "--window-size=800,600", f"--screenshot={shot}",
            (place / "page.html").as_uri(),
        )  # fmt: skip
        corners.append(corner(shot.read_bytes()))
    light, dark = corners
    assert min(light) > 0xF0
    assert max(dark) < 0x20


WIDTHS = {320: "narrow", 400: "narrow", 720: "narrow", 721: "wide", 1400: "wide"}
FRAME = """
<iframe src="page.html" style="border:0;width:{width}px;height:800px" onload="
    const page = this.contentDocument, right = e => e.getBoundingClientRect().right;
    const drawn = [...page.querySelectorAll('svg.wide, svg.narrow')].filter(e => right(e));
    this.dataset.seen = page.documentElement.scrollWidth + ' ' + [...new Set(drawn.map(e => e.classList[0]))] + ' '
        + [...page.querySelectorAll('svg text')].filter(e => right(e) > {width}).length + ' '
        + [...page.querySelectorAll('section')].filter(e => e.scrollWidth > e.clientWidth).length"></iframe>
"""


def test_nothing_is_cut_off_in_a_window_of_any_width(place: Path, chromium: Callable[..., str]) -> None:
    """A page of ours around it measures: in it scripts may run."""
    frames = "".join(FRAME.format(width=width) for width in WIDTHS)
    (place / "frames.html").write_text(f"<!doctype html>{frames}")
    dom = chromium("--allow-file-access-from-files", "--dump-dom", (place / "frames.html").as_uri())
    assert re.findall(r'data-seen="([^"]*)"', dom) == [f"{width} {kind} 0 0" for width, kind in WIDTHS.items()]


def test_on_paper_heads_of_tables_come_again(place: Path, chromium: Callable[..., str]) -> None:
    pdf = place / "page.pdf"
    chromium("--no-pdf-header-footer", f"--print-to-pdf={pdf}", (place / "page.html").as_uri())
    assert pdf.read_bytes().startswith(b"%PDF")
    if shutil.which("pdftotext") is None:
        return
    told = subprocess.run(["pdftotext", "-layout", pdf, "-"], check=True, capture_output=True, text=True).stdout
    sheets = [sheet for sheet in told.split("\f") if "confirmed" in sheet]
    assert len(sheets) > 2
    assert all("evidence" in sheet and "verdict" in sheet for sheet in sheets)
    assert sum(sheet.count("confirmed 2026") for sheet in sheets) == 67
