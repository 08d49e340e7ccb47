"""Every error that qorumctl raises on purpose, each with one stable exit code.

    QorumError                 1   it could not be done
    ├── UsageError             2   the command line or a definition is wrong; nothing was touched
    │   └── DefinitionError    2   a set's definition file cannot be used
    ├── RefusedError           1   a safety rule forbids it; nothing was changed
    ├── LockedError            1   another command holds the set (or the daemon's monitor)
    ├── StoreError             1   the set's state database cannot be read or written
    │   └── DamagedStateError      it holds what no qorumctl has written, and no waiting mends that
    ├── CopyError              1   one copy is at fault (it is named)
    │   ├── CopyInUseError         another process has its image open
    │   ├── CopyWriteError         a write or a flush of it failed that nobody else tells of
    │   └── CopyUnavailableError   the copy does not answer at all: gone, hung, or every read fails
    │       ├── CopySilentError        it did not answer when it was opened, and the daemon waits for it still
    │       └── CopySharingError       it cannot be read through shared memory any more; over NBD, perhaps
    └── DaemonError            1   qemu-storage-daemon
        ├── DaemonStartError       it could not be started
        ├── DaemonGoneError        it ended, or its monitor closed, while we needed it
        ├── DaemonStalledError     it did not answer within the deadline
        └── CommandError           it refused a QMP command (its words are kept)

An error carries its evidence as attributes, says in `message` what failed and in `remedy` what to do, and is turned
into a sentence, a JSON document (`qorum.error/1`) and an exit code in exactly one place, `cli`.
"""

from __future__ import annotations

from typing import ClassVar


class QorumError(Exception):
    """Something could not be done. `message` is one sentence, `remedy` says what to do about it."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        set_name: str | None = None,
        copy: str | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.set_name = set_name
        self.copy = copy
        self.path = path

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message} {self.remedy}"


class UsageError(QorumError):
    code = "usage"
    exit_code = 2


class DefinitionError(UsageError):
    code = "definition"


class RefusedError(QorumError):
    code = "refused"


class LockedError(QorumError):
    code = "locked"


class StoreError(QorumError):
    code = "store"


class DamagedStateError(StoreError):
    code = "state-damaged"


class CopyError(QorumError):
    code = "copy"


class CopyUnavailableError(CopyError):
    code = "copy-unavailable"


class CopySilentError(CopyUnavailableError):
    pass


class CopySharingError(CopyUnavailableError):
    pass


class CopyInUseError(CopyError):
    pass


class CopyWriteError(CopyError):
    pass


class DaemonError(QorumError):
    code = "daemon"


class DaemonStartError(DaemonError):
    code = "daemon-start"


class DaemonGoneError(DaemonError):
    code = "daemon-gone"


class DaemonStalledError(DaemonError):
    code = "daemon-stalled"


class CommandError(DaemonError):
    """QMP answered with an error. `command` is what was sent, `error_class` and `description` are QEMU's own."""

    code = "qmp-command"

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"qemu-storage-daemon refused {command}: {description}.")
        self.command = command
        self.error_class = error_class
        self.description = description
