"""What callers may ask for, and how long they are willing to wait."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from qorumctl.core.ranges import Range
from qorumctl.errors import UsageError

_MOST_S = 86400.0
VARIABLES = {
    "QORUM_TIMEOUT_COPY": "copy_s",
    "QORUM_TIMEOUT_DRAIN": "drain_s",
    "QORUM_TIMEOUT_HEAL": "heal_s",
    "QORUM_TIMEOUT_HOOK": "hook_s",
    "QORUM_TIMEOUT_MONITOR": "monitor_s",
    "QORUM_TIMEOUT_STATUS": "status_s",
    "QORUM_TIMEOUT_STOP": "stop_s",
}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds. Each can be raised for slow storage, by QORUM_TIMEOUT_DRAIN and so on; none can be switched
    off."""

    drain_s: float = 30.0
    """A drain costs the slowest write in flight. Past this, a copy or a client hangs."""
    copy_s: float = 30.0
    """One answer of a copy's export: NFS and disks retry internally for tens of seconds before they report an error."""
    heal_s: float = 5.0
    """One fenced read, kicks included."""
    kick_after_s: float = 0.5
    """A fenced read that took this long is starved by overlapping writes: an empty transaction lets it through."""
    hook_s: float = 30.0
    """One run of a hook; past this it is killed. Nothing but other hooks waits for it."""
    monitor_s: float = 5.0
    status_s: float = 2.0
    """`status` says `stalled` after this long."""
    stop_s: float = 60.0
    watcher_s: float = 10.0
    """A new watcher listens after half a second, more on a busy machine; an old one has written down what it heard
    in milliseconds."""

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> Self:
        """QORUM_TIMEOUT_COPY=90 is `copy_s` 90. Raises UsageError for what is no number of seconds."""
        env = os.environ if env is None else env
        return cls(**{field: _seconds(name, env[name]) for name, field in VARIABLES.items() if env.get(name)})


def _seconds(name: str, text: str) -> float:
    try:
        value = float(text.strip().removesuffix("s"))
    except ValueError:
        value = 0.0
    if not 0 < value <= _MOST_S:
        raise UsageError(f"{name} is '{text}', which is no number of seconds.", remedy="Use one from 0.1 to 86400.")
    return value


Transport = Literal["auto", "shm", "nbd"]
"""How copies are read: through shared memory, over NBD, or the faster of what there is."""


@dataclass(frozen=True, slots=True)
class ScrubOptions:
    """`mode` None: what the set's policy says. `fresh`: forget an unfinished run instead of resuming it.
    `within`: only this range, by whole sectors. `rate_bytes_per_s`: per copy; None: what the definition says.
    `full_speed`: with no cap, and guests have to put up with it.
    `budget_s`: how long it may take before it stops, to be resumed; None: as long as it takes.
    `count_suspects`: copies that have missed writes vote like the others: an operator's decision."""

    mode: Literal["report", "repair"] | None = None
    within: Range | None = None
    rate_bytes_per_s: int | None = None
    full_speed: bool = False
    fresh: bool = False
    thorough: bool = False
    budget_s: float | None = None
    transport: Transport = "auto"
    count_suspects: bool = False


ImportFormat = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]
"""What an image can be imported from, by QEMU's names."""


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """`size_bytes`: needed when the images do not exist yet. `thin`: allow images larger than the free space.
    `import_from`: fill the copies from this image, of `import_format`; then `overwrite`: what devices and exports
    among the copies hold may be lost."""

    size_bytes: int | None = None
    format: Literal["raw", "qcow2"] = "raw"
    policy: Literal["repair", "report"] = "repair"
    threshold: int | None = None
    cache: Literal["none", "writeback"] = "none"
    thin: bool = False
    import_from: str | None = None
    import_format: ImportFormat | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class ReplaceOptions:
    """`format`: of an image file; None: raw, or that of the unfinished replacement. `overwrite`: what a device or an
    export holds may be lost. `thin`: an image larger than the free space. `cancel`: give an unfinished one up."""

    format: Literal["raw", "qcow2"] | None = None
    overwrite: bool = False
    thin: bool = False
    rate_bytes_per_s: int | None = None
    cancel: bool = False


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """Either `finding` and `decision` (`copy=NAME`, `bitwise`, `file=PATH`), or `undo`, the id of what was saved.

    `expected_plan`: that of a report with `dry_run`, which was agreed to; refused where it has become another one.
    `force`: even while a guest is connected, and, of an undo, over what guests have written since.
    """

    finding: int | None = None
    decision: str | None = None
    undo: int | None = None
    dry_run: bool = False
    force: bool = False
    expected_plan: str | None = None


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """`partial`: what has no majority is filled with a marker. `overwrite`: a file that exists is replaced. `thin`: try
    it though the space may not do."""

    format: Literal["raw", "qcow2"] = "raw"
    partial: bool = False
    overwrite: bool = False
    thin: bool = False
