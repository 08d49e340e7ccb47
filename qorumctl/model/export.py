"""What programs read about an export."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qorumctl.model.report import Document, RangeDocument


class ExportReport(Document):
    """The answer of `export`. `no_majority`: ranges in which no version has enough current copies behind it. They are
    why nothing was exported, or, with --partial, they hold a marker instead of data."""

    schema_: Literal["qorum.export/1"] = Field("qorum.export/1", alias="schema")
    set: str
    path: str
    format: Literal["raw", "qcow2"]
    size: int
    running: bool = Field(description="the set was running: the file is of one moment")
    exported: bool = Field(description="the file is in its place, and was compared with what the set holds")
    no_majority: list[RangeDocument] = Field(default_factory=list)
    no_majority_bytes: int = 0
    warnings: list[str] = Field(default_factory=list)
