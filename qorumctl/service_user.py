"""Root acts as the service user, once that has the state directory (`make install` and systemd-tmpfiles see to it).

Sets that units run belong to `qorum`; what root made beside them, no unit could use, and what `qorum` can change, root
must not trust. So root's commands on them run with the rights of `qorum`, as the units do.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qorumctl import paths
from qorumctl.errors import RefusedError
from qorumctl.files import reason
from qorumctl.paths import Directories


def acting_user(directories: Directories) -> pwd.struct_passwd | None:
    """Whom root acts as. None: we are not root, or these are not the service user's directories."""
    if os.geteuid() != 0 or directories.state != paths.SERVICE_DIRECTORIES.state:
        return None
    user = service_user()
    return user if user is not None and user.pw_uid != 0 and owns_state(user, directories) else None


def service_user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(paths.SERVICE_USER)
    except KeyError:
        return None


def owns_state(user: pwd.struct_passwd, directories: Directories) -> bool:
    try:
        return directories.state.stat().st_uid == user.pw_uid
    except OSError:
        return False


def become(user: pwd.struct_passwd) -> None:
    """For good, with all groups of `user` and its home: in another what we start must not look for modules."""
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except OSError as error:
        raise _cannot(user, error) from None
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
    program = Path(__file__)
    if not os.access(program, os.R_OK):
        # A checkout in root's home. Most of our modules are yet to be imported.
        raise RefusedError(
            f"{user.pw_name}, as whom root's commands run here, cannot read {program.parent}.",
            remedy="Run the qorumctl that 'make install' has placed, or move the checkout to where all can read it.",
        )


@contextmanager
def acting_as(user: pwd.struct_passwd | None) -> Iterator[None]:
    """For the block. The process has one user: nothing else may go on in other threads meanwhile."""
    if user is None:
        yield
        return
    groups, gid, uid = os.getgroups(), os.getegid(), os.geteuid()
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setegid(user.pw_gid)
        os.seteuid(user.pw_uid)
    except OSError as error:
        raise _cannot(user, error) from None
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def _cannot(user: pwd.struct_passwd, error: OSError) -> RefusedError:
    return RefusedError(
        f"Root cannot act as {user.pw_name} here: {reason(error)}.",
        remedy=f"Run the command as {user.pw_name}, as in 'runuser -u {user.pw_name} -- qorumctl list'.",
    )
