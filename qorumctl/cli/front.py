"""`front`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from qorumctl.cli.grammar import AsJson, SetName, Verbose
from qorumctl.cli.outlet import outlet_of
from qorumctl.errors import UsageError

if TYPE_CHECKING:
    from qorumctl.controller.sets import QuorumSets
    from qorumctl.model.status import FrontReport


def front(
    ctx: typer.Context,
    name: SetName,
    num_queues: Annotated[
        int | None,
        typer.Option(
            "--num-queues", metavar="N", help="For a guest with so many processors; 1 if not given.", show_default=False
        ),
    ] = None,
    config_wce_off: Annotated[
        bool,
        typer.Option(
            "--config-wce-off",
            help="Your word that the guest's device has config-wce=off: faster. If it has not, a power cut loses what "
            "the guest has fsynced.",
        ),
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End it. Refused while a guest is connected.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --stop: even while a guest is connected.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Serve a guest that speaks vhost-user-blk.

    Starts a second daemon, the front, between that guest and the volume of a set that runs; prints QEMU's arguments.
    Without --config-wce-off each write of the guest is on the copies before it is acknowledged.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render, render_front
    from qorumctl.controller.sets import QuorumSets

    if stop and (num_queues is not None or config_wce_off):
        raise UsageError("--stop goes with no option but --force.", remedy="Leave the others out.")
    if force and not stop:
        raise UsageError("--force goes with --stop alone.", remedy="Leave it out.")
    done = asyncio.run(_do(QuorumSets(), name, num_queues, config_wce_off, stop, force))
    outlet.document(done, render.words(render_front.front(done)))
    if not outlet.as_json and done.qemu:
        outlet.text("\n".join(f"    {line}" for line in render.shell_lines(done.qemu)))


async def _do(
    sets: QuorumSets, name: str, num_queues: int | None, config_wce_off: bool, stop: bool, force: bool
) -> FrontReport:
    if stop:
        return await sets.stop_front(name, force=force)
    return await sets.front(name, num_queues=1 if num_queues is None else num_queues, config_wce_off=config_wce_off)
