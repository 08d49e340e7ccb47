"""Documents about hooks -> what people read at 80 columns. Pure: nothing is printed here."""

from __future__ import annotations

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from qorumctl.cli.render import fields, table, words
from qorumctl.cli.text import counted, moment
from qorumctl.model.hooks import HookedSet, HookEntry, HookFailure, HooksReport, HookTest

_STATES = {"runs": ("runs", "green"), "passed-over": ("not run", ""), "refused": ("REFUSED", "bold red")}


def hooks(report: HooksReport) -> list[RenderableType]:
    shown: list[RenderableType] = [fields([("directory", report.directory or "none")])]
    if report.problem is not None:
        shown += [words(f"None is run: {report.problem} {report.remedy or ''}".rstrip(), "bold red")]
    elif not report.hooks:
        shown += [words("No hooks. An executable that is put there is run for each event.")]
    else:
        made = table("HOOK", "STATE", "WHY", fold=("WHY",))
        for hook in report.hooks:
            text, style = _STATES[hook.state]
            made.add_row(words(hook.name), words(text, style), words(_why(hook)))
        shown += [Text(""), made]
    for one in report.sets:
        shown += _set(one)
    return shown


def _why(hook: HookEntry) -> str:
    return " ".join(filter(None, [hook.reason, hook.remedy]))


def _set(one: HookedSet) -> list[RenderableType]:
    if not one.waiting and not one.failures:
        return []
    waits = f"{one.set}: {counted(one.waiting, 'event')} to be delivered." if one.waiting else f"{one.set}:"
    shown: list[RenderableType] = [Text(""), words(waits, "bold")]
    for failure in one.failures:
        shown += [words(failure_words(failure), "yellow")]
        shown += [Padding(words(failure.output.rstrip()), (0, 0, 0, 4))] if failure.output.strip() else []
    return shown


def failure_words(failure: HookFailure) -> str:
    """`Hook 10-mail has failed 4 times since ..., the last time ...: it ended with exit code 1. 2 events were lost.`"""
    who = "The directory of hooks" if failure.hook == "." else f"Hook {failure.hook}"
    often = f"{counted(failure.failures, 'time')} since {moment(failure.since)}" if failure.failures > 1 else "once"
    lost = f" {counted(failure.given_up, 'event')} never reached it." if failure.given_up else ""
    return f"{who} has failed {often}, last on {moment(failure.last)}: {failure.reason.removesuffix('.')}.{lost}"


def test(done: HookTest) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for hook in done.hooks:
        took = f" ({hook.took_s:.1f} s)" if hook.took_s else ""
        text = f"{hook.hook}: {'it works' if hook.ok else (hook.reason or '').removesuffix('.')}.{took}"
        shown += [words(text, "green" if hook.ok else "bold red")]
        shown += [Padding(words(hook.output.rstrip()), (0, 0, 0, 4))] if hook.output.strip() else []
    return shown
