"""Delivery: each event to each hook, in order, at least once; what fails is tried again, and harms no other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from qorumctl import definitions
from qorumctl.controller import delivery
from qorumctl.controller.context import SetContext
from qorumctl.controller.hooks import Hooks
from qorumctl.controller.options import Timeouts
from qorumctl.controller.waking import BY_UNIT, LOCK_NAME, PENDING_NAME, wake
from qorumctl.core.chronicle import Entry
from qorumctl.errors import RefusedError
from qorumctl.model.hooks import HookFailure
from qorumctl.model.spec import CopySpec, FileSource, SetSpec
from qorumctl.paths import Directories
from qorumctl.store import SetLock
from tests.live import is_dead, wait_for

AT_ONCE = (0.0, 0.0, 0.0)
KEEP = 'read -r line; echo "$line" >> $D/$(basename "$0")'


class Place:
    """A set without a daemon, whose events are made by hand."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.hooks = place / "hooks.d"
        directories = Directories(place / "c", place / "s", place / "r", hooks=self.hooks)
        for path in (directories.config, self.hooks):
            path.mkdir(mode=0o755)
        copies = tuple(CopySpec(name=name, source=FileSource(path=f"/srv/{name}/web01.raw")) for name in "abc")
        definitions.save(
            directories.config / "web01.toml", SetSpec(name="web01", uuid=uuid4(), size=1 << 20, copies=copies)
        )
        self.context = SetContext("web01", directories, Timeouts(hook_s=60))

    def hook(self, name: str, script: str = KEEP, mode: int = 0o755) -> Path:
        """`$D`: a directory."""
        path = self.hooks / name
        path.write_text(f"#!/bin/sh\nD={self.place}\n{script}\n")
        path.chmod(mode)
        return path

    def tell(self, count: int = 1, *, detail: str | None = None) -> None:
        """`copy-detached`, with a number each, or with `detail`."""
        with self.context.store() as store:
            # Nobody is woken: the test delivers.
            store._database.listener = type(store._database.listener)(lambda: True, lambda: None)
            for _ in range(count):
                self.told += 1
                store.note_entry("b", Entry.DETACHED, detail=detail or str(self.told))

    told = 0

    def deliver(self) -> bool:
        return delivery.deliver(self.context, rests_s=AT_ONCE)

    def took(self, name: str) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            return [int(json.loads(line)["detail"]) for line in (self.place / name).read_text().splitlines()]
        return []

    def failures(self) -> dict[str, HookFailure]:
        with self.context.store() as store:
            return {failure.hook: failure for failure in store.outbox.failures()}

    def waiting(self) -> int:
        with self.context.store() as store:
            return store.outbox.waiting()

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        d = self.context.directories
        names = {"CONFIG": d.config, "STATE": d.state, "RUNTIME": d.runtime, "HOOKS": d.hooks}
        return subprocess.Popen(
            [sys.executable, "-m", "qorumctl.cli.main", "hooks", *arguments],
            env=os.environ | {f"QORUM_{name}_DIR": str(path) for name, path in names.items()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def at_work(self) -> int:
        """The pid of whoever delivers, or 0."""
        return (SetLock.held_by(self.context.state_dir, file_name=LOCK_NAME) or (0, ""))[0]


@pytest.fixture
def place(short_dir: Path) -> Iterator[Place]:
    made = Place(short_dir)
    yield made
    if pid := made.at_work():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_each_hook_gets_each_event_in_order(place: Place) -> None:
    place.hook("20-b", f"{KEEP}; echo 20-b >> $D/order")
    place.hook("10-a", f"{KEEP}; echo 10-a >> $D/order")
    place.tell(3)
    assert place.deliver()
    assert (place.took("10-a"), place.took("20-b")) == ([1, 2, 3], [1, 2, 3])
    assert (place.place / "order").read_text().split() == ["10-a", "20-b"] * 3
    assert (place.waiting(), place.failures(), place.deliver()) == (0, {}, False)


def test_what_others_have_worded_is_one_line_in_the_text(place: Place) -> None:
    """It is the subject of a mail: a storage server's message must not end that header."""
    place.hook("10-keep", "cat > $D/in")
    place.tell(detail="it said:\r\nX-Other: 1\u2028\x1b[2Jfar")
    place.deliver()
    told = json.loads((place.place / "in").read_text())
    assert told["text"] == "web01: copy b was detached: it said: X-Other: 1 [2Jfar."
    assert told["detail"] == "it said:\r\nX-Other: 1\u2028\x1b[2Jfar"


def test_one_that_fails_is_tried_again_and_then_told_of(place: Place) -> None:
    place.hook("10-bad", f"{KEEP}; echo no route; exit 3")
    place.hook("20-good")
    place.tell(3)
    place.deliver()
    assert place.took("20-good") == [1, 2, 3]
    # Four tries of the first event, and one for each of the others.
    assert place.took("10-bad") == [1, 1, 1, 1, 2, 3]
    failure = place.failures()["10-bad"]
    assert (failure.failures, failure.given_up, failure.reason) == (6, 3, "it ended with exit code 3")
    assert (failure.output, failure.since <= failure.last) == ("no route\n", True)
    assert place.waiting() == 0


def test_one_that_works_again_is_forgiven(place: Place) -> None:
    place.hook("10-log", f"{KEEP}; test -e $D/back")
    place.tell()
    place.deliver()
    assert place.failures()["10-log"].given_up == 1
    (place.place / "back").touch()
    place.tell()
    place.deliver()
    assert (place.failures(), place.took("10-log")[-1]) == ({}, 2)


def test_one_that_fails_for_a_moment_loses_nothing(place: Place) -> None:
    place.hook("10-log", "test -e $D/tried || { touch $D/tried; exit 1; }\n" + KEEP)
    place.tell(3)
    place.deliver()
    assert (place.took("10-log"), place.failures()) == ([1, 2, 3], {})


def test_while_one_rests_the_others_go_on(place: Place) -> None:
    """And those that work come before those that fail, whatever their names."""
    place.hook("10-bad", "cat > /dev/null; echo bad >> $D/order; exit 1")
    place.hook("20-good", f"{KEEP}; echo good >> $D/order")
    place.tell(3)
    delivery.deliver(place.context, rests_s=(0.2,))
    assert (place.place / "order").read_text().split()[:4] == ["bad", "good", "good", "good"]


def test_one_that_others_can_change_is_not_run_and_told_of(place: Place) -> None:
    path = place.hook("10-log", mode=0o777)
    place.tell(2)
    place.deliver()
    assert place.took("10-log") == []
    failure = place.failures()["10-log"]
    assert (failure.reason, failure.given_up) == (f"{path} can be written by other users.", 2)
    path.chmod(0o755)
    place.tell()
    place.deliver()
    assert (place.took("10-log"), place.failures()) == ([3], {})


def test_events_wait_while_the_directory_is_refused(place: Place) -> None:
    place.hook("10-log")
    place.hooks.chmod(0o777)
    place.tell(2)
    assert not place.deliver()
    assert place.failures()["."].reason == f"{place.hooks} can be written by other users."
    place.hooks.chmod(0o755)
    place.deliver()
    assert (place.took("10-log"), place.failures()) == ([1, 2], {})


def test_one_that_is_removed_is_forgotten_and_one_that_is_replaced_is_run(place: Place) -> None:
    place.hook("10-gone", "rm $0; exit 1")
    place.hook(
        "20-new", "printf '#!/bin/sh\\nD=%s\\n%s\\n' $D 'cat >> $D/20-new' > $D/new; chmod 755 $D/new; mv $D/new $0"
    )
    place.tell(2)
    place.deliver()
    assert (place.failures(), place.took("20-new"), place.waiting()) == ({}, [2], 0)


def test_a_killed_delivery_is_taken_up_where_it_was(place: Place) -> None:
    """Between two hooks: the first has the event already, the second gets it."""
    place.hook("10-a")
    place.hook("20-b", "test -e $D/go || { echo $$ > $D/pid; exec sleep 600; }\n" + KEEP)
    place.tell(2)
    begun = place.command("deliver", "web01")
    wait_for((place.place / "pid").exists, "the second hook")
    wait_for(lambda: (place.place / "pid").read_text().strip(), "its pid")
    begun.kill()
    begun.communicate()
    hook = int((place.place / "pid").read_text())
    wait_for(lambda: is_dead(hook), "the end of the hook with its deliverer")
    assert (place.took("10-a"), place.took("20-b"), place.waiting()) == ([1], [], 2)
    (place.place / "go").touch()
    place.deliver()
    assert (place.took("10-a"), place.took("20-b"), place.failures()) == ([1, 2], [1, 2], {})


def test_one_that_kills_its_deliverer_is_given_up(place: Place) -> None:
    place.hook("10-killer", "kill -KILL $PPID; exec sleep 600")
    place.hook("20-good")
    place.tell()
    runs = 0
    while place.waiting():
        done = place.command("deliver", "web01")
        done.communicate(timeout=60)
        runs += 1
        assert runs < 7
    assert place.took("20-good") == [1]
    assert place.failures()["10-killer"].reason == "it was run again and again, and each time the delivery was killed"


def test_sigterm_ends_a_delivery_and_its_hook(place: Place) -> None:
    place.hook("10-slow", "echo $$ > $D/pid.new; mv $D/pid.new $D/pid; exec sleep 600")
    place.tell()
    begun = place.command("deliver", "web01")
    wait_for((place.place / "pid").exists, "the hook")
    begun.terminate()
    begun.communicate(timeout=60)
    assert begun.returncode == 130
    hook = int((place.place / "pid").read_text())
    wait_for(lambda: is_dead(hook), "the end of the hook")
    assert place.waiting() == 1


def test_there_is_one_at_a_time_and_it_takes_what_comes_meanwhile(place: Place) -> None:
    place.hook("10-slow", f"{KEEP}; touch $D/began; until test -e $D/go; do sleep 0.05; done")
    place.tell()
    begun = place.command("deliver", "web01")
    wait_for((place.place / "began").exists, "the hook")
    place.tell()
    assert not place.deliver()
    (place.place / "go").touch()
    begun.communicate(timeout=60)
    assert (begun.returncode, place.took("10-slow"), place.waiting()) == (0, [1, 2], 0)


def test_whoever_tells_begins_a_delivery_in_the_background(place: Place) -> None:
    place.hook("10-log", f"until test -e $D/go; do sleep 0.05; done; {KEEP}")
    with place.context.store() as store:
        store.note_entry("b", Entry.DETACHED, detail="7")
    # Nobody has waited for the hook.
    (place.place / "go").touch()
    wait_for(lambda: place.took("10-log") == [7], "the event")
    wait_for(lambda: not place.at_work(), "the end of the delivery")


def test_under_systemd_it_leaves_a_file_for_the_unit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BY_UNIT, "1")
    place.hook("10-log")
    place.tell()
    wake(place.context.directories, "web01")
    assert (place.context.state_dir / PENDING_NAME).is_file()
    assert (place.at_work(), place.took("10-log")) == (0, [])


def test_waking_never_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/none")
    place.hook("10-log")
    with place.context.store() as store:
        store.note_entry("b", Entry.DETACHED)
    assert place.waiting() == 1


def test_a_set_that_was_deleted_is_not_made_anew(place: Place) -> None:
    place.context.definition_path.unlink()
    assert not place.deliver()
    assert not place.context.state_dir.exists()


def hooks_of(place: Place) -> Hooks:
    return Hooks(place.context.directories, lambda _: place.context)


def test_a_test_runs_all_of_them_and_forgives_those_that_work(place: Place) -> None:
    with pytest.raises(RefusedError, match="There is no hook"):
        hooks_of(place).test("web01")
    place.hook("10-log", "test -e $D/back || exit 1; cat > $D/in")
    place.tell()
    place.deliver()
    (place.place / "back").touch()
    place.hook("20-bad", "echo why; exit 1")
    done = hooks_of(place).test("web01")
    assert [(one.hook, one.ok, one.reason, one.output) for one in done.hooks] == [
        ("10-log", True, None, ""),
        ("20-bad", False, "it ended with exit code 1", "why\n"),
    ]
    assert (done.ok, place.failures()) == (False, {})
    assert json.loads((place.place / "in").read_text())["event"] == "test"


def test_the_list_tells_what_is_wrong(place: Place) -> None:
    listed = hooks_of(place).list(["web01"])
    assert (listed.ok, listed.hooks, listed.sets[0].waiting) == (True, [], 0)
    place.hook("10-log")
    place.hook("20-open", mode=0o777)
    place.hook("30-off", mode=0o644)
    place.tell(2)
    listed = hooks_of(place).list(["web01"])
    assert [(hook.name, hook.state) for hook in listed.hooks] == [
        ("10-log", "runs"),
        ("20-open", "refused"),
        ("30-off", "passed-over"),
    ]
    assert (listed.ok, listed.sets[0].waiting) == (False, 2)
    place.hooks.chmod(0o777)
    listed = hooks_of(place).list(["web01"])
    assert (listed.ok, listed.hooks, listed.remedy) == (False, [], f"Run chmod go-w {place.hooks}.")


def test_clearing_drops_what_waits(place: Place) -> None:
    place.hook("10-bad", "exit 1")
    place.tell(2)
    place.deliver()
    place.tell()
    assert hooks_of(place).clear("web01").changed
    assert (place.failures(), place.waiting(), hooks_of(place).clear("web01").changed) == ({}, 0, False)


@pytest.mark.parametrize("spoil", [lambda document: document.pop("text"), lambda document: document.update(more=1)])
def test_an_event_that_cannot_be_understood_holds_nothing_up(place: Place, spoil: Callable[..., object]) -> None:
    place.hook("10-log")
    place.tell(2)
    with place.context.store() as store, store._database.write() as connection:
        document = json.loads(connection.execute("SELECT document FROM outbox WHERE id = 1").fetchone()[0])
        spoil(document)
        connection.execute("UPDATE outbox SET document = ? WHERE id = 1", (json.dumps(document),))
    place.deliver()
    assert place.took("10-log") == [2]
