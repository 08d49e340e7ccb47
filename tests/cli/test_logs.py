"""What goes to the journal, and that it tells what everything else does; what goes to people; and what goes nowhere."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from qorumctl.cli import main as program
from qorumctl.cli.logs import Journal, datagram, is_journal
from qorumctl.controller import telling
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.core.chronicle import Entry
from qorumctl.core.diagnosis import Diagnosis, Kind
from qorumctl.core.findings import Action, Finding, FindingVerdict
from qorumctl.core.ranges import Range
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.errors import RefusedError
from qorumctl.logbook import News, entry, entry_of
from qorumctl.store import Store, chronicle
from qorumctl.store.database import Database
from tests.cli.conftest import SIZE, Machine
from tests.cli.journal import FakeJournal, Fields, as_a_service, parse
from tests.live import wait_for

OPERATIONS = Path(__file__).resolve().parents[2] / "docs/operations.md"


@pytest.fixture
def journal(short_dir: Path) -> Iterator[FakeJournal]:
    (short_dir / "journald").mkdir()
    made = FakeJournal(short_dir / "journald")
    yield made
    made.close()


# The protocol.


@pytest.mark.parametrize("value", ["plain", "", "two\nlines\n", "a=b", "tab\there", "ümlaut", "\x00", "\udcff"])
def test_any_value_comes_back_from_a_datagram(value: str) -> None:
    fields = parse(datagram(logging.ERROR, value, entry(News.FINDING, "web01", copy=("a", "b"), offset=0, cause=None)))
    assert fields == {
        "MESSAGE": [value.encode(errors="backslashreplace").decode()],
        "PRIORITY": ["3"],
        "SYSLOG_IDENTIFIER": ["qorumctl"],
        "MESSAGE_ID": [News.FINDING.value.message_id],
        "QORUM_SET": ["web01"],
        "QORUM_COPY": ["a", "b"],
        "QORUM_OFFSET": ["0"],
    }


@pytest.mark.parametrize("text", ["x" * 1_000_000, "ü" * 1_000_000, "\n" * 1_000_000])
def test_an_entry_fits_a_datagram(text: str, journal: FakeJournal) -> None:
    fields = {name.lower(): text for name in News.FINDING.value.fields}
    Journal(journal.path).write(logging.INFO, text, entry(News.FINDING, text, **fields))
    assert [len(found) for found in journal.entries()] == [len(fields) + 5]


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, "2"), (logging.ERROR, "3"), (logging.WARNING, "4"), (logging.INFO, "6"), (logging.DEBUG, "7")],
)
def test_levels_are_priorities(level: int, priority: str) -> None:
    assert parse(datagram(level, "x", entry(None, None)))["PRIORITY"] == [priority]


def test_only_the_stream_that_systemd_named_is_the_journal(journal: FakeJournal, tmp_path: Path) -> None:
    """A shell that a service has started has the variable, too."""
    with journal.stream.open() as stream, (tmp_path / "other").open("w") as other:
        assert not is_journal(stream)
        with mock.patch.dict(os.environ, journal.environment):
            assert is_journal(stream)
            assert not is_journal(other)
            assert not is_journal(io.StringIO())
        with mock.patch.dict(os.environ, {"JOURNAL_STREAM": "nonsense"}):
            assert not is_journal(stream)


def test_without_a_journal_the_sentence_is_a_line_with_its_priority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Journal(tmp_path / "none").write(logging.WARNING, "Mind the gap.\nBoth of them.", entry(None, None))
    assert capsys.readouterr().err == "<4>Mind the gap.\n<4>Both of them.\n"


def test_a_journal_that_does_not_read_holds_nobody_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More entries than any queue takes: if each of them waited, this test would meet its deadline."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        journal = Journal(tmp_path / "deaf")
        for _ in range(int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 200):
            journal.write(logging.INFO, "x" * 1000, entry(None, None))
    assert capsys.readouterr().err == ""


# The catalogue.


def test_every_kind_of_news_is_documented_with_its_id_and_fields() -> None:
    rows = re.findall(r"^\| `([0-9a-f]{32})` \| ([^|]*) \| ([^|]*) \| [^|]* \|$", OPERATIONS.read_text(), re.MULTILINE)
    documented = {message_id: (name.strip(), re.findall(r"`QORUM_(\w+)`", fields)) for message_id, name, fields in rows}
    assert documented == {
        news.value.message_id: (news.name.lower().replace("_", " "), list(news.value.fields)) for news in News
    }


def test_ids_are_ids_and_differ() -> None:
    ids = [news.value.message_id for news in News]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", message_id) for message_id in ids)


@contextlib.contextmanager
def news() -> Iterator[list[logging.LogRecord]]:
    """All that is told meanwhile."""
    told: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("qorumctl"), logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign]
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.DEBUG)
    yield told


def test_endless_damage_is_not_told_without_end() -> None:
    finding = Finding(
        Range(0, 512),
        FindingVerdict.OUTVOTED,
        ("b",),
        (),
        Action.REPAIRED,
        Diagnosis(Kind.ZEROED),
        "2026-11-23",
    )
    with news() as told:
        findings = telling.Findings("web01", 3)
        for number in range(telling.MOST_FINDINGS + 10):
            findings.settled(number, finding)
    assert len(told) == telling.MOST_FINDINGS + 1
    assert told[-1].getMessage() == "More is found than is told here: see 'qorumctl report web01 3'."


# Commands under systemd.


def of_the_catalogue(entries: list[Fields]) -> None:
    """No entry has a field that is not documented."""
    known = {kind.value.message_id: {f"QORUM_{name}" for name in (*kind.value.fields, "SET")} for kind in News}
    for found in entries:
        own = {name for name in found if name.startswith("QORUM_")}
        assert own <= known[found["MESSAGE_ID"][0]] if "MESSAGE_ID" in found else own <= {"QORUM_SET"}
        assert found["SYSLOG_IDENTIFIER"] == ["qorumctl"]


@pytest.mark.live
def test_the_journal_tells_of_a_scrub_what_its_report_does(machine: Machine, journal: FakeJournal) -> None:
    machine.make()
    machine.flip("b", 4096)
    machine.flip("c", 1 << 20)
    for bits, copy in enumerate("abc", start=1):
        machine.flip(copy, 2 << 20, bits)
    assert as_a_service(machine, journal, "scrub", "w") == 5
    report = machine.document("report", "w")
    told = journal.entries(News.FINDING)
    assert len(told) == len(report["findings"]) == 3
    by_id = {found["QORUM_FINDING"][0]: found for found in told}
    for finding in report["findings"]:
        found = by_id[str(finding["id"])]
        assert found["QORUM_COPY"] == finding["copies"]
        for field in ("offset", "length", "verdict", "action", "source"):
            assert found[f"QORUM_{field.upper()}"] == [str(finding[field])]
        assert found["QORUM_DIAGNOSIS"] == [finding["diagnosis"]["kind"]]
        assert found["PRIORITY"] == [{"outvoted": "4", "no-majority": "2"}[finding["verdict"]]]
    (begun,), (ended,) = journal.entries(News.SCRUB_BEGUN), journal.entries(News.SCRUB_ENDED)
    assert begun["QORUM_RUN"] == ended["QORUM_RUN"] == [str(report["run"])]
    assert (ended["QORUM_OUTCOME"], ended["QORUM_FINDINGS"], ended["PRIORITY"]) == ([report["outcome"]], ["3"], ["2"])
    assert (ended["QORUM_SCANNED"], ended["QORUM_BUSY"]) == ([str(report["scanned_bytes"])], ["0"])
    # Each once: no table beside the entries.
    assert journal.printed() == ""
    of_the_catalogue(journal.entries())
    assert all(found["QORUM_SET"] == ["w"] for found in journal.entries())


@pytest.mark.live
def test_each_step_is_told_once_and_a_refusal_with_its_remedy(machine: Machine, journal: FakeJournal) -> None:
    machine.create()
    assert as_a_service(machine, journal, "start", "w") == 0
    (started,) = journal.entries(News.SET_STARTED)
    assert started["MESSAGE"] == ["w is started, and guests are let in."]

    with journal.stream.open("ab") as stream:
        watcher = machine.begin("watch", "w", environment=journal.environment, stream=stream)
    wait_for(lambda: any("Another watcher" in found["MESSAGE"][0] for found in journal.entries()), "a watcher")
    machine.flip("b", 4096)
    link = NbdLink(RuntimePaths(machine.runtime / "w").nbd_sock, "volume", who="The guest", timeout_s=20)
    assert link.read(Range(4096, 512)) is not None
    (told,) = wait_for(lambda: journal.entries(News.COPY_EVENT), "an event")
    assert (told["QORUM_EVENT"], told["QORUM_COPY"], told["QORUM_OFFSET"]) == (["QUORUM_REPORT_BAD"], ["b"], ["4096"])
    assert (told["PRIORITY"], told["QORUM_MISSED_WRITE"]) == (["4"], ["0"])
    watcher.terminate()
    assert watcher.wait(20) == 0

    assert as_a_service(machine, journal, "stop", "w") == 1
    link.close()
    (refused,) = journal.entries(News.FAILED)
    assert (refused["PRIORITY"], refused["QORUM_CODE"], refused["QORUM_EXIT_CODE"]) == (["3"], ["refused"], ["1"])
    assert refused["QORUM_REMEDY"][0] in refused["MESSAGE"][0]
    assert not refused["MESSAGE"][0].startswith("qorumctl")
    assert as_a_service(machine, journal, "stop", "w") == 0
    assert [found["PRIORITY"] for found in journal.entries(News.SET_STOPPED)] == [["6"]]
    of_the_catalogue(journal.entries())
    assert journal.printed() == ""


def test_the_standing_of_a_copy_is_told_when_it_is_on_record(short_dir: Path) -> None:
    with news() as told, Store.open(short_dir / "web01") as store:
        store.suspect(["b"], missed=True, why="a write failed (EIO)", failed=True)
        store.suspect(["b"], missed=True, why="a write failed (EIO)", failed=True)
    (once,) = told
    assert once.getMessage() == "web01: copy b has missed a write, and has no vote: a write failed (EIO)."
    entry = entry_of(once)
    assert (entry.news, dict(entry.fields)) == (
        News.COPY_STANDING,
        {"set": "web01", "event": "missed-write", "copy": "b", "run": None},
    )


def test_what_was_undone_is_not_told(short_dir: Path) -> None:
    with news() as told, contextlib.closing(Database.open(short_dir / "web01", read_only=False)) as database:
        with contextlib.suppress(ZeroDivisionError), database.write() as connection:
            chronicle.note(database, connection, "b", Entry.DETACHED, "2026-11-23T00:00:00Z")
            raise ZeroDivisionError
        with database.write():
            pass
    assert told == []


# People.


def test_news_are_no_lines_beside_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    outlet = program.Outlet()
    outlet.listen_to_logs()
    telling.started("web01")
    logging.getLogger("qorumctl.sets").warning("Mind the gap.")
    said = capsys.readouterr().err
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARNING qorumctl.sets: Mind the gap.\n", said)
    outlet.verbose = True
    outlet.listen_to_logs()
    telling.started("web01")
    assert capsys.readouterr().err.endswith("INFO qorumctl.news: web01 is started, and guests are let in.\n")


def test_errors_of_people_are_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    program.Outlet().error(RefusedError("It is so.", remedy="Do this."))
    assert capsys.readouterr().err == "qorumctl: It is so. Do this.\n"


# What goes nowhere.

PATTERN = b"\x93Gu3sT#d"
TRACES = [b"Gu3sT", b"4775337354", b"R3Uzc1", b"dTNzV", b"HdTNzVC"]
"""The pattern raw, in hex, and in base64 at each of its three offsets."""


@pytest.mark.live
def test_verbose_shows_the_conversation_without_guest_data_or_secrets(machine: Machine, journal: FakeJournal) -> None:
    data = PATTERN * (SIZE // len(PATTERN))
    for image in machine.images.values():
        image.write_bytes(data)
    said = ""

    def run(*arguments: str, code: int = 0, as_json: bool = False) -> None:
        nonlocal said
        options = ["--verbose", *(["--json"] if as_json else [])]
        out = io.StringIO()
        with (
            mock.patch.dict(os.environ, machine.environment),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            pytest.raises(SystemExit) as ended,
        ):
            program.main([*options, *arguments])
        said += out.getvalue()
        assert ended.value.code == code, out.getvalue()

    run("create", "w", *map(str, machine.images.values()), "--cache", "writeback")
    run("start", "w")
    for copy, offset in (("b", 4096), ("c", 1 << 20)):
        machine.flip(copy, offset)
    for bits, copy in enumerate("abc", start=1):
        machine.flip(copy, 2 << 20, bits)
    link = NbdLink(RuntimePaths(machine.runtime / "w").nbd_sock, "volume", who="The guest", timeout_s=20)
    assert link.read(Range(4096, 512)) is not None
    link.close()
    run("scrub", "w", "--report", code=5)
    assert as_a_service(machine, journal, "--verbose", "scrub", "w") == 5
    for command in ("status", "history", "report", "show", "check", "attach", "list", "doctor"):
        for as_json in (False, True):
            names = [] if command in {"list", "doctor"} else ["w"]
            run(command, *names, code={"status": 5}.get(command, 0), as_json=as_json)
    run("metrics")
    run("qmp", "w", "query-named-block-nodes")
    run("qmp", "w", "object-add", '{"qom-type": "secret", "id": "s", "data": "hunter2"}')
    run("copy", "detach", "w", "c")
    run("copy", "rejoin", "w", "c")
    run("stop", "w")
    run("delete", "w", "--yes")
    logs = b"".join(path.read_bytes() for path in machine.runtime.rglob("*.log"))
    everything = said.encode() + journal.printed().encode() + b"".join(journal.raw) + logs
    assert re.search(r"w/scrub <- query-named-block-nodes: .{400}\.\.\. and \d+ characters \(", said)
    assert 'w/scrub -> object-add {"qom-type": "secret", "id": "s", "data": "..."}' in said
    assert re.search(r"w/scrub <- object-add: \{\} \(\d+\.\d ms\)", said)
    assert "hunter2" not in said
    assert len(journal.entries(News.FINDING)) >= 2
    assert [trace for trace in TRACES if trace in everything] == []


def test_a_password_in_a_uri_is_not_repeated(machine: Machine) -> None:
    sources = [f"nbd://user:hunter2@far.example/{name}#hunter2" for name in "abc"]
    said = machine.document("--verbose", "create", "w", *sources, code=2)["message"]
    assert "mean nothing in an NBD URI" in said
    assert "hunter2" not in said
