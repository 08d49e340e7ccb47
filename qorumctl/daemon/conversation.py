"""What is said over QMP, as lines for `--verbose`: shortened, and without secrets. Guest data never passes there."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MOST_CHARACTERS = 400
_HIDDEN = "..."
_SECRET = ("password", "passphrase", "secret", "token")
_log = logging.getLogger("qorumctl.qmp")


def asked(socket: Path, command: str, arguments: Mapping[str, object] | None) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        words = f" {_words(_without_secrets(command, arguments))}" if arguments else ""
        _log.debug("%s -> %s%s", _name(socket), command, words)


def answered(socket: Path, command: str, reply: object, taken_s: float) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("%s <- %s: %s (%.1f ms)", _name(socket), command, _words(_hidden(reply)), taken_s * 1e3)


def refused(socket: Path, command: str, words: str) -> None:
    _log.debug("%s <- %s: refused: %s", _name(socket), command, words)


def told(socket: Path, event: Mapping[str, Any]) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("%s <- event %s %s", _name(socket), event.get("event"), _words(event.get("data")))


def _name(socket: Path) -> str:
    """`web01/control`: the set and its monitor."""
    return f"{socket.parent.name}/{socket.stem}"


def _words(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    cut = len(text) - _MOST_CHARACTERS
    return text if cut <= 0 else f"{text[:_MOST_CHARACTERS]}... and {cut} characters"


def _without_secrets(command: str, arguments: Mapping[str, object]) -> object:
    """We send none; `qorumctl qmp` sends what it is given. The secret of a `secret` object is called `data`."""
    shown = dict(arguments)
    if command == "object-add" and "data" in shown:
        shown["data"] = _HIDDEN
    return _hidden(shown)


def _hidden(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _HIDDEN if _is_secret(str(key), one) else _hidden(one) for key, one in value.items()}
    return [_hidden(one) for one in value] if isinstance(value, list) else value


def _is_secret(key: str, value: object) -> bool:
    return isinstance(value, str) and any(word in key.lower() for word in _SECRET)
