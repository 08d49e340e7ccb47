"""What copies held before an operator's decision was written over it: `saved/ID/` in a set's state directory.

    copy-NAME.bin   the whole range as the copy held it, one file a copy
    chosen.bin      what every copy was to hold (of `resolve`)
    manifest.json   qorum.saved/1: which set, range and copies, with the SHA-256 of each file

The manifest is written last, when all else is on stable storage; nothing is written to a copy before that. A directory
without one is of a command that was killed before, and is removed by the next. Files are 0600, directories 0700: they
hold data of guests. Nothing here is ever removed but by `delete`, or by hand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from qorumctl.core.ranges import Range, coalesce
from qorumctl.errors import StoreError
from qorumctl.files import open_private, read_bounded, reason, sync_directory, write_atomically
from qorumctl.model.evidence import Manifest, SavedCopy
from qorumctl.model.report import RangeDocument
from qorumctl.paths import ensure_private

DIRECTORY = "saved"
_MANIFEST = "manifest.json"
_MANIFEST_BYTES = 256 << 20
_CHOSEN = "chosen.bin"


class Saving:
    """A directory that is being filled, front to back. Errors: StoreError, also for a full disk."""

    def __init__(self, state_dir: Path, sources: Mapping[str, str], *, chosen: bool) -> None:
        """`sources`: copy -> what its image is called."""
        self._root = state_dir / DIRECTORY
        self._sources = sources
        with _in_words(self._root):
            ensure_private(self._root)
            self.id = max(ids(state_dir), default=0) + 1
            self.path = self._root / str(self.id)
            self.path.mkdir(mode=0o700)
            self._files = {name: _Piece(self.path / f"copy-{name}.bin") for name in sources}
            self._chosen = _Piece(self.path / _CHOSEN) if chosen else None

    def add(self, held: Mapping[str, bytes], unreadable: Mapping[str, Iterable[Range]], chosen: bytes | None) -> None:
        """The next part of the range. `unreadable`: from the range's beginning on."""
        with _in_words(self.path):
            for name, file in self._files.items():
                file.write(held[name])
                file.unreadable += unreadable.get(name, ())
            if self._chosen is not None and chosen is not None:
                self._chosen.write(chosen)

    def finish(self, manifest: Manifest) -> Manifest:
        """On return all of it is on stable storage. `manifest`: without what is known here."""
        with _in_words(self.path):
            for file in [*self._files.values(), *([self._chosen] if self._chosen else [])]:
                file.close()
            whole = manifest.model_copy(
                update={
                    "id": self.id,
                    "copies": {name: file.told(self._sources[name]) for name, file in self._files.items()},
                    "chosen": None if self._chosen is None else self._chosen.told(""),
                }
            )
            sync_directory(self.path)
            sync_directory(self._root)
            sync_directory(self._root.parent)
            _write(self.path, whole)
        return whole

    def discard(self) -> None:
        """Nothing was written to any copy."""
        for file in [*self._files.values(), *([self._chosen] if self._chosen else [])]:
            file.abandon()
        _remove(self.path)


class _Piece:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = os.fdopen(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")
        self._digest = sha256()
        self.unreadable: list[Range] = []

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def told(self, source: str) -> SavedCopy:
        lost = [RangeDocument(offset=r.offset, length=r.length) for r in coalesce(self.unreadable)]
        return SavedCopy(file=self._path.name, sha256=self._digest.hexdigest(), source=source, unreadable=lost)


def ids(state_dir: Path) -> list[int]:
    """Of all that is there, finished or not."""
    root = state_dir / DIRECTORY
    try:
        return sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal())
    except FileNotFoundError:
        return []


def directory(state_dir: Path, saved_id: int) -> Path:
    return state_dir / DIRECTORY / str(saved_id)


def load(state_dir: Path, saved_id: int) -> Manifest | None:
    """None where there is none. Raises StoreError for one that nobody here has written."""
    path = directory(state_dir, saved_id) / _MANIFEST
    with _in_words(path):
        try:
            content, _ = read_bounded(path, _MANIFEST_BYTES, follow=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
    try:
        manifest = Manifest.model_validate_json(content)
        if manifest.id != saved_id or any(os.sep in one.file for one in _files(manifest)):
            raise ValueError("it tells of another directory")
        _check_ranges(manifest)
    except (ValidationError, ValueError):
        raise StoreError(
            f"{path} is no record of saved contents, or is damaged.",
            remedy="Nothing was changed. The other files beside it are what the copies held.",
            path=str(path),
        ) from None
    return manifest


def note_undone(state_dir: Path, manifest: Manifest, by: int | None) -> None:
    path = directory(state_dir, manifest.id)
    with _in_words(path):
        _write(path, manifest.model_copy(update={"undone_by": by}))


def check_whole(state_dir: Path, manifest: Manifest) -> None:
    """StoreError where a file is gone, or does not hold what was saved."""
    for one in _files(manifest):
        path = directory(state_dir, manifest.id) / one.file
        digest = sha256()
        with _in_words(path), open_saved(path) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() != one.sha256:
            raise StoreError(
                f"{path} does not hold what was saved in it: its digest is another.",
                remedy="Nothing was changed. Look at the disk that it lies on.",
                path=str(path),
            )


@contextmanager
def open_saved(path: Path) -> Iterator[BinaryIO]:
    with _in_words(path), os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        yield file


def sweep(state_dir: Path) -> None:
    """Removes what a command that was killed has not finished: nothing was written to a copy after it."""
    for number in ids(state_dir):
        path = directory(state_dir, number)
        if not os.path.lexists(path / _MANIFEST):
            _remove(path)


def _files(manifest: Manifest) -> list[SavedCopy]:
    return [*manifest.copies.values(), *([manifest.chosen] if manifest.chosen else [])]


def _check_ranges(manifest: Manifest) -> None:
    """ValueError where it speaks of what lies outside its range."""
    whole = Range(manifest.offset, manifest.length)
    parts = [Range(r.offset, r.length) for r in manifest.written]
    parts += [Range(r.offset + whole.offset, r.length) for one in _files(manifest) for r in one.unreadable]
    if not manifest.written or not all(whole.contains(part) for part in parts):
        raise ValueError("parts of another range")


def _write(path: Path, manifest: Manifest) -> None:
    text = manifest.model_dump_json(by_alias=True, indent=2) + "\n"
    write_atomically(path / _MANIFEST, text.encode(), 0o600)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be used: {reason(error)}.",
            remedy="No copy was written after this. Look at the file system that the state lies on.",
            path=str(path),
        ) from error
