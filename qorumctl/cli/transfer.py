"""`export`: a set's data as an image file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from qorumctl.cli import exit_codes
from qorumctl.cli.grammar import AsJson, Format, SetName, Verbose
from qorumctl.cli.outlet import outlet_of
from qorumctl.cli.sets import watched


def export(
    ctx: typer.Context,
    name: SetName,
    path: Annotated[str, typer.Argument(metavar="FILE", help="An absolute path.", show_default=False)],
    image_format: Annotated[Format, typer.Option("--format", help="Of FILE.")] = "raw",
    partial: Annotated[
        bool, typer.Option("--partial", help="Of a stopped set: fill what has no majority with a marker.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    thin: Annotated[bool, typer.Option("--thin", help="Try it though the free space may not do.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write what a set holds to an image file.

    What enough current copies agree on, compared with the file before that is put in place. A running set is exported
    as of one moment, while guests write. Ranges without a majority are listed, and nothing is exported.

    Exit codes: 0 exported; 1 it could not be done; 2 usage; 5 ranges without a majority, also with --partial; 130
    Ctrl-C.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render_transfer
    from qorumctl.controller.options import ExportOptions
    from qorumctl.controller.sets import QuorumSets

    options = ExportOptions(format=image_format, partial=partial, overwrite=overwrite, thin=thin)
    sets = QuorumSets()
    done = asyncio.run(
        watched(
            outlet,
            sets,
            lambda sets, observer, control: sets.export(name, Path(path), options, observer=observer, control=control),
        )
    )
    for text in done.warnings:
        outlet.warning(text, set_name=done.set)
    outlet.document(done, *render_transfer.export(done))
    raise typer.Exit(exit_codes.NO_MAJORITY if done.no_majority else exit_codes.FINE)
