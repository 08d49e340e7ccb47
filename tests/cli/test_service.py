"""`enable` and `disable` from the command line. What they do to systemd: tests/controller/test_enabling.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Machine

with_systemd = pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd is running here")


@with_systemd
@pytest.mark.parametrize("command", ["enable", "disable"])
def test_without_systemd_nothing_can_be_enabled(machine: Machine, command: str) -> None:
    said = machine.run(command, "w", code=1).stderr
    assert said.startswith(f"qorumctl: systemd is not running here, so nothing can be {command}d. Nothing was changed.")
    error = machine.document(command, "w", code=1)
    assert (error["schema"], error["code"], error["exit_code"]) == ("qorum.error/1", "refused", 1)


def test_schedules_are_explained(machine: Machine) -> None:
    said = " ".join(machine.run("enable", "--help").stdout.split())
    for word in ("nightly", "daily", "weekly", "monthly", "OnCalendar="):
        assert word in said
