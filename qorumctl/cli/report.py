"""`report`: on the terminal, as JSON, or as a page in a file."""

from __future__ import annotations

import asyncio
import os
import threading
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qorumctl.cli.grammar import AsJson, SetName, Verbose
from qorumctl.cli.outlet import Outlet, outlet_of
from qorumctl.errors import QorumError, RefusedError, UsageError
from qorumctl.files import NotRegularError, read_start, reason, write_atomically
from qorumctl.units import parse_size

if TYPE_CHECKING:
    from qorumctl.controller.sets import QuorumSets

_STANDARD_OUTPUT = Path("-")
MOST_ROWS_AT_ONCE = 1000
"""A table is laid out as a whole: more rows than these are several, or memory grows with them (10 KB a row)."""
_MOST_ROWS = 16


def report(
    ctx: typer.Context,
    name: SetName,
    run: Annotated[
        int | None, typer.Argument(metavar="RUN", min=1, help="The run (the newest).", show_default=False)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write it there as one page, with a map and the history, readable for its owner; '-' prints the page.",
            show_default=False,
        ),
    ] = None,
    with_data: Annotated[
        bool, typer.Option("--with-data", help="With the bytes that differ: the page then holds data of guests.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE even if it is no earlier report.")
    ] = False,
    finding: Annotated[
        int | None,
        typer.Option(
            "--finding",
            metavar="ID",
            min=1,
            help="Show what each copy holds there now, byte by byte: data of guests.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows", metavar="N", min=0, help="With --finding: so many rows that differ (16).", show_default=False
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="OFFSET", help="With --finding: rows from there on.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show the findings of a run, or all about one of them.

    A map of the disk, a line for each copy, and the evidence: who held which version (the beginning of its SHA-256).
    """
    outlet = outlet_of(ctx, as_json, verbose)
    from qorumctl.controller.sets import QuorumSets

    sets = QuorumSets()
    if finding is not None:
        if run is not None or html is not None or with_data or overwrite:
            raise UsageError("--finding ID stands for itself.", remedy="Leave the run and the page out.")
        _tell_evidence(outlet, sets, name, finding, _MOST_ROWS if rows is None else rows, start)
        return
    if rows is not None or start is not None:
        raise UsageError("--rows and --from are about one finding.", remedy="Give --finding ID, too.")
    if html is None:
        if with_data or overwrite:
            option = "--with-data" if with_data else "--overwrite"
            raise UsageError(f"{option} is about a page.", remedy="Give --html FILE, too.")
        _tell(outlet, sets, name, run)
    elif html == _STANDARD_OUTPUT and outlet.as_json:
        raise UsageError(
            "Standard output has room for one document.", remedy="Give --html a file, or leave out --json."
        )
    else:
        _write_page(outlet, sets, name, run, html, with_data=with_data, overwrite=overwrite)


def _tell_evidence(outlet: Outlet, sets: QuorumSets, name: str, finding: int, rows: int, start: str | None) -> None:
    from qorumctl.cli import render_evidence

    from_bytes = 0 if start is None else parse_size(start)
    document = asyncio.run(sets.evidence(name, finding, most_rows=rows, from_bytes=from_bytes))
    outlet.document(document, *([] if outlet.as_json else render_evidence.evidence(document)))


def _tell(outlet: Outlet, sets: QuorumSets, name: str, run: int | None) -> None:
    from rich.text import Text

    from qorumctl.cli import render_scrub
    from qorumctl.cli.json_stream import scrub_document
    from qorumctl.cli.render_map import DiskMapLines

    ledger = sets.ledger(name, run)
    if outlet.as_json:
        outlet.json(scrub_document(ledger.report(), ledger.findings()))
    elif (tally := ledger.tally()).number <= MOST_ROWS_AT_ONCE:
        outlet.show(*render_scrub.report(sets.report(name, ledger.run)))
    else:
        document = ledger.report()
        outlet.show(*render_scrub.head(document), DiskMapLines(document, ledger.marks()))
        found = ledger.findings()
        while page := list(islice(found, MOST_ROWS_AT_ONCE)):
            outlet.show(Text(""), render_scrub.findings(page, evidence=True))
        outlet.show(Text(""), *render_scrub.paragraphs(document, tally))


def _write_page(
    outlet: Outlet, sets: QuorumSets, name: str, run: int | None, path: Path, *, with_data: bool, overwrite: bool
) -> None:
    from qorumctl.cli import page
    from qorumctl.cli.json_stream import scrub_document

    if path != _STANDARD_OUTPUT:
        # First: making the page may take a while.
        _check_replaceable(path, overwrite=overwrite)
    dossier = asyncio.run(sets.dossier(name, run, page.wanted(with_data=with_data)))
    text = page.page(dossier, with_data=with_data)
    if with_data:
        outlet.warning("The page holds data of guests: give it only to those who may see that.")
    if path == _STANDARD_OUTPUT:
        outlet.text(text.rstrip("\n"))
        return
    write_page(path, text, overwrite=overwrite)
    if outlet.as_json:
        ledger = sets.ledger(name, dossier.report.run)
        outlet.json(scrub_document(ledger.report(), ledger.findings()))
    else:
        outlet.text(f"{path} tells of run {dossier.report.run} of {name}. Only its owner may read it.")


def write_page(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Replaces `path` as a whole. Raises RefusedError for what is no earlier report, QorumError where it cannot be
    written."""
    _check_replaceable(path, overwrite=overwrite)
    # Two commands may be told the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        # A path that is no UTF-8 is shown as it is escaped.
        write_atomically(path, text.encode("utf-8", "backslashreplace"), 0o600, temporary=temporary)
    except OSError as error:
        raise _unwritable(path, error) from error


def _check_replaceable(path: Path, *, overwrite: bool) -> None:
    """A link is not followed, and a device or a pipe would be replaced by a file: none of them is what was meant."""
    from qorumctl.cli.page import MARK, MARK_WITHIN_BYTES

    try:
        if path.is_symlink():
            raise NotRegularError(f"{path} is a symbolic link")
        start = read_start(path, MARK_WITHIN_BYTES)
    except FileNotFoundError:
        return
    except NotRegularError:
        raise RefusedError(
            f"{path} is a directory, a device, a pipe or a link, and is not replaced.",
            remedy="Name a file. '-' prints the page.",
            path=str(path),
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from error
    if not overwrite and MARK not in start:
        raise RefusedError(
            f"{path} exists, and is no earlier report.",
            remedy="Name another file, or say --overwrite: what it holds is then lost.",
            path=str(path),
        )


def _unwritable(path: Path, error: OSError) -> QorumError:
    who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    return QorumError(
        f"The page cannot be written to {path}: {reason(error)}.",
        remedy=f"Name a file in a directory that {who} may write to, or print the page: --html - > FILE.",
        path=str(path),
    )
