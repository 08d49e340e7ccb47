"""What qorumctl tells a log, as a catalogue: each kind of news has a message id that never changes, and named fields.

`tell` hands one to stdlib logging; qorumctl/cli/logs.py brings it to the journal. Where that is not listened to, people
read the same in what the command prints, so news are silent there (`--verbose` shows them). A field is a number, a name
or a word of our own: never what a guest has written. docs/operations.md documents all of it, and a test compares.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

Value = str | int | Iterable[str] | None
"""Of a field: several words are the field several times, as the journal has it, and none at all is no field."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`message_id`: 128 random bits, as `journalctl --new-id128` gives them. `fields`: beside those of every entry."""

    message_id: str
    fields: tuple[str, ...]


class News(Enum):
    SET_STARTED = Kind("b1d4f771bb24400f9accb03ec657e087", ())
    SET_STOPPED = Kind("7f9d97c2613f499084d7985a85bc4cca", ())
    SCRUB_BEGUN = Kind("85f52ef1ecd946a8a326703286a3597b", ("RUN", "MODE", "OFFSET"))
    FINDING = Kind(
        "f121e0fc797e4903bcbcc876cc0864c1",
        ("RUN", "FINDING", "VERDICT", "ACTION", "COPY", "OFFSET", "LENGTH", "DIAGNOSIS", "SOURCE", "CAUSE"),
    )
    SCRUB_ENDED = Kind("fbe4e74385e244a08dac1924e90d5624", ("RUN", "MODE", "OUTCOME", "FINDINGS", "SCANNED", "BUSY"))
    COPY_EVENT = Kind(
        "697eaa2acb79490ea826ba2e7a6cd91c",
        ("EVENT", "COPY", "OPERATION", "OFFSET", "LENGTH", "ERROR", "MISSED_WRITE"),
    )
    COPY_STANDING = Kind("91c54549060d4a91b910471f15950c53", ("EVENT", "COPY", "RUN"))
    FAILED = Kind("a994340a48ad4e5fb5e325a4a78f3d29", ("CODE", "REMEDY", "COPY", "PATH", "EXIT_CODE"))


@dataclass(frozen=True, slots=True)
class Entry:
    """What goes with a record's sentence. `news` None: a sentence of its own, such as a warning."""

    news: News | None
    fields: Mapping[str, Value]


_ATTRIBUTE = "qorum"
_log = logging.getLogger("qorumctl.news")
# A program that has made no arrangements for logs is not to find them on its standard error.
_log.addHandler(logging.NullHandler())


def tell(news: News, level: int, text: str, *, set_name: str | None, **fields: Value) -> None:
    """`level`: of logging. Fields are named as in the catalogue, in lower case. Never raises."""
    if _log.isEnabledFor(level):
        _log.log(level, "%s", text, extra={_ATTRIBUTE: entry(news, set_name, **fields)})


def warn(log: logging.Logger, text: str, *, set_name: str) -> None:
    """A sentence that people are told, wherever they are."""
    log.warning("%s", text, extra={_ATTRIBUTE: entry(None, set_name)})


def entry(news: News | None, set_name: str | None, **fields: Value) -> Entry:
    return Entry(news, {"set": set_name, **fields})


def entry_of(record: logging.LogRecord) -> Entry:
    found: Any = getattr(record, _ATTRIBUTE, None)
    return found if isinstance(found, Entry) else Entry(None, {})
