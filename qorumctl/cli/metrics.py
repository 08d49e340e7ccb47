"""`metrics`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from qorumctl.cli.grammar import AsJson, SetNames, Verbose
from qorumctl.cli.outlet import outlet_of
from qorumctl.errors import UsageError


def metrics(
    ctx: typer.Context,
    names: SetNames = None,
    textfile: Annotated[
        Path | None,
        typer.Option(
            "--textfile",
            metavar="FILE",
            help="Write them there instead, for node_exporter's textfile collector: its name ends in .prom.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Print metrics for Prometheus, of all sets by default.

    A set that cannot be told is 'failed', and the others are told all the same.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    if outlet.as_json:
        raise UsageError("Metrics are text for Prometheus, not JSON.", remedy="Use 'qorumctl status --json'.")
    if textfile is not None and textfile.suffix != ".prom":
        raise UsageError(f"{textfile} does not end in .prom.", remedy="node_exporter reads no other files: rename it.")
    from qorumctl.controller.sets import QuorumSets

    sets, wanted = QuorumSets(), list(dict.fromkeys(names or []))
    if textfile is None:
        if text := asyncio.run(sets.metrics(wanted)):
            outlet.text(text.removesuffix("\n"))
    else:
        asyncio.run(sets.write_metrics(textfile.absolute(), wanted))
