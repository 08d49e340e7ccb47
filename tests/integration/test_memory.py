"""Memory does not grow with the damage: a copy can be wrong all over, and the host must still have room for guests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from qorumctl.model.report import ScrubReport
from tests.integration.harness import NAME, LiveSet

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
FINDINGS = 4000
APART = 40 << 9
"""Further than what is read and voted on together."""
SIZE = FINDINGS * APART
ALLOWED_MIB = 28
"""A batch with its evidence is 18 to 22 MiB, however many there are. When a report held all that was found, 4,000
findings were 34 MiB, and 16,000 were 109 (docs/performance.md)."""


def peak_mib(live: LiveSet, out: Path, *arguments: str, exit_code: int) -> float:
    """Of a qorumctl process of its own."""
    with out.open("wb") as file:
        process = live.cli(*arguments, stdout=file)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == exit_code
    return usage.ru_maxrss / 1024


async def test_thousands_of_findings_take_no_more_memory_than_none(live_set: LiveSets, tmp_path: Path) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create(thin=True)
    await live.start()
    out = tmp_path / "document"
    # Some data, as much as will be damaged: it is read with or without damage.
    for copy in "abc":
        damage(live, copy)
    without = peak_mib(live, out, "scrub", NAME, "--json", exit_code=0)
    nothing = peak_mib(live, out, "report", NAME, "--json", exit_code=0)
    damage(live, "b", b"rotten")
    with_damage = peak_mib(live, out, "scrub", NAME, "--json", exit_code=3)
    scrubbed = out.read_text()
    assert with_damage - without < ALLOWED_MIB
    assert peak_mib(live, out, "report", NAME, "--json", exit_code=0) - nothing < ALLOWED_MIB / 2
    assert out.read_text() == scrubbed

    # What was told bit by bit is the whole: the same text as that of the document made at once.
    report = ScrubReport.model_validate_json(scrubbed)
    assert scrubbed == json.dumps(report.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"
    assert {f.action for f in report.findings} == {"repaired"}
    assert [(f.offset, f.copies) for f in report.findings] == [(n * APART, ["b"]) for n in range(FINDINGS)]
    assert list(islice(live.sets.findings(NAME), 3)) == report.findings[:3]


def damage(live: LiveSet, copy: str, data: bytes = b"sound ") -> None:
    with live.image(copy).open("r+b") as file:
        for number in range(FINDINGS):
            file.seek(number * APART)
            file.write(data)
