"""Turns what pydantic says about a definition into a sentence for the person who wrote it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, NbdSource, ScrubSpec, SetSpec, VolumeSpec

_SOURCES: dict[str, type[BaseModel]] = {"file": FileSource, "device": DeviceSource, "nbd": NbdSource}
_TABLES: dict[str, type[BaseModel]] = {"volume": VolumeSpec, "scrub": ScrubSpec}
_EXPECTED = {
    "string": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "model": "a table",
    "dict": "a table",
    "uuid": "a UUID",
}


_LONG_QUOTE = re.compile(r"'([^']{57})[^']{4,}'")


def explain(error: ValidationError, data: Mapping[str, Any]) -> tuple[str, str]:
    """The first thing that is wrong as (message, remedy). `data`: the parsed file, for the names of copies.

    An unknown key goes first: a misspelt key is also a missing one, and the misspelling is what has to be corrected.
    """
    details: Sequence[Any] = error.errors(include_url=False, include_context=True)
    first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    location = [part for part in first["loc"] if part != "__root__"]
    place, key = _place(location, data)
    message, remedy = _say(first, location, key)
    return f"{place}{message}", remedy


def reason_of(error: ValueError) -> str:
    """Of one value that no model took: why, without pydantic's frame and without a full stop."""
    if not isinstance(error, ValidationError):
        return str(error)
    detail: Any = error.errors(include_url=False, include_context=True)[0]
    return str(detail.get("ctx", {}).get("error", detail["msg"])).rstrip(".")


def _place(location: list[Any], data: Mapping[str, Any]) -> tuple[str, str]:
    """(`copy 'a': `, `source.path`): where it is, and the key as it stands in the file."""
    place = ""
    rest = list(location)
    if rest[:1] == ["copies"] and len(rest) > 1 and isinstance(rest[1], int):
        place = f"copy {_name_of_copy(data, rest[1])}: "
        rest = rest[2:]
        if rest[:1] == ["source"] and len(rest) > 1 and rest[1] in _SOURCES:
            del rest[1]
    return place, ".".join(str(part)[:60] for part in rest)


def _name_of_copy(data: Mapping[str, Any], index: int) -> str:
    try:
        name = data["copies"][index]["name"]
    except (KeyError, IndexError, TypeError):
        name = None
    return f"'{name[:60]}'" if isinstance(name, str) else f"number {index + 1}"


def _say(detail: Mapping[str, Any], location: list[Any], key: str) -> tuple[str, str]:
    kind: str = detail["type"]
    if kind == "extra_forbidden":
        return f"unknown key '{key}'.", _did_you_mean(location)
    if kind in {"missing", "union_tag_not_found"}:
        missing = f"{key}.type" if kind == "union_tag_not_found" else key
        return f"'{missing}' is missing.", f"Add it{_example(missing)}."
    if kind == "value_error":
        words, _, remedy = _LONG_QUOTE.sub(r"'\1...'", str(detail["ctx"]["error"])).rstrip(".").partition(". ")
        about = f"'{key}': " if key else ""
        return f"{about}{words}.", f"{remedy}." if remedy else "Correct it."
    if kind in {"literal_error", "enum"}:
        return f"'{key}' is {_shown(detail)}.", f"Use {detail['ctx']['expected']}."
    if kind == "union_tag_invalid":
        return f"'{key}.type' is '{str(detail['ctx']['tag'])[:60]}'.", "Use 'file', 'device' or 'nbd'."
    if kind == "string_pattern_mismatch":
        return f"'{key}' is {_shown(detail)}.", 'Use "0600" or "0660".' if key == "volume.mode" else "Correct it."
    expected = next((words for name, words in _EXPECTED.items() if kind.startswith(name)), None)
    if expected is not None:
        return f"'{key or 'it'}' is {_shown(detail)}.", f"It must be {expected}{_example(key)}."
    return f"'{key}' is {_shown(detail)}: {_lower(detail['msg'])}.", "Correct it."


def _did_you_mean(location: list[Any]) -> str:
    model = _model_at(location[:-1])
    known = list(model.model_fields) if model else []
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known here: {', '.join(known)}." if known else "Remove it."


def _model_at(location: list[Any]) -> type[BaseModel] | None:
    match location:
        case []:
            return SetSpec
        case ["copies", int()]:
            return CopySpec
        case ["copies", int(), "source", str(tag)]:
            return _SOURCES.get(tag)
        case [str(table)]:
            return _TABLES.get(table)
    return None


_EXAMPLES = {
    "name": 'name = "web01"',
    "uuid": 'uuid = "6f3c2b0e-6c55-4c8e-9d5d-0d4b1d6a9c11"',
    "size": 'size = "20GiB"',
    "copies": "three tables [[copies]]",
    "source": 'source = { type = "file", path = "/images/a.raw" }',
    "source.type": 'type = "file"',
    "source.path": 'path = "/images/a.raw"',
    "source.uri": 'uri = "nbd://host/export"',
}


def _example(key: str) -> str:
    return f", as in {_EXAMPLES[key]}" if key in _EXAMPLES else ""


def _shown(detail: Mapping[str, Any]) -> str:
    try:
        text = repr(detail.get("input"))
    except (ValueError, RecursionError):
        # repr of an integer of more than 4300 digits is refused by Python.
        return "a value that cannot be used"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
