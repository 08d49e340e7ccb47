"""`copy detach`, `copy rejoin`, `copy replace`: what happens to one copy while the set runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from qorumctl.cli.grammar import AsJson, Format, SetName, Verbose
from qorumctl.cli.outlet import Outlet, outlet_of
from qorumctl.cli.sets import watched
from qorumctl.errors import UsageError
from qorumctl.units import parse_rate

if TYPE_CHECKING:
    from qorumctl.model.status import CopyResult

app = typer.Typer(
    help="Take a copy out of a running set, bring it back, or replace it.",
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


@app.command()
def replace(
    ctx: typer.Context,
    name: SetName,
    copy: CopyName,
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SOURCE]", help="The new image, as for create. Without it: go on.", show_default=False),
    ] = None,
    image_format: Annotated[
        Format | None, typer.Option("--format", help="Of a new image file: raw, unless said.", show_default=False)
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option("--rate", metavar="R", help="The most read from each copy, such as 50MiB/s.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Though the device or the export holds something: that is lost.")
    ] = False,
    thin: Annotated[bool, typer.Option("--thin", help="Allow an image larger than the free space.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Give up: the old image keeps its place.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Put another image in a copy's place, while guests work.

    The new image is brought up to date and proven before the old one leaves; the old image is left as it is. Also for a
    copy that is gone for good. Ctrl-C, a kill or a failure leave the old one in place: the same command goes on,
    --cancel gives up.

    Exit codes: 0 it is replaced; 1 it is not; 2 usage; 130 Ctrl-C.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.options import ReplaceOptions
    from qorumctl.controller.sets import QuorumSets

    if cancel and source is not None:
        raise UsageError("--cancel takes no SOURCE.", remedy="Leave it out.")
    options = ReplaceOptions(
        format=image_format,
        overwrite=overwrite,
        thin=thin,
        rate_bytes_per_s=None if rate is None else parse_rate(rate),
        cancel=cancel,
    )
    done = asyncio.run(
        watched(
            outlet,
            QuorumSets(),
            lambda sets, observer, control: sets.replace(
                name, copy, source, options, observer=observer, control=control
            ),
        )
    )
    _tell(outlet, done)


def _tell(outlet: Outlet, done: CopyResult) -> None:
    from qorumctl.cli import render

    for text in done.warnings:
        outlet.warning(text)
    outlet.document(done, *render.copy_result(done))
