"""Begins a qorumctl that goes on when its caller ends: in a session of its own, nothing inherited but directories."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import qorumctl
from qorumctl.paths import Directories


def launch(
    directories: Directories, arguments: Sequence[str], *, output: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """`output`: a descriptor for what it says. Raises OSError."""
    environment = {
        **os.environ,
        "QORUM_CONFIG_DIR": str(directories.config),
        "QORUM_STATE_DIR": str(directories.state),
        "QORUM_RUNTIME_DIR": str(directories.runtime),
    }
    # Not what the caller's environment says: the set may be one of a demonstration, which has none.
    for name, path in (("QORUM_TEXTFILE_DIR", directories.textfile), ("QORUM_HOOKS_DIR", directories.hooks)):
        environment.pop(name, None)
        if path is not None:
            environment[name] = str(path)
    home = Path(qorumctl.__file__).resolve().parents[1]
    if home.name not in {"site-packages", "dist-packages"}:
        # A checkout that is run in place: the new process has another working directory.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH", "")]))
    launched = subprocess.Popen(
        [sys.executable, "-m", "qorumctl.cli.main", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",
        umask=0o077,
        start_new_session=True,
        close_fds=True,
    )
    # A caller that lives on must reap it.
    threading.Thread(target=launched.wait, name=f"reap-{launched.pid}", daemon=True).start()
    return launched
