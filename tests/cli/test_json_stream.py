"""JSON bit by bit: the text is that of json.dumps, whatever is lazy in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from qorumctl.cli.json_stream import Rows, encoded, scrub_document
from qorumctl.cli.outlet import Outlet
from qorumctl.errors import QorumError, StoreError
from qorumctl.model.report import FindingDocument
from tests.cli.documents import finding, report


def dumped(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@pytest.mark.parametrize("value", ["a\nb", 7, [], {}, [1, {"a": []}], {"ä": {"b": [None, True]}}])
def test_what_is_not_lazy_is_as_ever(value: Any) -> None:
    assert "".join(encoded(value)) == dumped(value)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_report_reads_the_same(number: int) -> None:
    found = [finding(n, votes={"ab\u2028": ["a"]}, cause="unclean-shutdown") for n in range(number)]
    whole = report(*found).model_dump(mode="json", by_alias=True)
    assert "".join(encoded(scrub_document(report(suspects=number), found))) == dumped(whole)


def test_several_sets_one_of_which_failed() -> None:
    found = [finding(1), finding(2)]
    error = {"schema": "qorum.error/1", "message": "no"}
    whole = {"sets": [error, report(*found).model_dump(mode="json", by_alias=True)]}
    lazy = {"sets": [error, scrub_document(report(suspects=2), found)]}
    assert "".join(encoded(lazy)) == dumped(whole)


def test_rows_are_made_while_they_are_written() -> None:
    made = []

    def documents() -> Iterator[FindingDocument]:
        for number in range(3):
            made.append(number)
            yield finding(number)

    pieces = encoded({"findings": Rows(documents())})
    assert made == []
    while not made:
        next(pieces)
    assert made == [0]


def broken(after: int) -> Iterator[FindingDocument]:
    yield from (finding(number) for number in range(after))
    raise StoreError("The state is damaged.", remedy="Look.")


def test_what_fails_at_its_beginning_has_printed_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    outlet = Outlet(as_json=True)
    with pytest.raises(QorumError) as raised:
        outlet.json({"findings": Rows(broken(after=3))})
    outlet.error(raised.value)
    assert json.loads(capsys.readouterr().out)["message"] == "The state is damaged."


def test_what_fails_late_prints_no_second_document_behind_a_part_of_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outlet = Outlet(as_json=True)
    with pytest.raises(QorumError) as raised:
        outlet.json({"findings": Rows(broken(after=4000))})
    outlet.error(raised.value)
    shown = capsys.readouterr()
    assert "The state is damaged." not in shown.out
    assert "The state is damaged." in shown.err
