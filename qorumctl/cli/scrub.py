"""`scrub`, `pause`, `cancel`, `history`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qorumctl.cli import exit_codes
from qorumctl.cli.grammar import AsJson, SetName, SetNames, Transport, Verbose, parse_range
from qorumctl.cli.outlet import Outlet, error_document, outlet_of
from qorumctl.errors import QorumError, UsageError
from qorumctl.units import parse_budget, parse_rate

if TYPE_CHECKING:
    from qorumctl.cli.steering import Steering
    from qorumctl.controller.ledger import Ledger
    from qorumctl.controller.options import ScrubOptions
    from qorumctl.controller.sets import QuorumSets
    from qorumctl.core.tally import Tally
    from qorumctl.model.report import ScrubReport


def scrub(
    ctx: typer.Context,
    names: SetNames = None,
    every: Annotated[bool, typer.Option("--all", help="Every set that is not stopped.")] = False,
    report_only: Annotated[bool, typer.Option("--report", help="Write nothing, only tell.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what is found (what the policy says, by default).")
    ] = False,
    within: Annotated[
        str | None, typer.Option("--range", metavar="OFF:LEN", help="Only this range, such as 1GiB:64MiB.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            metavar="R",
            help="Read no faster from each copy, such as 200MiB/s; max: as fast as can be, whatever guests feel.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew instead of resuming an unfinished run.")] = False,
    thorough: Annotated[bool, typer.Option("--thorough", help="Read also what every copy reports as zero.")] = False,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="TIME", help="Stop after so long, such as 2h; the next scrub goes on there."),
    ] = None,
    transport: Annotated[Transport, typer.Option("--transport", help="How the copies are read.")] = "auto",
    count_suspects: Annotated[
        bool,
        typer.Option("--count-suspects", help="Let copies vote that have missed writes: where nothing else wins."),
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compare all copies, repair the minority.

    Every sector of every copy. Resumes an unfinished run.

    Exit codes: 0 nothing found; 1 it could not be done; 2 usage; 3 damage found, all repaired; 4 damage found and left;
    5 ranges without a majority; 6 unfinished (paused, cancelled, SIGTERM, out of time); 130 Ctrl-C, the run can be
    resumed.
    """
    outlet = outlet_of(ctx, as_json, verbose)
    options = _options(report_only, repair, within, rate, fresh, thorough, budget, transport, count_suspects)
    if bool(names) == every:
        raise UsageError(
            "Both sets and --all are given." if every else "No set is named.",
            remedy="Name the sets, or say --all. See 'qorumctl scrub --help'.",
        )
    from qorumctl.controller.sets import QuorumSets

    raise typer.Exit(asyncio.run(_scrub(outlet, QuorumSets(), list(dict.fromkeys(names or [])), options)))


def _options(
    report_only: bool,
    repair: bool,
    within: str | None,
    rate: str | None,
    fresh: bool,
    thorough: bool,
    budget: str | None,
    transport: Transport,
    count_suspects: bool,
) -> ScrubOptions:
    from qorumctl.controller.options import ScrubOptions

    if report_only and repair:
        raise UsageError("--report and --repair exclude each other.", remedy="Give one of them, or neither.")
    return ScrubOptions(
        mode="report" if report_only else "repair" if repair else None,
        within=None if within is None else parse_range(within),
        rate_bytes_per_s=None if rate in {None, "max"} else parse_rate(rate),
        full_speed=rate == "max",
        fresh=fresh,
        thorough=thorough,
        budget_s=(None if budget is None else parse_budget(budget)) or None,
        transport=transport,
        count_suspects=count_suspects,
    )


async def _scrub(outlet: Outlet, sets: QuorumSets, names: Sequence[str], options: ScrubOptions) -> int:
    """One set after the other: their copies may share disks. Every definition is read before the first is touched."""
    from qorumctl.cli.json_stream import scrub_document
    from qorumctl.cli.progress import display
    from qorumctl.cli.steering import Steering, steered
    from qorumctl.controller.observer import ScrubControl

    single = len(names) == 1
    if not names:
        names = await _running(outlet, sets)
    for name in names:
        sets.show(name)
    began_s = time.monotonic()
    codes: list[int] = []
    documents: list[dict[str, Any]] = []
    with display(outlet) as shown:
        steering = Steering(outlet, ScrubControl(), shown)
        with steered(steering):
            for name in names:
                left_s = None if options.budget_s is None else options.budget_s - (time.monotonic() - began_s)
                if steering.stopped or (left_s is not None and left_s <= 0):
                    break
                try:
                    asked = replace(options, budget_s=left_s)
                    report = await sets.scrub(
                        name, asked, observer=shown, control=steering.control, with_findings=False
                    )
                    ledger = sets.ledger(name, report.run)
                    tally = ledger.tally()
                except QorumError as error:
                    code = error.exit_code
                    if steering.stopped and error.code == "interrupted":
                        # Before the run had begun: a copy that an earlier one had taken out was being brought back.
                        code = exit_codes.INTERRUPTED if steering.interrupted else exit_codes.UNFINISHED
                    elif single:
                        raise
                    if single:
                        shown.hide()
                        outlet.error(error, exit_code=code)
                        return code
                    codes.append(code)
                    documents.append(error_document(error, code))
                    outlet.complain(error, of_set=name, exit_code=code)
                else:
                    codes.append(exit_codes.of_scrub(report, tally=tally, interrupted=steering.interrupted))
                    documents.append(scrub_document(report, ledger.findings()))
                    shown.hide()
                    _tell(outlet, report, ledger, tally, steering)
    if outlet.as_json:
        outlet.json(documents[0] if single else {"sets": documents})
    return exit_codes.worst([*codes, *_left_undone(steering, len(names) - len(codes))])


def _tell(outlet: Outlet, report: ScrubReport, ledger: Ledger, tally: Tally, steering: Steering) -> None:
    from qorumctl.cli import render_scrub

    if not outlet.as_json and not outlet.is_logged:
        worst = ledger.worst(render_scrub.MOST_ROWS, tally)
        outlet.show(*render_scrub.scrub(report, tally=tally, worst=worst, interrupted=steering.interrupted))


def _left_undone(steering: Steering, sets: int) -> list[int]:
    if sets == 0:
        return []
    return [exit_codes.INTERRUPTED if steering.interrupted else exit_codes.UNFINISHED]


async def _running(outlet: Outlet, sets: QuorumSets) -> list[str]:
    from qorumctl.model.status import SetState

    listed = (await sets.list()).sets
    stopped = [one.name for one in listed if one.state is SetState.STOPPED and one.error is None]
    for name in stopped:
        outlet.note(f"{name} is stopped and left out.")
    names = [one.name for one in listed if one.name not in stopped]
    if not names:
        outlet.note("No set runs: there is nothing to scrub.")
    return names


def pause(ctx: typer.Context, name: SetName, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Stop a running scrub, to be resumed."""
    _ask_to_stop(outlet_of(ctx, as_json, verbose), name, "pause")


def cancel(ctx: typer.Context, name: SetName, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Give up a running scrub."""
    _ask_to_stop(outlet_of(ctx, as_json, verbose), name, "cancel")


def _ask_to_stop(outlet: Outlet, name: str, command: str) -> None:
    from qorumctl.cli.json_stream import scrub_document
    from qorumctl.cli.render import words
    from qorumctl.cli.scrub_words import asked_to_stop
    from qorumctl.controller.sets import QuorumSets

    sets = QuorumSets()
    ask = sets.pause if command == "pause" else sets.cancel
    report = asyncio.run(ask(name, with_findings=False))
    if outlet.as_json:
        outlet.json(scrub_document(report, sets.ledger(name, report.run).findings()))
    else:
        outlet.show(words(asked_to_stop(report, command)))


def history(ctx: typer.Context, name: SetName, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Show past runs, the newest first, and what has happened to each copy."""
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.cli import render_history
    from qorumctl.controller.sets import QuorumSets

    document = QuorumSets().history(name)
    outlet.document(document, *([] if outlet.as_json else render_history.history(document)))
