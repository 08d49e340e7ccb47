"""Documents made by hand, for rendering."""

from __future__ import annotations

from typing import Any

from qorumctl.model.report import FindingDocument, RunSummary, ScrubReport
from qorumctl.model.status import CopyStatus, SetStatus

MIB = 1 << 20
GIB = 1 << 30


def finding(number: int = 1, offset: int = MIB, **keys: Any) -> FindingDocument:
    values: dict[str, Any] = {
        "id": number,
        "offset": offset,
        "length": 512,
        "verdict": "outvoted",
        "copies": ["b"],
        "votes": {"9f86d081884c7d65": ["a", "c"], "60303ae22b998861": ["b"]},
        "action": "repaired",
        "diagnosis": {"kind": "bit-flips", "flipped_bits": 1},
        "confirmed": "2026-11-22T03:00:01.000Z",
    }
    return FindingDocument.model_validate(values | keys)


def report(*findings: FindingDocument, **keys: Any) -> ScrubReport:
    values: dict[str, Any] = {
        "set": "web01",
        "run": 12,
        "mode": "repair",
        "started": "2026-11-22T03:00:00.000Z",
        "finished": "2026-11-22T03:04:12.000Z",
        "outcome": "clean",
        "size": 20 * GIB,
        "scanned_bytes": 20 * GIB,
        "skipped_bytes": 0,
        "read_bytes": {"a": 20 * GIB, "b": 20 * GIB, "c": 20 * GIB},
        "suspects": len(findings),
        "busy_bytes": 0,
        "findings": list(findings),
    }
    return ScrubReport.model_validate(values | keys)


def run_summary(**keys: Any) -> RunSummary:
    values: dict[str, Any] = {
        "run": 12,
        "mode": "repair",
        "started": "2026-11-22T03:00:00.000Z",
        "finished": "2026-11-22T03:04:12.000Z",
        "outcome": "clean",
        "size": 20 * GIB,
        "scanned_bytes": 20 * GIB,
        "skipped_bytes": 0,
        "busy_bytes": 0,
        "resumable": False,
        "findings": {},
    }
    return RunSummary.model_validate(values | keys)


def copy(name: str, **keys: Any) -> CopyStatus:
    values: dict[str, Any] = {
        "name": name,
        "source": f"/mnt/nfs-{name}/web01.raw",
        "state": "current",
        "outvoted": 0,
        "unreadable": 0,
        "repaired": 0,
    }
    return CopyStatus.model_validate(values | keys)


def set_status(**keys: Any) -> SetStatus:
    values: dict[str, Any] = {
        "set": "web01",
        "uuid": "6f1d0a52-9b6e-4a54-8a53-0d7b6f5b6a11",
        "state": "healthy",
        "reason": None,
        "size": 20 * GIB,
        "threshold": 2,
        "policy": "repair",
        "pid": 4711,
        "volume": "nbd+unix:///volume?socket=/run/qorum/web01/nbd.sock",
        "definition_differs": False,
        "scrub": None,
        "last_scrub": run_summary(),
        "unrepaired": 0,
        "copies": [copy("a"), copy("b"), copy("c")],
    }
    return SetStatus.model_validate(values | keys)
