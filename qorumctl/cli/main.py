"""`qorumctl`: the program. Joins the commands, and turns whatever goes wrong into a sentence and an exit code."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from qorumctl import __version__
from qorumctl.cli import (
    copy,
    exit_codes,
    front,
    hooks,
    metrics,
    report,
    resolve,
    scrub,
    service,
    sets,
    tools,
    transfer,
    watch,
)
from qorumctl.cli.grammar import AsJson, Verbose
from qorumctl.cli.outlet import Outlet, outlet_of
from qorumctl.errors import QorumError, UsageError

_COMMANDS = (
    sets.create, sets.start, sets.stop, sets.restart, sets.status, sets.list_sets, sets.show, sets.check, sets.delete,
    scrub.scrub, scrub.pause, scrub.cancel, report.report, resolve.resolve, scrub.history, watch.watch, metrics.metrics,
    transfer.export, transfer.grow, service.enable, service.disable,
    tools.attach, front.front, tools.doctor, tools.qmp, tools.schema,
)  # fmt: skip


def grammar(only: str | None = None) -> typer.Typer:
    """All commands, or the one that is asked for: to take thirty signatures apart costs as much as to run one."""
    made = typer.Typer(
        name="qorumctl",
        help="Keeps a disk as three or more copies, votes on every sector, repairs the minority.",
        epilog="See 'qorumctl COMMAND --help'. Exit codes: 'qorumctl scrub --help', 'qorumctl status --help'.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    )
    made.callback()(_globals)
    commands: dict[str, Callable[..., None]] = {
        command.__name__.removesuffix("_sets"): command for command in _COMMANDS
    }
    if importlib.util.find_spec("qorumctl.cli.demo") is not None:
        commands["demo"] = tools.demo
    groups = {"copy": copy.app, "hooks": hooks.app}
    if only not in {*commands, *groups}:
        only = None
    for name, command in commands.items():
        if only in {None, name}:
            made.command(name=name)(command)
    for name, group in groups.items():
        if only in {None, name}:
            made.add_typer(group, name=name)
    return made


# typer's own hierarchy of errors is not public, and moved between versions; its root is.
_ClickUsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _print_version(wanted: bool) -> None:
    if wanted:
        Outlet().text(f"qorumctl {__version__}")
        raise typer.Exit


def _globals(
    ctx: typer.Context,
    as_json: AsJson = False,
    verbose: Verbose = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    outlet = outlet_of(ctx, as_json, verbose)
    if os.geteuid() == 0 and ctx.invoked_subcommand not in _AS_ROOT:
        _act_as_service_user(outlet, with_units=ctx.invoked_subcommand in _WITH_UNITS)


_AS_ROOT = {"enable", "disable", "demo"}
_WITH_UNITS = {"start", "stop", "restart"}


def _act_as_service_user(outlet: Outlet, *, with_units: bool) -> None:
    from qorumctl.paths import directories
    from qorumctl.service_user import acting_user, become

    user = acting_user(directories())
    if user is None:
        return
    if with_units and _BOOTED.is_dir():
        from qorumctl.cli.porter import Porter

        outlet.manager = Porter(outlet.note)
    become(user)


_BOOTED = Path("/run/systemd/system")
"""sd_booted(3)."""


class InternalError(QorumError):
    """A mistake of ours that no other class foresees."""

    code = "internal"


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Always ends with SystemExit."""
    # See qorumctl.cli: from here on Ctrl-C is an exception, which has words and an exit code.
    restored = signal.getsignal(signal.SIGINT) is signal.SIG_DFL and arguments is None
    if restored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # Names of files are bytes: one that is no UTF-8 must not end in an exception.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = _run(given)
    if restored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def _run(given: list[str]) -> int:
    outlet = Outlet()
    outlet.listen_to_logs()
    if "_QORUMCTL_COMPLETE" in os.environ:
        # A shell asks (contrib/completions). typer prepares for that only where it also adds options of its own.
        from typer._completion_classes import completion_init

        completion_init()
    try:
        # The options before a command are all flags. What a shell asks to have completed comes without arguments.
        named = next((word for word in given if not word.startswith("-")), None)
        outcome = grammar(named)(args=given or ["--help"], prog_name="qorumctl", standalone_mode=False, obj=outlet)
        return outcome if isinstance(outcome, int) else 0
    except QorumError as error:
        outlet.error(error)
        return error.exit_code
    except _ClickUsageError as error:
        # The command line was not understood: `--json` in it may not have been reached.
        outlet.as_json |= "--json" in given
        outlet.error(_usage_error(error))
        return exit_codes.USAGE
    except (typer.Abort, KeyboardInterrupt):
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        return exit_codes.of_signal(signal.SIGPIPE)
    except Exception as error:
        outlet.error(_internal_error(error, outlet.verbose))
        if outlet.verbose:
            outlet.traceback(error)
        return exit_codes.FAILED


def _usage_error(error: Exception) -> UsageError:
    """click's sentence, and where help is to be had."""
    message = str(getattr(error, "format_message", lambda: str(error))()).strip().replace("Value error, ", "")
    ctx = getattr(error, "ctx", None)
    command = ctx.command_path if ctx is not None else "qorumctl"
    ended = message if message[-1:] in {".", "?"} else f"{message}."
    return UsageError(ended, remedy=f"See '{command} --help'.")


def _internal_error(error: Exception, verbose: bool) -> InternalError:
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return InternalError(
        f"Something went wrong that should not have: {words}.",
        remedy="It is a mistake in qorumctl: report it to the project"
        + (", with what follows." if verbose else ", with what the same command prints with --verbose."),
    )


if __name__ == "__main__":
    main()
