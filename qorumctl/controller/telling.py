"""The sentences of the log: what happens to sets and copies, as qorumctl/logbook.py has it catalogued."""

from __future__ import annotations

import logging

from qorumctl.core.findings import Action, Cause, Finding, FindingVerdict
from qorumctl.logbook import News, tell
from qorumctl.model.report import ScrubReport
from qorumctl.model.status import EventDocument

MOST_FINDINGS = 1000
"""Told by one command: a disk that went bad has hundreds of thousands, and journald drops what is beyond 10,000 in 30 s
whatever it is. The record has them all."""
_ENDS = {
    "clean": (logging.INFO, "nothing was found"),
    "repaired": (logging.WARNING, "damage was found, and all of it repaired"),
    "damaged": (logging.ERROR, "damage was found and left"),
    "no-majority": (logging.CRITICAL, "there are ranges without a majority"),
    "unfinished": (logging.INFO, "it is unfinished"),
    "failed": (logging.ERROR, "it could not go on"),
}


def started(set_name: str) -> None:
    tell(News.SET_STARTED, logging.INFO, f"{set_name} is started, and guests are let in.", set_name=set_name)


def stopped(set_name: str, *, in_order: bool) -> None:
    words = "in order" if in_order else "and its copies have to be compared"
    level = logging.INFO if in_order else logging.WARNING
    tell(News.SET_STOPPED, level, f"{set_name} is stopped, {words}.", set_name=set_name)


def scrub_begun(set_name: str, run: int, mode: str, resumed_at_bytes: int | None) -> None:
    words = "begins" if resumed_at_bytes is None else f"goes on at {resumed_at_bytes}"
    tell(
        News.SCRUB_BEGUN,
        logging.INFO,
        f"Scrub {run} of {set_name} {words} ({mode}).",
        set_name=set_name,
        run=run,
        mode=mode,
        offset=resumed_at_bytes or 0,
    )


def scrub_ended(set_name: str, report: ScrubReport, findings: int, *, failed: bool = False) -> None:
    outcome = "failed" if failed else report.outcome
    level, words = _ENDS[outcome]
    tell(
        News.SCRUB_ENDED,
        level,
        f"Scrub {report.run} of {set_name} has ended: {words}.",
        set_name=set_name,
        run=report.run,
        mode=report.mode,
        outcome=outcome,
        findings=findings,
        scanned=report.scanned_bytes,
        busy=report.busy_bytes,
    )


class Findings:
    """Tells of the findings of one run, each when it is on record for good."""

    def __init__(self, set_name: str, run: int) -> None:
        self._set, self._run, self._told = set_name, run, 0

    def settled(self, finding_id: int, finding: Finding) -> None:
        """Again where a later step of the run has repaired what was left: what is told last holds."""
        self._told += 1
        if self._told <= MOST_FINDINGS:
            self._tell(finding_id, finding)
        elif self._told == MOST_FINDINGS + 1:
            tell(
                News.FINDING,
                logging.WARNING,
                f"More is found than is told here: see 'qorumctl report {self._set} {self._run}'.",
                set_name=self._set,
                run=self._run,
            )

    def _tell(self, finding_id: int, finding: Finding) -> None:
        where = f"{finding.range.length} bytes at offset {finding.range.offset}"
        match finding.verdict:
            case FindingVerdict.OUTVOTED:
                what = f"outvoted ({finding.diagnosis.kind})"
            case FindingVerdict.UNREADABLE:
                what = "unreadable"
            case FindingVerdict.NO_MAJORITY:
                what = "without a majority"
        who = f"copy {', '.join(finding.copies)}: " if finding.copies else ""
        why = " after an unclean stop" if finding.cause is Cause.UNCLEAN_SHUTDOWN else ""
        tell(
            News.FINDING,
            _level(finding),
            f"{self._set}: {who}{where} {what}{why}, {finding.action}.",
            set_name=self._set,
            run=self._run,
            finding=finding_id,
            verdict=finding.verdict,
            action=finding.action,
            copy=finding.copies,
            offset=finding.range.offset,
            length=finding.range.length,
            diagnosis=finding.diagnosis.kind,
            source=finding.source,
            cause=finding.cause,
        )


def _level(finding: Finding) -> int:
    if finding.verdict is FindingVerdict.NO_MAJORITY:
        return logging.CRITICAL
    return logging.WARNING if finding.action is Action.REPAIRED else logging.ERROR


def heard(event: EventDocument) -> None:
    """By the watcher: what the daemon has told."""
    tell(
        News.COPY_EVENT,
        logging.ERROR if event.missed_write else logging.WARNING,
        f"{event.set}: {event.text}{'; it has missed a write' if event.missed_write else ''}.",
        set_name=event.set,
        event=event.kind,
        copy=event.copy_,
        operation=event.operation,
        offset=event.offset,
        length=event.length,
        error=event.error,
        missed_write=int(event.missed_write),
    )
