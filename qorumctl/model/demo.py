"""What `qorumctl demo --json` prints: the whole story as one document."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qorumctl.model.report import Document, ScrubReport
from qorumctl.model.status import CheckItem


class DemoDamage(Document):
    """One sector of one copy, overwritten in the image file behind the daemon's back."""

    offset: int
    length: int
    copy_: str = Field(alias="copy")
    what: str


class DemoRead(Document):
    """A range that a guest read, before anything was repaired: in one request, then sector by sector."""

    offset: int
    length: int
    copies: list[str] = Field(description="the copies that are damaged somewhere in the range")
    whole: Literal["right", "wrong", "error"]
    sectors_right: int
    sectors_wrong: int
    sectors_failed: int


class DemoReport(Document):
    """`ok`: every check is. The exit codes are those that `qorumctl scrub` ends with."""

    schema_: Literal["qorum.demo/1"] = Field("qorum.demo/1", alias="schema")
    ok: bool
    set: str
    size: int
    cache: Literal["none", "writeback"]
    written: str = Field(description="SHA-256 of what was written through the volume, all of it")
    damage: list[DemoDamage]
    reads: list[DemoRead]
    scrub: ScrubReport
    scrub_exit_code: int
    second_scrub: ScrubReport
    second_scrub_exit_code: int
    checks: list[CheckItem]
    directory: str | None = Field(description="where all of it still is (--keep); null: it was removed")
    environment: dict[str, str] = Field(description="what other commands need to find the set (--keep)")
