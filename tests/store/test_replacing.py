"""Notes of copies that are being replaced: they outlive every process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qorumctl.errors import DamagedStateError
from qorumctl.model.spec import FileSource, NbdSource
from qorumctl.store import Store
from qorumctl.store.absent import Absence
from qorumctl.store.replacing import Replacement

NOTE = Replacement(
    copy="c",
    key="c.2",
    source=FileSource(path="/srv/c/new.qcow2", format="qcow2"),
    old_source="/srv/c/old.raw",
    created=True,
    checked=True,
    mark=Absence("c.2", "2026-11-23T06:00:00.000Z", "new", left=True, kept=False, lost="it is new"),
)


def test_a_note_is_there_for_the_next_process_until_it_is_forgotten(tmp_path: Path) -> None:
    mark = replace(NOTE.mark, copy="b.3")
    other = replace(NOTE, copy="b", key="b.3", source=NbdSource(uri="nbd://host/b"), proven=True, mark=mark)
    with Store.open(tmp_path / "web01") as store:
        store.note_replacement(NOTE)
        store.note_replacement(replace(NOTE, serials={"suspect.c.missed": 3}))
        store.note_replacement(other)
    with Store.open(tmp_path / "web01") as store:
        assert store.replacements() == {"b": other, "c": replace(NOTE, serials={"suspect.c.missed": 3})}
        assert store.absences() == {}
        store.forget_replacement("b")
        assert list(store.replacements()) == ["c"]


@pytest.mark.parametrize("spoilt", ["", "7", "{}", "null"])
def test_a_note_that_makes_no_sense_is_a_damaged_record(tmp_path: Path, spoilt: str) -> None:
    with Store.open(tmp_path / "web01") as store:
        store.note_replacement(NOTE)
        store.set_meta("replacing.c", spoilt)
        with pytest.raises(DamagedStateError):
            store.replacements()
        with pytest.raises(DamagedStateError):
            store.check_whole()


def test_what_is_nobodys_is_damaged_too(tmp_path: Path) -> None:
    with Store.open(tmp_path / "web01") as store:
        store.note_replacement(NOTE)
        note = json.loads(store.meta("replacing.c") or "")
        for key, value in {"proven": "yes", "source": {"type": "tape"}, "key": 3, "serials": []}.items():
            store.set_meta("replacing.c", json.dumps(note | {key: value}))
            with pytest.raises(DamagedStateError):
                store.replacements()
