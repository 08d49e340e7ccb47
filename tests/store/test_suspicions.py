"""Marks of copies that missed writes: they outlive the process, keep their beginning, and go only as noted."""

from __future__ import annotations

from pathlib import Path

from qorumctl.store import Store


def test_a_mark_keeps_its_beginning_and_counts(tmp_path: Path) -> None:
    with Store.open(tmp_path / "w") as store:
        store.suspect(["c"], missed=True, why="a write failed")
        (first,) = store.suspicions()
        store.suspect(["c"], missed=True, why="a flush failed")
    with Store.open(tmp_path / "w", read_only=True) as store:
        (mark,) = store.suspicions()
    assert (mark.copy, mark.missed, mark.count, mark.why, mark.since) == ("c", True, 2, "a flush failed", first.since)
    assert mark.serial > first.serial


def test_what_is_known_and_what_is_possible_are_two_marks(tmp_path: Path) -> None:
    with Store.open(tmp_path / "w") as store:
        store.suspect("abc", missed=False, why="nobody listened")
        store.suspect(["b"], missed=True, why="a write failed")
        assert [(s.copy, s.missed) for s in store.suspicions()] == [
            ("a", False),
            ("b", True),
            ("b", False),
            ("c", False),
        ]


def test_clearing_leaves_what_was_set_again_since(tmp_path: Path) -> None:
    with Store.open(tmp_path / "w") as store:
        store.suspect("bc", missed=True, why="a write failed")
        noted = {s.key: s.serial for s in store.suspicions()}
        store.suspect(["c"], missed=True, why="a write failed")
        store.clear_suspicions(noted)
        assert [s.copy for s in store.suspicions()] == ["c"]
        # A serial number is never used twice, though all marks are gone.
        store.clear_suspicions({s.key: s.serial for s in store.suspicions()})
        store.suspect(["b"], missed=True, why="a write failed")
        assert store.suspicions()[0].serial > max(noted.values())
