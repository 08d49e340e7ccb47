"""`start`, `stop` and `restart` where systemd runs the set. systemd itself is played here: what it would run for a unit
is run in this process, as if in the unit's control group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qorumctl import paths
from qorumctl.cli import porter
from qorumctl.controller import managed
from qorumctl.controller.managed import StartOptions, UnitState
from qorumctl.controller.observer import ScrubControl, Silent
from qorumctl.controller.sets import QuorumSets
from qorumctl.copies.nbd_link import NbdLink
from qorumctl.daemon import process
from qorumctl.daemon.runtime import FrontPaths, RuntimePaths
from qorumctl.errors import DefinitionError, QorumError, RefusedError, StoreError, UsageError
from qorumctl.model.status import Result
from qorumctl.paths import directories
from tests.cli.conftest import Machine

STORAGE, WATCH = "qorum-storage@w.service", "qorum-watch@w.service"


class Played:
    """A Manager. `inside`: whether what runs now runs in the unit. It is active as long as the daemon runs."""

    def __init__(self, runtime: RuntimePaths) -> None:
        self._runtime = runtime
        self.load = "loaded"
        self.active = "inactive"
        self.inside = False
        self.asked: list[str] = []

    async def state(self, unit: str) -> UnitState:
        self._see()
        return UnitState(self.load, self.active)

    async def start(self, unit: str) -> None:
        self.asked.append(f"start {unit}")
        if unit == STORAGE:
            await self._run("start")
            self.active = "active"

    async def stop(self, unit: str) -> None:
        self.asked.append(f"stop {unit}")
        self._see()
        if unit == STORAGE and self.active == "active":
            self.active = "inactive"
            await self._run("stop")

    async def forget_failures(self, unit: str) -> None:
        self.asked.append(f"reset-failed {unit}")

    def _see(self) -> None:
        """Without a main process the unit's ExecStop= does nothing."""
        if process.running_pid(self._runtime) is None:
            self.active = "inactive"

    async def _run(self, command: str) -> None:
        """The ExecStart= and ExecStop= of the unit. What they say goes to the journal."""
        self.inside = True
        try:
            if command == "start":
                await managed.start(QuorumSets(), None, "w", StartOptions(), Silent(), ScrubControl())
            else:
                await managed.stop(QuorumSets(), None, "w", force=True)
        except QorumError:
            raise QorumError("Job for the unit failed.", remedy="See its status.") from None
        finally:
            self.inside = False

    async def by_hand(self, options: StartOptions = StartOptions()) -> Result:
        return await managed.start(QuorumSets(), self, "w", options, Silent(), ScrubControl())

    async def restart(self, *, force: bool = False) -> Result:
        return await managed.restart(QuorumSets(), self, "w", StartOptions(), Silent(), ScrubControl(), force=force)


@pytest.fixture
def systemd(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """The set `w` is made. Its directories are those of the units."""
    for image in machine.images.values():
        image.write_bytes(bytes(1 << 20))
    machine.document("create", "w", *map(str, machine.images.values()), "--cache", "writeback")
    for name in ("QORUM_CONFIG_DIR", "QORUM_STATE_DIR", "QORUM_RUNTIME_DIR"):
        monkeypatch.setenv(name, machine.environment[name])
    played = Played(RuntimePaths(machine.runtime / "w"))
    monkeypatch.setattr(managed, "SERVICE_DIRECTORIES", directories())
    monkeypatch.setattr(managed, "_within", lambda _unit: played.inside)
    yield played
    left = {path.name for path in (machine.directory / "s" / "w").iterdir()} & {"unit.request", "unit.answer"}
    assert left == set()


@pytest.mark.live
async def test_a_start_goes_through_the_unit_and_its_options_and_words_with_it(
    systemd: Played, machine: Machine
) -> None:
    machine.images["c"].rename(machine.directory / "away")
    done = await systemd.by_hand(StartOptions(degraded=True))
    assert systemd.asked == [f"reset-failed {STORAGE}", f"start {STORAGE}"]
    assert (done.command, done.changed, done.state) == ("start", True, "degraded")
    assert "runs without it" in done.warnings[0]
    # Again: nothing but the watcher is seen to.
    systemd.asked.clear()
    assert (await systemd.by_hand()).changed is False
    assert systemd.asked == [f"start {WATCH}"]


async def test_what_is_refused_is_refused_before_systemd_is_asked(systemd: Played, machine: Machine) -> None:
    """A unit that fails is told to root, and tried again."""
    machine.images["c"].unlink()
    with pytest.raises(RefusedError, match="does not exist"):
        await systemd.by_hand()
    assert systemd.asked == []


async def test_an_error_in_the_unit_is_the_error_here_and_is_not_tried_again(
    systemd: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QORUM_QSD", "/bin/false")
    with pytest.raises(QorumError, match="qemu-storage-daemon ended at once") as failed:
        await systemd.by_hand()
    assert (failed.value.code, failed.value.exit_code) == ("daemon-start", 1)
    assert systemd.asked[-2:] == [f"start {STORAGE}", f"stop {STORAGE}"]


@pytest.mark.live
async def test_a_guest_s_set_is_not_stopped_and_one_without_guests_is(systemd: Played, machine: Machine) -> None:
    await systemd.by_hand()
    systemd.asked.clear()
    link = NbdLink(RuntimePaths(machine.runtime / "w").nbd_sock, "volume", who="The guest", timeout_s=20)
    with pytest.raises(RefusedError, match="A guest is connected"):
        await managed.stop(QuorumSets(), systemd, "w", force=False)
    with pytest.raises(RefusedError, match="A guest is connected"):
        await systemd.restart()
    assert systemd.asked == []
    forced = await managed.stop(QuorumSets(), systemd, "w", force=True)
    assert (systemd.asked, forced.changed, forced.state) == ([f"stop {STORAGE}"], True, "stopped")
    link.close()
    await systemd.by_hand()
    systemd.asked.clear()
    assert (await managed.stop(QuorumSets(), systemd, "w", force=False)).changed
    assert systemd.asked == [f"stop {STORAGE}", f"stop {WATCH}"]


@pytest.mark.live
async def test_a_set_that_was_started_by_hand_comes_under_its_unit_with_a_restart(systemd: Played) -> None:
    await managed.start(QuorumSets(), None, "w", StartOptions(), Silent(), ScrubControl())
    (warning,) = (await systemd.by_hand()).warnings
    assert "runs outside its unit" in warning
    assert systemd.asked == []
    done = await systemd.restart()
    assert (done.command, done.changed, done.warnings) == ("restart", True, [])
    assert f"start {STORAGE}" in systemd.asked
    assert (await systemd.by_hand()).warnings == []


@pytest.mark.live
async def test_a_front_outlasts_a_forced_restart_and_no_forced_stop(systemd: Played, machine: Machine) -> None:
    await systemd.by_hand()
    front = (await QuorumSets().front("w")).front
    assert (await systemd.restart(force=True)).changed
    again = (await QuorumSets().status(["w"])).sets[0].front
    assert front is not None
    assert again is not None
    assert again.pid == front.pid
    await managed.stop(QuorumSets(), systemd, "w", force=True)
    assert process.processes(FrontPaths(machine.runtime / "w")) == []


@pytest.mark.live
async def test_a_set_whose_definition_cannot_be_read_can_be_stopped(systemd: Played, machine: Machine) -> None:
    await systemd.by_hand()
    (machine.directory / "c" / "w.toml").write_text("nonsense")
    stopped = await managed.stop(QuorumSets(), systemd, "w", force=False)
    assert (stopped.changed, systemd.asked[-2:]) == (True, [f"stop {STORAGE}", f"stop {WATCH}"])
    with pytest.raises(DefinitionError):
        await systemd.by_hand()


async def test_elsewhere_all_is_as_ever(systemd: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """None: nobody is asked to start or stop."""
    assert await managed._state(systemd, "w") == UnitState("loaded", "inactive")
    assert await managed._state(None, "w") is None
    monkeypatch.setenv("QORUM_HOOKS_DIR", "/srv/hooks.d")
    monkeypatch.setenv("QORUM_TEXTFILE_DIR", "/srv/metrics")
    assert await managed._state(systemd, "w") == UnitState("loaded", "inactive")
    systemd.load = "not-found"
    assert await managed._state(systemd, "w") is None
    systemd.load, systemd.inside = "loaded", True
    assert await managed._state(systemd, "w") is None
    systemd.inside = False
    monkeypatch.setattr(managed, "SERVICE_DIRECTORIES", paths.SERVICE_DIRECTORIES)
    assert await managed._state(systemd, "w") is None


async def test_an_errand_of_somebody_who_waits_no_longer_counts_for_nothing(systemd: Played, machine: Machine) -> None:
    request = machine.directory / "s" / "w" / "unit.request"
    request.write_text('{"command": "start", "options": {"takeover": true}}')
    request.chmod(0o600)
    systemd.inside = True
    with managed._asked("w", "start") as (options, answer):
        assert options == {}
        answer(Result(set="w", command="start", changed=True))
    assert not request.with_name("unit.answer").exists()
    request.unlink()


async def test_a_second_errand_is_refused_and_takes_no_answer_from_the_first(systemd: Played, machine: Machine) -> None:
    context = managed._context("w")
    with managed.Errand(context, "start", {}) as first:
        systemd.inside = True
        with managed._asked("w", "start") as (_, answer):
            answer(Result(set="w", command="start", changed=True))
        with pytest.raises(StoreError, match="another command"), managed.Errand(context, "start", {}):
            pass
    assert first.outcome() == Result(set="w", command="start", changed=True)


async def test_a_name_that_makes_no_sense_reaches_nobody(systemd: Played) -> None:
    with pytest.raises(UsageError):
        await managed.start(QuorumSets(), systemd, "../x", StartOptions(), Silent(), ScrubControl())
    assert systemd.asked == []


@pytest.mark.parametrize(
    ("text", "within"),
    [
        (f"0::/system.slice/system-qorum\\x2dstorage.slice/{STORAGE}\n", True),
        (f"9:name=systemd:/system.slice/{STORAGE}/sub\n0::/\n", True),
        (f"0::/system.slice/x{STORAGE}\n", False),
        ("0::/user.slice/user-0.slice/session-1.scope\n", False),
        ("", False),
    ],
)
def test_the_control_group_tells_whether_the_unit_runs_us(tmp_path: Path, text: str, within: bool) -> None:
    (tmp_path / "cgroup").write_text(text)
    assert managed._within(STORAGE, tmp_path / "cgroup") is within


# The porter.

SYSTEMCTL = """#!/bin/sh
echo "$*" >>{place}/calls
case $2 in
    show) echo LoadState=loaded; echo ActiveState=inactive ;;
    start) echo "Job for it failed." >&2; exit 1 ;;
esac
"""
PORTER = """
import asyncio
from qorumctl.cli.porter import Porter
from qorumctl.errors import QorumError

async def main():
    print(await porter.state("qorum-storage@w.service"))
    try:
        await porter.start("qorum-storage@w.service")
    except QorumError as error:
        print(error)
    await porter.stop("qorum-watch@w.service")

porter = Porter(print)
asyncio.run(main())
"""


def test_the_porter_asks_systemctl(tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(place=tmp_path))
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", PORTER],
        env=os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "UnitState(load='loaded', active='inactive')",
        "'systemctl start qorum-storage@w.service' failed: Job for it failed. See 'systemctl status "
        "qorum-storage@w.service' and 'journalctl -u qorum-storage@w.service'.",
    ]
    assert (tmp_path / "calls").read_text().splitlines() == [
        "--no-ask-password show --property=LoadState,ActiveState -- qorum-storage@w.service",
        "--no-ask-password start -- qorum-storage@w.service",
        "--no-ask-password stop -- qorum-watch@w.service",
    ]


@pytest.mark.parametrize(
    ("verb", "unit"),
    [
        ("mask", STORAGE),
        ("start", "ssh.service"),
        ("start", "qorum-scrub@w.service"),
        ("start", "qorum-storage@w.service\n"),
        ("stop", "-H"),
    ],
)
def test_the_porter_does_nothing_else(verb: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(porter.subprocess, "run", lambda *_, **__: pytest.fail("it was run"))
    assert porter._systemctl(verb, unit)[0] == 1
