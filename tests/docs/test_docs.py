"""The documentation is true: its commands run and print what it shows, what it names exists."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.docs.walk import (
    DOCUMENTS,
    ROOT,
    Block,
    Step,
    blocks,
    outputs,
    put_files,
    scratch,
    steps,
)

_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?( UTC|Z)"), "TIME"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "DATE"),
    (re.compile(r"\b\d+(\.\d+)? ?s\b"), "TOOK"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "UUID"),
    (re.compile(r"\b(pid:?) \d+"), r"\1 PID"),
)
_FOR_SYSTEMD = ("qorumctl enable ", "qorumctl disable ")
_INSTALLS = re.compile(r"(sudo )?(apt|apt-get) ")
_FILE = re.compile(r"(?:[\w.-]+/)+[\w.-]*\w|[\w-]+\.(?:md|toml|py)")
_FIRST_PARTS = {path.name for path in ROOT.iterdir()}
_PACKAGE_PARTS = {path.name for path in (ROOT / "qorumctl").iterdir()}
_TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(?:::(\w+))?")


def console_steps(document: str) -> list[Step]:
    return [step for block in blocks(document) if block.language == "console" for step in steps(block)]


@pytest.mark.live
@pytest.mark.parametrize("document", [document for document in DOCUMENTS if console_steps(document)])
def test_its_commands_print_what_it_shows(document: str) -> None:
    told = console_steps(document)
    for tool in ("nbdcopy", "nbdkit"):
        if any(re.search(rf"\b{tool}\b", step.command) for step in told) and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    with scratch() as place:
        put_files(document, place)
        printed = outputs([step.command for step in told], place)
    # A word apart from its neighbours by one blank or by a line's end is the same word: widths follow the paths.
    found = [Step(step.command, _comparable(text)) for step, text in zip(told, printed, strict=True)]
    assert found == [Step(step.command, _comparable(step.output)) for step in told], (
        f"run 'python -m tests.docs.walk {document}' to write down what the commands print now"
    )


def _comparable(text: str) -> str:
    for varying, name in _VARYING:
        text = varying.sub(name, text)
    return " ".join(text.split())


@pytest.mark.live
@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_other_command_lines_run(document: str) -> None:
    """What installs, runs everything, or needs a systemd that runs is only looked up."""
    lines = [line for block in blocks(document) if block.language == "sh" for line in _lines(block)]
    commands = [line for line in lines if not _INSTALLS.match(line)]
    for line in [line for line in commands if line.startswith("make ")]:
        assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    for line in [line for line in commands if line.startswith(".ci/")]:
        assert (ROOT / line.split()[0]).is_file(), line
    for line in [line for line in commands if line.startswith("systemctl ") and line != "systemctl daemon-reload"]:
        units = re.findall(r"qorum-\w+@\w+\.\w+", line)
        assert units, line
        for unit in units:
            assert (ROOT / "contrib/systemd" / re.sub(r"@\w+", "@", unit)).is_file(), line
    under_systemd = [line for line in commands if line.startswith("qorumctl ") and line in _under_systemd(document)]
    for line in under_systemd:
        words = subprocess.run(
            [sys.executable, "-m", "qorumctl.cli.main", line.split()[1], "--help"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert all(option in words for option in re.findall(r"--\w+", line)), line
    elsewhere = ("make ", ".ci/", "systemctl ", "journalctl ", "install ", "chown ", "chgrp ", "chmod ")
    runnable = [line for line in commands if not line.startswith(elsewhere) and line not in under_systemd]
    if runnable:
        with scratch() as place:
            codes = outputs([part for line in runnable for part in (f"{{ {line}; }} >&2", "echo $?")], place)[1::2]
        assert dict(zip(runnable, codes, strict=True)) == dict.fromkeys(runnable, "0")


def _under_systemd(document: str) -> set[str]:
    """The lines of blocks that enable or disable a set: what else they do is for a set that is enabled."""
    found = [_lines(block) for block in blocks(document) if block.language == "sh"]
    return {line for lines in found if any(line.startswith(_FOR_SYSTEMD) for line in lines) for line in lines}


def _lines(block: Block) -> list[str]:
    return [line.split("  #")[0].strip() for line in block.text.splitlines() if line.strip()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_blocks_say_what_they_are(document: str) -> None:
    """So that no command line is overlooked: one in a block without a language would not be run."""
    for block in blocks(document):
        assert block.language in {"", "sh", "console", "toml", "json", "python", "yaml", "ini"}
        if block.language == "":
            assert not re.search(r"^(\$ |qorumctl |make )", block.text, re.MULTILINE), block.text


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_its_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith(("https://", "http://", "#")):
            assert ((ROOT / document).parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_it_names_exist(document: str) -> None:
    """`scrub/confirm.py` is short for qorumctl/scrub/confirm.py."""
    for span in re.findall(r"`([^`\n]+)`", (ROOT / document).read_text()):
        name = span.split("::")[0]
        if not _FILE.fullmatch(name) or "*" in name:
            continue
        first = name.split("/")[0]
        if first in _FIRST_PARTS:
            assert (ROOT / name).exists(), name
        elif first in _PACKAGE_PARTS or name.endswith(".py"):
            assert (ROOT / "qorumctl" / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_tests_it_names_exist(document: str) -> None:
    for file, *names in _TEST_ID.findall((ROOT / document).read_text()):
        path = ROOT / file
        assert path.is_file(), file
        assert _defines(ast.parse(path.read_text()), [name for name in names if name]), f"{file}::{'::'.join(names)}"


def _defines(tree: ast.Module | ast.ClassDef, names: list[str]) -> bool:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == names[0]:
            return len(names) == 1 or (isinstance(node, ast.ClassDef) and _defines(node, names[1:]))
    return False


def test_every_invariant_has_its_section() -> None:
    numbers = re.findall(r"^### (\d+)\. ", (ROOT / "docs/safety.md").read_text(), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 17)]


def test_every_environment_variable_is_documented() -> None:
    readme = (ROOT / "README.md").read_text()
    variables = {
        name for path in (ROOT / "qorumctl").rglob("*.py") for name in re.findall(r"\bQORUM_[A-Z_]+", path.read_text())
    }
    assert {name for name in variables if f"`{name}`" not in readme} == set()
