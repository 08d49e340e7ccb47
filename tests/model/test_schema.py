"""The schemas are those of the models, and what the program writes and reads fits them."""

import json
import tomllib
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from pydantic import BaseModel

from qorumctl import definitions
from qorumctl.core.findings import Action, FindingVerdict
from qorumctl.model import schema
from qorumctl.model.report import FindingDocument, History, RunSummary, ScrubReport
from qorumctl.model.spec import CopySpec, FileSource, NbdSource, ScrubSpec, SetSpec
from qorumctl.model.status import ErrorReport, ShowReport

COMMITTED = Path(__file__).resolve().parents[2] / "schemas"


def spec() -> SetSpec:
    sources = [FileSource(path="/images/a.raw"), FileSource(path="/images/b.raw"), NbdSource(uri="nbd://h/c")]
    copies = tuple(CopySpec(name=name, source=source) for name, source in zip("abc", sources, strict=True))
    return SetSpec(name="web01", uuid=UUID(int=1), size=20 << 30, threshold=2, copies=copies, scrub=ScrubSpec(rate=512))


def finding() -> FindingDocument:
    return FindingDocument.model_validate(
        {
            "id": 1, "offset": 0, "length": 512, "verdict": FindingVerdict.OUTVOTED, "copies": ["a"],
            "votes": {"d" * 64: ["b", "c"]}, "action": Action.REPAIRED, "diagnosis": {"kind": "zeroed"},
            "confirmed": "2026-11-23T06:00:00Z",
        }
    )  # fmt: skip


RUN: dict[str, Any] = {
    "run": 1, "mode": "repair", "started": "2026-11-23T06:00:00Z", "finished": None, "outcome": "unfinished",
    "size": 512, "scanned_bytes": 0, "skipped_bytes": 0, "busy_bytes": 0, "resumable": True,
}  # fmt: skip
DOCUMENTS: list[tuple[str, BaseModel]] = [
    ("scrub-report", ScrubReport(set="web01", read_bytes={"a": 1}, suspects=0, findings=[finding()], **RUN)),
    ("history", History(set="web01", runs=[RunSummary(findings={Action.LEFT: 2}, **RUN)])),
    ("show", ShowReport(definition=spec(), definition_path="/p", state_directory="/s", runtime_directory="/r")),
    ("error", ErrorReport(code="copy", message="m", copy_="a", exit_code=1)),
]


def test_the_committed_schemas_are_those_of_the_models() -> None:
    committed = {path.name: path.read_text() for path in COMMITTED.glob("*.json")}
    assert committed == schema.generate(), "run 'make schemas'"


@pytest.mark.parametrize("kind", schema.KINDS)
def test_each_is_a_valid_schema_with_a_name_of_its_own(kind: str) -> None:
    body = schema.schema_of(kind)
    jsonschema.Draft202012Validator.check_schema(body)
    assert body["title"] == f"qorum.{kind}/1"
    if kind != "definition":
        assert body["properties"]["schema"]["const"] == f"qorum.{kind}/1"


@pytest.mark.parametrize(("kind", "document"), DOCUMENTS, ids=[kind for kind, _ in DOCUMENTS])
def test_what_is_printed_fits(kind: str, document: BaseModel) -> None:
    printed = json.loads(document.model_dump_json(by_alias=True))
    jsonschema.validate(printed, schema.schema_of(kind))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(printed | {"more": 1}, schema.schema_of(kind))


def test_what_is_written_as_a_definition_fits_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "web01.toml"
    definitions.save(path, spec())
    written = tomllib.loads(path.read_text())
    jsonschema.validate(written, schema.schema_of("definition"))
    assert definitions.load(path) == spec()


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [("size", 512, True), ("size", "1.5TiB", True), ("size", "20GB", False), ("size", 0, False), ("policy", "x", False),
     ("threshhold", 2, False), ("name", "Web", False), ("scrub", {"rate": "1M/s"}, True)],
)  # fmt: skip
def test_the_schema_of_a_definition_tells_good_from_bad(key: str, value: object, fits: bool) -> None:
    written = json.loads(spec().model_dump_json()) | {key: value}
    assert jsonschema.Draft202012Validator(schema.schema_of("definition")).is_valid(written) is fits


def test_they_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    schema.write(tmp_path / "out")
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == schema.generate()
