"""What programs read about sets: state, copies, and the answers of the commands that change them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import Field

from qorumctl.errors import QorumError
from qorumctl.model.hooks import HookFailure
from qorumctl.model.report import Document, RangeDocument, RunSummary
from qorumctl.model.spec import SetSpec


class SetState(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DAMAGED = "damaged"
    STALLED = "stalled"
    STOPPED = "stopped"
    FAILED = "failed"


class CopyState(StrEnum):
    CURRENT = "current"
    SUSPECT = "suspect"
    STALE = "stale"
    MISSING = "missing"
    STALLED = "stalled"
    OFFLINE = "offline"
    """The set is stopped: nobody looked."""


class CopyBlame(Document):
    """Why a copy's storage is the one to replace: it was at fault in `scrubs` of the last `of_scrubs` that compared it,
    on `days` days. What was known to be damaged before, and what an unclean stop or missed writes explain, is not
    counted."""

    scrubs: int
    of_scrubs: int
    days: int
    outvoted: int = Field(description="ranges in which it was outvoted, in these scrubs")
    unreadable: int = Field(description="ranges that it could not read")
    recurring: int = Field(description="those of them that had been repaired before")
    others: int = Field(description="those of these scrubs in which another copy was at fault, too")


class CopyStatus(Document):
    """Counts come from this set's own history of scrubs: a storage daemon counts nothing."""

    name: str
    source: str
    state: CopyState
    outvoted: int = Field(description="findings in which this copy was outvoted")
    unreadable: int = Field(description="findings in which this copy could not be read")
    repaired: int
    missed_writes: bool = Field(False, description="a write or a flush of it failed: a scrub does not count its vote")
    failing: bool = Field(False, description="it has lost more than a scrub writes anew: to be replaced")
    note: str | None = None
    blame: CopyBlame | None = Field(
        None, description="it was at fault again and again, as no other copy; says nothing about its state now"
    )
    away_since: str | None = Field(None, description="when it left the quorum, until it is back and proven current")
    missed_bytes: int | None = Field(
        None, description="written since it left, by the daemon's record; null: there is none, or it is not away"
    )
    replaced_by: str | None = Field(None, description="the image that is to take its place: `copy replace` goes on")


class RunningScrub(Document):
    run: int
    mode: Literal["report", "repair"]
    position: int = Field(description="offset on the disk")
    range: RangeDocument | None = Field(None, description="null: the whole disk")
    pid: int | None
    held_back: bool = Field(False, description="guests are at work, and it reads little so that they do not feel it")


class FrontStatus(Document):
    """The daemon that serves guests which speak vhost-user-blk."""

    pid: int | None = Field(description="null: it has ended without having been stopped")
    socket: str = Field(description="where guests connect")
    guest: bool | None = Field(description="a guest is connected; null: the kernel does not tell")
    connected: bool | None = Field(
        description="to the volume; after a restart of the set it connects anew with the guest's next request"
    )
    write_through: bool | None = Field(
        description="each write is durable when it is acknowledged; false: the guest's device has config-wce=off"
    )
    num_queues: int | None


class SetStatus(Document):
    set: str
    uuid: str
    state: SetState
    reason: str | None = Field(description="one sentence, null when healthy")
    size: int
    threshold: int
    policy: Literal["repair", "report"]
    pid: int | None
    volume: str | None = Field(description="the NBD URI guests use, while the set runs")
    definition_differs: bool = Field(description="the definition was changed since the set was started")
    watched: bool | None = Field(None, description="a watcher hears of write errors; null while the set does not run")
    scrub: RunningScrub | None
    last_scrub: RunSummary | None
    unrepaired: int = Field(description="findings of the newest completed look at each range that are still open")
    copies: list[CopyStatus]
    front: FrontStatus | None = Field(None, description="null: there is none")
    hook_failures: list[HookFailure] = Field(
        default_factory=list, description="hooks that do not work; says nothing about the set's state"
    )


class StatusReport(Document):
    schema_: Literal["qorum.status/1"] = Field("qorum.status/1", alias="schema")
    sets: list[SetStatus]


class SetListing(Document):
    name: str
    state: SetState
    size: int | None
    copies: int | None
    error: str | None = None


class ListReport(Document):
    schema_: Literal["qorum.list/1"] = Field("qorum.list/1", alias="schema")
    sets: list[SetListing]


class ShowReport(Document):
    schema_: Literal["qorum.show/1"] = Field("qorum.show/1", alias="schema")
    definition: SetSpec
    definition_path: str
    state_directory: str
    runtime_directory: str


class CheckItem(Document):
    """One thing that was looked at. `remedy` stands where `ok` is false."""

    subject: str
    ok: bool
    detail: str
    remedy: str | None = None


class CheckReport(Document):
    schema_: Literal["qorum.check/1"] = Field("qorum.check/1", alias="schema")
    set: str
    ok: bool
    items: list[CheckItem]


class DoctorReport(Document):
    schema_: Literal["qorum.doctor/1"] = Field("qorum.doctor/1", alias="schema")
    ok: bool
    items: list[CheckItem]


class Imported(Document):
    """What a new set was filled from, and compared with in full."""

    source: str
    format: str
    size: int


class Result(Document):
    """The answer of a command that changes a set. `changed` is false when there was nothing to do."""

    schema_: Literal["qorum.result/1"] = Field("qorum.result/1", alias="schema")
    set: str
    command: str
    changed: bool
    state: SetState | None = None
    warnings: list[str] = Field(default_factory=list)
    recovery: int | None = Field(None, description="the run that scrubbed an unclean set before its volume went up")
    imported: Imported | None = Field(None, description="create --from")


class CopyResult(Document):
    """The answer of a command about one copy. Bytes: `copied` to it directly while it was outside the quorum; `healed`
    once it was back; `verified`, read back or compared with the other copies."""

    schema_: Literal["qorum.copy-result/1"] = Field("qorum.copy-result/1", alias="schema")
    set: str
    copy_: str = Field(alias="copy")
    command: Literal["detach", "rejoin", "replace"]
    changed: bool
    full: bool = Field(False, description="all of it was compared: what it had missed was not on record")
    reason: str | None = Field(None, description="why all of it was compared, or will have to be")
    compared_bytes: int = 0
    copied_bytes: int = 0
    healed_bytes: int = 0
    verified_bytes: int = 0
    passes: int = 0
    source: str | None = Field(None, description="replace: the image that has taken the copy's place, or was to")
    old_source: str | None = Field(None, description="replace: the image that it has replaced, or was to")
    cancelled: bool = Field(False, description="replace: the replacement was given up, the old image keeps its place")
    state: SetState | None = None
    warnings: list[str] = Field(default_factory=list)


class EventDocument(Document):
    """What the daemon told of a copy, or (`UNWATCHED`) that nobody listened. One to a line of `watch --json`."""

    schema_: Literal["qorum.event/1"] = Field("qorum.event/1", alias="schema")
    set: str
    time: str
    kind: str = Field(description="the daemon's name of the event, or UNWATCHED")
    copy_: str | None = Field(None, alias="copy", description="null: the set as a whole")
    operation: str | None = Field(None, description="read, write or flush")
    offset: int | None = Field(None, description="of the whole request, not of the damage")
    length: int | None = None
    error: str | None = Field(None, description="null where the copy was outvoted")
    missed_write: bool = Field(False, description="the copy is now known to have missed a write")
    text: str


class AttachReport(Document):
    schema_: Literal["qorum.attach/1"] = Field("qorum.attach/1", alias="schema")
    set: str
    uri: str
    qemu: list[str] = Field(description="arguments for qemu-system-*")
    libvirt: str = Field(description="a <disk> element")
    vhost_user_blk: list[str] = Field(
        default_factory=list, description="arguments for qemu-system-*, the guest's memory included: of the front"
    )


class FrontReport(Document):
    """The answer of `front`. `changed` is false when there was nothing to do."""

    schema_: Literal["qorum.front/1"] = Field("qorum.front/1", alias="schema")
    set: str
    changed: bool
    front: FrontStatus | None = Field(description="null: there is none, or none any more")
    qemu: list[str] = Field(description="arguments for qemu-system-*, the guest's memory included; empty without one")


class QmpReport(Document):
    schema_: Literal["qorum.qmp/1"] = Field("qorum.qmp/1", alias="schema")
    set: str
    command: str
    result: Any


class ErrorReport(Document):
    schema_: Literal["qorum.error/1"] = Field("qorum.error/1", alias="schema")
    code: str
    message: str
    remedy: str | None = None
    set: str | None = None
    copy_: str | None = Field(None, alias="copy")
    path: str | None = None
    exit_code: int

    @classmethod
    def of(cls, error: QorumError) -> Self:
        return cls(
            code=error.code,
            message=error.message,
            remedy=error.remedy,
            set=error.set_name,
            copy_=error.copy,
            path=error.path,
            exit_code=error.exit_code,
        )
