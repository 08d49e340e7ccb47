"""The table of attacks in docs/safety.md: every attack that is marked in the tests, under its promise, and no other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.soak import TABLE_BEGINS, TABLE_ENDS, rows

SAFETY = Path(__file__).resolve().parents[2] / "docs" / "safety.md"


def test_the_table_names_every_attack_and_how_to_repeat_it() -> None:
    text = SAFETY.read_text()
    assert text.count(TABLE_BEGINS) == text.count(TABLE_ENDS) == 1
    lines = text.partition(TABLE_BEGINS)[2].partition(TABLE_ENDS)[0].strip().splitlines()[2:]
    listed = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    wanted = [(row.promise, row.attack, f"`{row.command}`") for row in rows()]
    assert Counter((promise, attack, command) for promise, attack, _, _, command in listed) == Counter(wanted)
    assert {result for _, _, _, result, _ in listed} == {"held"}
