"""Whose storage is to be replaced: a truth table, and what must never point at anybody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorumctl.core.blame import WINDOW_RUNS, Blame, Faults, Look, blame

ONE = Faults(outvoted=1)


def looks(history: str) -> list[Look]:
    """`b - ac/-`: days, oldest first; of each its scrubs, with the copies that were at fault in them."""
    scrubs = [(day, scrub) for day, of_day in enumerate(history.split()) for scrub in of_day.split("/")]
    made = [
        Look(number, f"2026-11-{day + 1:02}", dict.fromkeys(scrub.replace("-", ""), ONE))
        for number, (day, scrub) in enumerate(scrubs, start=1)
    ]
    return made[::-1]


def blamed(history: str, **replaced: int) -> str | None:
    """`b 5/6 on 4`: the copy, its scrubs of how many, and on how many days."""
    found = blame(looks(history), replaced)
    return None if found is None else f"{found.copy} {found.scrubs}/{found.of_scrubs} on {found.days}"


@pytest.mark.parametrize(
    ("history", "told"),
    [
        ("", None),
        ("- - - - - -", None),
        # Again and again.
        ("b b b", "b 3/3 on 3"),
        ("b - b b b b", "b 5/6 on 5"),
        ("b - b - b -", "b 3/6 on 3"),
        ("- - - - - - - b b b", "b 3/6 on 3"),
        ("b/b b b", "b 4/4 on 3"),
        # Too seldom.
        ("b b", None),
        ("b - - b - - b", None),
        ("b b - - - - - - - -", None),
        # One bad day, or two, however many scrubs.
        ("b/b/b/b/b/b/b/b", None),
        ("b/b/b/b b/b/b/b", None),
        # It was mended meanwhile.
        ("b b b - - -", "b 3/6 on 3"),
        ("b b b - - - -", None),
        # What they share, rather than one of them.
        ("bc bc bc bc", None),
        ("b c b c b c", None),
        ("ab bc b", "b 3/3 on 3"),
        ("abc abc abc abc", None),
        ("b b c b", "b 3/4 on 3"),
        ("b b c b c", None),
        # Long ago.
        ("b b b b b b b b b b" + " -" * WINDOW_RUNS, None),
    ],
)
def test_truth_table(history: str, told: str | None) -> None:
    assert blamed(history) == told


def test_the_number_of_ranges_alone_says_nothing() -> None:
    many = [replace(look, faults={"b": Faults(outvoted=1_000_000)}) for look in looks("b b")]
    assert blame(many, {}) is None


def test_a_replaced_copy_begins_anew() -> None:
    assert blamed("b b b b", b=0) == "b 4/4 on 4"
    assert blamed("b b b b", b=2) is None
    assert blamed("b b b b b", b=2) == "b 3/3 on 3"


def test_what_another_copy_s_former_storage_did_excuses_nobody() -> None:
    assert blamed("bc bc bc b") is None
    assert blamed("bc bc bc b", c=3) == "b 4/4 on 4"


def test_scrubs_that_did_not_read_a_copy_say_nothing_about_it() -> None:
    away = [replace(look, compared=frozenset("ac")) if not look.faults else look for look in looks("b - - - - b - b")]
    assert blame(looks("b - - - - b - b"), {}) is None
    assert blame(away, {}) == Blame("b", 3, 3, 3, Faults(outvoted=3), 0)


def test_its_numbers_are_those_of_the_scrubs_it_tells_of() -> None:
    found = [
        Look(4, "2026-11-04", {"b": Faults(outvoted=2, recurring=1), "c": ONE}),
        Look(3, "2026-11-03", {"b": Faults(unreadable=3, recurring=2)}),
        Look(2, "2026-11-02", {"b": Faults(outvoted=4)}),
        Look(1, "2026-11-01", {}),
    ]
    assert blame(found, {}) == Blame("b", 3, 4, 3, Faults(outvoted=6, unreadable=3, recurring=3), others=1)


_SCRUB = st.sets(st.sampled_from("abc")).map(lambda at_fault: "".join(sorted(at_fault)) or "-")


@given(st.lists(st.lists(_SCRUB, min_size=1, max_size=3).map("/".join), max_size=15).map(" ".join))
def test_whoever_is_blamed_stands_out(history: str) -> None:
    found = blame(looks(history), {})
    if found is not None:
        seen = looks(history)[: found.of_scrubs]
        assert found.scrubs == sum(found.copy in look.faults for look in seen) >= max(3, len(seen) / 2)
        assert all(3 * sum(name in look.faults for look in seen) <= found.scrubs for name in set("abc") - {found.copy})
