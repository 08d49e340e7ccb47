"""What an operator may decide, as it is typed and as it is told."""

from __future__ import annotations

from qorumctl.controller.deciding import Decision


def test_a_file_of_any_name_can_be_told_in_json() -> None:
    decision = Decision.parse("file=/srv/\udcff")
    assert decision.value == "/srv/\udcff"
    assert str(decision).encode() == rb"file=/srv/\udcff"
