"""Reads and writes `NAME.toml`. Everything that can be wrong with one becomes a DefinitionError with a remedy."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Table
from tomlkit.toml_document import TOMLDocument

from qorumctl.errors import DefinitionError
from qorumctl.explain import explain
from qorumctl.files import NotRegularError, TooLargeError, read_bounded, reason, write_atomically
from qorumctl.model.spec import SET_NAME, CopySpec, SetSpec

MOST_BYTES = 1 << 20
"""A definition of nine copies takes 2 KiB; more than 1 MiB is some other file."""


def load(path: Path) -> SetSpec:
    """The definition in `path`. Raises DefinitionError: missing, not ours alone to write, not TOML, or not a set."""
    return _parse(path, _read(path))


def save(path: Path, spec: SetSpec) -> None:
    """Writes the definition atomically, 0640. An existing file keeps its comments and whatever did not change.

    Raises DefinitionError; an existing file that cannot be read as a definition is left as it is.
    """
    if spec.name != path.stem:
        raise DefinitionError(
            f"Set '{spec.name}' cannot be written to {path}.",
            remedy=f"Its file must be {spec.name}.toml.",
            path=str(path),
        )
    try:
        target = path.resolve()
        group: int | None = None
        if path.exists():
            old = load(path)
            group = target.stat().st_gid
            text = _rewritten(target.read_text(encoding="utf-8"), old, spec)
        else:
            text = _fresh(spec)
        if _parse(path, text) != spec:
            raise DefinitionError(
                f"{path} is laid out in a way that cannot be changed without losing its comments.",
                remedy="Change it with an editor.",
                path=str(path),
            )
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomically(target, text.encode(), 0o640, group=group)
    except (OSError, RuntimeError) as error:
        # RuntimeError: pathlib's word for links that lead in a circle.
        words = reason(error) if isinstance(error, OSError) else str(error)
        raise DefinitionError(
            f"{path} cannot be written: {words}.",
            remedy="Check the directory, its rights and its free space.",
            path=str(path),
        ) from error


def digest(spec: SetSpec) -> str:
    """Tells whether what runs was started from this definition: a SHA-256 of all that the daemon is built from.

    `[scrub]` is left out: it takes effect at the next scrub, without a restart. Defaults are left out, so that a key
    that a later version adds does not make every set look changed; hence the types of sources are named apart.
    """
    values = spec.model_dump(mode="json", exclude_defaults=True, exclude={"scrub"})
    content = {"values": values, "types": [copy.source.type for copy in spec.copies]}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def names(directory: Path) -> list[str]:
    """The sets that are defined there, sorted. A directory that does not exist holds none."""
    try:
        entries = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DefinitionError(
            f"{directory} cannot be listed: {reason(error)}.", remedy="Check its rights.", path=str(directory)
        ) from error
    stems = [name.removesuffix(".toml") for name in entries if name.endswith(".toml")]
    return sorted(stem for stem in stems if SET_NAME.fullmatch(stem))


def _read(path: Path) -> str:
    try:
        content, facts = read_bounded(path, MOST_BYTES, follow=True)
        # Of a link, whoever can replace either end of it writes the definition.
        places = [path.lstat(), path.parent.stat(), path.resolve().parent.stat()]
    except FileNotFoundError:
        raise DefinitionError(
            f"There is no set '{path.stem}': {path} does not exist.",
            remedy="See 'qorumctl list' for the sets that are defined.",
            path=str(path),
        ) from None
    except (NotRegularError, TooLargeError) as error:
        raise DefinitionError(
            f"{error}.", remedy="A definition is a text file of a few lines.", path=str(path)
        ) from None
    except OSError as error:
        raise DefinitionError(
            f"{path} cannot be read: {reason(error)}.", remedy="Check its rights.", path=str(path)
        ) from error
    except ValueError as error:
        raise DefinitionError(f"{path!r} is no path: {error}.", remedy="Name a set.") from None
    _check_writers(path, facts, places[0])
    for directory in places[1:]:
        _check_directory(path, directory)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DefinitionError(
            f"{path.name} is not UTF-8 text: byte {error.start} is wrong.", remedy="Save it as UTF-8.", path=str(path)
        ) from None


def _check_writers(path: Path, facts: os.stat_result, link: os.stat_result) -> None:
    """Whoever writes a definition opens files with the daemon's rights."""
    if not {facts.st_uid, link.st_uid} <= {0, os.geteuid()}:
        raise DefinitionError(
            f"{path} belongs to another user, who could change it.",
            remedy=f"Run chown to root on {path}.",
            path=str(path),
        )
    if facts.st_mode & 0o022:
        raise DefinitionError(
            f"{path} can be written by other users.", remedy=f"Run chmod go-w {path}.", path=str(path)
        )


def _check_directory(path: Path, directory: os.stat_result) -> None:
    trusted = {0, os.geteuid()}
    replaceable = directory.st_mode & 0o022 and not directory.st_mode & stat.S_ISVTX
    if replaceable or directory.st_uid not in trusted:
        raise DefinitionError(
            f"{path} can be replaced by other users, who can write to its directory.",
            remedy=f"Run chmod go-w {path.parent}, and give it to root.",
            path=str(path),
        )


def _parse(path: Path, text: str) -> SetSpec:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # ValueError: TOMLDecodeError, and what int() and datetime() say to numbers that no machine can hold.
        words = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DefinitionError(
            f"{path.name} is not TOML: {words}.", remedy="Correct that line.", path=str(path)
        ) from None
    try:
        spec = SetSpec.model_validate(data)
    except ValidationError as error:
        message, remedy = explain(error, data)
        raise DefinitionError(f"{path.name}: {message}", remedy=remedy, path=str(path)) from None
    except RecursionError:
        raise DefinitionError(f"{path.name}: it is nested too deeply.", remedy="Correct it.", path=str(path)) from None
    if spec.name != path.stem:
        raise DefinitionError(
            f"{path.name}: the set is named '{spec.name}', but its file '{path.stem}'.",
            remedy="Make them equal.",
            path=str(path),
        )
    return spec


def _values(spec: SetSpec) -> dict[str, Any]:
    """What a definition file says, as plain values; `format` only where there is a choice."""
    values = spec.model_dump(mode="json", exclude_none=True)
    for copy in values["copies"]:
        if copy["source"]["type"] != "file":
            del copy["source"]["format"]
    return values


_COMMENTS = {
    "size": 'bytes, or "20GiB"; a multiple of 512',
    "threshold": "votes needed to win",
    "policy": '"repair", or "report": nothing is ever rewritten',
}


def _fresh(spec: SetSpec) -> str:
    values = _values(spec)
    document = tomlkit.document()
    for key in ("name", "uuid", "size", "threshold", "policy"):
        item = tomlkit.item(values[key])
        if key in _COMMENTS:
            item.comment(_COMMENTS[key])
        document.add(key, item)
    document.add("copies", _array_of_copies(values["copies"]))
    volume = tomlkit.table()
    volume.add("group", tomlkit.item(values["volume"]["group"]).comment("who may open the volume's socket"))
    volume.add("mode", values["volume"]["mode"])
    document.add("volume", volume)
    scrub = tomlkit.table()
    if "rate" in values["scrub"]:
        scrub.add("rate", tomlkit.item(values["scrub"]["rate"]).comment("the most read from each copy"))
    else:
        scrub.add(tomlkit.comment('rate = "200MiB/s" caps what is read from each copy; without, guests come first'))
    document.add("scrub", scrub)
    return tomlkit.dumps(document)


def _array_of_copies(copies: list[dict[str, Any]]) -> AoT:
    array = tomlkit.aot()
    for copy in copies:
        array.append(_copy_table(copy))
    return array


def _copy_table(copy: dict[str, Any]) -> Table:
    table = tomlkit.table()
    table.add("name", copy["name"])
    source = tomlkit.inline_table()
    source.update(copy["source"])
    table.add("source", source)
    table.add("cache", copy["cache"])
    return table


def _rewritten(text: str, old: SetSpec, new: SetSpec) -> str:
    """`text`, which reads as `old`, changed only where `new` differs."""
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise DefinitionError(f"The definition cannot be rewritten: {error}.", remedy="Change it by hand.") from None
    before, after = _values(old), _values(new)
    for key in ("name", "uuid", "size", "threshold", "policy"):
        if before[key] != after[key]:
            document[key] = after[key]
    for key in ("volume", "scrub"):
        _rewrite_table(document, key, before[key], after[key])
    if before["copies"] != after["copies"]:
        _rewrite_copies(document, old, new, after["copies"])
    return tomlkit.dumps(document)


def _rewrite_table(document: TOMLDocument, key: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    if before == after:
        return
    if key not in document:
        document.add(key, tomlkit.table())
    table: Any = document[key]
    for name in before.keys() | after.keys():
        if name not in after:
            table.remove(name)
        elif before.get(name) != after[name]:
            table[name] = after[name]


def _rewrite_copies(document: TOMLDocument, old: SetSpec, new: SetSpec, after: list[dict[str, Any]]) -> None:
    """Tables of copies that stay keep their place and comments."""
    tables: Any = document["copies"]
    same_names = [name for name in old.copy_names if name in new.copy_names]
    appended = new.copy_names[len(same_names) :]
    if not isinstance(tables, AoT) or list(new.copy_names) != [*same_names, *appended]:
        document["copies"] = _array_of_copies(after)
        return
    for index in reversed(range(len(old.copies))):
        copy = old.copies[index]
        if copy.name not in new.copy_names:
            del tables[index]
        else:
            _rewrite_copy(tables[index], copy, new.copy_named(copy.name), after)
    for values in after[len(same_names) :]:
        tables.append(_copy_table(values))


def _rewrite_copy(table: Table, before: CopySpec, now: CopySpec, after: list[dict[str, Any]]) -> None:
    values = next(copy for copy in after if copy["name"] == now.name)
    if before.source != now.source:
        source = tomlkit.inline_table()
        source.update(values["source"])
        table["source"] = source
    if before.cache != now.cache:
        table["cache"] = values["cache"]
