"""What is told of events: of copies, by the names that people know them by."""

from __future__ import annotations

from qorumctl.controller import watching
from qorumctl.daemon.events import parse


def test_a_copy_that_was_replaced_while_the_set_ran_is_told_of_by_its_name() -> None:
    event = parse({"event": "QUORUM_REPORT_BAD", "data": {"node-name": "copy-c.2", "type": "write", "error": "EIO"}})
    document = watching._document("web01", event)
    assert (document.copy_, document.text) == ("c", "copy c: a write failed: EIO")
