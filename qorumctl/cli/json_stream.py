"""JSON of any length as text that is made bit by bit: the very text that json.dumps(indent=2) gives, in flat memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qorumctl.model.report import Document, ScrubReport

_INDENT = "  "


class Rows:
    """An array whose elements are made while it is written. It can be written once."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = documents

    def __iter__(self) -> Iterator[Any]:
        return (one.model_dump(mode="json", by_alias=True) for one in self._documents)


def scrub_document(report: ScrubReport, findings: Iterable[Document]) -> dict[str, Any]:
    """`report` comes without its findings."""
    return report.model_dump(mode="json", by_alias=True) | {"findings": Rows(findings)}


def encoded(value: Any, depth: int = 0) -> Iterator[str]:
    """The text of a value, which may hold Rows in its dicts and lists."""
    if isinstance(value, Rows):
        yield from _laid_out("[", ((_leaf(one, depth + 1),) for one in value), "]", depth)
    elif isinstance(value, dict) and _is_lazy(value):
        items = (chain((f"{_leaf(key)}: ",), encoded(one, depth + 1)) for key, one in value.items())
        yield from _laid_out("{", items, "}", depth)
    elif isinstance(value, list) and _is_lazy(value):
        yield from _laid_out("[", (encoded(one, depth + 1) for one in value), "]", depth)
    else:
        yield _leaf(value, depth)


def _is_lazy(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_is_lazy, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Rows)


def _laid_out(opening: str, items: Iterable[Iterable[str]], closing: str, depth: int) -> Iterator[str]:
    """Each item is several pieces of text."""
    before = opening
    for item in items:
        yield f"{before}\n{_INDENT * (depth + 1)}"
        yield from item
        before = ","
    yield f"{opening}{closing}" if before == opening else f"\n{_INDENT * depth}{closing}"


def _leaf(value: Any, depth: int = 0) -> str:
    # Within a string a line break is escaped: each one here is of the layout.
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", f"\n{_INDENT * depth}")
