"""`export`: a set's data as an image file. `grow`: a larger set."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from qorumctl.cli import exit_codes
from qorumctl.cli.grammar import AsJson, Format, SetName, Verbose
from qorumctl.cli.outlet import outlet_of
from qorumctl.cli.sets import change, watched
from qorumctl.units import parse_size


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


def grow(
    ctx: typer.Context,
    name: SetName,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Of the whole disk, such as 40GiB.", show_default=False)],
    thin: Annotated[bool, typer.Option("--thin", help="Allow images larger than the free space.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make a stopped set larger, all of its copies or none.

    Image files are enlarged; devices and NBD exports must have the new size already, and what they hold behind the old
    end is zeroed. Ctrl-C and failures leave the old size; after a kill the next command on the set finishes it, or
    takes it back.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    size_bytes = parse_size(size)
    change(
        outlet,
        lambda sets, observer, control: sets.grow(name, size_bytes, thin=thin, observer=observer, control=control),
    )
