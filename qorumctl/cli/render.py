"""Documents about sets -> what people read at 80 columns. Pure: nothing is printed here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qorumctl.cli.render_front import front_line
from qorumctl.cli.text import counted, moment, percent, printable, taken
from qorumctl.model.report import RunSummary
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import (
    AttachReport,
    CheckItem,
    CheckReport,
    CopyResult,
    CopyState,
    CopyStatus,
    DoctorReport,
    ListReport,
    Result,
    SetState,
    SetStatus,
    ShowReport,
    StatusReport,
)
from qorumctl.units import format_exact_size, format_size

_STATE_STYLES = {
    SetState.HEALTHY: "green",
    SetState.DEGRADED: "yellow",
    SetState.DAMAGED: "bold red",
    SetState.STALLED: "bold red",
    SetState.FAILED: "bold red",
    SetState.STOPPED: "",
}
_COPY_STYLES = {
    CopyState.CURRENT: "green",
    CopyState.SUSPECT: "yellow",
    CopyState.STALE: "yellow",
    CopyState.MISSING: "bold red",
    CopyState.STALLED: "bold red",
    CopyState.OFFLINE: "",
}


def words(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style, overflow="fold")


def fields(rows: Sequence[tuple[str, RenderableType | None]]) -> Table:
    """Labels to the right, a colon, values that fold: `zpool status`. A row without a value is left out."""
    shown = [(label, value) for label, value in rows if value is not None]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for label, value in shown:
        grid.add_row(f"{label}:", words(value) if isinstance(value, str) else value)
    return grid


def table(*columns: str, right: Sequence[str] = (), fold: Sequence[str] = ()) -> Table:
    """A plain table: bold heads, no lines. Only columns in `fold` give way when the screen is narrow."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", no_wrap=column not in fold, overflow="fold"
        )
    return made


# status


def status(report: StatusReport) -> list[RenderableType]:
    if not report.sets:
        return [words("No set is defined. 'qorumctl create' makes one.")]
    shown: list[RenderableType] = []
    for one in report.sets:
        shown += [*([Text("")] if shown else []), _set_status(one)]
    return shown


def _set_status(one: SetStatus) -> RenderableType:
    head = fields(
        [
            ("set", words(one.set, "bold")),
            ("state", words(one.state, _STATE_STYLES[one.state])),
            ("reason", one.reason),
            ("action", action(one)),
            ("advice", advice(one)),
            ("size", f"{format_size(one.size)} in {counted(len(one.copies), 'copy', 'copies')}"),
            ("policy", _POLICIES[one.policy]),
            ("threshold", f"{one.threshold} of {len(one.copies)} copies win a vote"),
            ("volume", one.volume),
            ("front", front_line(one.set, one.front) if one.front else None),
            ("scrub", scrub_line(one)),
            ("hooks", hooks_line(one)),
            ("note", _NOTE_OF_DEFINITION.format(one.set) if one.definition_differs else None),
            ("copies", ""),
        ]
    )
    copies = table(
        "NAME", "STATE", "OUTVOTED", "UNREADABLE", "REPAIRED", "SOURCE",
        right=("OUTVOTED", "UNREADABLE", "REPAIRED"), fold=("SOURCE",),
    )  # fmt: skip
    for copy in one.copies:
        copies.add_row(
            words(copy.name),
            words(copy.state, _COPY_STYLES[copy.state]),
            _count(copy.outvoted),
            _count(copy.unreadable),
            _count(copy.repaired),
            _source(copy),
        )
    return Group(head, Text(""), Padding(copies, (0, 0, 0, 2)), Text(""), fields([("errors", errors_line(one))]))


_POLICIES = {"repair": "repair", "report": "report (nothing is ever rewritten)"}
_NOTE_OF_DEFINITION = "The definition was changed since the start; 'qorumctl restart {}' applies it."


def _count(number: int) -> Text:
    return Text(f"{number:,}", style="yellow" if number else "")


def _source(copy: CopyStatus) -> Text:
    text = words(copy.source)
    if copy.note:
        text.append(f"\n({printable(copy.note)})", style="yellow")
    return text


def action(one: SetStatus) -> str | None:
    """What to do about the state; None where nothing is to be done."""
    states = {copy.state for copy in one.copies}
    away = [copy.name for copy in one.copies if copy.away_since is not None]
    failing = [copy.name for copy in one.copies if copy.failing]
    match one.state:
        case SetState.HEALTHY:
            return None
        case SetState.STOPPED | SetState.FAILED if away:
            return f"Run 'qorumctl start {one.set} --degraded', then 'qorumctl copy rejoin {one.set} {away[0]}'."
        case SetState.STOPPED:
            return f"Start it with 'qorumctl start {one.set}'."
        case SetState.FAILED:
            return f"Look at 'qorumctl check {one.set}', then run 'qorumctl start {one.set}'."
        case SetState.STALLED:
            return "Guests wait. Look at the storage of the copies: one that hangs holds up all."
        case SetState.DAMAGED:
            vote = f"'qorumctl scrub {one.set} --count-suspects'"
            other = (
                f" Or let the copies vote that have missed writes: {vote}."
                if any(c.missed_writes for c in one.copies)
                else ""
            )
            return (
                f"See 'qorumctl report {one.set}', and decide on each range without a majority with 'qorumctl resolve';"
                f" or have a guest write them anew, from a backup, and run 'qorumctl scrub {one.set}'.{other}"
            )
        case SetState.DEGRADED if failing and not away:
            return f"Replace copy {failing[0]}: 'qorumctl copy replace {one.set} {failing[0]} SOURCE'."
        case SetState.DEGRADED if away:
            return f"When its storage is back, run 'qorumctl copy rejoin {one.set} {away[0]}'."
        case SetState.DEGRADED if states & {CopyState.MISSING, CopyState.STALLED}:
            return f"Bring the storage of the copy back, then run 'qorumctl restart {one.set}'."
        case SetState.DEGRADED if one.policy == "report" and one.unrepaired:
            return (
                f"See 'qorumctl report {one.set}'. Nothing is repaired with policy report: set policy = \"repair\" in"
                f" the definition, run 'qorumctl restart {one.set}', then 'qorumctl scrub {one.set}'."
            )
        case SetState.DEGRADED if one.watched is False:
            return f"Run 'qorumctl start {one.set}', which starts the watcher, then 'qorumctl scrub {one.set}'."
        case SetState.DEGRADED:
            return f"Run 'qorumctl scrub {one.set}': it compares every copy and brings it up to date."
    return None


def advice(one: SetStatus) -> str | None:
    """Which copy's storage to replace, with the numbers. Whatever the state: it may be in order until it rots again."""
    for copy in one.copies:
        if (found := copy.blame) is not None:
            how = " or ".join(word for word, n in (("outvoted", found.outvoted), ("unreadable", found.unreadable)) if n)
            again = f", {found.recurring:,} of them repaired before" if found.recurring else ""
            ranges = counted(found.outvoted + found.unreadable, "range")
            others = f"; another copy was in {found.others} of them" if found.others else ", and no other copy was"
            return (
                f"Copy {copy.name} was {how} in {found.scrubs} of the last {found.of_scrubs} scrubs, on {found.days}"
                f" days ({ranges}{again}){others}: that appliance is the one to replace:"
                f" 'qorumctl copy replace {one.set} {copy.name} SOURCE'."
            )
    return None


def hooks_line(one: SetStatus) -> Text | None:
    if not one.hook_failures:
        return None
    names = ", ".join("the directory" if failure.hook == "." else failure.hook for failure in one.hook_failures)
    verb = "fails" if len(one.hook_failures) == 1 else "fail"
    return words(f"{names} {verb}, and events may go unheard: see 'qorumctl hooks list {one.set}'", "yellow")


def scrub_line(one: SetStatus) -> str:
    if one.scrub is not None:
        part = one.scrub.range
        first, length = (part.offset, part.length) if part else (0, one.size)
        where = f"{percent(one.scrub.position - first, length)} of {format_size(length)}"
        process = f", process {one.scrub.pid}" if one.scrub.pid is not None else ""
        held = ", held back for guests" if one.scrub.held_back else ""
        return f"run {one.scrub.run} ({one.scrub.mode}) is at {where}{process}{held}"
    return "never" if one.last_scrub is None else last_scrub(one.last_scrub)


def last_scrub(run: RunSummary) -> str:
    at = covered(run)
    when = moment(run.finished or run.started)
    found = counted(sum(run.findings.values()), "finding")
    told = {
        "clean": "found nothing",
        "repaired": f"repaired {found}",
        "damaged": f"left damage: {found}",
        "no-majority": f"found ranges without a majority ({found} in all)",
        "unfinished": f"stopped at {at}{', can be resumed' if run.resumable else ''}: {found}",
        "failed": f"failed at {at}{', can be resumed' if run.resumable else ''}: {found}",
    }[run.outcome]
    duration = taken(run.started, run.finished)
    part = f", in the range {run.range.offset}:{run.range.length} alone" if run.range else ""
    return f"run {run.run} {told}{part}, on {when}{f', in {duration}' if duration else ''}"


def covered(run: RunSummary) -> str:
    """`42 %` of what the run was asked to look at."""
    return percent(run.scanned_bytes + run.skipped_bytes, run.range.length if run.range else run.size)


def errors_line(one: SetStatus) -> Text:
    if not one.unrepaired:
        return words("No known errors" if one.last_scrub else "None known; the set was never scrubbed")
    verb = "is" if one.unrepaired == 1 else "are"
    return words(f"{counted(one.unrepaired, 'finding')} {verb} open: see 'qorumctl report {one.set}'", "bold red")


# list, show, check, doctor, attach, and the commands that change a set


def sets(report: ListReport) -> list[RenderableType]:
    if not report.sets:
        return [words("No set is defined. 'qorumctl create' makes one.")]
    made = table("NAME", "STATE", "SIZE", "COPIES", right=("SIZE", "COPIES"))
    for one in report.sets:
        made.add_row(
            words(one.name),
            words(one.state, _STATE_STYLES[one.state]),
            "-" if one.size is None else format_size(one.size),
            "-" if one.copies is None else str(one.copies),
        )
    errors = [words(f"{one.name}: {one.error}", "red") for one in report.sets if one.error]
    return [made, *([Text(""), *errors] if errors else [])]


def _rate(rate: int | Literal["max"] | None) -> str:
    if rate is None:
        return "what guests leave room for"
    return "no limit" if rate == "max" else f"{format_exact_size(rate)}/s per copy"


def show(report: ShowReport) -> list[RenderableType]:
    spec = report.definition
    made = fields(
        [
            ("set", words(spec.name, "bold")),
            ("uuid", str(spec.uuid)),
            ("size", f"{format_exact_size(spec.size)} ({spec.size:,} bytes)"),
            ("threshold", f"{spec.threshold} of {len(spec.copies)}"),
            ("policy", _POLICIES[spec.policy]),
            ("volume", _volume(spec)),
            (
                "scrub rate",
                _rate(spec.scrub.rate),
            ),
            ("definition", report.definition_path),
            ("state", report.state_directory),
            ("runtime", report.runtime_directory),
        ]
    )
    copies = table("COPY", "TYPE", "FORMAT", "CACHE", "SOURCE", fold=("SOURCE",))
    for copy in spec.copies:
        copies.add_row(copy.name, copy.source.type, copy.source.format, copy.cache, words(copy.source.label))
    return [made, Text(""), Padding(copies, (0, 0, 0, 2))]


def _volume(spec: SetSpec) -> str:
    return f"socket mode {spec.volume.mode}" + (f", group {spec.volume.group}" if spec.volume.group else "")


def checks(report: CheckReport | DoctorReport) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for item in report.items:
        grid.add_row(Text("ok", style="green") if item.ok else Text("BAD", style="bold red"), _check_item(item))
    bad = sum(not item.ok for item in report.items)
    last = "All is well." if report.ok else f"{counted(bad, 'thing')} to put right."
    return [grid, Text(""), words(last, "green" if report.ok else "bold red")]


def _check_item(item: CheckItem) -> Text:
    text = words(f"{item.subject}: {item.detail}")
    if not item.ok and item.remedy:
        text.append(f"\n{printable(item.remedy)}", style="bold")
    return text


def attach(report: AttachReport) -> list[str]:
    """Lines to be printed as they are: what is meant for pasting must not be folded."""
    qemu = [f"    {line}" for line in shell_lines(report.qemu)]
    libvirt = [f"    {line}" for line in report.libvirt.strip().splitlines()]
    return ["NBD URI", f"    {report.uri}", "", "qemu-system-x86_64", *qemu, "", "libvirt", *libvirt]


def shell_lines(arguments: Sequence[str]) -> list[str]:
    """QEMU's arguments as a shell takes them, an option and its value a line, joined by backslashes."""
    lines: list[str] = []
    for argument in arguments:
        quoted = shlex.quote(argument)
        if lines and not argument.startswith("-"):
            lines[-1] += f" {quoted}"
        else:
            lines.append(quoted)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def copy_result(done: CopyResult) -> list[RenderableType]:
    """After `copy detach`, `copy rejoin` and `copy replace`: what was done, and what comes next."""
    who = f"Copy {done.copy_} of {done.set}"
    back = f"'qorumctl copy rejoin {done.set} {done.copy_}'"
    if done.command == "detach":
        text = f"{who} is detached." if done.changed else f"{who} is detached already: nothing was changed."
        later = "compares all of it" if done.full else "copies what it misses meanwhile"
        why = f" ({done.reason})" if done.full and done.reason else ""
        return [words(f"{text} Its storage can be taken down; {back} {later}{why}.")]
    if done.command == "replace" and (done.cancelled or not done.changed):
        return [words(_not_replaced(done, who))]
    if not done.changed:
        return [words(f"{who} is in the set, and not away: nothing was changed.")]
    all_of_it = f" All of it was compared: {done.reason}." if done.full else ""
    passes = f" in {counted(done.passes, 'pass', 'passes')}" if done.passes else ""
    what = f"is replaced by {done.source}" if done.command == "replace" else "is back"
    text = f"{who} {what}.{all_of_it} {format_size(done.copied_bytes)} copied{passes}, "
    text += f"{format_size(done.healed_bytes)} healed, {format_size(done.verified_bytes)} verified."
    if done.command == "replace":
        text += f" Its old image, {done.old_source}, was left as it is; nothing needs it any more."
    return [words(text)]


def _not_replaced(done: CopyResult, who: str) -> str:
    if not done.cancelled:
        return f"{who} is {done.source} already: nothing was changed."
    if not done.changed:
        return f"{who} is not being replaced: nothing was changed."
    return f"The replacement of copy {done.copy_} of {done.set} is given up: it stays {done.old_source}."


_DONE = {
    "create": ("{set} is created.", "{set} exists already, as asked for: nothing was changed."),
    "start": ("{set} is started.", "{set} runs already: nothing was changed."),
    "stop": ("{set} is stopped.", "{set} does not run: nothing was changed."),
    "restart": ("{set} is restarted.", "{set} is as it was: nothing was changed."),
    "grow": ("{set} has its new size.", "{set} has that size already: nothing was changed."),
    "delete": ("{set} is deleted.", "{set} does not exist: nothing was changed."),
    "enable": (
        "{set} is enabled: systemd starts it at boot, and scrubs it.",
        "{set} is enabled already, as asked for: nothing was changed.",
    ),
    "hooks clear": (
        "{set}: what waited for hooks is dropped, and no hook counts as failing.",
        "{set}: no event waits, and no hook has failed.",
    ),
    "hooks deliver": ("{set}: all events were delivered, or given up.", "{set}: nothing was to be delivered."),
    "disable": ("{set} is disabled. If it runs, it goes on.", "{set} is not enabled: nothing was changed."),
}
_NEXT = {
    "create": " Start it with 'qorumctl start {set}'.",
    "start": " See 'qorumctl attach {set}' for how a guest uses it.",
    "enable": " When: 'systemctl list-timers qorum-scrub@{set}.timer'.",
}


def result(done: Result) -> list[RenderableType]:
    changed, unchanged = _DONE.get(done.command, (f"{done.command} of {{set}}: done.", "{set}: nothing was changed."))
    text = (changed + _NEXT.get(done.command, "")) if done.changed else unchanged
    return [words(text.format(set=done.set))]
