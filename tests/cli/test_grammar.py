"""What can be typed wrong, and what is said about it. Nothing here reaches a set."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qorumctl import __version__
from qorumctl.cli import main as program
from qorumctl.cli.grammar import parse_range
from qorumctl.core.ranges import Range
from qorumctl.errors import UsageError
from qorumctl.model.schema import KINDS

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


@pytest.fixture(autouse=True)
def _own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for which in ("CONFIG", "STATE", "RUNTIME"):
        monkeypatch.setenv(f"QORUM_{which}_DIR", str(tmp_path / which.lower()))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "create w /a /b /c --size 10GB",
            "'10GB' is not a size. Use bytes, or a number with KiB, MiB, GiB or TiB.",
        ),
        ("scrub", "No set is named. Name the sets, or say --all. See 'qorumctl scrub --help'."),
        ("scrub w --all", "Both sets and --all are given. Name the sets, or say --all. See 'qorumctl scrub --help'."),
        (
            "scrub w --report --repair",
            "--report and --repair exclude each other. Give one of them, or neither.",
        ),
        (
            "metrics --textfile /x/qorum.txt",
            "/x/qorum.txt does not end in .prom. node_exporter reads no other files: rename it.",
        ),
        ("scrub w --rate 0", "A rate of 0 would never finish. Leave the rate out for no limit."),
        ("scrub w --budget soon", "'soon' is not a time that a scrub may take. Use one such as 4h, 90min, or 0."),
        (
            "scrub w --range 512",
            "'512' is not a range. Use OFFSET:LENGTH, as in 1MiB:64KiB; both are multiples of 512.",
        ),
        (
            "scrub w --range 0:7",
            "'7' in the range '0:7' is not a multiple of 512. Sectors have 512 bytes: use whole ones.",
        ),
        ("scrub w --range 0:0", "The range '0:0' is empty. Give it a length of at least 512."),
        ("qmp w query-version [1]", """The arguments are not a JSON object. Use '{"key": "value"}'."""),
        (
            "qmp w query-version {",
            "The arguments are not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)."
            """ Quote them: '{"key": "value"}'.""",
        ),
        (
            "schema frob",
            f"There is no schema 'frob'. Kinds: {', '.join(KINDS)}.",
        ),
        ("show ../x", "'../x' cannot name a set. Use 1 to 32 of a-z, 0-9, '_', '-', a letter or digit first."),
    ],
)
def test_bad_usage_is_one_sentence_and_where_help_is(
    line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*line.split()) == 2
    captured = capsys.readouterr()
    assert captured.err == f"qorumctl: {sentence}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("line", "culprit", "help_"),
    [
        ("zork", "zork", "qorumctl --help"),
        ("status --nope", "--nope", "qorumctl status --help"),
        ("show", "NAME", "qorumctl show --help"),
        ("show a b", "b", "qorumctl show --help"),
        ("create w a b c --format vmdk", "'vmdk' is not one of 'raw', 'qcow2'", "qorumctl create --help"),
        ("report w nine", "RUN", "qorumctl report --help"),
        ("report w 0", "RUN", "qorumctl report --help"),
        ("attach w --as vnc", "vnc", "qorumctl attach --help"),
    ],
)
def test_what_the_parser_refuses_is_said_in_the_same_form(
    line: str, culprit: str, help_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words are the parser's own, and change with its version."""
    assert run(*line.split()) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(rf"qorumctl: .*{re.escape(culprit)}.*\. See '{help_}'\.\n", captured.err)
    assert captured.out == ""


@pytest.mark.parametrize("line", ["--json show nowhere", "show nowhere --json", "show --nope --json", "scrub --json"])
def test_errors_are_documents_with_json(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    jsonschema.validate(document, json.loads((SCHEMAS / "qorum.error-1.json").read_text()))
    assert document["exit_code"] == 2
    assert captured.err.startswith("qorumctl: ")


@pytest.mark.parametrize(
    ("words", "range_"),
    [("0:512", Range(0, 512)), ("1MiB:64KiB", Range(1 << 20, 1 << 16)), ("1.5K:1 GiB", Range(1536, 1 << 30))],
)
def test_a_range_takes_units(words: str, range_: Range) -> None:
    assert parse_range(words) == range_


@pytest.mark.parametrize("words", ["", ":", "1:", "a:b", "-512:512", "512:513", "1MB:512"])
def test_what_is_no_range_is_refused(words: str) -> None:
    with pytest.raises(UsageError):
        parse_range(words)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"qorumctl {__version__}\n"


def test_no_command_at_all_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c.name for c in program.grammar().registered_commands])
def test_every_command_has_help_within_80_columns_and_takes_json(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("kind", KINDS)
def test_schema_prints_what_is_committed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema", kind) == 0
    assert json.loads(capsys.readouterr().out)["title"] == f"qorum.{kind}/1"


def test_schema_lists_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    assert capsys.readouterr().out.split() == list(KINDS)


def test_a_mistake_of_ours_is_a_sentence_and_with_verbose_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("qorumctl.model.schema.schema_of", broken)
    assert run("schema", "status") == 1
    assert capsys.readouterr().err == (
        "qorumctl: Something went wrong that should not have: ZeroDivisionError: division by zero. It is a mistake in"
        " qorumctl: report it to the project, with what the same command prints with --verbose.\n"
    )
    assert run("-v", "schema", "status") == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_ctrl_c_is_130_and_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qorumctl.model.schema.schema_of", interrupted)
    assert run("schema", "status") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "qorumctl.cli.main", "schema"], stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qorumctl.cli.main", "schema"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        1,
        "qorumctl: The result cannot be written to standard output: No space left on device. What was asked for has"
        " been done all the same.\n",
    )


def test_help_does_not_load_what_it_does_not_need() -> None:
    probe = (
        "import sys, qorumctl.cli.main\n"
        "heavy = {'pydantic', 'qemu', 'nbd', 'sqlite3', 'rich.table', 'tomlkit'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_metrics_of_a_set_that_cannot_be_told_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (run("metrics"), capsys.readouterr().out) == (0, "")
    (tmp_path / "config").mkdir(mode=0o700)
    (tmp_path / "config" / "w.toml").write_text("no definition")
    file = tmp_path / "all.prom"
    assert run("metrics", "w") == 0
    assert 'qorum_set_state{set="w",state="failed"} 1.0\n' in capsys.readouterr().out
    assert run("metrics", "--textfile", str(file)) == 0
    assert capsys.readouterr().out == ""
    assert 'qorum_set_state{set="w",state="failed"} 1.0\n' in file.read_text()
    assert run("metrics", "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
    assert run("metrics", "--json") == 2
    assert json.loads(capsys.readouterr().out)["message"] == "Metrics are text for Prometheus, not JSON."
