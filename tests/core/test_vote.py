"""The vote as a truth table, and what must hold whatever the copies say.

A letter is what one copy holds in one sector, `?` a sector it cannot read, `*` marks a stale copy. Columns are copies
a, b, c, ... in order.
"""

from __future__ import annotations

import time
from itertools import pairwise
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qorumctl.core.ranges import SECTOR_BYTES, Range, between, coalesce
from qorumctl.core.vote import NoMajority, Observation, Outvoted, Run, strict_majority, vote

NAMES = "abcdefghi"


def sector(letter: str, length: int = SECTOR_BYTES) -> bytes:
    return b"\0" * length if letter == "?" else letter.encode() * length


def seen(letters: str, length: int | None = None) -> Observation:
    """What a copy said, a letter for each sector, cut at `length` bytes."""
    data = b"".join(sector(letter) for letter in letters)
    bad = (Range(i * SECTOR_BYTES, SECTOR_BYTES) for i, letter in enumerate(letters) if letter == "?")
    return Observation(data[:length], tuple(coalesce(bad)))


def columns(row: str) -> tuple[dict[str, Observation], frozenset[str]]:
    said = dict(zip(NAMES, row.split(), strict=False))
    stale = frozenset(name for name, letters in said.items() if letters.endswith("*"))
    return {name: seen(letters.removesuffix("*")) for name, letters in said.items()}, stale


def outvoted(winners: str, losers: str = "", unreadable: str = "") -> Outvoted:
    return Outvoted(frozenset(winners), frozenset(losers), frozenset(unreadable))


def no_majority(groups: str, unreadable: str = "") -> NoMajority:
    return NoMajority(frozenset(frozenset(group) for group in groups.split()), frozenset(unreadable))


UNANIMOUS = None
Table = dict[str, Outvoted | NoMajority | None]

THREE_COPIES: Table = {
    "A A A": UNANIMOUS,
    "A A B": outvoted("ab", "c"),
    "A B A": outvoted("ac", "b"),
    "B A A": outvoted("bc", "a"),
    "A B C": no_majority("a b c"),
    "A A ?": outvoted("ab", "", "c"),
    "? A A": outvoted("bc", "", "a"),
    "A B ?": no_majority("a b", "c"),
    "A ? ?": no_majority("a", "bc"),
    "? ? ?": no_majority("", "abc"),
    # A copy that missed writes is compared, and can lose, but lends nobody its vote.
    "A A A*": UNANIMOUS,
    "A A B*": outvoted("ab", "c"),
    "A B B*": no_majority("a bc"),
    "A B A*": no_majority("ac b"),
    "A A* B": no_majority("ab c"),
    "A A* ?": no_majority("ab", "c"),
    "A* B* C": no_majority("a b c"),
    "A* A* B": no_majority("ab c"),
    "A* A* B*": no_majority("ab c"),
    "A A ?*": outvoted("ab", "", "c"),
    "A ? A*": no_majority("ac", "b"),
}

FIVE_COPIES_THREE_VOTES: Table = {
    "A A A A A": UNANIMOUS,
    "A A A A B": outvoted("abcd", "e"),
    "A B A C A": outvoted("ace", "bd"),
    "A B A B A": outvoted("ace", "bd"),
    "A A A B ?": outvoted("abc", "d", "e"),
    "A A A ? ?": outvoted("abc", "", "de"),
    "A A B B C": no_majority("ab cd e"),
    "A A B B ?": no_majority("ab cd", "e"),
    "A A ? ? ?": no_majority("ab", "cde"),
    "A B C D E": no_majority("a b c d e"),
    "A A A A* B": outvoted("abcd", "e"),
    "A A A* A* B": no_majority("abcd e"),
    "A A A B* B*": outvoted("abc", "de"),
    "A A B B* B*": no_majority("ab cde"),
}

FIVE_COPIES_FOUR_VOTES: Table = {
    "A A A A A": UNANIMOUS,
    "A A A A B": outvoted("abcd", "e"),
    "A A A A ?": outvoted("abcd", "", "e"),
    "A A A B B": no_majority("abc de"),
    "A A A B ?": no_majority("abc d", "e"),
    "A A A ? ?": no_majority("abc", "de"),
    "A A A A* B": no_majority("abcd e"),
}

FIVE_COPIES_FIVE_VOTES: Table = {
    "A A A A A": UNANIMOUS,
    "A A A A B": no_majority("abcd e"),
    "A A A A ?": no_majority("abcd", "e"),
}

TABLE = [
    pytest.param(row, threshold, verdict, id=f"{row} | {threshold}")
    for threshold, table in [
        (2, THREE_COPIES),
        (3, FIVE_COPIES_THREE_VOTES),
        (4, FIVE_COPIES_FOUR_VOTES),
        (5, FIVE_COPIES_FIVE_VOTES),
    ]
    for row, verdict in table.items()
]


@pytest.mark.parametrize(("row", "threshold", "verdict"), TABLE)
def test_truth_table(row: str, threshold: int, verdict: Outvoted | NoMajority | None) -> None:
    observations, stale = columns(row)
    expected = [] if verdict is UNANIMOUS else [Run(Range(0, SECTOR_BYTES), verdict)]
    assert vote(observations, threshold, stale=stale) == expected


@pytest.mark.parametrize(
    ("copies", "threshold"), [(3, 0), (3, 1), (3, 4), (4, 2), (5, 1), (5, 2), (5, 6), (7, 3), (2, 1), (1, 0)]
)
def test_a_threshold_that_is_no_strict_majority_is_refused(copies: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="strict majority"):
        vote({name: seen("A") for name in NAMES[:copies]}, threshold)


def test_a_vote_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="strict majority"):
        vote({}, 1)


def test_observations_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        vote({"a": seen("AA"), "b": seen("AA"), "c": seen("A")}, 2)


@pytest.mark.parametrize("copies", [1, 2, 3, 4, 5, 7, 9])
def test_two_strict_majorities_cannot_be_disjoint(copies: int) -> None:
    assert strict_majority(copies) * 2 > copies >= (strict_majority(copies) - 1) * 2


# Sector runs. One column of letters for each copy, a letter for each sector; `runs` marks what must come back.


@pytest.mark.parametrize(
    ("a", "b", "c", "runs"),
    [
        ("AAAA", "AAAA", "AAAA", {}),
        ("AAAA", "ABBA", "AAAA", {(1, 3): outvoted("ac", "b")}),
        ("AAAA", "ABAA", "AABA", {(1, 2): outvoted("ac", "b"), (2, 3): outvoted("ab", "c")}),
        ("AAAA", "BAAB", "AAAA", {(0, 1): outvoted("ac", "b"), (3, 4): outvoted("ac", "b")}),
        ("AAAA", "BBBB", "CCCC", {(0, 4): no_majority("a b c")}),
        ("AAAA", "A?BA", "AAAA", {(1, 2): outvoted("ac", "", "b"), (2, 3): outvoted("ac", "b")}),
        ("AAAA", "A??A", "AAAA", {(1, 3): outvoted("ac", "", "b")}),
        ("AAAA", "ABBA", "AACA", {(1, 2): outvoted("ac", "b"), (2, 3): no_majority("a b c")}),
        # Different damage, one verdict: it is one run, and the loser is the same copy.
        ("AAAA", "ABCA", "AAAA", {(1, 3): outvoted("ac", "b")}),
    ],
)
def test_adjacent_sectors_with_one_verdict_are_one_run(
    a: str, b: str, c: str, runs: dict[tuple[int, int], Outvoted | NoMajority]
) -> None:
    expected = [
        Run(between(start * SECTOR_BYTES, end * SECTOR_BYTES), verdict) for (start, end), verdict in runs.items()
    ]
    assert vote({"a": seen(a), "b": seen(b), "c": seen(c)}, 2) == expected


def test_a_partial_last_sector_is_a_sector() -> None:
    length = SECTOR_BYTES + 100
    said = {"a": seen("AA", length), "b": seen("AB", length), "c": seen("AA", length)}
    assert vote(said, 2) == [Run(Range(SECTOR_BYTES, 100), outvoted("ac", "b"))]


def test_what_an_unreadable_sector_holds_means_nothing() -> None:
    bad = (Range(0, SECTOR_BYTES),)
    said = {"a": seen("A"), "b": Observation(sector("B"), bad), "c": Observation(sector("B"), bad)}
    assert vote(said, 2) == [Run(Range(0, SECTOR_BYTES), no_majority("a", "bc"))]


def test_an_unreadable_range_that_is_not_aligned_spoils_every_sector_it_touches() -> None:
    said = {"a": seen("AAA"), "b": seen("AAA"), "c": Observation(seen("AAA").data, (Range(511, 2),))}
    assert vote(said, 2) == [Run(Range(0, 2 * SECTOR_BYTES), outvoted("ab", "", "c"))]


def test_nothing_observed_is_unanimous() -> None:
    assert vote({name: Observation(b"") for name in "abc"}, 2) == []


# Properties.

Copies = dict[str, Observation]


@st.composite
def elections(draw: st.DrawFn) -> tuple[Copies, int, frozenset[str]]:
    """Few letters, so that groups form; 1 to 9 sectors, the last one perhaps partial."""
    copies = draw(st.sampled_from([3, 5, 7]))
    threshold = draw(st.integers(strict_majority(copies), copies))
    sectors = draw(st.integers(1, 9))
    length = sectors * SECTOR_BYTES - draw(st.sampled_from([0, 0, 1, 100, 511]))
    word = st.text(alphabet="AAAAAB?", min_size=sectors, max_size=sectors)
    said = {name: seen(draw(word), length) for name in NAMES[:copies]}
    stale = draw(st.frozensets(st.sampled_from(sorted(said)), max_size=copies // 2))
    return said, threshold, stale


def naive(said: Copies, threshold: int, stale: frozenset[str]) -> list[Run]:
    """The definition, in the plainest words: one sector after another, every copy against every copy."""
    runs: list[Run] = []
    length = len(said["a"].data)
    for start in range(0, length, SECTOR_BYTES):
        here = between(start, min(start + SECTOR_BYTES, length))
        deaf = {name for name, o in said.items() if any(bad.overlaps(here) for bad in o.unreadable)}
        held = {name: bytes(o.data[here.offset : here.end]) for name, o in said.items() if name not in deaf}
        groups = {frozenset(n for n in held if held[n] == content) for content in held.values()}
        if len(groups) == 1 and not deaf:
            continue
        verdict: Outvoted | NoMajority = NoMajority(frozenset(groups), frozenset(deaf))
        for group in groups:
            if len(group - stale) >= threshold:
                verdict = Outvoted(group, frozenset(held) - group, frozenset(deaf))
        if runs and runs[-1].range.end == start and runs[-1].verdict == verdict:
            runs[-1] = Run(between(runs[-1].range.offset, here.end), verdict)
        else:
            runs.append(Run(here, verdict))
    return runs


@given(elections())
def test_halving_finds_what_the_naive_loop_finds(election: tuple[Copies, int, frozenset[str]]) -> None:
    said, threshold, stale = election
    assert vote(said, threshold, stale=stale) == naive(said, threshold, stale)


@given(elections())
def test_winners_are_enough_current_copies_and_the_copies_are_parted(
    election: tuple[Copies, int, frozenset[str]],
) -> None:
    said, threshold, stale = election
    for run in vote(said, threshold, stale=stale):
        match run.verdict:
            case Outvoted(winners, losers, unreadable):
                assert len(winners - stale) >= threshold
                assert losers or unreadable
                parts = [winners, losers, unreadable]
            case NoMajority(groups, unreadable):
                assert all(len(group - stale) < threshold for group in groups)
                parts = [*groups, unreadable]
        assert frozenset().union(*parts) == frozenset(said)
        assert sum(len(part) for part in parts) == len(said)


@given(elections())
def test_runs_are_ordered_apart_and_end_at_sectors(election: tuple[Copies, int, frozenset[str]]) -> None:
    said, threshold, stale = election
    length = len(said["a"].data)
    runs = vote(said, threshold, stale=stale)
    for run in runs:
        assert run.range.offset % SECTOR_BYTES == 0
        assert run.range.end % SECTOR_BYTES == 0 or run.range.end == length
    for left, right in pairwise(runs):
        assert left.range.end <= right.range.offset
        assert left.range.end < right.range.offset or left.verdict != right.verdict


@given(elections(), st.randoms(use_true_random=False))
def test_the_order_of_the_copies_changes_nothing(election: tuple[Copies, int, frozenset[str]], dice: Random) -> None:
    said, threshold, stale = election
    names = list(said)
    dice.shuffle(names)
    assert vote({name: said[name] for name in names}, threshold, stale=stale) == vote(said, threshold, stale=stale)


@given(elections(), st.randoms(use_true_random=False))
def test_renaming_the_copies_renames_the_verdict(election: tuple[Copies, int, frozenset[str]], dice: Random) -> None:
    said, threshold, stale = election
    names = list(said)
    dice.shuffle(names)
    new = dict(zip(said, names, strict=True))

    def renamed(group: frozenset[str]) -> frozenset[str]:
        return frozenset(new[name] for name in group)

    def rename(verdict: Outvoted | NoMajority) -> Outvoted | NoMajority:
        match verdict:
            case Outvoted(winners, losers, unreadable):
                return Outvoted(renamed(winners), renamed(losers), renamed(unreadable))
            case NoMajority(groups, unreadable):
                return NoMajority(frozenset(renamed(group) for group in groups), renamed(unreadable))

    moved = vote({new[name]: o for name, o in said.items()}, threshold, stale=renamed(stale))
    assert moved == [Run(run.range, rename(run.verdict)) for run in vote(said, threshold, stale=stale)]


@given(elections())
def test_more_stale_copies_never_make_a_majority(election: tuple[Copies, int, frozenset[str]]) -> None:
    said, threshold, stale = election
    won = {run.range for run in vote(said, threshold) if isinstance(run.verdict, Outvoted)}
    for run in vote(said, threshold, stale=stale):
        if isinstance(run.verdict, Outvoted):
            assert any(whole.contains(run.range) for whole in won)


@given(st.binary(min_size=1, max_size=4 * SECTOR_BYTES), st.data())
@example(b"\0" * SECTOR_BYTES, None)
def test_one_changed_byte_is_found_in_its_sector_and_nowhere_else(content: bytes, data: st.DataObject | None) -> None:
    at = data.draw(st.integers(0, len(content) - 1)) if data else len(content) - 1
    changed = bytearray(content)
    changed[at] ^= 1
    said = {"a": Observation(content), "b": Observation(changed), "c": Observation(content)}
    start = at // SECTOR_BYTES * SECTOR_BYTES
    here = between(start, min(start + SECTOR_BYTES, len(content)))
    assert vote(said, 2) == [Run(here, outvoted("ac", "b"))]


def test_a_mebibyte_is_voted_on_in_a_few_milliseconds() -> None:
    """The bounds are ten times what was measured on two cores of a small machine (2 ms and 15 ms)."""
    size = 1 << 20
    one = {name: Observation(bytearray(size)) for name in "abc"}
    assert isinstance(one["c"].data, bytearray)
    one["c"].data[700_000] ^= 1
    every = {name: Observation(bytearray(name.encode()) * size) for name in "abc"}

    def best_of_three(said: Copies) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            vote(said, 2)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best_of_three(one) < 0.020
    assert best_of_three(every) < 0.150
