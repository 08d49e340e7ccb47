"""`enable` and `disable`: a set runs from boot to shutdown, and is scrubbed when its schedule says so, by systemd."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qorumctl.controller import units
from qorumctl.controller.context import SetContext
from qorumctl.controller.schedule import Schedule
from qorumctl.controller.units import scrub_timer, scrub_unit, storage_unit
from qorumctl.errors import QorumError, RefusedError
from qorumctl.files import reason, write_atomically
from qorumctl.model.status import Result
from qorumctl.paths import SERVICE_DIRECTORIES, SERVICE_USER, Directories, make_directories
from qorumctl.service_user import acting_as, acting_user, owns_state, service_user

_TIMEOUT_S = 90.0
_MISSING = {"", "not-found"}
_HOW = "docs/operations.md tells how to install the units."


@dataclass(frozen=True, slots=True)
class Systemd:
    """The service manager of this machine. `directories`: which the units use."""

    booted: Path = Path("/run/systemd/system")
    """sd_booted(3): it exists where systemd is the service manager."""
    units: Path = Path("/etc/systemd/system")
    directories: Directories = SERVICE_DIRECTORIES

    def drop_in(self, unit: str) -> Path:
        return self.units / f"{unit}.d" / units.FILE_NAME

    def check(self, what: str) -> None:
        """Raises RefusedError where nothing can be enabled or disabled."""
        if not self.booted.is_dir():
            raise RefusedError(
                f"systemd is not running here, so nothing can be {what}d.",
                remedy="Nothing was changed. Have 'qorumctl start NAME' run at boot, 'qorumctl scrub NAME' monthly, "
                "and 'qorumctl stop NAME' at shutdown, by what this machine has for that, such as cron.",
            )
        if not os.access(self.units, os.W_OK):
            raise RefusedError(f"Only root can {what} a set.", remedy="Run the command as root. Nothing was changed.")

    def state_of(self, unit: str) -> str:
        """`enabled`, `disabled` ...; one of _MISSING where no such unit is installed."""
        return self._run("is-enabled", unit).stdout.strip()

    def is_active(self, unit: str) -> bool:
        return self._run("is-active", "--quiet", unit).returncode == 0

    def call(self, *arguments: str) -> None:
        """Raises QorumError with systemctl's words."""
        done = self._run(*arguments)
        if done.returncode != 0:
            words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0].rstrip(".")
            raise QorumError(
                f"'systemctl {' '.join(arguments)}' failed: {words}.", remedy="See 'journalctl -e' for more."
            )

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["systemctl", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="backslashreplace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except OSError as error:
            raise QorumError(f"systemctl does not run: {reason(error)}.", remedy="Install systemd.") from None
        except subprocess.TimeoutExpired:
            raise QorumError(
                f"'systemctl {' '.join(arguments)}' has not ended within {_TIMEOUT_S:g} s.",
                remedy="See 'systemctl list-jobs' for what it waits for.",
            ) from None


def enable(context: SetContext, schedule: Schedule, systemd: Systemd) -> Result:
    """Writes the drop-ins, enables the units, and starts the timer; the set itself is neither started nor stopped. What
    fails half-way is undone."""
    _check_directories(context, systemd)
    name = context.name
    with acting_as(acting_user(context.directories)):
        spec, pid = context.spec(), context.pid()
    before = {unit: systemd.state_of(unit) for unit in (storage_unit(name), scrub_timer(name))}
    if set(before.values()) & _MISSING:
        raise RefusedError("The units of qorumctl are not installed.", remedy=f"{_HOW} Nothing was changed.")
    directories = units.image_directories(spec)
    try:
        table = units.mount_table()
    except OSError as error:
        raise QorumError(f"The mount table cannot be read: {reason(error)}.", remedy="Is /proc mounted?") from None
    wanted = units.drop_ins(spec, directories, units.mount_points(directories, table), schedule)
    files = {systemd.drop_in(unit): text for unit, text in wanted.items()}
    old = {path: _read(path) for path in files}
    changed = old != files or set(before.values()) != {"enabled"}
    if changed:
        try:
            _write(files)
            systemd.call("daemon-reload")
            systemd.call("enable", *before)
            systemd.call("restart", scrub_timer(name))
        except BaseException:
            _undo(systemd, old, [unit for unit, state in before.items() if state != "enabled"])
            raise
    return Result(set=name, command="enable", changed=changed, warnings=_advice(systemd, name, pid))


def disable(context: SetContext, systemd: Systemd) -> Result:
    """Takes back what `enable` did. A set that runs goes on. Needs no usable definition."""
    systemd.check("disable")
    name = context.name
    enabled = [unit for unit in (scrub_timer(name), storage_unit(name)) if systemd.state_of(unit) == "enabled"]
    paths = [systemd.drop_in(unit) for unit in (storage_unit(name), scrub_unit(name), scrub_timer(name))]
    present = [path for path in paths if _read(path) is not None]
    if not enabled and not present:
        with acting_as(acting_user(context.directories)):
            context.spec()
        return Result(set=name, command="disable", changed=False)
    if scrub_timer(name) in enabled:
        systemd.call("stop", scrub_timer(name))
    if enabled:
        systemd.call("disable", *enabled)
    _write(dict.fromkeys(present))
    systemd.call("daemon-reload")
    return Result(set=name, command="disable", changed=True)


def _check_directories(context: SetContext, systemd: Systemd) -> None:
    if context.directories.places != systemd.directories.places:
        raise RefusedError(
            f"The units look for sets in {systemd.directories.config}, and not in {context.directories.config}.",
            remedy="Unset QORUM_CONFIG_DIR, QORUM_STATE_DIR and QORUM_RUNTIME_DIR. Nothing was changed.",
            set_name=context.name,
        )
    user = service_user()
    if user is None or not owns_state(user, context.directories):
        raise RefusedError(
            f"{context.directories.state} does not belong to the user {SERVICE_USER}, as whom the units run.",
            remedy="Where it does not exist, run 'systemd-sysusers' and 'systemd-tmpfiles --create'. Sets that root "
            f"has made must be given to {SERVICE_USER}: see docs/operations.md. Nothing was changed.",
            set_name=context.name,
        )


def _advice(systemd: Systemd, name: str, pid: int | None) -> list[str]:
    unit = storage_unit(name)
    if systemd.is_active(unit):
        return []
    if pid is None:
        return [f"{name} is not running: 'qorumctl start {name}' starts it now, and each boot from now on."]
    return [
        f"{name} was started by hand and runs outside its unit: run 'qorumctl restart {name}' when no guest uses it."
    ]


def _undo(systemd: Systemd, old: Mapping[Path, str | None], enabled: list[str]) -> None:
    """Best effort: the first error is the one to be told."""
    with contextlib.suppress(QorumError):
        if enabled:
            systemd.call("disable", *enabled)
    with contextlib.suppress(QorumError):
        _write(old)
        systemd.call("daemon-reload")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise QorumError(f"{path} cannot be read: {reason(error)}.", remedy="Check its rights.") from None


def _write(files: Mapping[Path, str | None]) -> None:
    """None: the file goes, and its directory where it holds nothing else."""
    for path, text in files.items():
        try:
            if text is None:
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()
            else:
                make_directories(path.parent)
                write_atomically(path, text.encode(), 0o644)
        except OSError as error:
            raise QorumError(f"{path} cannot be written: {reason(error)}.", remedy="Check its directory.") from None
