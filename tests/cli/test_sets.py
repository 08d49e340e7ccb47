"""The life of a set, from the command line, on a real daemon."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.cli.conftest import SIZE, Machine, validate

pytestmark = pytest.mark.live


def test_the_life_of_a_set(machine: Machine) -> None:
    sources = [str(image) for image in machine.images.values()]
    created = machine.run("create", "w", *sources, "--size", "24MiB", "--cache", "writeback")
    assert created.stdout == "w is created. Start it with 'qorumctl start w'.\n"
    assert [image.stat().st_size for image in machine.images.values()] == [SIZE] * 3
    assert machine.run("status", code=1).stdout.splitlines()[1] == "    state: stopped"

    assert machine.run("start", "w").stdout.startswith("w is started.")
    assert machine.run("start", "w").stdout == "w runs already: nothing was changed.\n"
    assert machine.run("list").stdout.splitlines()[1].split() == ["w", "healthy", "24", "MiB", "3"]
    assert machine.run("check", "w").stdout.endswith("All is well.\n")

    uri = machine.run("attach", "w", "--as", "uri").stdout
    assert uri.count("\n") == 1
    size = subprocess.run(["nbdinfo", "--size", uri.strip()], check=True, capture_output=True, text=True).stdout
    assert int(size) == SIZE

    assert machine.run("stop", "w").stdout == "w is stopped.\n"
    assert machine.run("stop", "w").stdout == "w does not run: nothing was changed.\n"
    machine.run("delete", "w", "--images", "--yes")
    assert not any(image.exists() for image in machine.images.values())
    assert machine.run("list").stdout == "No set is defined. 'qorumctl create' makes one.\n"


def test_every_document_fits_its_schema(machine: Machine) -> None:
    sources = [str(image) for image in machine.images.values()]
    assert machine.document("create", "w", *sources, "--size", "24MiB", "--cache", "writeback")["changed"]
    assert machine.document("start", "w")["state"] == "healthy"
    assert machine.document("status", "w")["sets"][0]["set"] == "w"
    assert machine.document("list")["sets"][0]["name"] == "w"
    assert machine.document("show", "w")["definition"]["name"] == "w"
    assert machine.document("check", "w")["ok"]
    assert machine.document("attach", "w")["uri"].startswith("nbd+unix://")
    assert machine.document("qmp", "w", "query-version")["result"]["qemu"]["major"] >= 7
    assert machine.document("scrub", "w")["outcome"] == "clean"
    assert machine.document("report", "w")["run"] == 1
    assert len(machine.document("history", "w")["runs"]) == 1
    assert machine.document("restart", "w")["command"] == "restart"
    assert machine.document("qmp", "w", "no-such-command", code=1)["code"] == "qmp-command"
    assert machine.document("stop", "w")["state"] == "stopped"
    assert machine.document("delete", "w", "--yes")["changed"]
    assert machine.document("status", "w", code=2)["code"] == "definition"


def test_status_after_the_command_takes_json_too(machine: Machine) -> None:
    document = json.loads(machine.run("status", "--json").stdout)
    validate(document)
    assert document["sets"] == []


def test_what_was_made_is_told_without_a_terminal_in_80_columns(machine: Machine) -> None:
    machine.make()
    for arguments in (["status"], ["show", "w"], ["check", "w"], ["list"], ["history", "w"]):
        shown = machine.run(*arguments).stdout
        assert max(map(len, shown.splitlines())) <= 80
        assert "\x1b" not in shown


class TestDelete:
    def test_without_a_terminal_and_without_yes_it_is_refused(self, machine: Machine) -> None:
        machine.create()
        refused = machine.run("delete", "w", "--images", code=2)
        assert refused.stderr == (
            "qorumctl: Deleting 'w' needs an answer, and nobody is there to give it. Say --yes; nothing was changed.\n"
        )
        assert machine.run("list").stdout.splitlines()[1].startswith("w ")
        assert all(image.exists() for image in machine.images.values())

    def test_on_a_terminal_it_names_all_that_goes_and_asks(self, machine: Machine) -> None:
        machine.create()
        for answer, code, left in (("n", 1, True), ("", 1, True), ("y", 0, False)):
            terminal = machine.on_a_terminal("delete", "w", "--images")
            terminal.shows("[y/N]")
            for path in (machine.directory / "c" / "w.toml", *machine.images.values()):
                assert str(path) in terminal.seen
            terminal.type(f"{answer}\r")
            assert terminal.end() == code
            assert all(image.exists() is left for image in machine.images.values())


def test_verbose_shows_the_talk_with_the_daemon_on_standard_error(machine: Machine) -> None:
    machine.make()
    done = machine.run("status", "--json", "--verbose")
    validate(json.loads(done.stdout))
    assert "qorumctl.qmp" in done.stderr
    assert "qorumctl.qmp" not in machine.run("status").stderr
