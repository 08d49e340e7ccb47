"""The page of a report: complete in itself, harmless whatever it tells of, and no finding is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qorumctl.cli import page
from qorumctl.cli.page_drawings import NARROW, WIDE, compact
from qorumctl.controller.dossier import Wanted
from qorumctl.core.chronicle import Entry
from qorumctl.core.diagnosis import Diagnosis, Kind
from qorumctl.core.findings import Action, Fate, Finding, FindingVerdict, Version
from qorumctl.core.ranges import Range
from qorumctl.model.report import CopyEntry, CopyHistory, History
from qorumctl.model.status import SetState
from tests.cli.documents import GIB, MIB, copy, finding, report, run_summary, set_status
from tests.cli.dossiers import dossier, made, marked, table_rows
from tests.cli.test_render_scrub import TIED, of_every_kind

EVIL = """<script>alert(1)</script>"'><img src=http://x.example/ onerror=alert(2)>{{ 7*7 }}"""


def test_a_page_of_every_kind_of_finding_tells_each_in_the_table_and_on_the_map() -> None:
    findings = of_every_kind()
    got = made(dossier(report(*findings, outcome="no-majority")))
    assert table_rows(got) == {one.id for one in findings}
    for one in findings:
        assert f"{one.offset}:{one.length}" in got.text
        assert all(digest in got.text for digest in one.votes)
    drawings = {value for tag, name, value in got.attributes if (tag, name) == ("svg", "class")}
    assert {f"{frame.name} {kind}" for frame in (WIDE, NARROW) for kind in ("map", "chart")} <= drawings
    cells = marked(got)
    assert len([title for title in cells if title.startswith("no copy")]) == 2
    assert any(title.startswith("copy b, 18.8 GiB to 19.1 GiB") and "1 repaired" in title for title in cells)
    assert {"repaired", "tied", "equal"} <= set(got.shapes)


def test_cells_lead_to_the_line_of_the_finding_that_ended_worst() -> None:
    found = [finding(1, 0), finding(2, 512, action="left"), finding(3, 19 * GIB)]
    got = made(dossier(report(*found, outcome="damaged")))
    assert {value for _, name, value in got.attributes if name == "href"} == {"#finding-2", "#finding-3"}


def test_nothing_found() -> None:
    got = made(dossier(report()))
    assert "No damage was found: all copies that were read are equal." in got.text
    assert "Findings of run 12 None." in got.text
    assert marked(got) == []


def test_what_guests_kept_writing_was_not_compared_and_the_map_says_so() -> None:
    assert "Guests kept writing 4 KiB of it: that was not compared" in made(dossier(report(busy_bytes=4096))).text
    assert "kept writing" not in made(dossier(report())).text


@pytest.mark.parametrize(
    ("findings", "keys", "sentence"),
    [
        ([finding()], {"outcome": "repaired"}, "1 range (512 B) of copy b was damaged; all of it was repaired."),
        (
            [finding(), finding(2, 0, copies=["c"])],
            {"outcome": "repaired"},
            "2 ranges (1 KiB) of copies b and c were damaged; all of it was repaired.",
        ),
        (
            [finding(copies=[], cause="unclean-shutdown")],
            {"outcome": "repaired"},
            "1 range (512 B) differed after an unclean stop; all of it was made equal.",
        ),
        (
            [finding(), finding(2, 0, action="left")],
            {"outcome": "damaged"},
            "1 range (512 B) of copy b is still damaged; guests read what the majority holds.",
        ),
        (
            [finding(1, 0, **TIED), finding(2, 512, action="failed")],
            {"outcome": "no-majority"},
            "1 range (512 B) has no majority: the copies disagree, and none can be trusted there, and 1 more is still"
            " damaged.",
        ),
        ([], {"range": {"offset": 0, "length": MIB}}, "No damage was found in the range that was compared: all copies"),
        ([], {"busy_bytes": 4096}, "all copies that were read are equal, but for 4 KiB that guests kept writing."),
        (
            [],
            {"outcome": "unfinished", "scanned_bytes": 9 * GIB},
            "This scrub was not finished: 45 % of what it was to compare was looked at. So far no damage was found.",
        ),
        (
            [finding(), finding(2, 0, action="pending")],
            {"outcome": "failed", "scanned_bytes": 9 * GIB, "message": "copy c is gone"},
            "This scrub failed: 45 % of what it was to compare was looked at. So far 2 damaged ranges were found, and 1"
            " not repaired.",
        ),
    ],
)
def test_the_verdict_is_one_sentence_at_the_top(findings: list[Any], keys: dict[str, Any], sentence: str) -> None:
    got = made(dossier(report(*findings, **keys)))
    assert sentence in got.text
    assert got.text.index(sentence) < got.text.index("What it means")


def test_an_unfinished_run_never_looks_clean() -> None:
    got = made(dossier(report(outcome="unfinished", scanned_bytes=9 * GIB)))
    assert "unseen" in got.shapes
    assert "not compared" in got.text
    (head,) = [value for tag, name, value in got.attributes if (tag, name) == ("header", "class")]
    assert head == "open"


def test_a_copy_that_was_away_never_looks_compared() -> None:
    got = made(dossier(report(read_bytes={"a": 1, "c": 1})))
    assert "Not all copies were compared: b was not in the set during this run." in got.text
    assert [title for title in got.titles if title.startswith("copy b, 0 to") and "not compared" in title]
    assert not [title for title in got.titles if title.startswith("copy a, 0 to") and "not compared" in title]


def test_names_paths_and_messages_are_text_and_nothing_else() -> None:
    status = set_status(
        set=EVIL, reason=EVIL, state="degraded", copies=[copy(EVIL, source=EVIL, note=EVIL, state="suspect")]
    )
    told = History(
        set=EVIL,
        runs=[run_summary(), run_summary(run=11, message=EVIL)],
        copies=[
            CopyHistory(
                name=EVIL,
                entries=[
                    CopyEntry(kind=Entry.DETACHED, number=1, first=status.last_scrub.started,  # type: ignore[union-attr]
                              last=status.last_scrub.started, detail=EVIL)  # type: ignore[union-attr]
                ],
            )
        ],
    )  # fmt: skip
    found = finding(copies=[EVIL], votes={EVIL: [EVIL]}, action="left")
    one = dossier(
        report(found, outcome="failed", set=EVIL, message=EVIL, read_bytes={EVIL: 1}, left_because={EVIL: EVIL}),
        status=status,
        history=told,
        fates={12: {EVIL: {Fate.LEFT: 1}}},
    )
    got = made(one)
    assert EVIL in got.text
    assert any(EVIL in title for title in got.titles)


def test_characters_that_a_screen_would_obey_are_shown_as_what_they_are() -> None:
    source = "/srv/\x1b[31m\x00/\u202egpj.exe/\udcff"
    got = made(dossier(report(), status=set_status(copies=[copy("a", source=source)])))
    assert "\\x1b[31m\\x00/\\u202egpj.exe/" in got.text
    assert got.html.encode("utf-8", "backslashreplace").decode().count("\\udcff") >= 1


def test_very_many_findings_are_counted_on_the_map_and_the_worst_are_listed() -> None:
    many = [finding(n, n * MIB) for n in range(1, 2001)] + [finding(9999, 19 * GIB, **TIED)]
    got = made(dossier(report(*many, outcome="no-majority")))
    assert len(table_rows(got)) == 1000
    assert 9999 in table_rows(got)
    assert "The first 1,000 of 2,001 findings, those that ended worst first." in got.text
    assert "qorumctl report web01 12 --json" in got.text
    counted = [title for title in marked(got) if title.startswith("copy b")]
    numbers = [int(title.split("): ")[1].split(" finding")[0].replace(",", "")) for title in counted]
    assert sum(numbers) == 2 * 2001


def test_findings_over_time_are_drawn_and_told_by_copy() -> None:
    runs = [run_summary(run=n, outcome="repaired", started=f"2026-11-{n:02}T03:00:00.000Z") for n in range(22, 0, -1)]
    fates = {22: {"b": {Fate.REPAIRED: 3}}, 21: {"b": {Fate.REPAIRED: 1200, Fate.LEFT: 1}, "": {Fate.REPAIRED: 2}}}
    got = made(dossier(report(run=22), history=History(set="web01", runs=runs), fates=fates))
    assert any("run 21, 2026-11-21" in t and "1,201 findings: 1 still damaged, 1,200 repaired" in t for t in got.titles)
    assert any("no copy: 2 findings: 2 repaired" in title for title in got.titles)
    assert any("run 1, 2026-11-01" in title and "copy a: no finding" in title for title in got.titles)
    assert "1 still damaged, 1,200 repaired" in got.text
    assert "1k" in got.text


def test_a_page_of_an_older_run_says_so() -> None:
    history = History(set="web01", runs=[run_summary(run=14), run_summary()])
    got = made(dossier(report(), history=history))
    assert "the newest is run 14. This page tells of run 12." in got.text


def test_the_appliance_to_replace_is_named_at_the_top() -> None:
    blame = {"scrubs": 4, "of_scrubs": 5, "days": 4, "outvoted": 9, "unreadable": 0, "recurring": 2, "others": 0}
    got = made(dossier(report(), status=set_status(copies=[copy("a"), copy("b", blame=blame), copy("c")])))
    assert "that appliance is the one to replace: 'qorumctl copy replace web01 b SOURCE'." in got.text
    assert got.text.index("the one to replace") < got.text.index("What it means")


def test_a_set_that_cannot_be_told_has_a_page_all_the_same() -> None:
    status = set_status(
        uuid="", state=SetState.FAILED, reason="Its definition is gone.", size=0, threshold=0, copies=[]
    )
    got = made(dossier(report(finding()), status=status))
    assert "failed. Its definition is gone." in got.text


# -- data of guests

SECRET = b"the guest's secret, which nobody may see "
DATA = Finding(
    Range(MIB, 512),
    FindingVerdict.OUTVOTED,
    ("b",),
    (Version("9" * 64, ("a", "c"), SECRET * 4), Version("6" * 64, ("b",), SECRET * 3 + b"x" * len(SECRET))),
    Action.REPAIRED,
    Diagnosis(Kind.BIT_FLIPS, 1),
    "2026-11-22T03:00:01.000Z",
)


def test_data_of_guests_is_shown_to_who_asked_for_it_with_a_warning_first() -> None:
    got = made(dossier(report(finding(), outcome="repaired"), data={1: DATA}), with_data=True)
    assert got.text.startswith("web01, run 12: repaired This page holds data of guests")
    assert "78 78 78" in got.text
    assert str(MIB + 3 * len(SECRET) // 16 * 16) in got.text
    assert "mark" in got.tags


def test_data_of_guests_is_never_shown_otherwise() -> None:
    got = made(dossier(report(finding(), outcome="repaired"), data={1: DATA}))
    assert "78 78 78" not in got.text
    assert "secret" not in got.text
    assert "mark" not in got.tags
    assert "This page holds no data of guests, but for digests." in got.text
    assert page.wanted(with_data=False).most_data == 0


def test_a_finding_of_which_one_version_could_be_read_has_nothing_to_compare() -> None:
    one = replace(DATA, versions=DATA.versions[:1])
    got = made(dossier(report(finding(), outcome="repaired"), data={1: one}), with_data=True)
    assert "Only one version could be read: there is nothing to compare." in got.text


# -- drawing


@pytest.mark.parametrize(
    ("number", "shown"), [(7, "7"), (999, "999"), (1000, "1k"), (12_999, "12k"), (100_000, "100k"), (10**7, "10M")]
)
def test_counts_above_cells_are_short(number: int, shown: str) -> None:
    assert compact(number) == shown


def test_shapes_stay_within_their_drawing() -> None:
    found = [finding(n, at, action="left") for n, at in enumerate((0, 7 * GIB, 20 * GIB - 512), 1)]
    names = ["a", "b", "a-copy-with-a-name-that-is-long"]
    one = dossier(report(*found, outcome="damaged"), status=set_status(copies=[copy(name) for name in names]))
    for made_, frame in zip(one.maps, (WIDE, NARROW), strict=True):
        drawing = page.page_drawings.map_drawing(made_, frame, frozenset())
        for lane in drawing.lanes:
            assert len(lane.label) <= frame.letters
            for shape in lane.shapes:
                assert drawing.left <= shape.x < shape.x + shape.width <= frame.width
                assert 0 <= shape.y < shape.y + shape.height <= drawing.height
                assert shape.width > 4


def test_a_disk_of_one_sector_is_drawn() -> None:
    wanted = Wanted((WIDE.cells, NARROW.cells), 10, 10)
    got = made(dossier(report(finding(1, 0), size=512, scanned_bytes=512, outcome="repaired"), wanted=wanted))
    assert marked(got) == ["copy b, 0 to 512 B (bytes 0 to 511): 1 finding: 1 repaired"] * 2
