"""What a hook gets on its standard input, and what is told of hooks."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from qorumctl.core.chronicle import Entry
from qorumctl.model.report import Document, FindingDocument, RunSummary


class HookEventKind(StrEnum):
    FINDING = "finding"
    """A scrub found a damaged range; `action` says what became of it."""
    MORE_FINDINGS = "more-findings"
    """A run found more than are told one by one."""
    RUN_FINISHED = "run-finished"
    """A scrub came to its end, was paused or cancelled, or failed."""
    COPY_STALE = "copy-stale"
    """A copy missed a write, or may have: it is suspect from now on."""
    COPY_CURRENT = "copy-current"
    """A scrub found or made a suspect copy equal to the others."""
    COPY_DETACHED = "copy-detached"
    COPY_REJOINED = "copy-rejoined"
    COPY_REPLACED = "copy-replaced"
    DAEMON_GONE = "daemon-gone"
    """The daemon ended without having been stopped: guests have lost their disk."""
    TEST = "test"


class HookEvent(Document):
    """One event. Never guest data: of a finding, what the report tells, but for the byte that filled a range."""

    schema_: Literal["qorum.hook-event/1"] = Field("qorum.hook-event/1", alias="schema")
    id: str = Field(description="a UUID: an event that is delivered twice has the same")
    set: str
    time: str
    event: HookEventKind
    text: str = Field(description="one sentence, on one line")
    run: int | None = Field(None, description="of finding, more-findings, run-finished")
    finding: FindingDocument | None = Field(None, description="told again, with the same id, where its action changes")
    summary: RunSummary | None = Field(None, description="of run-finished: as in history")
    copy_: str | None = Field(None, alias="copy", description="of copy-...")
    entry: Entry | None = Field(None, description="of copy-...: the kind under which the history counts it")
    detail: str | None = Field(None, description="of copy-...: why, in words")
    pid: int | None = Field(None, description="of daemon-gone, where it is known: the daemon's")


class HookFailure(Document):
    """A hook that does not work, since its last success."""

    hook: str = Field(description="its name; '.' is the directory")
    since: str
    last: str
    failures: int = Field(description="runs of it that failed")
    given_up: int = Field(description="events that it never took")
    reason: str = Field(description="of the last failure")
    output: str = Field(description="the end of what it printed then")


class HookEntry(Document):
    name: str
    state: Literal["runs", "passed-over", "refused"]
    reason: str | None = Field(None, description="why it is not run")
    remedy: str | None = None


class HookedSet(Document):
    set: str
    waiting: int = Field(description="events that not every hook has taken yet")
    failures: list[HookFailure]


class HooksReport(Document):
    schema_: Literal["qorum.hooks/1"] = Field("qorum.hooks/1", alias="schema")
    ok: bool
    directory: str | None
    problem: str | None = Field(None, description="why none of the directory is run")
    remedy: str | None = None
    hooks: list[HookEntry] = Field(description="in the order in which they are run")
    sets: list[HookedSet]


class HookOutcome(Document):
    hook: str
    ok: bool
    reason: str | None = None
    output: str = Field(description="the end of what it printed")
    took_s: float


class HookTest(Document):
    schema_: Literal["qorum.hook-test/1"] = Field("qorum.hook-test/1", alias="schema")
    set: str
    ok: bool
    hooks: list[HookOutcome]
