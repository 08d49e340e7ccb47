"""`resolve`: an operator's decision about a range without a majority."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qorumctl.cli import exit_codes
from qorumctl.cli.grammar import AsJson, SetName, Verbose
from qorumctl.cli.outlet import Outlet, outlet_of
from qorumctl.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from qorumctl.model.evidence import ResolveReport


def resolve(
    ctx: typer.Context,
    name: SetName,
    finding: Annotated[
        int | None, typer.Option("--finding", metavar="ID", min=1, help="Which, by 'report'.", show_default=False)
    ] = None,
    decision: Annotated[
        str | None,
        typer.Option(
            "--with", metavar="WHAT", help="copy=NAME, bitwise, or file=PATH (exactly the range).", show_default=False
        ),
    ] = None,
    undo: Annotated[
        int | None,
        typer.Option("--undo", metavar="ID", min=1, help="Restore what was saved as this.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Cut off guests that are connected; with --undo, also over what guests have written since."
        ),
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write what you decide on over a range without a majority; or undo that.

    The volume is withdrawn from guests meanwhile. What every copy holds there is saved first. See 'report --finding'.

    Exit codes: 0 done; 1 refused, or a copy does not hold what was written; 2 usage.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render_evidence
    from qorumctl.controller.options import ResolveRequest
    from qorumctl.controller.sets import QuorumSets

    sets = QuorumSets()
    request = ResolveRequest(finding, decision, undo, dry_run=dry_run, force=force)
    if not dry_run and not yes:
        shown = _run(sets.resolve(name, replace(request, dry_run=True)))
        _confirm(outlet, shown)
        request = replace(request, expected_plan=shown.plan)
    done = _run(sets.resolve(name, request))
    if dry_run or yes:
        for text in done.warnings:
            outlet.warning(text)
    outlet.document(done, *render_evidence.resolved(done))


def _run(work: Coroutine[Any, Any, ResolveReport]) -> ResolveReport:
    """SIGTERM, or a terminal that is gone, is as Ctrl-C: what was begun ends in order, and guests get their volume back
    now, and not with the next command."""
    ended_by: list[int] = []

    async def steered() -> ResolveReport:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def end(number: int) -> None:
            ended_by.append(number)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                loop.add_signal_handler(number, end, number)
        return await task

    try:
        return asyncio.run(steered())
    except asyncio.CancelledError:
        raise typer.Exit(exit_codes.of_signal(ended_by[0]) if ended_by else exit_codes.INTERRUPTED) from None


def _confirm(outlet: Outlet, shown: ResolveReport) -> None:
    """Asks, showing what would be written where. Raises where nobody can answer, and where the answer is no."""
    from qorumctl.cli import render_evidence

    if not sys.stdin.isatty():
        raise UsageError(
            f"Writing to the copies of {shown.set} needs an answer, and nobody is there to give it.",
            remedy="Say --yes; nothing was changed.",
            set_name=shown.set,
        )
    for text in shown.warnings:
        outlet.warning(text)
    for renderable in render_evidence.resolved(shown):
        outlet.err.print(renderable)
    outlet.err.print(f"Withdraw the volume of {shown.set} from guests, and write this? [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise RefusedError("Nothing was changed.", set_name=shown.set)
