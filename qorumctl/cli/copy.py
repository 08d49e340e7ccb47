"""`copy detach`, `copy rejoin`: what happens to one copy while the set runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from qorumctl.cli.grammar import AsJson, SetName, Verbose
from qorumctl.cli.outlet import Outlet, outlet_of
from qorumctl.cli.sets import watched

if TYPE_CHECKING:
    from qorumctl.model.status import CopyResult

app = typer.Typer(
    help="Take a copy out of a running set, and bring it back.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)

CopyName = Annotated[str, typer.Argument(metavar="COPY", help="The copy, such as b.", show_default=False)]


@app.command()
def detach(
    ctx: typer.Context,
    name: SetName,
    copy: CopyName,
    force: Annotated[
        bool, typer.Option("--force", help="Though it does not answer; all of it has to be compared when it returns.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Take a copy out, for maintenance of what it lies on.

    The others serve on; the daemon records what the copy misses. Refused where too few current copies would remain.
    Can be repeated after any interruption.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.sets import QuorumSets

    _tell(outlet, asyncio.run(QuorumSets().detach(name, copy, force=force)))


@app.command()
def rejoin(
    ctx: typer.Context,
    name: SetName,
    copy: CopyName,
    full: Annotated[
        bool, typer.Option("--full", help="Compare all of it, and write what differs, whatever is on record.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Bring a copy up to date and back in, while guests work.

    Copies what it missed; where that is not on record, compares all of it and writes only what differs. Ctrl-C, a kill,
    or a failure leave it away: the same command goes on.

    Exit codes: 0 it is back; 1 it is not; 2 usage; 130 Ctrl-C.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.sets import QuorumSets

    done = asyncio.run(
        watched(
            outlet,
            QuorumSets(),
            lambda sets, observer, control: sets.rejoin(name, copy, full=full, observer=observer, control=control),
        )
    )
    _tell(outlet, done)


def _tell(outlet: Outlet, done: CopyResult) -> None:
    from qorumctl.cli import render

    for text in done.warnings:
        outlet.warning(text)
    outlet.document(done, *render.copy_result(done))
