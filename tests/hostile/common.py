"""What may come of hostile input: what was asked for, or a QorumError with a message and a remedy. Nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qorumctl.cli.main import main
from qorumctl.errors import CommandError, QorumError


def settle(call: Callable[[], Any]) -> QorumError | None:
    """Calls, and awaits what can be awaited. The QorumError that came of it, after a look at its words."""
    try:
        answer = call()
        if inspect.isawaitable(answer):
            asyncio.run(_awaited(answer))
    except QorumError as error:
        return _in_words(error)
    return None


def _in_words(error: QorumError) -> QorumError:
    assert re.search(r"\w{3}.*\.$", error.message, re.DOTALL), f"no sentence: {error.message!r}"
    # What the daemon refuses, it says in words of its own: there is no one remedy.
    assert error.remedy or isinstance(error, CommandError), f"no remedy: {error.message!r}"
    assert len(str(error)) < 2000
    return error


async def _awaited(answer: Any) -> Any:
    return await answer


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The program within this process: (exit code, all that it printed). Fails on a mistake of its own."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert "mistake in qorumctl" not in out + err, out + err
    assert isinstance(ended.value.code, int)
    return ended.value.code, out + err


def fingerprint(paths: Iterable[Path]) -> dict[str, tuple[str, int, int, int]]:
    """Of files that nobody may touch: content, rights, owner, length."""
    found = {}
    for path in paths:
        facts = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (digest, facts.st_mode, facts.st_uid, facts.st_size)
    return found
