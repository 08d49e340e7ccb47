"""Definitions that a machine made up: what tests/test_definitions.py fuzzes in short, searched for longer, and through
every command. (Mangled TOML, once: tests/test_definitions.py.)"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from qorumctl import definitions
from qorumctl.errors import DefinitionError
from qorumctl.model.spec import parse_nbd_uri
from tests.attack import Attack
from tests.hostile.common import fingerprint, run_cli, settle
from tests.hostile.test_state import Stopped
from tests.integration.harness import NAME

WORDS = [
    "1", "-1", "0", "1e400", "nan", "inf", "true", '""', '"a"', "[]", "{}", "[[]]", "1979-05-27", "07:32:00",
    "9" * 5000, "[" * 3000 + "]" * 3000, "{a=" * 900 + "1" + "}" * 900, '"\\u0000"', "0x" + "f" * 40,
    '"nbd://[::1"', "'0777'",
    '"nbd://h:99999/e"', '"nbd+unix:///?socket=relative"', '"' + "/x" * 5000 + '"', "'''\n\n'''", '"20480MiB"',
    '"1e9GiB"', '"-5MiB"', '"9999999999999TiB"', str(1 << 63), str((1 << 63) - 512), str(-(1 << 63)), '"/dev/null"',
    '"/dev/zero"', '"/proc/self/mem"', '"/"', '"."', '"\U0001f600"', '"\\uFFFF"', '"\u202e\u2066x"',
    "{ type = 'file', path = '/x' }", '"nbd://h/%00"', '"nbd://h%00/x"', '"nbd+unix:///%00?socket=/s"',
]  # fmt: skip


@pytest.fixture
def stopped(memory_dir: Path) -> Stopped:
    return Stopped(memory_dir)


def mangled(text: str, dice: random.Random) -> bytes:
    lines = text.splitlines()
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(lines)) if lines else 0
        match dice.randrange(8):
            case 0 | 1 if lines and "=" in lines[at]:
                lines[at] = f"{lines[at].partition('=')[0]}= {dice.choice(WORDS)}"
            case 2 if lines:
                lines.insert(dice.randrange(len(lines)), lines[at])
            case 3 if lines:
                del lines[at]
            case 4:
                lines.insert(
                    at,
                    dice.choice(
                        ["[x]", "[[copies]]", "[copies]", "[volume]", "[[volume]]", "a.b = 1", '"" = 1', "name.x = 2"]
                    ),
                )
            case 5 if lines:
                cut = dice.randrange(len(lines[at]) + 1)
                lines[at] = (
                    lines[at][:cut]
                    + dice.choice(['"', "\x00", "\x1b", "é", "=", "]", "#", "\r", "\\"])
                    + lines[at][cut:]
                )
            case 6 if lines:
                lines[at] = lines[at].replace("a.raw", "b.raw").replace('"b"', '"a"')
            case _:
                lines = lines[:at] + lines[at + 1 :] + lines[at : at + 1]
    content = bytearray("\n".join(lines).encode(errors="surrogatepass"))
    if dice.random() < 0.2 and content:
        for _ in range(dice.randint(1, 5)):
            content[dice.randrange(len(content))] = dice.randrange(256)
    return bytes(content)


@pytest.mark.attack("a mangled definition ends in a clear error", "spoiled TOML, through every command that looks")
def test_mangled(stopped: Stopped, attack: Attack) -> None:
    path = stopped.directories.definition_path(NAME)
    good = path.read_text()
    before = fingerprint(stopped.images)
    errors = count = accepted = 0
    for seed in attack.rounds(60):
        content = mangled(good, random.Random(seed))
        path.write_bytes(content)
        path.chmod(0o640)
        error = settle(lambda: definitions.load(path))
        assert error is None or isinstance(error, DefinitionError)
        accepted += error is None
        if error is None:
            # What is taken can be written back as it is.
            spec = definitions.load(path)
            settle(lambda spec=spec: definitions.save(path, spec.model_copy(update={"policy": "report"})))  # type: ignore[misc]
        for command in stopped.looks()[:3] + stopped.looks()[-1:]:
            count += 1
            errors += settle(command) is not None
    assert fingerprint(stopped.images) == before
    attack.count(definitions=count // 4, clear_errors=errors, accepted=accepted)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('group = ""', 'group = "a\\u0000b"', "a group's name holds no control characters"),
        ('"/x/a.raw"', '"/x/a\\u0000.raw"', "a path cannot hold NUL"),
    ],
)
def test_nul(stopped: Stopped, old: str, new: str, words: str) -> None:
    """C takes it for the end of a text: what Python looked at would not be what is opened."""
    path = stopped.directories.definition_path(NAME)
    text = path.read_text().replace(str(stopped.images[0]), "/x/a.raw")
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DefinitionError, match=words):
        definitions.load(path)


def test_nul_in_a_uri() -> None:
    for uri in ("nbd://h/%00", "nbd://h%00/x", "nbd+unix:///%00?socket=/s", "nbd+unix:///?socket=/s%00"):
        with pytest.raises(ValueError, match="cannot hold NUL"):
            parse_nbd_uri(uri)


@pytest.mark.parametrize("old", ['size = "1MiB"', 'policy = "repair"', 'name = "web01"', "threshold = 2"])
def test_what_the_program_says(
    stopped: Stopped, old: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal: a sentence, no control characters, exit code 2."""
    for variable, path in (("CONFIG", "config"), ("STATE", "state"), ("RUNTIME", "runtime")):
        monkeypatch.setenv(f"QORUM_{variable}_DIR", str(getattr(stopped.directories, path)))
    definition = stopped.directories.definition_path(NAME)
    good = definition.read_text()
    assert old in good
    key = old.partition(" ")[0]
    values: list[Any] = [
        '"\\u001b[2J\\u001b]0;owned\\u0007"',
        "[" * 500 + "]" * 500,
        "9" * 5000,
        '"' + "x" * 9000 + '"',
    ]
    for value in values:
        definition.write_text(good.replace(old, f"{key} = {value}"))
        for command in (
            ["start", NAME],
            ["--json", "show", NAME],
            ["scrub", NAME],
            ["delete", NAME, "--yes", "--images"],
        ):
            code, said = run_cli(capsys, *command)
            assert code == 2
            assert "\x1b" not in said
            assert len(said) < 4000
