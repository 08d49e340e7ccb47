"""What is shown of one finding, in 80 columns: with many copies, with long names, with what cannot be read."""

from __future__ import annotations

from typing import Any

from qorumctl.cli import render_evidence
from qorumctl.model.evidence import Evidence
from tests.cli.documents import MIB, finding
from tests.cli.screen import screen, text


def evidence(rows: list[dict[str, Any]], **keys: Any) -> Evidence:
    copies = [
        {"name": name, "digest": name * 64, "recorded": name * 64, "changed": False, "bits": 1, "sectors": 1}
        for name in "abc"
    ]
    values = {
        "set": "web01",
        "run": 3,
        "finding": finding(7, verdict="no-majority", action="left", copies=["a", "b", "c"]),
        "read_at": "2026-11-22T03:00:00.000Z",
        "state": "stopped",
        "copies": copies,
        "agree": [["a"], ["b"], ["c"]],
        "sectors": 1,
        "equal_sectors": 0,
        "voted_sectors": 0,
        "tied_sectors": 1,
        "bitwise": {"likelihood": "likely", "why": "Few bits differ."},
        "rows": rows,
        "more_rows": 0,
    }
    return Evidence.model_validate(values | keys)


def shown(found: Evidence) -> str:
    return screen(render_evidence.evidence(found)).partition("bitwise majority: likely. Few bits differ.\n\n")[2]


A, B, C = b"good data, all..", b"good dbta, all..", b"good data,\x00all.."


def test_versions_side_by_side_with_the_bits_that_differ() -> None:
    row = {"offset": MIB, "data": {"a": A.hex(), "b": B.hex(), "c": C.hex()}, "bitwise": A.hex()}
    assert shown(evidence([row])) == text(
        """
      1048576 a        676f6f64 20646174 612c2061 6c6c2e2e good data, all..
              b        676f6f64 20646274 612c2061 6c6c2e2e good dbta, all..
                ^ bits              03
              c        676f6f64 20646174 612c0061 6c6c2e2e good data,.all..
                ^ bits                       20

'^ bits': the bits of a byte that differ from the bitwise majority, as a
hexadecimal mask.
"""
    )


def test_what_cannot_be_read_and_no_bitwise_majority() -> None:
    row = {"offset": MIB, "data": {"a": A.hex(), "b": B.hex(), "c": None}, "bitwise": None}
    told = shown(evidence([row]))
    assert "c        unreadable" in told
    assert "differ from the first version" in told


def test_nothing_is_wider_than_80_columns() -> None:
    names = [f"copy-with-a-long-name-{n}" for n in range(9)]
    row = {
        "offset": 1 << 45,
        "data": {name: (A if n % 2 else B).hex() for n, name in enumerate(names)},
        "bitwise": A.hex(),
    }
    told = screen(render_evidence.evidence(evidence([row] * 3, agree=[names], more_rows=9, next_offset=1 << 45)))
    assert max(map(len, told.splitlines())) <= 80
    assert all(name in " ".join(told.split()) for name in names)
