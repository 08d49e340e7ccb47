"""What a command imports: what it needs. Most of the time that a short one takes is spent importing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
from qorumctl.cli.main import main
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
HEAVY = {"cffi", "jinja2", "markdown_it", "nbd", "prometheus_client", "pygments", "rich.live", "systemd"}
WORK = {
    f"qorumctl.{module}"
    for module in (
        "cli.page",
        "controller.creation",
        "controller.replacing",
        "controller.scrubbing",
        "controller.starting",
        "controller.watching",
        "copies.nbd_link",
        "scrub.engine",
    )
}
DATA = {"pydantic", "qemu.qmp", "rich", "sqlite3", "tomlkit", "qorumctl.controller", "qorumctl.store"}


def imported_by(place: Path, *arguments: str) -> set[str]:
    names = ("QORUM_CONFIG_DIR", "QORUM_STATE_DIR", "QORUM_RUNTIME_DIR")
    environment = {**os.environ, **{name: str(place / name[6]) for name in names}}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("line", ["--help", "--version"])
def test_help_imports_none_of_what_does_the_work(tmp_path: Path, line: str) -> None:
    assert imported_by(tmp_path, line) & (HEAVY | WORK | DATA) == set()


def test_help_of_a_command_imports_no_more_than_typer_does(tmp_path: Path) -> None:
    """typer takes pydantic along to convert arguments."""
    assert imported_by(tmp_path, "scrub", "--help") & (HEAVY | WORK | DATA) <= {"pydantic"}


@pytest.mark.parametrize("line", ["status", "list", "list --json"])
def test_looking_imports_nothing_that_reads_copies_or_changes_sets(tmp_path: Path, line: str) -> None:
    assert imported_by(tmp_path, *line.split()) & (HEAVY | WORK) == set()
