"""What the daemon's events say, as values: the events are those that QEMU 7.2 and 10.0 send."""

from __future__ import annotations

from typing import Any

import pytest

from qorumctl.daemon.events import CopyEvent, parse

STAMP = {"seconds": 1795420800, "microseconds": 250000}


def bad(**data: Any) -> dict[str, Any]:
    values = {"node-name": "copy-c", "sector-num": 2048, "sectors-count": 8, "type": "write"} | data
    return {"event": "QUORUM_REPORT_BAD", "timestamp": STAMP, "data": values}


def test_a_failed_write_is_a_missed_write() -> None:
    event = parse(bad(error="Input/output error"))
    assert event == CopyEvent(
        time="2026-11-23T08:00:00.250Z",
        kind="QUORUM_REPORT_BAD",
        copy="c",
        operation="write",
        offset=1048576,
        length=4096,
        error="Input/output error",
    )
    assert event.missed_write
    assert event.sentence == "copy c: a write failed at offset 1048576 (4096 bytes): Input/output error"


def test_a_failed_flush_is_one_and_has_no_place() -> None:
    event = parse(bad(type="flush", error="Input/output error", **{"sector-num": 0, "sectors-count": 0}))
    assert event.missed_write
    assert event.sentence == "copy c: a flush failed: Input/output error"


@pytest.mark.parametrize("data", [{"type": "read"}, {"type": "read", "error": "Input/output error"}])
def test_reads_are_not(data: dict[str, Any]) -> None:
    event = parse(bad(**data))
    assert not event.missed_write
    assert event.sentence == (
        "copy c: a read failed at offset 1048576 (4096 bytes): Input/output error"
        if "error" in data
        else "copy c: outvoted in a read at offset 1048576 (4096 bytes)"
    )


def test_a_request_without_a_majority() -> None:
    data = {"reference": "quorum", "sector-num": 0, "sectors-count": 1}
    event = parse({"event": "QUORUM_FAILURE", "timestamp": STAMP, "data": data})
    assert (event.copy, event.missed_write) == (None, False)
    assert event.sentence == "the set: no majority at offset 0 (512 bytes); the request failed"


def test_a_node_below_a_copy_is_that_copy() -> None:
    assert parse(bad(**{"node-name": "copy-c-file"})).copy == "c"


@pytest.mark.parametrize(
    "event",
    [
        {"event": "QUORUM_REPORT_BAD"},
        {"event": "QUORUM_REPORT_BAD", "data": None, "timestamp": {"seconds": -1, "microseconds": -1}},
        {"event": "QUORUM_REPORT_BAD", "data": {"node-name": 7, "type": [], "sector-num": "x", "error": {}}},
        {"event": "BLOCK_IMAGE_CORRUPTED", "data": {"node-name": "", "msg": "bad", "fatal": True}},
        {"event": "BLOCK_IO_ERROR", "data": {"node-name": "fence", "operation": "write", "reason": "No space left"}},
    ],
)
def test_what_is_missing_or_odd_is_left_out(event: dict[str, Any]) -> None:
    found = parse(event)
    assert found.copy is None
    assert not found.missed_write
    assert found.sentence
