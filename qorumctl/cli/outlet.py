"""The one place that prints: JSON and results to standard output; progress, warnings and errors to standard error."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterable
from functools import cached_property
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO

import typer

from qorumctl.cli import json_stream
from qorumctl.cli.logs import Journal, LogHandler, is_journal
from qorumctl.cli.text import printable
from qorumctl.errors import QorumError
from qorumctl.logbook import Entry, News, entry

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from qorumctl.controller.managed import Manager
    from qorumctl.model.report import Document

_BLOCK_CHARACTERS = 1 << 20
"""Written at once, and held until then: what fails within it has not begun to print."""


class Outlet:
    """`as_json`: standard output carries JSON and nothing else."""

    def __init__(self, *, as_json: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.verbose = verbose
        self.manager: Manager | None = None
        """systemd, where it runs sets and we may have it start and stop them."""
        self._stdout_is_gone = False

    @cached_property
    def journal(self) -> Journal | None:
        """Where standard error goes under systemd; None: to people."""
        return Journal() if is_journal(sys.stderr) else None

    @cached_property
    def is_logged(self) -> bool:
        """Whether what is printed for people would stand in the journal beside the entries that tell it already."""
        return self.journal is not None and not self.as_json and is_journal(sys.stdout)

    @cached_property
    def out(self) -> Console:
        return _console(sys.stdout)

    @cached_property
    def err(self) -> Console:
        return _console(sys.stderr)

    # Results.

    def document(self, document: Document, *renderables: RenderableType) -> None:
        """A versioned document with `--json`, what people read without."""
        if self.as_json:
            self.json(document.model_dump(mode="json", by_alias=True))
        else:
            self.show(*renderables)

    def show(self, *renderables: RenderableType) -> None:
        with self.out.capture() as captured:
            for renderable in renderables:
                self.out.print(renderable)
        lines = captured.get().splitlines()
        # Tables pad their cells: in a file that is noise, on a coloured terminal it is invisible.
        self.text("\n".join(line if self.out.is_terminal else line.rstrip() for line in lines))

    def json(self, value: Any) -> None:
        """What is lazy in `value` (json_stream.Rows) is written as it comes."""
        self._write(json_stream.encoded(value))

    def text(self, text: str) -> None:
        """Exactly this text and a line break: nothing is folded. A reader that went away is no error.

        Raises QorumError when it cannot be written: a full disk, for one.
        """
        self._write((text,))

    def _write(self, pieces: Iterable[str]) -> None:
        block, begun = StringIO(), False
        try:
            for piece in pieces:
                block.write(piece)
                if block.tell() >= _BLOCK_CHARACTERS:
                    self._write_block(block.getvalue())
                    block, begun = StringIO(), True
                    if self._stdout_is_gone:
                        return
        except QorumError:
            # Behind a part of a document there is no room for another, that of the error.
            self._stdout_is_gone |= begun
            raise
        self._write_block(f"{block.getvalue()}\n")

    def _write_block(self, block: str) -> None:
        if self._stdout_is_gone:
            return
        try:
            sys.stdout.write(block)
            sys.stdout.flush()
        except BrokenPipeError:
            self._stdout_is_gone = True
            _discard(sys.stdout)
        except OSError as error:
            self._stdout_is_gone = True
            _discard(sys.stdout)
            raise QorumError(
                f"The result cannot be written to standard output: {error.strerror}.",
                remedy="What was asked for has been done all the same.",
            ) from error

    # Everything else.

    def say(self, text: str, level: int, entry: Entry) -> None:
        """A sentence beside the result: on standard error, or in the journal where that leads there."""
        if self.journal is not None:
            self.journal.write(level, printable(text), entry)
            return
        # Rich raises SystemExit(1) or BrokenPipeError, by its version: the exit code must stay the command's.
        with contextlib.suppress(BrokenPipeError, SystemExit):
            self.err.print(printable(text), soft_wrap=True)

    def note(self, text: str) -> None:
        self.say(text, logging.INFO, entry(None, None))

    def warning(self, text: str, *, set_name: str | None = None) -> None:
        prefix = "" if self.journal is not None else "qorumctl: warning: "
        self.say(f"{prefix}{text}", logging.WARNING, entry(None, set_name))

    def error(self, error: QorumError, *, exit_code: int | None = None) -> None:
        """`qorumctl: MESSAGE REMEDY` on standard error; with `--json` the document too, on standard output.

        `exit_code`: where it is not the error's own.
        """
        if self.as_json:
            self.json(error_document(error, exit_code))
        self.complain(error, exit_code=exit_code)

    def complain(self, error: QorumError, *, of_set: str | None = None, exit_code: int | None = None) -> None:
        """The sentence alone. `of_set`: of several, the one that it is about."""
        prefix = "" if self.journal is not None else "qorumctl: " if of_set is None else f"qorumctl: {of_set}: "
        fields = entry(
            News.FAILED,
            of_set or error.set_name,
            code=error.code,
            remedy=error.remedy,
            copy=error.copy,
            path=error.path,
            exit_code=error.exit_code if exit_code is None else exit_code,
        )
        self.say(f"{prefix}{error}", logging.ERROR, fields)

    def traceback(self, error: BaseException) -> None:
        self.note("".join(traceback.format_exception(error)).rstrip())

    def listen_to_logs(self) -> None:
        """`--verbose` shows what qorumctl logs, the conversation with the daemon included; else the journal has its
        news, and everybody its warnings."""
        logger = logging.getLogger("qorumctl")
        least = logging.WARNING if self.journal is None else logging.INFO
        logger.setLevel(logging.DEBUG if self.verbose else least)
        logger.handlers = [LogHandler(self)]
        logger.propagate = False


def outlet_of(ctx: typer.Context, as_json: bool, verbose: bool) -> Outlet:
    """The outlet of this command. `--json` and `--verbose` count before the command and after it."""
    outlet: Outlet = ctx.find_root().obj
    outlet.as_json |= as_json
    if verbose and not outlet.verbose:
        outlet.verbose = True
        outlet.listen_to_logs()
    return outlet


def error_document(error: QorumError, exit_code: int | None = None) -> dict[str, Any]:
    from qorumctl.model.status import ErrorReport

    report = ErrorReport.of(error)
    if exit_code is not None:
        report = report.model_copy(update={"exit_code": exit_code})
    return report.model_dump(mode="json", by_alias=True)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    # Names and paths are text: `[b]` is no markup, `:x:` no picture, a number no reason for a colour.
    return Console(file=stream, markup=False, emoji=False, highlight=False)


def _discard(stream: TextIO) -> None:
    """What is still buffered goes nowhere, so that Python does not complain about it at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
