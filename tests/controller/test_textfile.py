"""The file for node_exporter: whole, readable, gone with the set, and never a reason for anything to fail."""

from __future__ import annotations

import logging
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from qorumctl.controller import textfile
from qorumctl.controller.context import SetContext
from qorumctl.controller.options import Timeouts
from qorumctl.controller.sets import QuorumSets
from qorumctl.errors import DaemonGoneError, QorumError, RefusedError, StoreError, UsageError
from qorumctl.paths import Directories
from qorumctl.store import SetLock


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    """Two sets whose definitions cannot be used: to be told of all the same."""
    place = Directories(tmp_path / "c", tmp_path / "s", tmp_path / "r", tmp_path / "metrics")
    place.config.mkdir(mode=0o700)
    (tmp_path / "metrics").mkdir()
    for name in ("w", "x"):
        (place.config / f"{name}.toml").write_text("no definition")
    return place


@pytest.fixture
def context(directories: Directories) -> SetContext:
    return SetContext("w", directories, Timeouts(monitor_s=0.05))


def files(directories: Directories) -> list[str]:
    assert directories.textfile is not None
    return sorted(path.name for path in directories.textfile.iterdir())


async def test_a_set_has_a_file_that_everybody_may_read(context: SetContext, directories: Directories) -> None:
    before = os.umask(0o077)
    try:
        assert await textfile.publish(context) == (None, False)
    finally:
        os.umask(before)
    assert files(directories) == ["qorum-w.prom"]
    path = textfile.path_of(context)
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert 'qorum_set_state{set="w",state="failed"} 1.0\n' in path.read_text()


async def test_it_is_replaced_and_never_written_in_place(context: SetContext) -> None:
    path = textfile.path_of(context)
    assert path is not None
    await textfile.publish(context)
    with path.open() as old:
        before = old.read()
        await textfile.publish(context)
        old.seek(0)
        assert old.read() == before
        assert os.fstat(old.fileno()).st_nlink == 0


async def test_where_nobody_asked_for_one_there_is_none(directories: Directories) -> None:
    silent = Directories(directories.config, directories.state, directories.runtime)
    assert await textfile.publish(SetContext("w", silent, Timeouts())) == (None, False)
    assert not silent.state.exists()


async def test_a_set_that_is_not_defined_has_none(context: SetContext, directories: Directories) -> None:
    context.definition_path.unlink()
    assert await textfile.publish(context) == (None, False)
    assert files(directories) == []


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        (
            "/nowhere/metrics",
            r"/nowhere/metrics/qorum-w\.prom: No such file or directory\. Make /nowhere/metrics a dir",
        ),
        ("metrics", r"to metrics/qorum-w\.prom, which is not an absolute path\. Set QORUM_TEXTFILE_DIR"),
        ("/dev/null", r"/dev/null/qorum-w\.prom: Not a directory\."),
    ],
)
async def test_what_cannot_be_written_is_a_warning(
    directories: Directories, directory: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = Directories(directories.config, directories.state, directories.runtime, Path(directory))
    with caplog.at_level(logging.WARNING, "qorumctl.metrics"):
        async with textfile.published(SetContext("w", place, Timeouts())):
            done = True
    assert done
    assert [record.levelname for record in caplog.records] == ["WARNING"]

    assert re.search(words, caplog.text)


async def test_a_mistake_of_ours_is_a_warning_too(context: SetContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError("ouch")

    monkeypatch.setattr("qorumctl.controller.metrics.text", broken)
    warning = (await textfile.publish(context)).warning
    assert warning == "The metrics of w could not be written: ZeroDivisionError('ouch')."
    monkeypatch.undo()
    assert (await textfile.publish(context)).warning is None


async def test_who_writes_does_so_alone(context: SetContext, directories: Directories) -> None:
    with SetLock.acquire(context.state_dir, purpose="metrics", file_name="metrics.lock"):
        warning = (await textfile.publish(context)).warning
    assert warning is not None
    assert warning.startswith("w is held by 'metrics'")
    assert files(directories) == []


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (DaemonGoneError("It has ended."), ["qorum-w.prom"]),
        (RefusedError("No."), []),
        (UsageError("What?"), []),
    ],
)
async def test_a_command_that_fails_on_its_way_is_told_and_one_that_was_refused_is_not(
    context: SetContext, directories: Directories, error: QorumError, written: list[str]
) -> None:
    with pytest.raises(type(error)):
        async with textfile.published(context):
            raise error
    assert files(directories) == written


async def test_it_goes_with_the_set(context: SetContext, directories: Directories) -> None:
    assert directories.textfile is not None
    await textfile.publish(context)
    (directories.textfile / ".qorum-w.prom.7-7.tmp").touch()
    (directories.textfile / "qorum-x.prom").touch()
    assert await textfile.remove(context) is None
    assert await textfile.remove(context) is None
    assert files(directories) == ["qorum-x.prom"]


async def test_it_goes_with_the_set_whatever_the_environment_of_delete(context: SetContext, tmp_path: Path) -> None:
    """Root's shell knows nothing of the directory that the units write to."""
    (tmp_path / "other").mkdir()
    for directory in (tmp_path / "metrics", tmp_path / "other"):
        await textfile.publish(replace(context, directories=replace(context.directories, textfile=directory)))
        assert (directory / "qorum-w.prom").exists()
    assert await textfile.remove(replace(context, directories=replace(context.directories, textfile=None))) is None
    assert [*(tmp_path / "metrics").iterdir(), *(tmp_path / "other").iterdir()] == []


async def test_a_note_that_names_something_else_removes_nothing(context: SetContext, tmp_path: Path) -> None:
    await textfile.publish(context)
    precious = tmp_path / "metrics/precious.prom"
    precious.touch()
    (context.state_dir / "metrics.paths").write_bytes(f"{precious}\0".encode() + b"\xff")
    assert await textfile.remove(context) is None
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == ["precious.prom"]


async def test_one_that_cannot_be_removed_is_named(context: SetContext, directories: Directories) -> None:
    assert directories.textfile is not None
    (directories.textfile / "qorum-w.prom").mkdir()
    warning = await textfile.remove(context)
    assert warning == f"{directories.textfile}/qorum-w.prom was left, and tells of a set that is gone: Is a directory."


async def test_one_file_for_all(directories: Directories, tmp_path: Path) -> None:
    sets = QuorumSets(directories)
    await sets.write_metrics(tmp_path / "all.prom")
    assert [name in (tmp_path / "all.prom").read_text() for name in ('"w"', '"x"')] == [True, True]
    with pytest.raises(UsageError, match="where each set has a file already"):
        await sets.write_metrics(tmp_path / "metrics" / "all.prom")
    with pytest.raises(StoreError, match=r"cannot be written to /nowhere/all\.prom: No such file"):
        await sets.write_metrics(Path("/nowhere/all.prom"))
