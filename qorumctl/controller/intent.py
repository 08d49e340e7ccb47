"""What a command is about to do, as a file in the set's state directory: the next command knows it from there.

Each of its users says what its file means: `creating.json` (interrupted.py), `growing.json` and `exporting.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from qorumctl.errors import StoreError
from qorumctl.files import reason, sync_directory, write_atomically


def write(path: Path, values: Mapping[str, object]) -> None:
    """On stable storage when this returns. Raises StoreError."""
    try:
        write_atomically(path, json.dumps(values).encode(), 0o600)
    except OSError as error:
        raise failed(path, error) from error


def conclude(path: Path) -> None:
    """It is done, or nothing of it is left. Idempotent; raises StoreError."""
    try:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise failed(path, error) from error


def failed(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be used: {reason(error)}.", remedy="Check its rights.", path=str(path))
