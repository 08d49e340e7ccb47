"""Deadlines that an operator can set."""

from __future__ import annotations

import pytest

from qorumctl.controller.options import Timeouts
from qorumctl.errors import UsageError


def test_deadlines_come_from_the_environment() -> None:
    set_ = Timeouts.from_environment(
        {"QORUM_TIMEOUT_COPY": "90", "QORUM_TIMEOUT_STATUS": "0.5s", "QORUM_TIMEOUT_STOP": ""}
    )
    assert set_ == Timeouts(copy_s=90.0, status_s=0.5)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_deadline_can_be_no_time_at_all_nor_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"QORUM_TIMEOUT_DRAIN is '.*', which is no number of seconds"):
        Timeouts.from_environment({"QORUM_TIMEOUT_DRAIN": text})
