"""The report of a run as one page of HTML: no script, nothing from elsewhere, readable for years. Pure.

All that is not ours, down to the set's name, is escaped by the template's engine. The page forbids itself scripts and
connections (Content-Security-Policy), so that a mistake there stays harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from qorumctl import __version__
from qorumctl.cli import page_drawings, render, render_history, render_scrub, scrub_words
from qorumctl.cli.hex_diff import HexDiff, hex_diff
from qorumctl.cli.page_drawings import NARROW, WIDE, Drawing
from qorumctl.cli.render_map import MEANINGS
from qorumctl.cli.text import counted, moment, printable, taken
from qorumctl.controller.dossier import Dossier, Wanted
from qorumctl.core.disk_map import NO_COPY
from qorumctl.core.findings import Fate, Finding
from qorumctl.core.ranges import SECTOR_BYTES
from qorumctl.model import digest
from qorumctl.units import format_size

MARK = b'<meta name="generator" content="qorumctl report">'
"""By which an earlier report is known, near the beginning of its file."""
MARK_WITHIN_BYTES = 1024
_MOST_FINDINGS = 1000
"""About forty sheets of paper, 2 MB: more than anybody reads, and no browser is slow with it."""
_MOST_DATA = 100
_MOST_PLACES = 16
_REORDERING = {code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""Characters that turn round what follows them: a path must read as it is."""


def wanted(*, with_data: bool) -> Wanted:
    """What a page has room for."""
    cells = (WIDE.cells, NARROW.cells)
    return Wanted(cells, _MOST_FINDINGS, most_runs=WIDE.runs, most_data=_MOST_DATA if with_data else 0)


@dataclass(frozen=True, slots=True)
class DataOfFinding:
    finding: Finding
    id: int
    diff: HexDiff
    sample_bytes: int


def page(dossier: Dossier, *, with_data: bool) -> str:
    """`with_data`: shows what `dossier.data` holds, and warns of it on top."""
    names = [copy.name for copy in dossier.status.copies] or sorted(dossier.report.read_bytes)
    listed = frozenset(one.id for one in dossier.findings)
    level, sentence = scrub_words.verdict(dossier.report, dossier.tally, at_work=_at_work(dossier))
    frames = (WIDE, NARROW)
    return _template().render(
        d=dossier,
        level=level,
        sentence=sentence,
        paragraphs=scrub_words.summary(dossier.report, tally=dossier.tally),
        action=render.action(dossier.status) if dossier.status.copies else None,
        advice=render.advice(dossier.status),
        maps=[page_drawings.map_drawing(made, f, listed) for made, f in zip(dossier.maps, frames, strict=True)],
        charts=_charts(dossier, names),
        lanes=[*names, *sorted({n for of in dossier.fates.values() for n in of} - set(names))],
        cell=format_size(dossier.maps[0].ranges[0].length),
        unseen=not dossier.maps[0].all_compared,
        unread=[name for name in names if dossier.report.read_bytes and name not in dossier.report.read_bytes],
        listed=listed,
        most=_MOST_FINDINGS,
        with_data=with_data,
        data=[_data(dossier, number) for number in dossier.data] if with_data else [],
        chronicle={one.name: one.entries for one in dossier.history.copies},
    )


def _at_work(dossier: Dossier) -> bool:
    return dossier.status.scrub is not None and dossier.status.scrub.run == dossier.report.run


def _charts(dossier: Dossier, names: list[str]) -> list[Drawing]:
    return [
        page_drawings.chart_drawing(dossier.history.runs, dossier.fates, names, frame, dossier.report.run)
        for frame in (WIDE, NARROW)
    ]


def _data(dossier: Dossier, number: int) -> DataOfFinding:
    finding = dossier.data[number]
    samples = [bytes(version.sample) for version in finding.versions]
    diff = hex_diff(finding.range.offset, samples, _MOST_PLACES)
    return DataOfFinding(finding, number, diff, max(map(len, samples), default=0))


@cache
def _template() -> Template:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finished,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": format_size, "moment": moment, "counted": counted}
    environment.globals |= {
        "css": Markup(_asset("page.css")),  # noqa: S704 - ours
        "mark": Markup(MARK.decode()),  # noqa: S704
        "version": __version__,
        "Fate": Fate,
        "NO_COPY": NO_COPY,
        "SECTOR_BYTES": SECTOR_BYTES,
        "MEANINGS": MEANINGS,
        "entry_words": render_history.WORDS,
        "fate": digest.fate,
        "fates_only": page_drawings.fates_only,
        "diagnosis": render_scrub.diagnosis_in_words,
        "notes": render_scrub.notes,
        "last_scrub": render.last_scrub,
        "covered": render.covered,
        "taken": taken,
    }
    return environment.get_template("page.html.jinja")


def _asset(name: str) -> str:
    return files("qorumctl.cli").joinpath("assets", name).read_text("utf-8")


def _finished(value: Any) -> Any:
    """Before it is escaped: no control characters, which no page may hold, and nothing that reorders text."""
    return (
        printable(value).translate(_REORDERING) if isinstance(value, str) and not isinstance(value, Markup) else value
    )
