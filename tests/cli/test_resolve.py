"""`report --finding` and `resolve` on the command line: what is shown, asked, and refused."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Machine

pytestmark = pytest.mark.live
AT = 1 << 20


def damaged(machine: Machine) -> None:
    machine.make()
    for number, copy in enumerate("abc"):
        machine.flip(copy, AT + 100 * number, 1 << number)
    machine.run("scrub", "w", code=5)


def test_from_the_evidence_to_the_decision_and_back(machine: Machine) -> None:
    damaged(machine)
    before = {name: image.read_bytes() for name, image in machine.images.items()}
    shown = machine.run("report", "w", "--finding", "1").stdout
    assert "bitwise majority: likely." in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    found = machine.document("report", "w", "--finding", "1", "--rows", "1", "--from", "1MiB")
    assert [len(found["rows"]), found["more_rows"]] == [1, 2]
    assert machine.document("resolve", "w", "--finding", "1", "--with", "bitwise", "--dry-run")["id"] is None
    assert {name: image.read_bytes() for name, image in machine.images.items()} == before
    done = machine.document("resolve", "w", "--finding", "1", "--with", "bitwise", "--yes")
    assert (done["id"], done["state"]) == (1, "healthy")
    assert len({image.read_bytes() for image in machine.images.values()}) == 1
    assert "resolved by an operator's decision" in " ".join(machine.run("report", "w").stdout.split())
    undone = machine.run("resolve", "w", "--undo", "1", "--yes").stdout
    assert "'qorumctl resolve w --undo 2'" in " ".join(undone.split())
    assert {name: image.read_bytes() for name, image in machine.images.items()} == before
    for name in ("saved", "saved/1", "saved/2"):
        assert (machine.directory / "s" / "w" / name).stat().st_mode & 0o777 == 0o700
    for file in (machine.directory / "s" / "w" / "saved").glob("*/*"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_without_a_terminal_and_without_yes_it_is_refused(machine: Machine) -> None:
    damaged(machine)
    refused = machine.run("resolve", "w", "--finding", "1", "--with", "copy=a", code=2)
    assert refused.stderr == (
        "qorumctl: Writing to the copies of w needs an answer, and nobody is there to give it. Say --yes; nothing was "
        "changed.\n"
    )


def test_on_a_terminal_it_shows_what_it_would_write_and_asks(machine: Machine) -> None:
    damaged(machine)
    terminal = machine.on_a_terminal("report", "w", "--finding", "1")
    assert terminal.end() == 0
    assert "\x1b[1;31m" in terminal.seen
    for answer, code in (("n", 1), ("", 1), ("y", 0)):
        terminal = machine.on_a_terminal("resolve", "w", "--finding", "1", "--with", "copy=b")
        terminal.shows("[y/N]")
        assert f"{AT}:512" in terminal.seen
        terminal.type(f"{answer}\r")
        assert terminal.end() == code
        contents = [image.read_bytes() for image in machine.images.values()]
        assert (contents[0] == contents[1] == contents[2]) is (code == 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("resolve w --finding 1", "It is not said what is to be done."),
        ("resolve w --finding 1 --with bitwise --undo 1", "It is not said what is to be done."),
        ("resolve w --finding 1 --with mood --yes", "'mood' is no decision."),
        ("report w 1 --finding 1", "--finding ID stands for itself."),
        ("report w --rows 4", "--rows and --from are about one finding."),
        ("report w --finding 7", "w has no finding 7."),
    ],
)
def test_what_is_typed_wrong(machine: Machine, line: str, words: str) -> None:
    machine.create()
    machine.document("scrub", "w", "--report", "--range", "0:512")
    assert words in machine.run(*line.split(), code=2).stderr
