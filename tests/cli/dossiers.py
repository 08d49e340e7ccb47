"""Dossiers made by hand, and what a page that was made of one holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser

from qorumctl.cli import page
from qorumctl.controller.dossier import Dossier, Wanted
from qorumctl.core.disk_map import DiskMap
from qorumctl.core.findings import Finding
from qorumctl.model import digest
from qorumctl.model.report import History, ScrubReport
from qorumctl.model.status import SetStatus
from qorumctl.store.totals import FatesByRun
from tests.cli.documents import run_summary, set_status


def dossier(
    report: ScrubReport,
    *,
    wanted: Wanted | None = None,
    status: SetStatus | None = None,
    history: History | None = None,
    fates: FatesByRun | None = None,
    data: Mapping[int, Finding] | None = None,
) -> Dossier:
    """As `controller.dossier` makes one of a store."""
    wanted = wanted or page.wanted(with_data=bool(data))
    status = status or set_status()
    compared = digest.compared(report.model_copy(update={"findings": []}), [copy.name for copy in status.copies])
    maps = tuple(DiskMap(report.size, compared, cells) for cells in wanted.cells)
    for one in report.findings:
        for made in maps:
            made.add(digest.mark(one))
    return Dossier(
        made="2026-11-22T06:00:00.000Z",
        status=status,
        report=report.model_copy(update={"findings": []}),
        tally=digest.tally_of(report.findings),
        maps=maps,
        findings=sorted(report.findings, key=lambda one: -digest.fate(one))[: wanted.most_findings],
        history=history or History(set=report.set, runs=[run_summary(run=report.run, outcome=report.outcome)]),
        fates=fates or {},
        newest_run=max([report.run, *(run.run for run in (history.runs if history else []))]),
        data=dict(data or {}),
    )


_VOID = {"meta", "br", "link", "img", "input", "hr"}
_LINKS = {"href", "src", "xlink:href", "action", "data", "poster", "srcset", "background", "formaction"}


@dataclass
class Page(HTMLParser):
    """Parsed strictly: each element is closed in its turn, and none has an id of another."""

    html: str
    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    """Of shapes."""
    shapes: list[str] = field(default_factory=list)
    """Classes of the groups in drawings."""
    texts: list[str] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        self.close()
        assert self._open == [], f"left open: {self._open}"
        assert len(self.ids) == len(set(self.ids))

    def __hash__(self) -> int:
        return id(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if tag == "g" and name == "class":
                self.shapes.append(value or "")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> within {self._open}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self._open:
            (self.titles if self._open[-1:] == ["title"] and "g" in self._open else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def check_alone(self) -> None:
        """Nothing runs, and nothing is fetched from anywhere."""
        assert not {"script", "iframe", "object", "embed", "link", "base", "form", "img", "image", "use"} & set(
            self.tags
        )
        assert [a for a in self.attributes if a[1].startswith("on")] == []
        links = [value for _, name, value in self.attributes if name in _LINKS]
        assert all(value.startswith("#") for value in links)
        assert {value[1:] for value in links} <= set(self.ids)
        (css,) = re.findall(r"<style>(.*?)</style>", self.html, re.DOTALL)
        assert "@import" not in css
        assert set(re.findall(r"url\(([^)]*)\)", css)) <= {"#dots"}
        assert [a for a in self.attributes if "url(" in a[2]] == []
        policy = [value for tag, name, value in self.attributes if tag == "meta" and name == "content"]
        assert "default-src 'none'; style-src 'unsafe-inline'" in policy


def made(one: Dossier, *, with_data: bool = False) -> Page:
    parsed = Page(page.page(one, with_data=with_data))
    parsed.check_alone()
    return parsed


def marked(parsed: Page) -> list[str]:
    """Titles of cells of the map that show damage, in both of its widths."""
    return [title for title in parsed.titles if "bytes" in title and "finding" in title]


def table_rows(parsed: Page) -> set[int]:
    return {int(name.removeprefix("finding-")) for name in parsed.ids if name.startswith("finding-")}
