"""What copies held, kept aside: whole or not there, and never believed when it is damaged."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qorumctl.core.ranges import Range
from qorumctl.errors import StoreError
from qorumctl.model.evidence import Manifest
from qorumctl.store import saved

HELD = {"a": b"a" * 512, "b": b"b" * 512}


def begun(state_dir: Path) -> saved.Saving:
    made = saved.Saving(state_dir, {"a": "/a", "b": "/b"}, chosen=True)
    made.add(HELD, {"b": [Range(0, 512)]}, b"c" * 512)
    return made


def manifest(**keys: Any) -> Manifest:
    values = {
        "id": 1, "set": "web01", "uuid": "u", "made": "now", "command": "resolve", "decision": "bitwise", "finding": 7,
        "offset": 512, "length": 512, "written": [{"offset": 512, "length": 512}], "copies": {},
    }  # fmt: skip
    return Manifest.model_validate(values | keys)


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    done = begun(tmp_path).finish(manifest())
    assert saved.load(tmp_path, 1) == done
    assert [(r.offset, r.length) for r in done.copies["b"].unreadable] == [(0, 512)]
    assert (saved.directory(tmp_path, 1) / done.copies["a"].file).read_bytes() == HELD["a"]
    saved.check_whole(tmp_path, done)
    assert begun(tmp_path).finish(manifest()).id == 2


def test_what_was_not_finished_is_swept_and_nothing_else(tmp_path: Path) -> None:
    begun(tmp_path).finish(manifest())
    begun(tmp_path)
    assert saved.ids(tmp_path) == [1, 2]
    assert saved.load(tmp_path, 2) is None
    saved.sweep(tmp_path)
    assert saved.ids(tmp_path) == [1]


@pytest.mark.parametrize("spoiled", ["copy-a.bin", "chosen.bin", "manifest.json"])
def test_what_is_damaged_is_named(tmp_path: Path, spoiled: str) -> None:
    done = begun(tmp_path).finish(manifest())
    (saved.directory(tmp_path, 1) / spoiled).write_bytes(b"{}")
    look = (
        (lambda: saved.load(tmp_path, 1)) if spoiled == "manifest.json" else partial(saved.check_whole, tmp_path, done)
    )
    with pytest.raises(StoreError, match=spoiled):
        look()


def test_a_manifest_leads_to_no_other_place(tmp_path: Path) -> None:
    done = begun(tmp_path).finish(manifest())
    path = saved.directory(tmp_path, 1) / "manifest.json"
    path.write_text(path.read_text().replace("copy-a.bin", "../../lock"))
    with pytest.raises(StoreError, match="no record of saved contents"):
        saved.load(tmp_path, done.id)


@pytest.mark.parametrize("written", ['"offset": 0', '"offset": 1024', '"offset": -512'])
def test_a_manifest_speaks_of_its_own_range(tmp_path: Path, written: str) -> None:
    done = begun(tmp_path).finish(manifest(offset=256, length=1024))
    path = saved.directory(tmp_path, 1) / "manifest.json"
    path.write_text(path.read_text().replace('"offset": 512', written))
    with pytest.raises(StoreError, match="no record of saved contents"):
        saved.load(tmp_path, done.id)


def test_a_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    done = begun(tmp_path).finish(manifest())
    path = saved.directory(tmp_path, 1) / "copy-a.bin"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"copy-a\.bin"):
        saved.check_whole(tmp_path, done)
