"""JSON schemas of what users write and programs read, generated from the models: `schemas/qorum.KIND-1.json`.

`python -m qorumctl.model.schema --write DIRECTORY` writes them all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qorumctl.model.demo import DemoReport
from qorumctl.model.evidence import Evidence, Manifest, ResolveReport
from qorumctl.model.export import ExportReport
from qorumctl.model.hooks import HookEvent, HooksReport, HookTest
from qorumctl.model.report import History, ScrubReport
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import (
    AttachReport,
    CheckReport,
    CopyResult,
    DoctorReport,
    ErrorReport,
    EventDocument,
    FrontReport,
    ListReport,
    QmpReport,
    Result,
    ShowReport,
    StatusReport,
)

KINDS: dict[str, type[BaseModel]] = {
    "definition": SetSpec,
    "scrub-report": ScrubReport,
    "history": History,
    "evidence": Evidence,
    "resolve": ResolveReport,
    "saved": Manifest,
    "status": StatusReport,
    "list": ListReport,
    "show": ShowReport,
    "check": CheckReport,
    "doctor": DoctorReport,
    "result": Result,
    "copy-result": CopyResult,
    "export": ExportReport,
    "attach": AttachReport,
    "front": FrontReport,
    "qmp": QmpReport,
    "demo": DemoReport,
    "event": EventDocument,
    "hook-event": HookEvent,
    "hooks": HooksReport,
    "hook-test": HookTest,
    "error": ErrorReport,
}


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON schema of one kind. Raises KeyError for a kind that is not in KINDS.

    A definition is described as it may be written, documents as they are printed.
    """
    model = KINDS[kind]
    mode = "validation" if kind == "definition" else "serialization"
    body = model.model_json_schema(by_alias=True, mode=mode)  # type: ignore[arg-type]
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:qorum:schema:{kind}:1",
        "title": f"qorum.{kind}/1",
    }
    return head | {key: value for key, value in body.items() if key != "title"}


def generate() -> dict[str, str]:
    """File name -> content, for every kind."""
    return {f"qorum.{kind}-1.json": json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n" for kind in KINDS}


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in generate().items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--write", target]:
            write(Path(target))
        case _:
            sys.exit("usage: python -m qorumctl.model.schema --write DIRECTORY")
