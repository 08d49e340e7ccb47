"""The life of a set on a real daemon: made, started, found again, used, stopped, deleted."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qorumctl import identity
from qorumctl.daemon import process
from qorumctl.errors import CommandError, DefinitionError, QorumError, RefusedError
from tests.integration.harness import NAME, LiveSet
from tests.integration.picture import nothing_changes, picture, refused, status_of
from tests.live import MIB, NbdServer

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_a_set_from_its_making_to_its_end(live_set: LiveSets, fmt: str, count: int) -> None:
    live = live_set()
    await live.create(count=count, format=fmt)
    assert {stat.S_IMODE(Path(path).stat().st_mode) for path in live.sources} == {0o600}
    assert (await status_of(live.sets)).state == "stopped"

    started = await live.sets.start(NAME)
    assert (started.changed, started.state, started.warnings, started.recovery) == (True, "healthy", [], None)
    shadow = live.fill()
    status = await status_of(live.sets)
    assert (status.state, status.reason, status.threshold, len(status.copies)) == (
        "healthy",
        None,
        count // 2 + 1,
        count,
    )
    assert status.pid == process.running_pid(live.runtime)

    stopped = await live.sets.stop(NAME)
    assert (stopped.changed, stopped.warnings) == (True, [])
    assert _clean_flags(live) == {True}
    for path in live.sources:
        copied = subprocess.run(["qemu-img", "dd", "-f", fmt, "-O", "raw", f"if={path}", f"of={path}.out"], check=False)
        assert copied.returncode == 0
        assert Path(f"{path}.out").read_bytes() == shadow
        Path(f"{path}.out").unlink()

    assert (await live.sets.delete(NAME, images=True)).warnings == []
    assert list(live.images_dir.iterdir()) == list(live.directories.config.iterdir()) == []
    assert not live.directories.state_dir(NAME).exists()
    assert not live.runtime.directory.exists()


def _clean_flags(live: LiveSet) -> set[bool]:
    sidecars = [identity.read(path) for path in live.sources]
    return {sidecar.clean for sidecar in sidecars if sidecar is not None}


async def test_each_command_may_be_given_twice(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    with nothing_changes(live):
        await live.create()
    await live.start()
    with nothing_changes(live):
        assert not (await live.sets.start(NAME)).changed
    assert (await live.sets.stop(NAME)).changed
    with nothing_changes(live):
        again = await live.sets.stop(NAME)
    assert (again.changed, again.state, again.warnings) == (False, "stopped", [])


async def test_a_stopped_set_is_started_by_restart(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    result = await live.sets.restart(NAME)
    assert (result.command, result.changed, result.state) == ("restart", True, "healthy")


async def test_the_daemon_outlives_whoever_started_it_and_is_found_by_others(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    starter = live.cli("start", NAME, start_new_session=True)
    assert starter.wait(30) == 0
    pid = process.running_pid(live.runtime)
    assert pid is not None
    assert os.getsid(pid) == pid, "a session of its own: a closed terminal does not end it"
    shadow = live.fill()
    out, _ = live.cli("--json", "status", NAME).communicate(timeout=30)
    assert json.loads(out)["sets"][0]["pid"] == pid
    assert live.cli("stop", NAME).wait(30) == 0
    assert process.running_pid(live.runtime) is None
    assert all(live.equal_to(shadow).values())


async def test_what_attach_says_works_as_pasted(live_set: LiveSets, short_dir: Path) -> None:
    live = live_set()
    await live.create()
    await live.start()
    shadow = live.fill()
    uri = (await live.sets.attach(NAME)).uri
    assert uri == (await status_of(live.sets)).volume
    assert _output("nbdinfo", "--size", uri) == f"{live.size_bytes}\n"
    assert json.loads(_output("qemu-img", "info", "--output=json", uri))["virtual-size"] == live.size_bytes
    copy = short_dir / "copy"
    _output("nbdcopy", uri, str(copy))
    assert copy.read_bytes() == shadow
    copy.write_bytes(shadow[::-1])
    _output("nbdcopy", str(copy), uri)
    assert all(live.equal_to(shadow[::-1]).values())


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


# -- sources that are no files


@pytest.fixture
def loop_devices(short_dir: Path) -> Iterator[Callable[..., list[str]]]:
    devices: list[str] = []

    def make(count: int, *, size_bytes: int) -> list[str]:
        for n in range(count):
            backing = short_dir / f"disk{n}"
            backing.write_bytes(b"")
            os.truncate(backing, size_bytes)
            made = subprocess.run(["losetup", "--show", "-f", backing], check=False, capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"losetup: {made.stderr.strip()}")
            devices.append(made.stdout.strip())
        return devices

    yield make
    for device in devices:
        subprocess.run(["losetup", "-d", device], check=False)


async def test_a_set_of_block_devices(live_set: LiveSets, loop_devices: Callable[..., list[str]]) -> None:
    live = live_set(size_bytes=8 * MIB)
    devices = loop_devices(3, size_bytes=8 * MIB)
    await live.create(sources=devices, size_bytes=None)
    assert [copy.source.type for copy in live.sets.show(NAME).definition.copies] == ["device"] * 3
    await live.start()
    shadow = live.fill()
    assert (await live.sets.stop(NAME)).warnings == []
    assert all(Path(device).read_bytes() == shadow for device in devices)
    assert list(Path(devices[0]).parent.glob("loop*.qorum")) == []


async def test_devices_have_no_sidecars_and_yet_an_unclean_stop_is_known(
    live_set: LiveSets, loop_devices: Callable[..., list[str]]
) -> None:
    live = live_set(size_bytes=4 * MIB)
    await live.create(sources=loop_devices(3, size_bytes=4 * MIB), size_bytes=None)
    await live.start()
    live.end()
    assert (await status_of(live.sets)).state == "failed"
    assert (await live.sets.start(NAME)).recovery == 1
    await live.sets.stop(NAME)
    assert (await live.sets.start(NAME)).recovery is None


async def test_a_loop_device_over_another_copys_file_is_the_same_image(
    live_set: LiveSets, loop_devices: Callable[..., list[str]], short_dir: Path
) -> None:
    live = live_set(size_bytes=4 * MIB)
    (device,) = loop_devices(1, size_bytes=4 * MIB)
    other = short_dir / "other"
    shutil.copy(short_dir / "disk0", other)
    with pytest.raises(RefusedError, match="Copies 'a' and 'b' are the same image"):
        await live.create(sources=[str(short_dir / "disk0"), device, str(other)], size_bytes=None)


async def test_a_set_with_a_copy_behind_nbd(
    live_set: LiveSets, nbdkit: Callable[..., NbdServer], short_dir: Path
) -> None:
    live = live_set(size_bytes=4 * MIB)
    server = nbdkit("memory", "4M")
    files = [live.images_dir / name for name in ("a.img", "b.img")]
    for path in files:
        path.write_bytes(bytes(4 * MIB))
    await live.create(sources=[*map(str, files), server.uri], size_bytes=None)
    await live.start()
    shadow = live.fill()
    await live.sets.stop(NAME)
    assert _output("nbdcopy", server.uri, str(short_dir / "behind")) == ""
    assert [path.read_bytes() == shadow for path in (*files, short_dir / "behind")] == [True] * 3


# -- guests


async def test_a_connected_guest_is_not_cut_off_by_stop(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    guest = live.link()
    await refused(
        live,
        live.sets.stop(NAME),
        f"A guest is connected to the volume of {NAME}. Shut it down or detach the disk first; --force cuts it off.",
    )
    await refused(
        live,
        live.sets.restart(NAME),
        f"A guest is connected to the volume of {NAME}. Shut it down or detach the disk first; --force cuts it off.",
    )
    assert guest.write(0, b"x" * 4096)
    assert guest.flush()
    stopped = await live.sets.stop(NAME, force=True)
    assert (stopped.state, stopped.warnings) == ("stopped", [])
    assert [live.contents(copy)[:4096] for copy in "abc"] == [b"x" * 4096] * 3
    assert _clean_flags(live) == {True}, "the guest was cut off, the copies were not"
    guest.close()


# -- definitions that change


def _edit(live: LiveSet, old: str, new: str) -> None:
    path = live.directories.definition_path(NAME)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


async def test_restart_applies_an_edited_definition(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    assert not (await status_of(live.sets)).definition_differs
    _edit(live, 'policy = "repair"', 'policy = "report"')
    status = await status_of(live.sets)
    assert (status.definition_differs, status.policy) == (True, "repair")
    warned = (await live.sets.start(NAME)).warnings
    assert warned == [f"Its definition was changed since: 'qorumctl restart {NAME}' applies that."]
    assert (await live.sets.restart(NAME)).state == "healthy"
    status = await status_of(live.sets)
    assert (status.definition_differs, status.policy) == (False, "report")


async def test_a_definition_that_became_invalid_prevents_no_stop(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    shadow = live.fill()
    _edit(live, "threshold", "threshhold")
    assert (await status_of(live.sets)).state == "healthy"
    assert (await live.sets.stop(NAME)).warnings == []
    assert all(live.equal_to(shadow).values())
    assert _clean_flags(live) == {True}


async def test_restart_is_refused_before_the_stop_where_the_start_would_be(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    _edit(live, "c.img", "missing.img")
    await refused(
        live,
        live.sets.restart(NAME),
        "The image of copy c, {images}/missing.img, does not exist. "
        "Mount what it lives on, or bring it back; or start without it: 'qorumctl start web01 --degraded'. "
        "Nothing was changed.",
    )
    assert (await status_of(live.sets)).state == "healthy"


async def test_a_lost_definition_leaves_a_running_set_alone(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    definition = live.directories.definition_path(NAME)
    definition.unlink()
    await refused(
        live,
        live.create(),
        f"A set {NAME} runs (pid {process.running_pid(live.runtime)}), though its definition is gone. "
        f"Nothing was changed. Bring {definition} back, or run 'qorumctl stop {NAME}'.",
    )
    shadow = live.fill()
    assert (await live.sets.stop(NAME)).changed
    assert all(live.equal_to(shadow).values())


# -- looking and the expert's door


async def test_check_says_what_start_would_refuse(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    report = await live.sets.check(NAME)
    assert report.ok, [item for item in report.items if not item.ok]
    live.image("b").rename(live.images_dir / "away")
    with nothing_changes(live):
        report = await live.sets.check(NAME)
    (wrong,) = [item for item in report.items if not item.ok]
    assert (wrong.subject, wrong.detail) == (
        "copy b",
        f"The image of copy b, {live.images_dir}/b.img, does not exist.",
    )


async def test_one_broken_definition_does_not_hide_the_other_sets(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    await live.start()
    (live.directories.config / "broken.toml").write_text("name = 1\n")
    listed = {line.name: (line.state, line.error is None) for line in (await live.sets.list()).sets}
    assert listed == {"broken": ("failed", False), NAME: ("healthy", True)}
    assert {one.set: one.state for one in (await live.sets.status()).sets} == {"broken": "failed", NAME: "healthy"}
    with pytest.raises(DefinitionError, match=r"broken\.toml: "):
        await live.sets.status(["broken"])


async def test_qmp_answers_and_refuses_in_words(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    with pytest.raises(QorumError, match=f"{NAME} is not running"):
        await live.sets.qmp(NAME, "query-version")
    await live.start()
    assert (await live.sets.qmp(NAME, "query-version")).result["qemu"]["major"] >= 7
    with pytest.raises(CommandError, match="no-such-command"):
        await live.sets.qmp(NAME, "no-such-command", {})


# -- at once


async def test_two_commands_at_once_are_one_after_the_other(live_set: LiveSets) -> None:
    live = live_set()
    await live.create()
    results = await asyncio.gather(*(live.sets.start(NAME) for _ in range(4)), return_exceptions=True)
    assert any(not isinstance(result, BaseException) and result.changed for result in results)
    assert {type(r).__name__ for r in results} <= {"Result", "LockedError"}
    assert (await status_of(live.sets)).state == "healthy"
    assert picture(live)["pid"] is not None
