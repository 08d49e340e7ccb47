"""The examples of docs/integration.md beyond that they run (test_docs.py): typed, and telling Ansible the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.docs.walk import ROOT, blocks, files

INTEGRATION = "docs/integration.md"


def test_a_strict_type_checker_passes_the_program_and_sees_what_is_wrong(tmp_path: Path) -> None:
    program, wrong = tmp_path / "tend.py", tmp_path / "wrong.py"
    program.write_text(files(INTEGRATION)["/srv/tend.py"])
    wrong.write_text("from qorumctl import Nonsense, QuorumSets\n\nQuorumSets().history(1)\n")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", program, wrong], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = re.findall(r"(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", checked.stdout, re.MULTILINE)
    assert said == [("wrong.py", "1", "attr-defined"), ("wrong.py", "3", "arg-type")], checked.stdout + checked.stderr


def test_ansible_is_given_commands_that_are_run_twice_above() -> None:
    """`create` and `start`: the console shows `changed` true, then false."""
    shown = "".join(block.text for block in blocks(INTEGRATION) if block.language == "console")
    tasks = re.findall(r"qorumctl --json (?:create|start) .+", files(INTEGRATION)["/srv/web02.yml"])
    assert len(tasks) == 2
    for command in tasks:
        answers = re.findall(rf"^\$ {re.escape(command)} \| grep changed\n(.*)$", shown, re.MULTILINE)
        assert answers == ['  "changed": true,', '  "changed": false,']
