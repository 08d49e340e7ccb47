"""A monitor that is not QEMU's, or a QEMU that says what none has said so far: every answer, or a QorumError."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qorumctl.daemon.client import Monitor
from qorumctl.daemon.events import EVENTS, parse
from qorumctl.daemon.exports import delete_export, export_ids, wait_exports_gone
from qorumctl.daemon.features import missing_features
from qorumctl.daemon.formatting import format_image
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.daemon.watches import Watches
from qorumctl.errors import DaemonError
from tests.attack import Attack
from tests.hostile.common import settle
from tests.hostile.fake_qmp import FakeMonitor, reply
from tests.live import make_spec

TIMEOUT_S = 0.2
Work = Callable[[Monitor], Awaitable[object]]
DEEP = b"[" * 100_000 + b"]" * 100_000
VALUES: list[Any] = [None, True, 0, -1, 10**40, 1.5, "", "copy-a", "\x00", [], {}, [None], [[]], [{}], {"a": 1}, [1, 2],
                     [{"id": None}], [{"id": 3}], [{"id": []}], [{"id": {}}], {"return": 1}, ["x"] * 1000]  # fmt: skip

# What QEMU says of an assembled set, for the calls that read something of it.
GOOD: dict[str, Any] = {
    "query-block-exports": [{"id": "volume", "node-name": "fence", "type": "nbd", "shutting-down": False}],
    "query-named-block-nodes": [
        {"node-name": "copy-a", "image": {"virtual-size": 4 << 20}, "file": "x", "drv": "raw"},
        {"node-name": "quorum", "image": {"virtual-size": 4 << 20}, "drv": "quorum",
         "file": 'json:{"rewrite-corrupted": true, "vote-threshold": 2}'},
        {"node-name": "fence", "image": {"virtual-size": 4 << 20}, "drv": "copy-on-read", "file": "x",
         "dirty-bitmaps": [
             {"name": "qorum-watch-1", "granularity": 512},
             {"name": "qorum-missed-a-1", "granularity": 4096, "count": 8192, "recording": True},
         ]},
        {"node-name": "copy-a.2", "image": {"virtual-size": 4 << 20}, "file": "x", "drv": "raw"},
    ],
    "x-debug-query-block-graph": {
        "nodes": [{"id": n, "name": name, "type": "block-driver"} for n, name in ((1, "quorum"), (2, "copy-a"))],
        "edges": [{"parent": 1, "child": 2, "name": "children.0", "perm": [], "shared-perm": []}],
    },
    "query-jobs": [{"id": "qorum-format", "status": "concluded", "type": "create"}],
    "query-commands": [{"name": "quit"}],
    "qom-list": [{"name": "tls-a", "type": "x"}],
}  # fmt: skip


@pytest.fixture
def fake(short_dir: Path) -> Iterator[FakeMonitor]:
    monitor = FakeMonitor(short_dir / "m.sock", well)
    yield monitor
    monitor.end()


def well(command: str, _arguments: dict[str, Any], command_id: str) -> bytes:
    return reply(GOOD.get(command, {}), command_id)


def calls(timeout_s: float = TIMEOUT_S) -> dict[str, Work]:
    """Everything that the control plane asks a daemon."""
    spec = make_spec({"a": "nbd://h/a", "b": "nbd://h/b", "c": "nbd://h/c"})

    def quorum(monitor: Monitor) -> QuorumSet:
        return QuorumSet(spec, monitor, drain_timeout_s=timeout_s)

    def watches(monitor: Monitor) -> Watches:
        return Watches(monitor, drain_timeout_s=timeout_s)

    return {
        "describe": lambda m: quorum(m).describe(),
        "key": lambda m: quorum(m).children.key("a"),
        "length": lambda m: quorum(m).children.check_length(spec.copies[0]),
        "take out": lambda m: quorum(m).children.take_out("a"),
        "bring in": lambda m: quorum(m).children.bring_in(spec.copies[0]),
        "close": lambda m: quorum(m).children.close("a"),
        "succeed": lambda m: quorum(m).children.succeed("a", "a.2"),
        "credentials": lambda m: quorum(m).children.credentials(),
        "begin a record": lambda m: quorum(m).missed.begin("a"),
        "rotate records": lambda m: quorum(m).missed.rotate("a"),
        "open": lambda m: quorum(m).open_copies(read_only=True),
        "assemble": lambda m: quorum(m).assemble(),
        "dissolve": lambda m: quorum(m).dissolve(),
        "volume": lambda m: quorum(m).export_volume(),
        "withdraw": lambda m: quorum(m).withdraw_volume(force=True),
        "sweep": lambda m: quorum(m).sweep(),
        "watch": lambda m: watches(m).open("qorum-watch-1", drain=True),
        "present": lambda m: watches(m).present(),
        "forget": lambda m: watches(m).forget(["qorum-watch-1"]),
        "publish": lambda m: watches(m).publish("qorum-watch-1"),
        "exports": lambda m: export_ids(m, timeout_s=timeout_s),
        "gone": lambda m: wait_exports_gone(m, ["x"], timeout_s=timeout_s),
        "delete": lambda m: delete_export(m, "x", force=True, timeout_s=timeout_s),
        "features": missing_features,
        "format": lambda m: format_image(m, "/x", "qcow2", 1 << 20, timeout_s=timeout_s),
        "quit": lambda m: quorum(m).quit(),
    }


async def ask(fake: FakeMonitor, work: Work, timeout_s: float = TIMEOUT_S) -> None:
    async with await Monitor.open(fake.path, timeout_s=timeout_s) as monitor:
        await work(monitor)


def spoiled(value: Any, dice: random.Random) -> Any:
    """A document in which one place, anywhere, holds something else, or nothing."""
    if not isinstance(value, dict | list) or not value or dice.random() < 0.25:
        return dice.choice(VALUES)
    if isinstance(value, list):
        at = dice.randrange(len(value))
        return [spoiled(item, dice) if i == at else item for i, item in enumerate(value)]
    key = dice.choice(sorted(value))
    if dice.random() < 0.3:
        return {k: v for k, v in value.items() if k != key}
    return {k: spoiled(v, dice) if k == key else v for k, v in value.items()}


def test_a_good_answer_is_understood(fake: FakeMonitor) -> None:
    """The fake is good enough to tell a bad answer from a bad fake."""
    for name in ("describe", "open", "volume", "present", "features", "format", "quit"):
        assert settle(partial(ask, fake, calls(20)[name], 20)) is None


@pytest.mark.attack("a daemon's nonsense ends in a clear error", "answers of the wrong shape to every command")
def test_answers_of_the_wrong_shape(fake: FakeMonitor, attack: Attack) -> None:
    errors = count = 0
    for seed in attack.rounds(12):
        dice = random.Random(seed)

        def badly(command: str, _: dict[str, Any], command_id: str, dice: random.Random = dice) -> bytes:
            if dice.random() < 0.15:
                error = spoiled({"class": "GenericError", "desc": "not found"}, dice)
                return json.dumps({"error": error, "id": command_id}).encode() + b"\n"
            return reply(spoiled(GOOD.get(command, {}), dice), command_id)

        fake.answer = badly
        for work in calls().values():
            count += 1
            errors += settle(partial(ask, fake, work)) is not None
    attack.count(commands=count, clear_errors=errors)
    assert errors


RAW: dict[str, Callable[[str], bytes | None]] = {
    "closes": lambda _: None,
    "says nothing": lambda _: b"",
    "no JSON": lambda _: b"hello\n",
    "no UTF-8": lambda _: b'{"return": "\xff"}\n',
    "half a line": lambda i: reply([], i)[:10],
    "half a line, then nothing": lambda i: reply([], i)[:-2],
    "no object": lambda _: b"[1]\n",
    "a string": lambda _: b'"x"\n',
    "empty lines": lambda _: b"\n\n\n",
    "an empty object": lambda _: b"{}\n",
    "an unknown id": lambda _: reply([], "other"),
    "no id": lambda _: b'{"return": []}\n',
    "an id that is a list": lambda _: b'{"return": [], "id": []}\n',
    "an error without an id": lambda _: b'{"error": {"class": "GenericError", "desc": "x"}}\n',
    "an error without words": lambda i: json.dumps({"error": {}, "id": i}).encode() + b"\n",
    "both": lambda i: json.dumps({"error": 3, "return": 4, "id": i}).encode() + b"\n",
    "twice": lambda i: reply([], i) * 2,
    "a long line": lambda i: reply("x" * (12 << 20), i),
    "a line without an end": lambda _: b'{"return": "' + b"x" * (12 << 20),
    "deep": lambda i: b'{"return": ' + DEEP + b', "id": "' + i.encode() + b'"}\n',
    "a number too long": lambda i: b'{"return": ' + b"9" * 5000 + b', "id": "' + i.encode() + b'"}\n',
    "a second greeting": lambda _: b'{"QMP": {}}\n',
    "events": lambda i: b'{"event": 3}\n{"event": "X", "data": []}\n{"event": {}, "timestamp": 4}\n' + reply([], i),
}


@pytest.mark.parametrize("what", RAW)
def test_what_is_no_answer(fake: FakeMonitor, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    fake.answer = lambda _command, _arguments, command_id: RAW[what](command_id)
    error = settle(lambda: ask(fake, calls()["describe"]))
    assert isinstance(error, DaemonError)
    assert capfd.readouterr().err == "", "nothing beside the error"


@pytest.mark.parametrize("greeting", [
    None, b"", b"\n", b"hello\n", b"{}\n", b"[]\n", b'{"QMP": 3}\n', b'{"QMP": {}}\n', b"\xff\xfe\n", DEEP + b"\n",
    b'{"QMP": {"version": [], "capabilities": 7}}\n', b'{"event": "X"}\n', b'{"return": {}}\n', b"9" * 5000 + b"\n",
    b"x" * (12 << 20),
])  # fmt: skip
def test_what_is_no_greeting(fake: FakeMonitor, greeting: bytes | None, capfd: pytest.CaptureFixture[str]) -> None:
    fake.greeting = greeting
    assert isinstance(settle(lambda: ask(fake, calls()["quit"])), DaemonError)
    assert capfd.readouterr().err == "", "nothing beside the error"


@pytest.mark.attack("no event confuses the watcher", "events of any shape")
def test_events_of_any_shape(attack: Attack) -> None:
    count = 0
    for seed in attack.rounds(400):
        dice = random.Random(seed)
        data = {"node-name": "copy-a", "type": "write", "error": "EIO", "sector-num": 8, "sectors-count": 1,
                "fatal": True, "reference": "x", "operation": "write", "reason": "r", "msg": "m", "offset": 1,
                "size": 2}  # fmt: skip
        event: Any = {
            "event": dice.choice(EVENTS),
            "timestamp": {"seconds": 1, "microseconds": 2},
            "data": data,
        }
        for _ in range(dice.randint(1, 3)):
            event = spoiled(event, dice)
        event = event if isinstance(event, dict) else {"event": event}
        found = parse(event)
        assert isinstance(found.sentence, str)
        assert found.missed_write in {True, False}
        json.dumps([found.time, found.kind, found.copy, found.operation, found.offset, found.length, found.error])
        assert all(type(n) is int for n in (found.offset, found.length) if n is not None)
        count += 1
    attack.count(events=count)


async def test_a_client_survives_events_between_answers(fake: FakeMonitor) -> None:
    events = b"".join(json.dumps({"event": "X", "data": {"n": n}, "timestamp": {"seconds": 1, "microseconds": 1}})
                      .encode() + b"\n" for n in range(500))  # fmt: skip
    fake.answer = lambda command, arguments, command_id: events + well(command, arguments, command_id)
    async with await Monitor.open(fake.path, timeout_s=20) as monitor:
        for _ in range(20):
            assert await export_ids(monitor, timeout_s=20) == ["volume"]
        stream = monitor.listen("X")
        assert stream.lost == 0


def test_nothing_is_repeated_after_an_answer_that_makes_no_sense(fake: FakeMonitor) -> None:
    """A command that changes something is sent once, whatever comes back."""
    sent: list[str] = []

    def badly(command: str, _: dict[str, Any], command_id: str) -> bytes:
        sent.append(command)
        return reply([{"id": 5}], command_id) if command == "query-block-exports" else b"nonsense\n"

    fake.answer = badly
    for name, work in calls().items():
        sent.clear()
        settle(partial(ask, fake, work))
        changing = [command for command in sent if not command.startswith("query")]
        assert len(changing) == len(set(changing)), (name, sent)
