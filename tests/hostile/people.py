"""Another user of the host: plants things, and runs sets of his own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def as_nobody(
    *command: str, environment: Mapping[str, str] | None = None, umask: int = 0o022
) -> subprocess.CompletedProcess[str]:
    """Runs a command as that user, without any other right."""
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
    env = {**os.environ, "HOME": "/nonexistent", **(environment or {})}
    return subprocess.run(
        words, env=env, check=False, capture_output=True, text=True, timeout=120, umask=umask, stdin=subprocess.DEVNULL
    )


def program(*arguments: str) -> Sequence[str]:
    return (sys.executable, "-m", "qorumctl.cli.main", *arguments)


def plant(path: Path, kind: str, victim: Path, *, owner: int = NOBODY) -> None:
    """`symlink`, `dangling`, `hard link`, `pipe`, `directory`, `file`: there, and the other user's where it can be."""
    match kind:
        case "symlink":
            path.symlink_to(victim)
        case "dangling":
            path.symlink_to(victim.with_name("nowhere"))
        case "hard link":
            path.hardlink_to(victim)
            return
        case "pipe":
            os.mkfifo(path, 0o666)
        case "directory":
            path.mkdir(mode=0o777)
        case "socket":
            # A name for one is enough: nobody listens.
            os.mknod(path, 0o140666)
        case "file":
            path.write_bytes(b"planted")
        case _:
            raise AssertionError(kind)
    os.chown(path, owner, owner, follow_symlinks=False)
