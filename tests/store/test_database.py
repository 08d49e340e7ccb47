"""The file under a store: private, versioned, and honest about a full disk and about damage."""

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qorumctl.core.findings import Action, Checkpoint
from qorumctl.errors import DamagedStateError, RefusedError, StoreError
from qorumctl.store import Store, set_aside
from qorumctl.store.database import MIGRATIONS, Database
from tests.store.samples import SIZE, outvoted


def begin(store: Store) -> int:
    return store.begin_run("repair", SIZE, None, False, None, os.getpid()).id


def test_nobody_else_can_read_it_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0)
    try:
        with Store.open(directory) as store:
            begin(store)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_commits_are_on_disk_and_readers_do_not_wait(directory: Path) -> None:
    with Store.open(directory) as store:
        connection = store._database._connection
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert connection.execute("PRAGMA busy_timeout").fetchone()[0] == 10_000
        store.note_position(begin(store), 1)
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2, "a position has left commits unflushed"


class TestReadOnly:
    def test_a_set_without_state_reads_as_never_scrubbed_and_nothing_is_made(self, directory: Path) -> None:
        with Store.open(directory, read_only=True) as store:
            assert store.history().runs == []
            assert store.unfinished_run() is None
            with pytest.raises(StoreError):
                store.set_meta("a", "b")
        assert not directory.exists()

    def test_it_writes_nothing(self, directory: Path) -> None:
        with Store.open(directory) as store:
            run = begin(store)
        with Store.open(directory, read_only=True) as store:
            assert store.run(run) is not None
            with pytest.raises(StoreError):
                begin(store)

    def test_it_sees_what_a_writer_has_committed(self, directory: Path) -> None:
        with Store.open(directory) as writer, Store.open(directory, read_only=True) as reader:
            run = begin(writer)
            assert reader.run(run) is not None


class TestVersions:
    def test_each_step_is_applied_once_and_keeps_the_data(self, directory: Path) -> None:
        with Store.open(directory) as store:
            run = begin(store)
        longer = (*MIGRATIONS, "ALTER TABLE runs ADD COLUMN more TEXT;\nCREATE TABLE extra (x INTEGER) STRICT;")
        for _ in range(2):
            Database.open(directory, read_only=False, migrations=longer).close()
        with sqlite3.connect(directory / "state.db") as connection:
            assert connection.execute("PRAGMA user_version").fetchone()[0] == len(longer)
            assert connection.execute("SELECT id, more FROM runs").fetchall() == [(run, None)]

    def test_a_step_that_fails_leaves_the_old_version(self, directory: Path) -> None:
        Store.open(directory).close()
        with pytest.raises(StoreError):
            Database.open(directory, read_only=False, migrations=(*MIGRATIONS, "CREATE TABLE x (y);\nNONSENSE;"))
        with Store.open(directory) as store:
            begin(store)

    def test_a_newer_one_is_refused_and_left_alone(self, directory: Path) -> None:
        Database.open(directory, read_only=False, migrations=(*MIGRATIONS, "CREATE TABLE x (y);")).close()
        for read_only in (True, False):
            with pytest.raises(StoreError, match="written by a newer qorumctl"):
                Store.open(directory, read_only=read_only)


class TestDamage:
    def break_file(self, directory: Path, *, at: int, length: int) -> None:
        with (directory / "state.db").open("r+b") as file:
            file.seek(at)
            file.write(b"\xa5" * length)

    def test_garbage_is_named_with_what_to_do_and_not_replaced(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "state.db").write_bytes(b"this is no database" * 1000)
        for read_only in (True, False):
            with pytest.raises(StoreError, match=r"state\.db is damaged") as caught:
                Store.open(directory, read_only=read_only)
            assert "aside" in str(caught.value.remedy)
        assert (directory / "state.db").read_bytes().startswith(b"this is no database")

    def test_damage_inside_is_a_store_error(self, directory: Path) -> None:
        with Store.open(directory) as store:
            journal = store.journal(begin(store))
            for n in range(50):
                journal.conclude([], [outvoted(n * 10 + k, Action.LEFT) for k in range(10)], Checkpoint())
        size = (directory / "state.db").stat().st_size
        self.break_file(directory, at=4096, length=size - 4096)
        with pytest.raises(StoreError, match="is damaged"), Store.open(directory) as store:
            list(store.findings(1))

    def test_it_is_set_aside_whole_and_a_new_one_begins(self, directory: Path) -> None:
        with Store.open(directory) as store:
            begin(store)
            # As a crash leaves it: with its -wal and -shm.
            kept = set_aside(directory)
        assert {p.name for p in directory.iterdir()} >= {kept.name, f"{kept.name}-wal"}
        assert kept.name == "state.db.damaged-1"
        with Store.open(directory) as store:
            assert store.history().runs == []
        with sqlite3.connect(kept) as connection:
            assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)

    def test_what_was_set_aside_before_is_kept(self, directory: Path) -> None:
        kept = []
        for _ in range(3):
            Store.open(directory).close()
            kept.append(set_aside(directory).name)
        assert kept == ["state.db.damaged-1", "state.db.damaged-2", "state.db.damaged-3"]

    @pytest.mark.parametrize("version", [0, 1, len(MIGRATIONS), 99])
    def test_another_program_s_database_is_left_alone(self, directory: Path, version: int) -> None:
        directory.mkdir(mode=0o700)
        with sqlite3.connect(directory / "state.db") as other:
            other.execute("CREATE TABLE bookmarks (url TEXT)")
            other.execute(f"PRAGMA user_version={version}")
        other.close()
        before = (directory / "state.db").read_bytes()
        for read_only in (True, False):
            with pytest.raises(DamagedStateError, match="is damaged"), Store.open(directory, read_only=read_only) as s:
                s.history()
        if version != 1:
            assert (directory / "state.db").read_bytes() == before

    def test_a_look_at_all_of_it_finds_a_page_that_nobody_asked_for(self, directory: Path) -> None:
        with Store.open(directory) as store:
            journal = store.journal(begin(store))
            for n in range(50):
                journal.conclude([], [outvoted(n * 10 + k, Action.LEFT) for k in range(10)], Checkpoint())
            store.check_whole()
        self.break_file(directory, at=(directory / "state.db").stat().st_size - 4096, length=4096)
        with Store.open(directory) as store, pytest.raises(DamagedStateError):
            store.check_whole()

    def test_setting_aside_what_is_not_there_is_an_error(self, directory: Path) -> None:
        with pytest.raises(StoreError, match="cannot be moved aside"):
            set_aside(directory)

    def test_a_link_is_not_followed(self, directory: Path, tmp_path: Path) -> None:
        directory.mkdir()
        (directory / "state.db").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="cannot be opened"):
            Store.open(directory)
        assert not (tmp_path / "elsewhere").exists()

    def test_a_directory_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "web01").touch()
        with pytest.raises(RefusedError):
            Store.open(tmp_path / "web01")


class TestInPlace:
    """SQLite goes on writing to a file that has lost its name."""

    @pytest.mark.parametrize("suffix", ["", "-wal"])
    @pytest.mark.parametrize("replaced", [False, True])
    def test_what_is_written_to_a_removed_file_is_no_record(self, directory: Path, suffix: str, replaced: bool) -> None:
        with Store.open(directory) as store:
            run = begin(store)
            path = directory / f"state.db{suffix}"
            path.unlink()
            if replaced:
                path.touch(0o600)
            with pytest.raises(StoreError, match="was removed or replaced while it was in use"):
                store.finish_run(run)

    def test_another_connection_of_the_process_keeps_its_locks(self, directory: Path) -> None:
        """Closing any descriptor of a file drops all POSIX locks that the process has on it: another process would then
        take itself for the last one, and the -wal away."""
        with Store.open(directory) as store:
            begin(store)
            Store.open(directory).close()
            code = (
                "import sys; from pathlib import Path; from qorumctl.store import Store\n"
                "with Store.open(Path(sys.argv[1])) as s: s.set_meta('a', 'b')"
            )
            subprocess.run([sys.executable, "-c", code, directory], check=True)
            assert (directory / "state.db-wal").exists()
            assert store.meta("a") == "b"
            store.set_meta("c", "d")
        with Store.open(directory) as store:
            assert store.meta("c") == "d"


def test_what_an_older_version_has_written_is_this_set_s_and_in_order(directory: Path) -> None:
    Database.open(directory, read_only=False, migrations=MIGRATIONS[:1]).close()
    with sqlite3.connect(directory / "state.db") as old:
        for started in ("2020-01-01", "2020-01-03"):
            old.execute(
                "INSERT INTO runs (mode, state, started, size, thorough, parameters, cursor, scanned, skipped,"
                " read_bytes, suspects, busy, position)"
                " VALUES ('report', 'finished', ?, 1048576, 0, '{}', 1048576, 0, 0, '{}', 0, '[]', 0)",
                (started,),
            )
        for start, confirmed in ((0, "2020-01-02"), (512, "2020-01-04")):
            old.execute(
                "INSERT INTO findings (run, start, length, verdict, copies, action, diagnosis, confirmed, source)"
                " VALUES (1, ?, 512, 'outvoted', '[\"a\"]', 'left', '{\"kind\": \"zeroed\"}', ?, 'scrub')",
                (start, confirmed),
            )
    old.close()
    with Store.open(directory) as store:
        assert store.meta("set") == ""
        # The second run began before the second finding was made, which the first one made after it was resumed.
        assert [found.offset for found in store.open_findings()] == [512]


def fill(directory: Path) -> tuple[int, StoreError]:
    """Records until the disk is full. Returns how many findings were acknowledged, and the error."""
    acknowledged = 0
    with Store.open(directory) as store:
        journal = store.journal(begin(store))
        try:
            for n in range(100_000):
                journal.conclude([], [outvoted(n, Action.LEFT)], Checkpoint(n + 1))
                acknowledged += 1
        except StoreError as error:
            return acknowledged, error
    raise AssertionError("the disk never became full")


def check_filled(directory: Path, acknowledged: int) -> None:
    with Store.open(directory) as store:
        run = store.unfinished_run()
        assert run is not None
        assert len(list(store.findings(run.id))) == run.checkpoint.cursor_bytes == acknowledged
        store.journal(run.id).conclude([], [], Checkpoint(1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m,mode=700", "qorum-test", disk]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(300 << 10))
    acknowledged, error = fill(small_disk / "web01")
    assert "cannot be written: database or disk is full" in error.message
    assert "Free some space" in str(error.remedy)
    (small_disk / "ballast").unlink()
    check_filled(small_disk / "web01", acknowledged)


LIMITED = """
import sys
from pathlib import Path
from tests.store.test_database import fill
acknowledged, error = fill(Path(sys.argv[1]))
print(acknowledged, error.code)
"""


def test_a_write_that_the_system_refuses_loses_nothing_that_was_acknowledged(directory: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400 << 10, 400 << 10))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    child = subprocess.run(
        [sys.executable, "-c", LIMITED, directory], preexec_fn=limit, check=True, capture_output=True, text=True
    )
    acknowledged, code = child.stdout.split()
    assert code == "store"
    assert int(acknowledged) > 0
    check_filled(directory, int(acknowledged))
