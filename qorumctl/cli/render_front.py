"""A front -> what people read. Pure."""

from __future__ import annotations

from qorumctl.model.status import FrontReport, FrontStatus


def front(done: FrontReport) -> str:
    """One sentence; the arguments of a guest come after it, in lines of their own."""
    if done.front is None:
        return f"The front of {done.set} is stopped." if done.changed else f"{done.set} has no front."
    text = "is started" if done.changed else "runs already: nothing was changed"
    return f"The front of {done.set} {text}. A guest of 1 GiB uses it so:"


def front_line(set_name: str, one: FrontStatus) -> str:
    if one.pid is None:
        return f"ended without being stopped: power off its guest, then run 'qorumctl front {set_name} --stop'"
    guest = {True: "a guest is connected", False: "no guest", None: "nobody can tell whether a guest is connected"}
    away = "" if one.connected is not False else "; not connected to the volume, until a guest asks for it"
    wce = "" if one.write_through else ", for a guest with config-wce=off"
    return f"{one.socket} (vhost-user-blk{wce}), pid {one.pid}, {guest[one.guest]}{away}"
