"""The exit codes are a contract: these tables are it."""

from __future__ import annotations

import pytest

from qorumctl.cli import exit_codes
from qorumctl.model.status import SetState
from tests.cli.documents import finding, report

OUTVOTED = {"verdict": "outvoted"}
UNREADABLE = {"verdict": "unreadable"}
TIED = {"verdict": "no-majority"}
REPAIRED = {"action": "repaired"}
LEFT = {"action": "left"}
FAILED = {"action": "failed"}
PENDING = {"action": "pending"}


@pytest.mark.parametrize(
    ("outcome", "findings", "code"),
    [
        ("clean", [], 0),
        ("repaired", [OUTVOTED | REPAIRED], 3),
        ("repaired", [OUTVOTED | REPAIRED, UNREADABLE | REPAIRED], 3),
        ("damaged", [OUTVOTED | LEFT], 4),
        ("damaged", [OUTVOTED | FAILED, OUTVOTED | REPAIRED], 4),
        ("damaged", [UNREADABLE | LEFT], 4),
        ("no-majority", [TIED | LEFT], 5),
        ("no-majority", [TIED | LEFT, OUTVOTED | LEFT, OUTVOTED | REPAIRED], 5),
        ("unfinished", [], 6),
        ("unfinished", [OUTVOTED | REPAIRED], 6),
        ("unfinished", [OUTVOTED | PENDING], 6),
        ("unfinished", [OUTVOTED | LEFT], 4),
        ("unfinished", [TIED | LEFT, OUTVOTED | REPAIRED], 5),
        ("failed", [], 1),
        ("failed", [TIED | LEFT], 1),
    ],
)
def test_a_scrub(outcome: str, findings: list[dict[str, str]], code: int) -> None:
    document = report(*[finding(**keys) for keys in findings], outcome=outcome)
    assert exit_codes.of_scrub(document) == code


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("unfinished", 130), ("failed", 130), ("clean", 0), ("no-majority", 5)],
)
def test_ctrl_c_tells_of_a_run_that_it_ended_and_of_none_that_had_ended_before(outcome: str, code: int) -> None:
    document = report(*([finding(**TIED, **LEFT)] if outcome == "no-majority" else []), outcome=outcome)
    assert exit_codes.of_scrub(document, interrupted=True) == code


def test_busy_bytes_do_not_fail_a_run() -> None:
    assert exit_codes.of_scrub(report(busy_bytes=4096)) == 0


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 3], 3),
        ([3, 6], 6),
        ([6, 4], 4),
        ([4, 5], 5),
        ([5, 1], 1),
        ([1, 2], 2),
        ([5, 130], 130),
    ],
)
def test_several_sets(codes: list[int], worst: int) -> None:
    assert exit_codes.worst(codes) == worst


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], 0),
        (["healthy"], 0),
        (["degraded"], 4),
        (["damaged"], 5),
        (["stopped"], 1),
        (["stalled"], 1),
        (["failed"], 1),
        (["healthy", "stopped"], 1),
        (["stopped", "degraded"], 4),
        (["failed", "degraded"], 1),
        (["failed", "damaged"], 5),
    ],
)
def test_status(states: list[str], code: int) -> None:
    assert exit_codes.of_states([SetState(state) for state in states]) == code
