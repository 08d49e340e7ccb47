"""`watch` on the command line: lines, documents, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from qorumctl.cli.watch import line
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.ranges import Range
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.model.status import EventDocument
from qorumctl.store import SetLock
from tests.cli.conftest import Machine, validate
from tests.live import end_watcher, wait_for


def at_work(pid: int) -> bool:
    """It handles SIGTERM: so it listens."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.live
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order_when_it_is_told_to(machine: Machine, number: signal.Signals) -> None:
    machine.create()
    begun = machine.begin("watch", "w")
    wait_for(lambda: SetLock.held_by(machine.directory / "s" / "w", file_name="watch.lock"), "a watcher")
    wait_for(lambda: at_work(begun.pid), "a watcher at work")
    begun.send_signal(number)
    out, err = begun.communicate(timeout=20)
    assert (begun.returncode, out, err) == (0, "", "")


@pytest.mark.live
def test_systemd_is_told_when_it_listens(machine: Machine) -> None:
    """Only then may the set be started: otherwise that begins a watcher of its own."""
    machine.create()
    path = machine.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        machine.begin("watch", "w", environment={"NOTIFY_SOCKET": str(path)})
        assert manager.recv(100) == b"READY=1"
    assert SetLock.held_by(machine.directory / "s" / "w", file_name="watch.lock")


@pytest.mark.live
def test_each_event_is_a_line(machine: Machine) -> None:
    machine.make()
    machine.flip("b", 4096)
    lines, documents = machine.begin("watch", "w"), machine.begin("--json", "watch", "w")
    for begun in (lines, documents):
        assert begun.stderr is not None
        # What happened before that is not told.
        assert begun.stderr.readline() == "Another watcher listens to w: what it hears is told here, too.\n"
    link = NbdLink(RuntimePaths(machine.runtime / "w").nbd_sock, "volume", who="The guest", timeout_s=20)
    assert link.read(Range(4096, 512)) is not None
    link.close()
    assert lines.stdout is not None
    assert documents.stdout is not None
    told = lines.stdout.readline()
    assert told.endswith("Z copy b: outvoted in a read at offset 4096 (512 bytes)\n")
    document = json.loads(documents.stdout.readline())
    validate(document)
    assert (document["copy"], document["error"], document["missed_write"]) == ("b", None, False)


@pytest.mark.live
def test_status_says_that_nobody_listens_and_what_to_do(machine: Machine) -> None:
    machine.make()
    assert machine.document("status", "w")["sets"][0]["watched"] is True
    end_watcher(machine.directory / "s" / "w")
    shown = " ".join(machine.run("status", "w", code=4).stdout.split())
    assert "Nobody listens for write errors now" in shown
    assert "Run 'qorumctl start w', which starts the watcher, then 'qorumctl scrub w'." in shown
    machine.document("start", "w")
    shown = " ".join(machine.run("status", "w", code=4).stdout.split())
    assert "Any copy may have missed a write: nobody listened for write errors for a time before" in shown
    machine.document("scrub", "w")
    assert machine.document("status", "w")["sets"][0]["state"] == "healthy"


def test_an_unknown_set_is_refused(machine: Machine) -> None:
    assert machine.document("watch", "nobody", code=2)["code"] == "definition"


def test_a_missed_write_is_said_in_so_many_words() -> None:
    event = EventDocument(
        set="w",
        time="2026-11-23T08:00:00.250Z",
        kind="QUORUM_REPORT_BAD",
        missed_write=True,
        text="copy c: a flush failed",
    )
    assert line(event) == "2026-11-23T08:00:00.250Z copy c: a flush failed; it has missed a write"
