"""`create`, `start`, `stop`, `restart`, `list`, `status`, `show`, `check`, `delete`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from qorumctl.cli import exit_codes
from qorumctl.cli.grammar import (
    AsJson,
    Cache,
    Degraded,
    Force,
    Format,
    ImportFormat,
    Now,
    Policy,
    SetName,
    SetNames,
    Takeover,
    Verbose,
)
from qorumctl.cli.outlet import Outlet, outlet_of
from qorumctl.cli.text import printable
from qorumctl.errors import QorumError, RefusedError, UsageError
from qorumctl.units import parse_size

T = TypeVar("T")
if TYPE_CHECKING:
    from qorumctl.controller.observer import Observer, ScrubControl
    from qorumctl.controller.sets import QuorumSets
    from qorumctl.model.status import Result, ShowReport

    Work = Callable[[QuorumSets, Observer, ScrubControl], Awaitable[Result]]


def create(
    ctx: typer.Context,
    name: SetName,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="An absolute path, a /dev/... device, or an nbd://, nbds://, nbd+unix:// URI; three or more, odd.",
            show_default=False,
        ),
    ],
    size: Annotated[
        str | None, typer.Option("--size", metavar="S", help="For images that do not exist yet, such as 20GiB.")
    ] = None,
    image_format: Annotated[Format, typer.Option("--format", help="Of image files.")] = "raw",
    policy: Annotated[
        Policy, typer.Option("--policy", help="repair: rewrite outvoted sectors; report: never rewrite anything.")
    ] = "repair",
    threshold: Annotated[
        int | None,
        typer.Option("--threshold", metavar="T", help="Votes needed to win (more than half).", show_default=False),
    ] = None,
    cache: Annotated[
        Cache, typer.Option("--cache", help="none: see the medium (O_DIRECT); writeback: through the page cache.")
    ] = "none",
    thin: Annotated[bool, typer.Option("--thin", help="Allow images larger than the free space.")] = False,
    import_from: Annotated[
        str | None,
        typer.Option("--from", metavar="IMAGE", help="Fill the new set from this image.", show_default=False),
    ] = None,
    from_format: Annotated[
        ImportFormat | None,
        typer.Option("--from-format", help="Of IMAGE; it is never guessed.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --from: what devices and exports hold is lost.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Define a set.

    Images that are all missing are created; images that all exist are compared in full. With --from they are created
    and filled, and compared with IMAGE in full. Ctrl-C gives up; after a kill the same command begins anew.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.options import CreateOptions

    options = CreateOptions(
        size_bytes=None if size is None else parse_size(size),
        format=image_format,
        policy=policy,
        threshold=threshold,
        cache=cache,
        thin=thin,
        import_from=import_from,
        import_format=from_format,
        overwrite=overwrite,
    )
    if import_from is None and (from_format is not None or overwrite):
        raise UsageError("--from-format and --overwrite are about what --from names.", remedy="Add --from IMAGE.")
    change(
        outlet, lambda sets, observer, control: sets.create(name, sources, options, observer=observer, control=control)
    )


def start(
    ctx: typer.Context,
    name: SetName,
    now: Now = False,
    degraded: Degraded = False,
    takeover: Takeover = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Start a set, and let guests in. After an unclean stop it is scrubbed first."""
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller import managed

    options = managed.StartOptions(now, degraded, takeover)
    change(
        outlet,
        lambda sets, observer, control: managed.start(sets, outlet.manager, name, options, observer, control),
    )


def stop(
    ctx: typer.Context, name: SetName, force: Force = False, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    """Drain, flush and stop a set. Refused while a guest is connected."""
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller import managed

    change(outlet, lambda sets, observer, control: managed.stop(sets, outlet.manager, name, force=force))


def restart(
    ctx: typer.Context,
    name: SetName,
    force: Force = False,
    now: Now = False,
    degraded: Degraded = False,
    takeover: Takeover = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Stop a set and start it again; applies a changed definition."""
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller import managed

    options = managed.StartOptions(now, degraded, takeover)
    change(
        outlet,
        lambda sets, observer, control: managed.restart(
            sets, outlet.manager, name, options, observer, control, force=force
        ),
    )


def change(outlet: Outlet, work: Work) -> None:
    """Runs a command that changes a set, and may scrub it on the way."""
    from qorumctl.controller.sets import QuorumSets

    sets = QuorumSets()
    done = asyncio.run(watched(outlet, sets, work))
    for text in done.warnings:
        outlet.warning(text, set_name=done.set)
    _tell(outlet, sets, done)


async def watched(
    outlet: Outlet, sets: QuorumSets, work: Callable[[QuorumSets, Observer, ScrubControl], Awaitable[T]]
) -> T:
    """Ctrl-C while copies are read stops that; the command then ends in order, with its own words."""
    from qorumctl.cli.progress import display
    from qorumctl.cli.steering import Steering, SteerOnceStarted
    from qorumctl.controller.observer import ScrubControl

    control = ScrubControl()
    with display(outlet) as shown:
        steering = Steering(outlet, control, shown)
        observer = SteerOnceStarted(shown, steering)
        try:
            with observer:
                return await work(sets, observer, control)
        except asyncio.CancelledError:
            if observer.cancelled_by is None:
                raise
            raise typer.Exit(exit_codes.of_signal(observer.cancelled_by)) from None
        except QorumError as error:
            if not steering.interrupted:
                raise
            interrupted = error
    outlet.error(interrupted, exit_code=exit_codes.INTERRUPTED)
    raise typer.Exit(exit_codes.INTERRUPTED)


def _tell(outlet: Outlet, sets: QuorumSets, done: Result) -> None:
    from qorumctl.cli import render, render_scrub

    if outlet.is_logged:
        return
    if not outlet.as_json and done.recovery is not None:
        ledger = sets.ledger(done.set, done.recovery)
        tally = ledger.tally()
        worst = ledger.worst(render_scrub.MOST_ROWS, tally)
        outlet.show(*render_scrub.scrub(ledger.report(), tally=tally, worst=worst))
    outlet.document(done, *render.result(done))


def list_sets(ctx: typer.Context, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """List the sets, with their states."""
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render
    from qorumctl.controller.sets import QuorumSets

    report = asyncio.run(QuorumSets().list())
    outlet.document(report, *render.sets(report))


def status(ctx: typer.Context, names: SetNames = None, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Show how sets are, all of them by default.

    Exit codes: 0 healthy; 4 degraded; 5 damaged (ranges without a majority); 1 stopped, stalled or failed; of several
    sets, the worst.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render
    from qorumctl.controller.sets import QuorumSets

    report = asyncio.run(QuorumSets().status(list(dict.fromkeys(names or []))))
    outlet.document(report, *render.status(report))
    raise typer.Exit(exit_codes.of_states(one.state for one in report.sets))


def show(ctx: typer.Context, name: SetName, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Show a set's definition, and where its files are."""
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render
    from qorumctl.controller.sets import QuorumSets

    report = QuorumSets().show(name)
    outlet.document(report, *render.show(report))


def check(ctx: typer.Context, name: SetName, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Look a set over, and change nothing.

    Its definition, images, identity and daemon. Exit code 1 if anything is wrong.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render
    from qorumctl.controller.sets import QuorumSets

    report = asyncio.run(QuorumSets().check(name))
    outlet.document(report, *render.checks(report))
    raise typer.Exit(exit_codes.FINE if report.ok else exit_codes.FAILED)


def delete(
    ctx: typer.Context,
    name: SetName,
    images: Annotated[
        bool, typer.Option("--images", help="Also delete the image files, and all data in them.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Delete a stopped set.

    Its definition and its history; with --images its data.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.sets import QuorumSets

    sets = QuorumSets()
    if not yes:
        _confirm(outlet, sets.show(name), images)
    _tell(outlet, sets, asyncio.run(sets.delete(name, images=images)))


def _confirm(outlet: Outlet, report: ShowReport, images: bool) -> None:
    """Asks, naming all that goes. Raises where nobody can answer, and where the answer is no."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"Deleting '{report.definition.name}' needs an answer, and nobody is there to give it.",
            remedy="Say --yes; nothing was changed.",
            set_name=report.definition.name,
        )
    outlet.note(f"This deletes the set {report.definition.name}:")
    for path in what_goes(report, images=images):
        outlet.note(f"  {path}")
    if not images:
        outlet.note("Its image files stay.")
    outlet.err.print(f"Delete {'all of this, and the data in it' if images else 'this'}? [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise RefusedError("Nothing was changed.", set_name=report.definition.name)


def what_goes(report: ShowReport, *, images: bool) -> list[str]:
    """Paths. Devices and NBD exports are nobody's to delete."""
    paths = [report.definition_path, f"{report.state_directory}/ (its history)"]
    if images:
        paths += [copy.source.label for copy in report.definition.copies if copy.source.type == "file"]
    return [printable(path) for path in paths]
