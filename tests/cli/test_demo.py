"""The demo as people run it: it ends well, and leaves nothing behind unless it is told to."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qorumctl.controller import demo_checks, demo_damage, storage_probe
from qorumctl.controller.demo import DemoSet, Stopped
from qorumctl.controller.observer import ScrubControl
from qorumctl.core.diagnosis import diagnose
from qorumctl.core.findings import FindingVerdict
from qorumctl.core.ranges import SECTOR_BYTES
from qorumctl.daemon import process
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.model.report import FindingDocument
from qorumctl.model.status import CheckItem
from qorumctl.scrub.ports import StopReason
from tests.cli.conftest import validate
from tests.cli.documents import report as scrub_report
from tests.live import wait_for

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "qorumctl.cli.main", "demo"]
TIMEOUT_S = 120


class Place:
    """The only directory for temporary files that the demo is told of."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            "PATH": os.environ["PATH"],
            "TMPDIR": str(directory),
            "COLUMNS": "80",
            "PYTHONPATH": str(ROOT),
            **{key: value for key, value in os.environ.items() if key == "QORUM_QSD"},
        }

    def run(self, *arguments: str, code: int = 0, prefix: tuple[str, ...] = (), **environment: str) -> str:
        done = subprocess.run(
            [*prefix, *PROGRAM, *arguments],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd="/",
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        self.said = done.stderr
        return done.stdout

    def document(self, *arguments: str, **keys: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("--json", *arguments, **keys))
        validate(found)
        return found

    def left(self) -> list[str]:
        """What is left: files, and processes that were started for them."""
        found = [str(path) for path in self.directory.iterdir() if path.name.startswith("qorum-")]
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"{self.directory}/".encode() in command.read_bytes():
                    found.append(command.read_bytes().decode())
        return found

    def close(self) -> None:
        for runtime in self.directory.glob("qorum-*/run/demo"):
            paths = RuntimePaths(runtime)
            if (pid := process.running_pid(paths)) is not None:
                process.kill(paths, pid)
                wait_for(lambda paths=paths: process.running_pid(paths) is None, "the end of a daemon")


@pytest.fixture
def place(short_dir: Path) -> Iterator[Place]:
    made = Place(short_dir)
    yield made
    made.close()


@pytest.mark.live
def test_every_repairable_sector_is_repaired_and_the_other_one_named(place: Place) -> None:
    found = place.document()
    assert found["ok"]
    assert [check["ok"] for check in found["checks"]] == [True] * len(found["checks"])
    assert (found["scrub_exit_code"], found["second_scrub_exit_code"]) == (5, 5)
    assert [one["action"] for one in found["scrub"]["findings"]].count("repaired") == len(demo_damage.REPAIRABLE)
    assert [one["offset"] for one in found["second_scrub"]["findings"]] == [demo_damage.LOST.offset]
    shared = next(one for one in found["reads"] if one["offset"] == demo_damage.SHARED.offset)
    assert (shared["whole"], shared["sectors_right"]) == ("error", 128)
    assert found["directory"] is None
    assert place.left() == []


@pytest.mark.live
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can become somebody else")
def test_an_ordinary_user_without_a_home_can_run_it(place: Place) -> None:
    nobody = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
    place.directory.chmod(0o777)
    readable = subprocess.run(
        [*nobody, sys.executable, "-c", "import qorumctl.cli.main"], env=place.environment, cwd="/", capture_output=True
    )
    if readable.returncode:
        pytest.skip("nobody cannot read this checkout or its Python")
    assert place.document(prefix=nobody)["ok"]
    assert place.left() == []


@pytest.mark.live
def test_told_at_80_columns_and_kept_it_leaves_a_set_that_the_printed_lines_work_on_and_remove(place: Place) -> None:
    told = place.run("--keep")
    # How long they are is up to whoever runs the tests.
    usual = told.replace(str(place.directory), "/tmp")
    if daemon := os.environ.get("QORUM_QSD"):
        usual = usual.replace(daemon, "/usr/bin/qsd")
    assert [line for line in usual.splitlines() if len(line) > 80] == []
    assert re.findall(r"^(\d)\. ", told, re.MULTILINE) == list("1234567")
    assert f"{demo_damage.LOST.offset}:512" in told
    assert "All went as told: 7 damaged sectors repaired" in told
    lines = [line for line in told.split("To go on with it:")[1].splitlines() if line.startswith("  ")]
    *play, remove = lines
    (place.directory / "qorumctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m qorumctl.cli.main "$@"\n')
    (place.directory / "qorumctl").chmod(0o755)
    environment = place.environment | {"PATH": f"{place.directory}:{os.environ['PATH']}"}

    def shell(script: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", "\n".join(script)], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )

    played = shell(play)
    assert played.returncode == 5, played.stderr
    assert "damaged" in played.stdout
    assert "1 range of 512 B was repaired and verified (copy b once)" in played.stdout
    removed = shell([*play[:4], remove])
    assert removed.returncode == 0, removed.stderr
    wait_for(lambda: not place.left(), "a place with nothing left in it")


@pytest.mark.live
@pytest.mark.parametrize(
    ("step", "number", "code", "arguments"),
    [("2. ", signal.SIGINT, 130, []), ("4. ", signal.SIGTERM, 1, []), ("5. ", signal.SIGINT, 130, ["--keep"])],
)
def test_a_signal_in_the_middle_leaves_nothing(
    place: Place, step: str, number: int, code: int, arguments: list[str]
) -> None:
    begun = subprocess.Popen(
        [*PROGRAM, *arguments],
        env=place.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert begun.stdout
        assert any(line.startswith(step) for line in begun.stdout)
        begun.send_signal(number)
        _, said = begun.communicate(timeout=TIMEOUT_S)
    finally:
        begun.kill()
        begun.wait()
    assert begun.returncode == code
    assert "Traceback" not in said
    assert place.left() == []


@pytest.mark.live
async def test_where_the_file_system_refuses_direct_io_it_goes_through_the_page_cache(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = CheckItem(subject=storage_probe.DIRECT, ok=False, detail="refused")
    monkeypatch.setattr("qorumctl.controller.demo.examine_storage", lambda _path: [refused])
    monkeypatch.setattr(tempfile, "tempdir", str(short_dir))
    demo = DemoSet(ScrubControl())
    try:
        await demo.prepare()
        await demo.make()
        assert {copy.cache for copy in demo.sets.show("demo").definition.copies} == {"writeback"}
    finally:
        await demo.remove()
    assert list(short_dir.iterdir()) == []


@pytest.mark.live
def test_what_cannot_be_done_is_said_and_leaves_nothing(place: Place) -> None:
    found = place.document(code=1, QORUM_QSD="/nowhere/qemu-storage-daemon")
    assert found["schema"] == "qorum.error/1"
    assert "QORUM_QSD names /nowhere/qemu-storage-daemon" in found["message"]
    assert place.left() == []


def test_the_text_is_eight_lines_of_64_in_each_sector() -> None:
    for text in (demo_damage.text_of(8229), demo_damage.old_text_of(8229)):
        assert len(text) == SECTOR_BYTES
        assert [len(line) for line in text.splitlines(keepends=True)] == [64] * 8
        assert text.count(b"008229") == 8


@pytest.mark.parametrize("damage", demo_damage.ALL, ids=lambda damage: f"{damage.sector}-{damage.copy}")
def test_a_scrub_can_tell_what_was_done(damage: demo_damage.Damage) -> None:
    assert diagnose(demo_damage.text_of(damage.sector), damage.content).kind is damage.kind


def findings() -> list[FindingDocument]:
    """What a scrub must find."""
    common: dict[str, Any] = {"id": 1, "length": SECTOR_BYTES, "votes": {}, "confirmed": "2026-11-23T06:00:00Z"}
    found = [
        {"offset": one.at.offset, "verdict": "outvoted", "copies": [one.copy], "action": "repaired"}
        | {"diagnosis": {"kind": one.kind}}
        for one in demo_damage.REPAIRABLE
    ]
    lost = {"offset": demo_damage.LOST.offset, "verdict": "no-majority", "copies": list("abc"), "action": "left"}
    return [FindingDocument.model_validate(common | one) for one in [*found, lost | {"diagnosis": {"kind": "unknown"}}]]


def test_all_is_well_only_when_everything_was_found_and_repaired() -> None:
    def judged(found: list[FindingDocument]) -> bool:
        return all(check.ok for check in demo_checks.scrubbed(scrub_report(*found)))

    right = findings()
    assert judged(right)
    assert not judged(right[1:])
    assert not judged(right[:-1])
    assert not judged([right[0].model_copy(update={"action": "failed"}), *right[1:]])
    assert not judged([*right, right[0].model_copy(update={"offset": 0})])
    assert not judged([*right[:-1], right[-1].model_copy(update={"action": "repaired"})])
    assert demo_checks.scrubbed_again(scrub_report(right[-1])).ok
    assert not demo_checks.scrubbed_again(scrub_report(*right[-2:])).ok
    assert right[-1].verdict is FindingVerdict.NO_MAJORITY


def test_a_long_temporary_directory_gives_way_to_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    directory = DemoSet(ScrubControl()).directory
    try:
        RuntimePaths(directory / "run" / "demo").check()
    finally:
        directory.rmdir()


def test_whoever_asked_to_stop_is_not_kept_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    control = ScrubControl()
    demo = DemoSet(control)
    demo.directory.rmdir()
    control.stop(StopReason.INTERRUPTED)
    with pytest.raises(Stopped):
        demo.digests()
