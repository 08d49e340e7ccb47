"""What people read of a set's history, at 80 columns, as a whole."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from qorumctl.cli import render_history
from qorumctl.core.chronicle import Entry
from qorumctl.model.report import History
from qorumctl.model.schema import schema_of
from tests.cli.documents import GIB, run_summary
from tests.cli.screen import screen, text


def test_a_history() -> None:
    runs = [
        run_summary(),
        run_summary(run=11, outcome="unfinished", scanned_bytes=9 * GIB, finished=None),
        run_summary(run=10, outcome="no-majority", findings={"repaired": 3, "left": 12, "failed": 1}),
    ]
    assert screen(render_history.history(History(set="web01", runs=runs))) == text(
        """
RUN  STARTED              MODE    OUTCOME       TOOK  COVERED  FINDINGS
 12  2026-11-22 03:00:00  repair  clean        4m12s    100 %  -
 11  2026-11-22 03:00:00  repair  unfinished       -     45 %  -
 10  2026-11-22 03:00:00  repair  no-majority  4m12s    100 %  3 repaired, 12
                                                               left, 1 failed

Times are UTC.
"""
    )


def test_a_set_without_history() -> None:
    assert screen(render_history.history(History(set="web01", runs=[]))) == (
        "web01 was never scrubbed. 'qorumctl scrub web01' does it."
    )


def entry(kind: str, number: int = 1, run: int | None = None, **keys: Any) -> dict[str, Any]:
    dates = {"first": "2026-09-01T03:00:59.000Z", "last": "2026-11-22T04:00:00.000Z"}
    return {"kind": kind, "number": number, "run": run} | dates | keys


def of_two_copies(runs: list[dict[str, Any]]) -> History:
    b = [entry("outvoted", 1_000_000, 12), entry("may-have-missed"), entry("left-out", detail="it was stale")]
    c = [entry("cleared", 3, 11)]
    copies = [{"name": "b", "entries": b}, {"name": "twelve-bytes", "entries": c}]
    return History.model_validate({"set": "web01", "runs": runs, "copies": copies})


def test_what_has_happened_to_each_copy_stands_below_the_runs() -> None:
    assert screen(render_history.history(of_two_copies([run_summary().model_dump()]))) == text(
        """
RUN  STARTED              MODE    OUTCOME   TOOK  COVERED  FINDINGS
 12  2026-11-22 03:00:00  repair  clean    4m12s    100 %  -

COPY          WHAT          TIMES  FIRST       LAST              RUN
b             outvoted  1,000,000  2026-09-01  2026-11-22 04:00   12
              suspect           1  2026-09-01  2026-11-22 04:00    -
              left out          1  2026-09-01  2026-11-22 04:00    -
twelve-bytes  cleared           3  2026-09-01  2026-11-22 04:00   11

Times are UTC.
"""
    )


def test_a_set_that_was_never_scrubbed_can_have_a_history() -> None:
    got = screen(render_history.history(of_two_copies([])))
    assert got.startswith("web01 was never scrubbed.")
    assert "left out" in got


def test_it_has_words_for_whatever_can_happen_and_room_for_them() -> None:
    entries = [entry(kind, 999_999, 99_999) for kind in Entry]
    document = History.model_validate(
        {"set": "web01", "runs": [], "copies": [{"name": "twelve-bytes", "entries": entries}]}
    )
    lines = screen(render_history.history(document)).splitlines()
    assert len([line for line in lines if "999,999" in line]) == len(Entry)
    jsonschema.validate(json.loads(document.model_dump_json()), schema_of("history"))
