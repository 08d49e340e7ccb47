"""`watch`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qorumctl.cli.grammar import AsJson, SetName, Verbose
from qorumctl.cli.outlet import Outlet, outlet_of
from qorumctl.cli.text import printable

_POLL_S = 0.02
if TYPE_CHECKING:
    from qorumctl.controller.sets import QuorumSets
    from qorumctl.model.status import EventDocument


def watch(
    ctx: typer.Context,
    name: SetName,
    detached: Annotated[bool, typer.Option("--detached", hidden=True)] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Tell what the daemon says of the copies, as it happens.

    Write errors, outvoted reads, requests without a majority. 'start' begins one in the background, which marks copies
    that missed a write; while that runs, this one tells what it writes down. Ends with Ctrl-C or SIGTERM.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.sets import QuorumSets

    asyncio.run(_watch(QuorumSets(), name, _Teller(outlet), detached))


class _Teller:
    """A controller.watching.Audience. Events go to standard output, a line each, also with `--json`; or to the journal,
    where that leads there."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def heard(self, event: EventDocument) -> None:
        if self._outlet.is_logged:
            from qorumctl.controller import telling

            telling.heard(event)
        elif self._outlet.as_json:
            self._outlet.text(json.dumps(event.model_dump(mode="json", by_alias=True), ensure_ascii=False))
        else:
            self._outlet.text(printable(line(event)))

    def note(self, text: str) -> None:
        self._outlet.note(text)


def line(event: EventDocument) -> str:
    return f"{event.time} {event.text}{'; it has missed a write' if event.missed_write else ''}"


async def _watch(sets: QuorumSets, name: str, teller: _Teller, detached: bool) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(sets.watch(name, teller, detached=detached))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    ready = asyncio.ensure_future(_tell_systemd(sets, name))
    with contextlib.suppress(asyncio.CancelledError):
        await task
    ready.cancel()


async def _tell_systemd(sets: QuorumSets, name: str) -> None:
    """sd_notify(3): the set may be started once somebody listens. Otherwise its start would begin a watcher, too."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    from qorumctl.controller.watcher import LOCK_NAME
    from qorumctl.store import SetLock

    state_directory = Path(sets.show(name).state_directory)
    while SetLock.held_by(state_directory, file_name=LOCK_NAME) is None:
        await asyncio.sleep(_POLL_S)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
        notifying.sendto(b"READY=1", f"\0{address[1:]}" if address.startswith("@") else address)
