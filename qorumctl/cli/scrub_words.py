"""What a scrub means, in paragraphs: what happened, and what to do about it now. Pure.

All of it is told from sums (`core/tally.py`), so that a hundred thousand findings cost no more than one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from qorumctl.cli.text import counted, listed, percent, taken
from qorumctl.controller.failing import BOUND
from qorumctl.core.findings import Fate
from qorumctl.core.tally import Sum, Tally
from qorumctl.model.digest import tally_of
from qorumctl.model.report import ScrubReport
from qorumctl.units import format_size


def summary(report: ScrubReport, *, tally: Tally | None = None, interrupted: bool = False) -> list[str]:
    """What matters most comes first. `tally`: of a report that comes without its findings."""
    tally = tally or tally_of(report.findings)
    told = [_open_ended(report, tally, interrupted)] if report.outcome in {"unfinished", "failed"} else []
    told += _told(report, tally) if tally.number else [] if told else [_nothing_found(report)]
    if tally.again.number:
        told.append(_told_again(tally.again))
    if report.busy_bytes:
        told.append(
            f"{format_size(report.busy_bytes)} were written again and again and could not be compared: the next scrub"
            " looks at them again."
        )
    for name, reads in sorted(report.recovered_reads.items()):
        told.append(
            f"{counted(reads, 'read')} of copy {name} failed, and succeeded when made again: nothing was lost, but look"
            " at its storage, which may be about to fail."
        )
    return [f"{report.set}: {told[0]}", *told[1:]]


def _nothing_found(report: ScrubReport) -> str:
    duration = taken(report.started, report.finished)
    return f"no damage found; {covered(report)}{f', in {duration}' if duration else ''}."


def covered(report: ScrubReport) -> str:
    """`20 GiB compared`; with holes `3.1 GiB compared, 16.9 GiB zero in every copy`."""
    compared = f"{format_size(report.scanned_bytes)} compared"
    if report.range is not None:
        compared += f" of the range {report.range.offset}:{report.range.length} alone"
    return (
        f"{compared}, {format_size(report.skipped_bytes)} are zero in every copy" if report.skipped_bytes else compared
    )


def _open_ended(report: ScrubReport, tally: Tally, interrupted: bool) -> str:
    """A run that did not reach its end."""
    at = reached(report)
    if report.outcome == "failed":
        how = "failed"
    elif interrupted:
        how = "was interrupted"
    else:
        # Of an unfinished run only the budget is a reason that is on record.
        how = "used up its time" if report.message else "was stopped"
    if report.resumable:
        begun = f"run {report.run} {how} at {at}; '{_again(report)}' resumes it there."
    else:
        begun = f"run {report.run} was cancelled at {at}; the next scrub begins anew."
    return begun if tally.number else f"{begun} So far no damage was found."


def reached(report: ScrubReport) -> str:
    """`42 %` of what the run was asked to look at."""
    return percent(report.scanned_bytes + report.skipped_bytes, report.range.length if report.range else report.size)


def _again(report: ScrubReport) -> str:
    """The command that resumes this very run: one that asks for something else begins another."""
    command = f"qorumctl scrub {report.set}"
    if report.mode == "report":
        command += " --report"
    if report.range is not None:
        command += f" --range {report.range.offset}:{report.range.length}"
    return f"{command} --thorough" if report.thorough else command


def _told(report: ScrubReport, tally: Tally) -> list[str]:
    """The findings by how they ended, a paragraph each, the worst first."""
    repaired, resolved, pending, left, tied = (tally.by_fate[fate] for fate in Fate)
    paragraphs = []
    if tied.number:
        paragraphs.append(_told_tied(report, tied))
    if left.number:
        paragraphs.append(_told_left(report, left))
    if pending.number:
        paragraphs.append(f"{_ranges(pending)} {_is(pending)} being repaired, not yet verified.")
    if repaired.number:
        paragraphs.append(_told_repaired(repaired, all_is_done=report.outcome == "repaired"))
    if resolved.number:
        paragraphs.append(
            f"{_ranges(resolved)} had no majority, and {_was(resolved)} resolved by an operator's decision."
        )
    return paragraphs


def _told_repaired(repaired: Sum, *, all_is_done: bool) -> str:
    told = f"{_ranges(repaired)} {_was(repaired)} repaired and verified ({_blame(repaired)})."
    blamed = repaired.by_copy
    if not (all_is_done and blamed):
        return told
    return (
        f"{told} Nothing is to be done now; should {_copies(blamed)} come up again, look at the storage behind"
        f" {'it' if len(blamed) == 1 else 'them'}."
    )


def _told_left(report: ScrubReport, left: Sum) -> str:
    told = f"{_ranges(left)} {_is(left)} left damaged ({_blame(left)})."
    if report.mode == "report":
        return (
            f"{told} Guests still read what the majority holds. This run only reported:"
            f" 'qorumctl scrub {report.set} --repair' repairs, where the set runs and its policy is repair."
        )
    blamed = set(left.by_copy)
    if why := _told_unrewritten(report, blamed):
        return f"{told} Guests still read what the majority holds, but another failure there would lose data. {why}"
    whose = f"the storage of {_copies(blamed)}" if blamed else "the storage of the copies"
    return (
        f"{told} Guests still read what the majority holds, but another failure there would lose data. Check {whose},"
        f" then run 'qorumctl scrub {report.set}' again."
    )


def _told_unrewritten(report: ScrubReport, blamed: set[str]) -> str:
    """Of copies whose sectors no fenced read repairs: why they were not written anew, and what to do. Empty where
    nothing is to be said of one of them."""
    told = []
    for name in sorted(blamed):
        if name in report.failing_copies:
            told.append(
                f"Copy {name} is failing: it has lost more than a scrub writes anew ({BOUND}). Replace it:"
                f" 'qorumctl copy replace {report.set} {name} SOURCE'."
            )
        elif why := report.left_because.get(name):
            told.append(f"Copy {name}: {why.removesuffix('.')}.")
        else:
            return ""
    if told and not blamed <= set(report.failing_copies):
        told.append(f"Then run 'qorumctl scrub {report.set}' again.")
    return " ".join(told)


def _told_tied(report: ScrubReport, tied: Sum) -> str:
    more = tied.number - len(tied.places)
    where = f"{', '.join(f'{at.offset}:{at.length}' for at in tied.places)}{f' and {more:,} more' if more else ''}"
    why, reads = "", ", and a guest that reads there gets an I/O error"
    if report.uncounted:
        why, reads = f" ({_copies(report.uncounted)} missed writes and did not vote)", "; what guests read may be stale"
    return (
        f"{_ranges(tied)} {_has(tied)} no majority, at {where} (offset:length in bytes): no version is held by"
        f" enough copies to be trusted{why}. Nothing was written there{reads}."
        f" 'qorumctl report {report.set} --finding ID' shows what each copy holds; 'qorumctl resolve {report.set}"
        " --finding ID --with ...' writes what you decide on. Or have a guest write those ranges anew, from a backup,"
        f" and run 'qorumctl scrub {report.set}' again."
    )


def _told_again(again: Sum) -> str:
    return (
        f"{_ranges(again)} {_was(again)} damaged again after a repair ({_blame(again)}): there the storage of"
        f" {_copies(again.by_copy)} does not keep what is written to it, and another repair will not change that."
    )


def _ranges(found: Sum) -> str:
    size, ranges = format_size(found.size_bytes), counted(found.number, "range")
    return f"{ranges} of {size}" if found.number == 1 else f"{ranges}, {size},"


def _blame(found: Sum) -> str:
    """`copy b 3 times, copy c once`; nobody is blamed after an unclean stop."""
    parts = [f"copy {name} {_times(n)}" for name, n in sorted(found.by_copy.items())]
    if found.of_no_copy:
        how_many = f"{found.of_no_copy:,}" if parts else "all"
        parts.append(f"{how_many} from an unclean stop, which no copy is to blame for")
    return ", ".join(parts)


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")


def _copies(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return f"{'copy' if len(ordered) == 1 else 'copies'} {listed(ordered)}"


def _is(found: Sum) -> str:
    return "is" if found.number == 1 else "are"


def _was(found: Sum) -> str:
    return "was" if found.number == 1 else "were"


def _has(found: Sum) -> str:
    return "has" if found.number == 1 else "have"


def asked_to_stop(report: ScrubReport, command: str) -> str:
    """After `pause` or `cancel`. The run may have reached its end before it was asked."""
    if report.outcome not in {"unfinished", "failed"}:
        return f"{report.set}: run {report.run} had ended before it could be stopped: {report.outcome}."
    at = reached(report)
    if command == "cancel":
        return f"{report.set}: run {report.run} is cancelled at {at}; the next scrub begins anew."
    return f"{report.set}: run {report.run} is paused at {at}; '{_again(report)}' resumes it."


# in one sentence

Level = Literal["fine", "mended", "damaged", "tied", "open"]
"""`open`: the run has not come to its end, so nothing is proven."""


def verdict(report: ScrubReport, tally: Tally, *, at_work: bool) -> tuple[Level, str]:
    """What somebody has to know who reads nothing else. `at_work`: an unfinished run goes on at this moment."""
    repaired, resolved, left, tied = (
        tally.by_fate[fate] for fate in (Fate.REPAIRED, Fate.RESOLVED, Fate.LEFT, Fate.TIED)
    )
    if report.outcome in {"unfinished", "failed"}:
        return "open", _verdict_so_far(report, tally, at_work)
    if tied.number:
        others = f", and {counted(left.number, 'more is', 'more are')} still damaged" if left.number else ""
        return "tied", (
            f"{_plain(tied)} {_has(tied)} no majority: the copies disagree, and none can be trusted there{others}."
        )
    if left.number:
        return (
            "damaged",
            f"{_plain(left)}{_of_copies(left)} {_is(left)} still damaged; guests read what the majority holds.",
        )
    if resolved.number:
        return "mended", f"{_plain(resolved)} had no majority; an operator's decision was written there."
    if repaired.number:
        if not repaired.by_copy:
            return "mended", f"{_plain(repaired)} differed after an unclean stop; all of it was made equal."
        return "mended", f"{_plain(repaired)}{_of_copies(repaired)} {_was(repaired)} damaged; all of it was repaired."
    where = " in the range that was compared" if report.range else ""
    busy = f", but for {format_size(report.busy_bytes)} that guests kept writing" if report.busy_bytes else ""
    return "fine", f"No damage was found{where}: all copies that were read are equal{busy}."


def _verdict_so_far(report: ScrubReport, tally: Tally, at_work: bool) -> str:
    how = "is at work" if at_work else "failed" if report.outcome == "failed" else "was not finished"
    found = "no damage was found"
    if tally.number:
        found = f"{counted(tally.number, 'damaged range was', 'damaged ranges were')} found"
        found += f", and {tally.open:,} not repaired" if tally.open else ", and all of it was repaired"
    return f"This scrub {how}: {reached(report)} of what it was to compare was looked at. So far {found}."


def _plain(found: Sum) -> str:
    return f"{counted(found.number, 'range')} ({format_size(found.size_bytes)})"


def _of_copies(found: Sum) -> str:
    return f" of {_copies(found.by_copy)}" if found.by_copy else ""
