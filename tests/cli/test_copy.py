"""`copy detach`, `copy rejoin` and `start --degraded` as people type them, at 80 columns and as JSON."""

from __future__ import annotations

import pytest

from tests.cli.conftest import SIZE, Machine

pytestmark = pytest.mark.live


def test_a_copy_leaves_and_comes_back(machine: Machine) -> None:
    machine.make("w")
    said = machine.run("copy", "detach", "w", "b").stdout
    assert " ".join(said.split()) == (
        "Copy b of w is detached. Its storage can be taken down; 'qorumctl copy rejoin w b' copies what it misses "
        "meanwhile."
    )
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "detached already: nothing was changed" in " ".join(machine.run("copy", "detach", "w", "b").stdout.split())
    status = machine.document("status", "w", code=4)["sets"][0]
    assert [(copy["state"], copy["missed_bytes"]) for copy in status["copies"]] == [
        ("current", None),
        ("missing", 0),
        ("current", None),
    ]
    assert "run 'qorumctl copy rejoin w b'" in " ".join(machine.run("status", "w", code=4).stdout.split())
    done = machine.document("copy", "rejoin", "w", "b", "--full")
    assert (done["command"], done["full"], done["compared_bytes"], done["copied_bytes"], done["state"]) == (
        "rejoin",
        True,
        SIZE,
        0,
        "healthy",
    )
    assert machine.document("copy", "rejoin", "w", "b")["changed"] is False
    machine.document("status", "w")


def test_a_copy_is_replaced(machine: Machine) -> None:
    machine.make("w")
    new = machine.images["c"].with_name("new.raw")
    said = machine.run("copy", "replace", "w", "c", str(new), "--rate", "1GiB/s").stdout
    assert " ".join(said.split()) == (
        f"Copy c of w is replaced by {new}. 24 MiB copied in 1 pass, 0 B healed, 24 MiB verified. Its old image, "
        f"{machine.images['c']}, was left as it is; nothing needs it any more."
    )
    assert f"Copy c of w is {new} already" in " ".join(
        machine.run("copy", "replace", "w", "c", str(new)).stdout.split()
    )
    assert "is not being replaced" in machine.run("copy", "replace", "w", "c", "--cancel").stdout
    other = new.with_name("other.qcow2")
    done = machine.document("copy", "replace", "w", "c", str(other), "--format", "qcow2")
    assert (done["command"], done["source"], done["old_source"], done["cancelled"], done["state"]) == (
        "replace",
        str(other),
        str(new),
        False,
        "healthy",
    )
    machine.document("status", "w")


def test_a_replacement_is_interrupted_and_given_up(machine: Machine) -> None:
    machine.make("w")
    new = machine.images["b"].with_name("new.raw")
    terminal = machine.on_a_terminal("copy", "replace", "w", "b", str(new), "--rate", "4MiB/s")
    terminal.shows("comparing all of it")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "copy b of w is not replaced yet" in " ".join(terminal.seen.split())
    copy = machine.document("status", "w")["sets"][0]["copies"][1]
    assert (copy["state"], copy["replaced_by"]) == ("current", str(new))
    shown = " ".join(machine.run("status", "w").stdout.split())
    assert "'qorumctl copy replace w b' goes on" in shown
    said = machine.run("copy", "replace", "w", "b", "--cancel").stdout
    assert " ".join(said.split()) == f"The replacement of copy b of w is given up: it stays {machine.images['b']}."
    assert not new.exists()
    assert machine.document("copy", "replace", "w", "b", code=2)["code"] == "usage"
    assert machine.document("copy", "replace", "w", "b", "new.raw", code=2)["code"] == "usage"
    assert machine.document("copy", "replace", "w", "b", str(new), "--cancel", code=2)["code"] == "usage"


def test_a_stopped_set_with_a_copy_away_says_how_it_is_started(machine: Machine) -> None:
    machine.make("w")
    machine.document("copy", "detach", "w", "c")
    machine.document("stop", "w")
    assert "'qorumctl start w --degraded', then 'qorumctl copy rejoin w c'" in " ".join(
        machine.run("status", "w", code=1).stdout.split()
    )
    error = machine.document("start", "w", code=1)
    assert (error["code"], error["copy"]) == ("refused", "c")
    assert "Copy c is away since" in machine.document("start", "w", "--degraded")["warnings"][0]
    machine.document("copy", "rejoin", "w", "c")


def test_what_can_be_typed_wrong(machine: Machine) -> None:
    machine.create("w")
    assert machine.document("copy", "detach", "w", "b", code=1)["code"] == "daemon-gone"
    machine.document("start", "w")
    assert machine.document("copy", "rejoin", "w", "x", code=2)["message"] == "w has no copy 'x'."
    assert machine.run("copy", "frob", "w", "b", code=2).stderr.startswith("qorumctl: No such command 'frob'")
    assert "detach" in machine.run("copy", "--help").stdout
