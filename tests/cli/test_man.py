"""The man pages: they say all there is, and are roff. `make check` compares man/ with what the program says now."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer

from qorumctl.cli import man
from qorumctl.cli.main import grammar
from qorumctl.cli.man_texts import EXAMPLE, WORDS
from qorumctl.model.spec import SetSpec

ROOT = Path(__file__).parents[2]
PAGES = man.pages()
NAMES = sorted(PAGES)


def plain(page: str) -> str:
    """Without the escapes that `escaped` makes."""
    text = PAGES[page].replace("\\(aq", "'").replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")
    return text.replace("\\&", "").replace("\\`", "`").replace("\\e", "\\")


def test_the_committed_pages_are_these() -> None:
    assert {path.name: path.read_text() for path in (ROOT / "man").iterdir()} == PAGES


def test_every_command_and_every_option_is_there() -> None:
    text = plain("qorumctl.1")
    found = 0
    for name, command in man._commands(typer.main.get_command(grammar()), "qorumctl"):
        section = text.partition(f'.SS "{name} ')[2].partition("\n.S")[0]
        own = [p for p in command.params if not {"--json", "--verbose"}.intersection(p.opts) and not p.hidden]
        for parameter in own:
            assert (parameter.opts[0] if parameter.param_type_name == "option" else parameter.help) in section
        found += 1
    assert found == len(re.findall(r"^\.SS ", text, re.MULTILINE)) > 20


def test_every_environment_variable_is_there() -> None:
    variables = {
        name for path in (ROOT / "qorumctl").rglob("*.py") for name in re.findall(r"\bQORUM_[A-Z_]+", path.read_text())
    }
    assert {name for name in variables if f"\n{name}\n" not in plain("qorumctl.1")} == set()


def test_every_key_of_a_definition_is_said_in_words() -> None:
    for _, _, model in man._TABLES:
        for name, field in model.model_fields.items():
            assert field.description, name


def test_the_example_is_a_definition() -> None:
    assert SetSpec.model_validate(tomllib.loads(EXAMPLE)).threshold == 2


def test_every_word_has_its_meaning() -> None:
    for _, enumeration, meanings in WORDS:
        assert set(meanings) == set(enumeration)


@pytest.mark.parametrize("text", [".SH no request", "'br", "a\\b", "--option", "it's `so`"])
def test_text_is_never_taken_for_roff(text: str) -> None:
    escaped = man.escaped(text)
    assert not escaped.startswith((".", "'"))
    assert escaped.count("\\e") == text.count("\\")


@pytest.mark.parametrize("page", NAMES)
def test_a_linter_finds_nothing(page: str) -> None:
    if shutil.which("mandoc") is not None:
        said = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", ROOT / "man" / page], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        # A date would make the page another one each day.
        assert [line for line in said if "missing date" not in line] == []
    elif shutil.which("man") is not None and shutil.which("groff") is not None:
        command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", ROOT / "man" / page]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""
    else:
        pytest.skip("neither mandoc nor man is installed")
