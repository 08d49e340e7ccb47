"""Marks of copies that are away: they outlive every process, and are read whatever version wrote them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from qorumctl.store import Store
from qorumctl.store.absent import Absence

AWAY = Absence(copy="b", since="2026-11-23T06:00:00.000Z", why="detached", left=False, kept=False, lost="not yet")


def test_a_mark_is_there_for_the_next_process_until_it_is_forgotten(tmp_path: Path) -> None:
    with Store.open(tmp_path / "web01") as store:
        store.note_absence(AWAY)
        away = {
            "serials": {"suspect.e.missed": 3},
            "peers": ("a", "e"),
            "source": "/e",
            "rewrite": ((512, 1024), (8192, 512)),
        }
        store.note_absence(replace(AWAY, copy="e", **away))
        store.note_absence(replace(AWAY, left=True, kept=True, daemon=7, generation=2, cursor_bytes=0))
    with Store.open(tmp_path / "web01") as store:
        assert store.absences() == {
            "b": replace(AWAY, left=True, kept=True, daemon=7, generation=2, cursor_bytes=0),
            "e": replace(AWAY, copy="e", **away),
        }
        store.forget_absence("b")
        assert list(store.absences()) == ["e"]


def test_a_mark_of_a_newer_version_is_still_a_mark(tmp_path: Path) -> None:
    with Store.open(tmp_path / "web01") as store:
        store.note_absence(AWAY)
        mark = json.loads(store.meta("away.b") or "")
        store.set_meta("away.b", json.dumps(mark | {"replaced_by": "d"}))
        assert store.absences() == {"b": AWAY}


def test_a_mark_that_makes_no_sense_is_still_a_mark(tmp_path: Path) -> None:
    with Store.open(tmp_path / "web01") as store:
        nowhere = json.dumps(asdict(replace(AWAY, kept=True)) | {"rewrite": [[0, -1]]})
        for n, value in enumerate(("", "7", "{}", '{"copy": "c", "since": 3}', nowhere)):
            store.set_meta(f"away.c{n}", value)
        whole = {"since": "", "why": "", "left": True, "kept": True}
        wrong = (
            {"since": 3},
            {"cursor_bytes": -1},
            {"cursor_bytes": "0"},
            {"kept": "no"},
            {"serials": []},
            {"peers": 7},
        )
        for n, part in enumerate(wrong):
            store.set_meta(f"away.d{n}", json.dumps(whole | part))
        marks = store.absences()
    assert list(marks) == ["c0", "c1", "c2", "c3", "c4", "d0", "d1", "d2", "d3", "d4", "d5"]
    assert not any(mark.kept for mark in marks.values())
