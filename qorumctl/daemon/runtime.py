"""What a running daemon keeps in its set's runtime directory: one daemon is the set, another one may be its front."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qorumctl.errors import RefusedError

MOST_SOCKET_PATH_BYTES = 107
"""sun_path holds 108 bytes, the last one NUL."""


@dataclass(frozen=True, slots=True)
class DaemonPaths(ABC):
    """One qemu-storage-daemon's files (absolute). Its pidfile is its identity: it stands on its command line. Nothing
    here creates the directory."""

    directory: Path

    @property
    @abstractmethod
    def monitors(self) -> Mapping[str, Path]:
        """Name -> QMP socket; `control` is among them."""

    @property
    @abstractmethod
    def server(self) -> Path:
        """The socket that guests connect to."""

    @property
    @abstractmethod
    def servers(self) -> list[str]:
        """Arguments for the sockets that the daemon itself opens at its start."""

    @property
    @abstractmethod
    def pidfile(self) -> Path: ...

    @property
    @abstractmethod
    def log(self) -> Path: ...

    @property
    @abstractmethod
    def stop_first(self) -> str:
        """The remedy where one runs already."""

    @property
    def control_sock(self) -> Path:
        return self.monitors["control"]

    @property
    def sockets(self) -> tuple[Path, ...]:
        return (*self.monitors.values(), self.server)

    @property
    def transient(self) -> list[Path]:
        """Further sockets that are there now."""
        return []

    def check(self) -> None:
        """RefusedError when a socket's path is longer than the kernel allows."""
        longest = max(self.sockets, key=lambda path: len(os.fsencode(path)))
        length = len(os.fsencode(longest))
        if length > MOST_SOCKET_PATH_BYTES:
            raise RefusedError(
                f"The socket path {longest} has {length} bytes; the kernel allows {MOST_SOCKET_PATH_BYTES}.",
                remedy="Choose a shorter runtime directory with QORUM_RUNTIME_DIR, or a shorter set name.",
                path=str(longest),
            )


@dataclass(frozen=True, slots=True)
class RuntimePaths(DaemonPaths):
    """Of the set's own daemon."""

    @property
    def monitors(self) -> Mapping[str, Path]:
        return {name: self.directory / f"{name}.sock" for name in ("control", "scrub", "watch")}

    @property
    def scrub_sock(self) -> Path:
        return self.monitors["scrub"]

    @property
    def watch_sock(self) -> Path:
        return self.monitors["watch"]

    @property
    def nbd_sock(self) -> Path:
        return self.directory / "nbd.sock"

    @property
    def server(self) -> Path:
        return self.nbd_sock

    @property
    def servers(self) -> list[str]:
        # 0: unlimited. QEMU 9.1 began to cap at 100, and at the cap new clients just hang.
        return ["--nbd-server", f"addr.type=unix,addr.path={escaped(self.nbd_sock)},max-connections=0"]

    @property
    def pidfile(self) -> Path:
        return self.directory / "qsd.pid"

    @property
    def log(self) -> Path:
        return self.directory / "qsd.log"

    @property
    def stop_first(self) -> str:
        return "Stop the set first."


@dataclass(frozen=True, slots=True)
class FrontPaths(DaemonPaths):
    """Of the set's front, see daemon/front.py. No name is longer than the longest of the set's own daemon: where that
    one fits, so does this."""

    @property
    def monitors(self) -> Mapping[str, Path]:
        return {"control": self.directory / "front.qmp"}

    @property
    def server(self) -> Path:
        return self.directory / "front.sock"

    @property
    def servers(self) -> list[str]:
        return []

    @property
    def pidfile(self) -> Path:
        return self.directory / "front.pid"

    @property
    def log(self) -> Path:
        return self.directory / "front.log"

    @property
    def stop_first(self) -> str:
        return f"Run 'qorumctl front {self.directory.name} --stop' first."


def escaped(path: Path) -> str:
    """As a value in QEMU's key=value form."""
    return str(path).replace(",", ",,")
