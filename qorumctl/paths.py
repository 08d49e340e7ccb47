"""Where definitions, state and sockets live (design section 5), and directories that nobody else can tamper with."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qorumctl.errors import RefusedError, UsageError
from qorumctl.files import reason
from qorumctl.model.spec import check_set_name

SERVICE_USER = "qorum"


@dataclass(frozen=True)
class Directories:
    """`config` holds `NAME.toml`, `state` and `runtime` hold one directory per set; `textfile`, where there is one, the
    metrics of each. That one is not checked here: nothing may fail for the sake of metrics. `hooks`: the programs that
    are told of events; see hook_files.py."""

    config: Path
    state: Path
    runtime: Path
    textfile: Path | None = None
    hooks: Path | None = None

    @property
    def places(self) -> tuple[Path, Path, Path]:
        """Where sets are. Where their metrics go, and which hooks are told, is another matter."""
        return self.config, self.state, self.runtime

    def definition_path(self, name: str) -> Path:
        return self.config / f"{_checked(name)}.toml"

    def state_dir(self, name: str) -> Path:
        return self.state / _checked(name)

    def runtime_dir(self, name: str) -> Path:
        return self.runtime / _checked(name)


SERVICE_DIRECTORIES = Directories(
    Path("/etc/qorum/sets"), Path("/var/lib/qorum"), Path("/run/qorum"), hooks=Path("/etc/qorum/hooks.d")
)
"""Of root and of the service user."""


def directories(environment: Mapping[str, str] | None = None) -> Directories:
    """The directories of whoever runs this. Raises UsageError where none can be told."""
    env = os.environ if environment is None else environment
    overrides = {name: _override(env, name) for name in ("QORUM_CONFIG_DIR", "QORUM_STATE_DIR", "QORUM_RUNTIME_DIR")}
    if os.geteuid() == 0 or _user_name() == SERVICE_USER:
        service = SERVICE_DIRECTORIES
        config, state, runtime = service.config, service.state, service.runtime
    else:
        config = _xdg(env, "XDG_CONFIG_HOME", ".config", "QORUM_CONFIG_DIR") / "qorum" / "sets"
        state = _xdg(env, "XDG_STATE_HOME", ".local/state", "QORUM_STATE_DIR") / "qorum"
        runtime = _xdg_runtime(env) / "qorum"
    config = overrides["QORUM_CONFIG_DIR"] or config
    return Directories(
        config=config,
        state=overrides["QORUM_STATE_DIR"] or state,
        runtime=overrides["QORUM_RUNTIME_DIR"] or runtime,
        textfile=Path(textfile) if (textfile := env.get("QORUM_TEXTFILE_DIR")) else None,
        # Beside the definitions: sets of a test or a demonstration do not reach the hooks of this host.
        hooks=_override(env, "QORUM_HOOKS_DIR") or config.parent / "hooks.d",
    )


def make_directories(path: Path) -> None:
    """Makes `path` and its missing parents, none wider than 0755 under any umask: pathlib makes parents 0777.

    Raises OSError.
    """
    for directory in (*reversed(path.parents), path):
        if not directory.is_dir():
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o755)


def ensure_private(path: Path, mode: int = 0o700, *, group: int | None = None) -> None:
    """Makes `path` a directory of exactly `mode` that belongs to us (or to root, and that others cannot write to).

    Missing parents are made 0755: what they show is the names of sets. `group`: the gid that a mode such as 0710 speaks
    of. Raises RefusedError for a symbolic link, something that is no directory, and a directory of somebody else.
    """
    try:
        make_directories(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=mode & 0o700)
        if path.is_symlink():
            raise RefusedError(
                f"{path} is a symbolic link, where a directory of our own must be.",
                remedy="Remove it, or name the directory itself (QORUM_STATE_DIR, QORUM_RUNTIME_DIR).",
                path=str(path),
            )
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _make_private(fd, path, mode, group)
        finally:
            os.close(fd)
    except OSError as error:
        raise RefusedError(
            f"The directory {path} cannot be made or used: {reason(error)}.",
            remedy="Make it possible, or choose others with QORUM_CONFIG_DIR, QORUM_STATE_DIR and QORUM_RUNTIME_DIR.",
            path=str(path),
        ) from error


def check_ours(path: Path) -> None:
    """For whoever only looks: nobody else may have made this directory, or be able to put something into it.

    Changes nothing; one that does not exist is fine. Raises RefusedError.
    """
    try:
        link, facts = path.lstat(), path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RefusedError(
            f"The directory {path} cannot be used: {reason(error)}.", remedy="Check its rights.", path=str(path)
        ) from error
    trusted = {0, os.geteuid()}
    if foreign := [uid for uid in (link.st_uid, facts.st_uid) if uid not in trusted]:
        raise _foreign(path, foreign[0])
    if facts.st_mode & 0o022:
        raise RefusedError(f"{path} can be written by other users.", remedy=f"Run chmod go-w {path}.", path=str(path))


def _foreign(path: Path, uid: int) -> RefusedError:
    return RefusedError(
        f"{path} belongs to {_owner(uid)}, who could change what we keep there.",
        remedy=f"Run the command as {_owner(uid)}, give it to {_owner(os.geteuid())}, or choose another directory.",
        path=str(path),
    )


def _make_private(fd: int, path: Path, mode: int, group: int | None) -> None:
    facts = os.fstat(fd)
    if facts.st_uid not in {0, os.geteuid()}:
        raise _foreign(path, facts.st_uid)
    if facts.st_uid != os.geteuid():
        if facts.st_mode & 0o022:
            raise RefusedError(
                f"{path} can be written by other users.", remedy=f"Run chmod go-w {path}.", path=str(path)
            )
        return
    if group is not None and facts.st_gid != group:
        os.fchown(fd, -1, group)
    if stat.S_IMODE(facts.st_mode) != mode:
        os.fchmod(fd, mode)


def _checked(name: str) -> str:
    """A name from a command line becomes part of a path: `../../etc` must not."""
    try:
        return check_set_name(name)
    except ValueError as error:
        message, _, remedy = str(error).partition(": ")
        raise UsageError(f"{message}.", remedy=f"{remedy[:1].upper()}{remedy[1:]}.") from None


def _override(env: Mapping[str, str], variable: str) -> Path | None:
    value = env.get(variable)
    if not value:
        return None
    if not Path(value).is_absolute():
        raise UsageError(f"{variable} is '{value}', which is not an absolute path.", remedy="Give it one, or unset it.")
    return Path(value)


def _xdg(env: Mapping[str, str], variable: str, default: str, override: str) -> Path:
    # The XDG base directory specification: a relative path in one of these is to be ignored.
    value = env.get(variable, "")
    if Path(value).is_absolute():
        return Path(value)
    home = env.get("HOME") or _home()
    if not Path(home).is_absolute() and not env.get(override):
        raise UsageError(
            f"There is no home directory, and {variable} is not set.", remedy=f"Set HOME, {variable} or {override}."
        )
    return Path(home) / default


def _xdg_runtime(env: Mapping[str, str]) -> Path:
    value = env.get("XDG_RUNTIME_DIR", "")
    if not Path(value).is_absolute() and not env.get("QORUM_RUNTIME_DIR"):
        raise UsageError(
            "XDG_RUNTIME_DIR is not set, so there is no place for sockets.",
            remedy="Log in through a session that sets it, run this as root, or set QORUM_RUNTIME_DIR to a directory"
            " of your own with a short path.",
        )
    return Path(value)


def _user_name() -> str | None:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
