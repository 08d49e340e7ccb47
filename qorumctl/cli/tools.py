"""`attach`, `doctor`, `qmp`, `schema`, `demo`."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qorumctl.cli import exit_codes
from qorumctl.cli.grammar import AsJson, Form, SetName, Verbose
from qorumctl.cli.outlet import outlet_of
from qorumctl.errors import UsageError
from qorumctl.units import parse_size


def attach(
    ctx: typer.Context,
    name: SetName,
    form: Annotated[
        Form | None, typer.Option("--as", help="Print this form and nothing else, ready to be pasted.")
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", metavar="S", help="Of a guest that uses vhost-user-blk, which shares it.")
    ] = "1GiB",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show how a guest uses the volume.

    As an NBD URI, as arguments of QEMU, as a libvirt disk; vhost-user-blk, for which 'qorumctl front' has to run.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render
    from qorumctl.controller.sets import QuorumSets

    report = asyncio.run(QuorumSets().attach(name, memory_bytes=parse_size(memory)))
    if outlet.as_json:
        outlet.document(report)
        return
    match form:
        case "uri":
            outlet.text(report.uri)
        case "qemu":
            outlet.text("\n".join(render.shell_lines(report.qemu)))
        case "libvirt":
            outlet.text(report.libvirt.strip())
        case "vhost-user-blk":
            outlet.text("\n".join(render.shell_lines(report.vhost_user_blk)))
        case None:
            outlet.text("\n".join(render.attach(report)))


def doctor(
    ctx: typer.Context,
    path: Annotated[
        Path | None, typer.Option("--path", metavar="DIR", help="Also try O_DIRECT there.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Look at what this machine offers.

    Says what to install or change. Exit code 1 if anything is missing.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render
    from qorumctl.controller.doctor import examine
    from qorumctl.paths import directories

    report = asyncio.run(examine(directories(), path=None if path is None else path.absolute()))
    outlet.document(report, *render.checks(report))
    raise typer.Exit(exit_codes.FINE if report.ok else exit_codes.FAILED)


def qmp(
    ctx: typer.Context,
    name: SetName,
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="Such as query-version.", show_default=False)],
    arguments: Annotated[
        str | None, typer.Argument(metavar="JSON", help="Its arguments, one JSON object.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Send one QMP command to a set's daemon.

    Prints the answer. A command can break the set: know what you do.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    values = parse_arguments(arguments)
    from qorumctl.controller.sets import QuorumSets

    report = asyncio.run(QuorumSets().qmp(name, command, values))
    if outlet.as_json:
        outlet.document(report)
    else:
        outlet.json(report.result)


def parse_arguments(text: str | None) -> dict[str, Any]:
    """Raises UsageError for anything but a JSON object."""
    try:
        values = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"The arguments are not JSON: {error}.", remedy="""Quote them: '{"key": "value"}'."""
        ) from None
    if not isinstance(values, dict):
        raise UsageError("The arguments are not a JSON object.", remedy="""Use '{"key": "value"}'.""")
    return values


def schema(
    ctx: typer.Context,
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="Such as scrub-report.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Print a JSON schema, or list the kinds.

    Of what `--json` prints, and of definitions.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.model.schema import KINDS, schema_of

    if kind is None and outlet.as_json:
        outlet.json({"kinds": list(KINDS)})
    elif kind is None:
        outlet.text("\n".join(KINDS))
    elif kind in KINDS:
        outlet.json(schema_of(kind))
    else:
        raise UsageError(f"There is no schema '{kind}'.", remedy=f"Kinds: {', '.join(KINDS)}.")


def demo(
    ctx: typer.Context,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the set for playing.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show it all on a set of its own.

    Makes a real set in a temporary directory, damages it, scrubs it, and proves what was repaired.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    raise typer.Exit(int(importlib.import_module("qorumctl.cli.demo").run(outlet, keep=keep)))
