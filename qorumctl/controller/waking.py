"""Begins the delivery of what waits for hooks: by whoever has told something, which must not wait, and never fail."""

from __future__ import annotations

import contextlib
import math
import os
import time
from functools import partial
from pathlib import Path

from qorumctl import hook_files
from qorumctl.controller import detached
from qorumctl.errors import QorumError
from qorumctl.paths import Directories
from qorumctl.store import SetLock
from qorumctl.store.database import Listener

LOCK_NAME = "hooks.lock"
"""Of whoever delivers: one process for each set."""
PENDING_NAME = "hooks.pending"
"""While it is there, systemd begins the unit that delivers, which removes it first: qorum-hooks@.path."""
BY_UNIT = "QORUM_HOOKS_BY_UNIT"
"""Set by systemd's units: what they begin is confined as they are, and ended with them. So another unit delivers."""
_LOOKS_S = 0.1
"""A new process has certainly not looked yet after so long: it takes twice as long to import what it needs."""
_launched_s: dict[Path, float] = {}
"""State directory -> when this process began a delivery last."""


def listener(directories: Directories, name: str) -> Listener:
    """For a store: its events are kept while there is a hook, and delivered."""
    return Listener(partial(hook_files.any_there, directories.hooks), partial(wake, directories, name))


def wake(directories: Directories, name: str) -> None:
    """Does not wait, and never raises. What goes wrong, the watcher puts right a minute later."""
    with contextlib.suppress(QorumError, OSError):
        state = directories.state_dir(name)
        if os.environ.get(BY_UNIT):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(state / PENDING_NAME, flags, 0o600))
            return
        # Whoever holds the lock looks once more when it has let go of it. One that has none may have looked already.
        if (
            time.monotonic() - _launched_s.get(state, -math.inf) > _LOOKS_S
            and SetLock.held_by(state, file_name=LOCK_NAME) is None
        ):
            _launched_s[state] = time.monotonic()
            detached.launch(directories, ["hooks", "deliver", name])
