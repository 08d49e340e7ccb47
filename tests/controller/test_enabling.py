"""`enable` and `disable`, with the real systemctl on a tree of its own: what only a running systemd can do is written
down in a list."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from qorumctl import definitions, paths
from qorumctl.controller.enabling import Systemd
from qorumctl.controller.sets import QuorumSets
from qorumctl.errors import DefinitionError, QorumError, RefusedError, UsageError
from qorumctl.model.spec import CopySpec, FileSource, SetSpec
from qorumctl.paths import Directories

ROOT = Path(__file__).resolve().parents[2]
SYSTEMCTL = """#!/bin/sh
echo "$*" >>{calls}
case $1 in
    is-active | daemon-reload) exit "$(cat {place}/$1 2>/dev/null || echo 0)" ;;
    stop | restart) exit "$(cat {place}/$1 2>/dev/null || echo 0)" ;;
esac
exec {systemctl} --root={root} "$@"
"""

pytestmark = pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemctl is not installed")


class Machine:
    def __init__(self, place: Path, directories: Directories) -> None:
        self.root, self.calls, self._place = place / "root", place / "calls", place
        self.units = self.root / "etc/systemd/system"
        self.booted = place / "booted"
        templates = self.root / "usr/lib/systemd/system"
        for path in (self.units, self.booted, templates):
            path.mkdir(parents=True)
        for unit in (ROOT / "contrib/systemd").glob("qorum-*"):
            shutil.copy(unit, templates)
        self.systemd = Systemd(self.booted, self.units, directories)
        self.sets = QuorumSets(directories)
        program = place / "bin" / "systemctl"
        program.parent.mkdir()
        real = shutil.which("systemctl")
        program.write_text(SYSTEMCTL.format(calls=self.calls, place=place, systemctl=real, root=self.root))
        program.chmod(0o755)

    def fails(self, command: str) -> None:
        (self._place / command).write_text("1")

    def called(self) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith("is-")]

    def tree(self) -> set[str]:
        return {str(path.relative_to(self.units)) for path in self.units.rglob("*") if not path.is_dir()}


@pytest.fixture
def directories(short_dir: Path) -> Directories:
    made = Directories(short_dir / "c", short_dir / "s", short_dir / "r")
    made.config.mkdir(mode=0o755)
    made.state.mkdir(mode=0o700)
    copies = tuple(CopySpec(name=name, source=FileSource(path=f"/srv/{name}/web01.raw")) for name in "abc")
    definitions.save(made.config / "web01.toml", SetSpec(name="web01", uuid=uuid4(), size=1 << 20, copies=copies))
    return made


@pytest.fixture
def machine(tmp_path: Path, directories: Directories, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path, directories)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(paths, "SERVICE_USER", pwd.getpwuid(os.geteuid()).pw_name)
    return made


ENABLED = {
    "multi-user.target.wants/qorum-storage@web01.service",
    "timers.target.wants/qorum-scrub@web01.timer",
    "qorum-storage@web01.service.d/50-qorumctl.conf",
    "qorum-scrub@web01.service.d/50-qorumctl.conf",
    "qorum-scrub@web01.timer.d/50-qorumctl.conf",
}


def test_enable_starts_the_timer_and_leaves_the_set_to_its_operator(machine: Machine) -> None:
    machine.fails("is-active")
    done = machine.sets.enable("web01", systemd=machine.systemd)
    assert (done.command, done.changed) == ("enable", True)
    assert done.warnings == ["web01 is not running: 'qorumctl start web01' starts it now, and each boot from now on."]
    assert machine.tree() == ENABLED
    assert machine.called() == [
        "daemon-reload",
        "enable qorum-storage@web01.service qorum-scrub@web01.timer",
        "restart qorum-scrub@web01.timer",
    ]


def test_enable_twice_changes_nothing(machine: Machine) -> None:
    machine.sets.enable("web01", "weekly", systemd=machine.systemd)
    machine.called()
    done = machine.sets.enable("web01", "weekly", systemd=machine.systemd)
    assert (done.changed, done.warnings, machine.called()) == (False, [], [])


def test_where_the_caller_s_metrics_go_is_no_obstacle(machine: Machine, directories: Directories) -> None:
    """QORUM_TEXTFILE_DIR: the sets are those of the units all the same."""
    sets = QuorumSets(replace(directories, textfile=Path("/metrics")))
    assert sets.enable("web01", systemd=machine.systemd).changed


def test_enable_again_changes_the_schedule(machine: Machine) -> None:
    machine.sets.enable("web01", systemd=machine.systemd)
    assert machine.sets.enable("web01", "nightly", systemd=machine.systemd).changed
    assert "OnCalendar=*-*-* 01:00:00" in (machine.units / "qorum-scrub@web01.timer.d/50-qorumctl.conf").read_text()
    assert "BUDGET=4h" in (machine.units / "qorum-scrub@web01.service.d/50-qorumctl.conf").read_text()


def test_disable_takes_all_of_it_back(machine: Machine) -> None:
    machine.sets.enable("web01", systemd=machine.systemd)
    machine.called()
    assert machine.sets.disable("web01", systemd=machine.systemd).changed
    assert machine.tree() == set()
    assert not list(machine.units.glob("*.d"))
    assert machine.called() == [
        "stop qorum-scrub@web01.timer",
        "disable qorum-scrub@web01.timer qorum-storage@web01.service",
        "daemon-reload",
    ]
    assert not machine.sets.disable("web01", systemd=machine.systemd).changed


def test_disable_leaves_what_the_operator_has_added(machine: Machine) -> None:
    machine.sets.enable("web01", systemd=machine.systemd)
    own = machine.units / "qorum-scrub@web01.service.d/own.conf"
    own.write_text("[Service]\nNice=10\n")
    machine.sets.disable("web01", systemd=machine.systemd)
    assert own.exists()


def test_a_set_that_is_deleted_can_be_disabled(machine: Machine, directories: Directories) -> None:
    machine.sets.enable("web01", systemd=machine.systemd)
    (directories.config / "web01.toml").unlink()
    assert machine.sets.disable("web01", systemd=machine.systemd).changed
    with pytest.raises(DefinitionError, match="There is no set 'web01'"):
        machine.sets.disable("web01", systemd=machine.systemd)


@pytest.mark.parametrize("command", ["daemon-reload", "restart"])
def test_what_fails_half_way_is_undone(machine: Machine, command: str) -> None:
    machine.fails(command)
    with pytest.raises(QorumError, match=f"'systemctl {command}"):
        machine.sets.enable("web01", systemd=machine.systemd)
    assert machine.tree() == set()


def test_a_schedule_that_cannot_be_taken_up_leaves_the_old_one(machine: Machine) -> None:
    machine.sets.enable("web01", systemd=machine.systemd)
    drop_in = machine.units / "qorum-scrub@web01.timer.d/50-qorumctl.conf"
    before = drop_in.read_text()
    machine.fails("restart")
    with pytest.raises(QorumError, match="'systemctl restart"):
        machine.sets.enable("web01", "weekly", systemd=machine.systemd)
    assert drop_in.read_text() == before
    assert machine.tree() == ENABLED


Refusal = Callable[[Machine, pytest.MonkeyPatch], None]


def _no_systemd(machine: Machine, _: pytest.MonkeyPatch) -> None:
    machine.booted.rmdir()


def _no_units(machine: Machine, _: pytest.MonkeyPatch) -> None:
    shutil.rmtree(machine.root / "usr/lib/systemd/system")


def _no_user(_: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "SERVICE_USER", "nobody-of-that-name")


def _no_right(_: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)


def _elsewhere(machine: Machine, _: pytest.MonkeyPatch) -> None:
    machine.sets = QuorumSets(Directories(Path("/x/c"), Path("/x/s"), Path("/x/r")))


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (_no_systemd, "systemd is not running here"),
        (_no_units, "units of qorumctl are not installed"),
        (_no_user, "does not belong to the user"),
        (_no_right, "Only root can enable"),
        (_elsewhere, "The units look for sets in"),
    ],
)
def test_a_refusal_says_what_to_do_and_changes_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, arrange: Refusal, says: str
) -> None:
    arrange(machine, monkeypatch)
    with pytest.raises(RefusedError, match=says) as refused:
        machine.sets.enable("web01", systemd=machine.systemd)
    assert "Nothing was changed" in (refused.value.remedy or "")
    assert (machine.tree(), machine.called()) == (set(), [])


def test_no_schedule_and_no_set(machine: Machine) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        machine.sets.enable("web01", budget="soon", systemd=machine.systemd)
    with pytest.raises(DefinitionError, match="There is no set 'web02'"):
        machine.sets.enable("web02", systemd=machine.systemd)
    assert machine.tree() == set()
