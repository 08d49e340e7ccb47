"""`hooks list`, `hooks test`, `hooks clear`, `hooks deliver`: the programs that are told of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from qorumctl.cli import exit_codes
from qorumctl.cli.grammar import AsJson, SetName, SetNames, Verbose
from qorumctl.cli.outlet import Outlet, outlet_of

if TYPE_CHECKING:
    from qorumctl.model.status import Result

app = typer.Typer(
    help="See, test and mend the programs that are told of events.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)


@app.command(name="list")
def list_hooks(ctx: typer.Context, names: SetNames = None, as_json: AsJson = False, verbose: Verbose = False) -> int:
    """Show which hooks are run, why another is not, what waits for them, and which fail.

    Exit codes: 0 all is well; 1 one is refused or fails.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render_hooks
    from qorumctl.controller.sets import QuorumSets

    sets = QuorumSets()
    report = sets.hooks.list(list(dict.fromkeys(names or sets.names())))
    outlet.document(report, *render_hooks.hooks(report))
    return 0 if report.ok else exit_codes.FAILED


@app.command(name="test")
def try_hooks(ctx: typer.Context, name: SetName, as_json: AsJson = False, verbose: Verbose = False) -> int:
    """Run each hook once, now, with an event 'test'.

    What a hook prints is shown. One that works here is no longer told of as failing.

    Exit codes: 0 each hook worked; 1 one did not, or there is none.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render_hooks
    from qorumctl.controller.sets import QuorumSets

    done = QuorumSets().hooks.test(name)
    outlet.document(done, *render_hooks.test(done))
    return 0 if done.ok else exit_codes.FAILED


@app.command(name="clear")
def clear_hooks(ctx: typer.Context, name: SetName, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Forget which hooks have failed, and drop the events that wait."""
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.sets import QuorumSets

    _tell(outlet, QuorumSets().hooks.clear(name))


@app.command(name="deliver")
def deliver_hooks(ctx: typer.Context, name: SetName, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Run the hooks for all events that wait.

    Whatever tells of an event begins this by itself, in the background. Returns at once where it is at work already.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.sets import QuorumSets

    _tell(outlet, QuorumSets().hooks.deliver(name))


def _tell(outlet: Outlet, done: Result) -> None:
    from qorumctl.cli import render

    outlet.document(done, *render.result(done))
