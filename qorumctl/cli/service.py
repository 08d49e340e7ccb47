"""`enable`, `disable`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qorumctl.cli.grammar import AsJson, SetName, Verbose
from qorumctl.cli.outlet import Outlet, outlet_of

if TYPE_CHECKING:
    from qorumctl.model.status import Result


def enable(
    ctx: typer.Context,
    name: SetName,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            metavar="WHEN",
            help="Scrubs: nightly, daily, weekly, monthly, or what OnCalendar= of systemd takes, such as 'Sat 03:00'.",
        ),
    ] = "monthly",
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="T",
            help="A scrub pauses after T, such as 4h (nightly) or 0 (never); the next one goes on there.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Have systemd start a set at boot, and scrub it.

    Again, with another schedule: changes it. Starts nothing now. As root, with the units of 'make install'.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.sets import QuorumSets

    _tell(outlet, QuorumSets().enable(name, schedule, budget=budget))


def disable(ctx: typer.Context, name: SetName, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Take back what enable did. A set that runs goes on."""
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.sets import QuorumSets

    _tell(outlet, QuorumSets().disable(name))


def _tell(outlet: Outlet, done: Result) -> None:
    from qorumctl.cli import render

    for text in done.warnings:
        outlet.warning(text)
    outlet.document(done, *render.result(done))
