"""What people read about scrubs, at 80 columns, as a whole."""

from __future__ import annotations

from typing import Any

import pytest

from qorumctl.cli import render_scrub, scrub_words
from qorumctl.model.report import FindingDocument
from tests.cli.documents import GIB, MIB, finding, report
from tests.cli.screen import screen, text

TIED: dict[str, Any] = {
    "verdict": "no-majority",
    "action": "left",
    "copies": ["a", "b", "c"],
    "diagnosis": {"kind": "unknown"},
    "votes": {"a" * 64: ["a"], "b" * 64: ["b"], "c" * 64: ["c"]},
}


def of_every_kind() -> list[FindingDocument]:
    return [
        finding(1, 0),
        finding(2, 512, diagnosis={"kind": "zeroed"}, copies=["a"]),
        finding(3, 7 * MIB, diagnosis={"kind": "torn", "torn_at_bytes": 200}, source="guest-read"),
        finding(4, 8 * MIB, verdict="unreadable", action="failed", copies=["c"], diagnosis={"kind": "unreadable"}),
        finding(5, 9 * MIB, **TIED),
        finding(6, 10 * MIB, copies=[], cause="unclean-shutdown", diagnosis={"kind": "unknown"}),
        finding(7, 19 * GIB, length=65536, diagnosis={"kind": "filled", "fill_byte": 255}),
    ]


def test_nothing_found() -> None:
    assert screen(render_scrub.scrub(report())) == "web01: no damage found; 20 GiB compared, in 4m12s."


def test_nothing_found_on_a_disk_with_holes() -> None:
    document = report(scanned_bytes=3 * GIB, skipped_bytes=17 * GIB)
    assert screen(render_scrub.scrub(document)) == text(
        """
web01: no damage found; 3 GiB compared, 17 GiB are zero in every copy, in 4m12s.
"""
    )


def test_all_repaired() -> None:
    document = report(finding(1), finding(2, 2 * MIB, copies=["c"]), outcome="repaired")
    assert screen(render_scrub.scrub(document)) == text(
        """
ID   OFFSET  LENGTH  COPIES  VERDICT   ACTION    WHAT
 1  1048576     512  b       outvoted  repaired  1 bit flipped
 2  2097152     512  c       outvoted  repaired  1 bit flipped

web01: 2 ranges, 1 KiB, were repaired and verified (copy b once, copy c once).
Nothing is to be done now; should copies b and c come up again, look at the
storage behind them.
"""
    )


def test_the_worst_comes_first() -> None:
    assert screen(render_scrub.scrub(report(*of_every_kind(), outcome="no-majority"))) == text(
        """
ID       OFFSET  LENGTH  COPIES  VERDICT      ACTION    WHAT
 5      9437184     512  a b c   no-majority  left      3 versions
 4      8388608     512  c       unreadable   failed    unreadable
 1            0     512  b       outvoted     repaired  1 bit flipped
 2          512     512  a       outvoted     repaired  zeroed
 3      7340032     512  b       outvoted     repaired  torn at byte 200
                                                        healed by a guest's read
 6     10485760     512  -       outvoted     repaired  other data
                                                        after an unclean stop
 7  20401094656   65536  b       outvoted     repaired  filled with 0xff

web01: 1 range of 512 B has no majority, at 9437184:512 (offset:length in
bytes): no version is held by enough copies to be trusted. Nothing was written
there, and a guest that reads there gets an I/O error. 'qorumctl report web01
--finding ID' shows what each copy holds; 'qorumctl resolve web01 --finding ID
--with ...' writes what you decide on. Or have a guest write those ranges anew,
from a backup, and run 'qorumctl scrub web01' again.

1 range of 512 B is left damaged (copy c once). Guests still read what the
majority holds, but another failure there would lose data. Check the storage of
copy c, then run 'qorumctl scrub web01' again.

5 ranges, 66 KiB, were repaired and verified (copy a once, copy b 3 times, 1
from an unclean stop, which no copy is to blame for).
"""
    )


def test_what_was_not_written_anew_says_why() -> None:
    lost = {"verdict": "unreadable", "diagnosis": {"kind": "unreadable"}}
    document = report(
        finding(1, copies=["b"], action="left", **lost),
        finding(2, 2 * MIB, copies=["c"], action="failed", **lost),
        outcome="damaged",
        failing_copies=["b"],
        left_because={"c": "it does not hold what is written there, either"},
    )
    (said,) = scrub_words.summary(document)
    assert said == (
        "web01: 2 ranges, 1 KiB, are left damaged (copy b once, copy c once). Guests still read what the majority "
        "holds, but another failure there would lose data. Copy b is failing: it has lost more than a scrub writes "
        "anew (64 ranges or 1 MiB). Replace it: 'qorumctl copy replace web01 b SOURCE'. Copy c: it does not hold what "
        "is written there, either. Then run 'qorumctl scrub web01' again."
    )


def test_a_run_that_only_reports_says_how_to_repair() -> None:
    document = report(finding(action="left"), outcome="damaged", mode="report")
    assert screen(render_scrub.scrub(document)) == text(
        """
ID   OFFSET  LENGTH  COPIES  VERDICT   ACTION  WHAT
 1  1048576     512  b       outvoted  left    1 bit flipped

web01: 1 range of 512 B is left damaged (copy b once). Guests still read what
the majority holds. This run only reported: 'qorumctl scrub web01 --repair'
repairs, where the set runs and its policy is repair.
"""
    )


def test_ctrl_c_says_how_it_goes_on() -> None:
    document = report(outcome="unfinished", scanned_bytes=9 * GIB, resumable=True)
    assert scrub_words.summary(document, interrupted=True) == [
        "web01: run 12 was interrupted at 45 %; 'qorumctl scrub web01' resumes it there. So far no damage was found."
    ]


def test_a_run_is_resumed_by_the_command_that_began_it() -> None:
    part = {"offset": GIB, "length": 4 * GIB}
    document = report(outcome="unfinished", scanned_bytes=GIB, resumable=True, mode="report", range=part, thorough=True)
    resumes = "'qorumctl scrub web01 --report --range 1073741824:4294967296 --thorough' resumes it"
    assert scrub_words.summary(document) == [
        f"web01: run 12 was stopped at 25 %; {resumes} there. So far no damage was found."
    ]
    assert scrub_words.asked_to_stop(document, "pause") == f"web01: run 12 is paused at 25 %; {resumes}."


def test_a_cancelled_run_is_not_said_to_go_on() -> None:
    document = report(finding(), outcome="unfinished", scanned_bytes=9 * GIB)
    assert scrub_words.summary(document) == [
        "web01: run 12 was cancelled at 45 %; the next scrub begins anew.",
        "1 range of 512 B was repaired and verified (copy b once).",
    ]


def test_busy_bytes_are_told_and_are_no_damage() -> None:
    assert scrub_words.summary(report(busy_bytes=8192))[1] == (
        "8 KiB were written again and again and could not be compared: the next scrub looks at them again."
    )


def test_many_findings_are_counted_instead_of_shown_and_none_that_matters_is_hidden() -> None:
    many = [finding(n, n * 4096) for n in range(1, 31)] + [finding(31, GIB, **TIED)]
    shown = screen(render_scrub.scrub(report(*many, outcome="no-majority"))).splitlines()
    assert shown[1].split()[:2] == ["31", str(GIB)]
    assert shown[22] == "... and 11 more findings: 'qorumctl report web01 12' shows all."


def test_a_report_shows_every_finding_and_who_held_what() -> None:
    assert screen(render_scrub.report(report(*of_every_kind(), outcome="no-majority"))).split("\n\nweb01:")[0] == text(
        """
     set: web01
     run: 12 (repair)
 started: 2026-11-22 03:00:00 UTC
finished: 2026-11-22 03:04:12 UTC, after 4m12s
 outcome: no-majority
 covered: 20 GiB compared
    read: a 20 GiB, b 20 GiB, c 20 GiB

  a ✕───────────────────────────────────────────────────────────────
  b ✕───────────────────────────────────────────────────────────●───
  c ✕───────────────────────────────────────────────────────────────
  - ●───────────────────────────────────────────────────────────────
    0                               10 GiB                    20 GiB
● repaired; ✕ no majority; a character is 320 MiB

ID       OFFSET  LENGTH  COPIES  VERDICT      ACTION    WHAT
 1            0     512  b       outvoted     repaired  1 bit flipped
                                                        9f86d081 a,c
                                                        60303ae2 b
 2          512     512  a       outvoted     repaired  zeroed
                                                        9f86d081 a,c
                                                        60303ae2 b
 3      7340032     512  b       outvoted     repaired  torn at byte 200
                                                        healed by a guest's read
                                                        9f86d081 a,c
                                                        60303ae2 b
 4      8388608     512  c       unreadable   failed    unreadable
                                                        9f86d081 a,c
                                                        60303ae2 b
 5      9437184     512  a b c   no-majority  left      3 versions
                                                        aaaaaaaa a
                                                        bbbbbbbb b
                                                        cccccccc c
 6     10485760     512  -       outvoted     repaired  other data
                                                        after an unclean stop
                                                        9f86d081 a,c
                                                        60303ae2 b
 7  20401094656   65536  b       outvoted     repaired  filled with 0xff
                                                        9f86d081 a,c
                                                        60303ae2 b
"""
    )


@pytest.mark.parametrize(
    ("diagnosis", "words"),
    [
        ({"kind": "bit-flips", "flipped_bits": 1}, "1 bit flipped"),
        ({"kind": "bit-flips", "flipped_bits": 7}, "7 bits flipped"),
        ({"kind": "zeroed"}, "zeroed"),
        ({"kind": "filled", "fill_byte": 255}, "filled with 0xff"),
        ({"kind": "torn", "torn_at_bytes": 200}, "torn at byte 200"),
        ({"kind": "unreadable"}, "unreadable"),
        ({"kind": "transient"}, "read wrong once"),
        ({"kind": "unknown"}, "other data"),
    ],
)
def test_a_diagnosis_in_words(diagnosis: dict[str, Any], words: str) -> None:
    assert render_scrub.diagnosis_in_words(finding(diagnosis=diagnosis)) == words


@pytest.mark.parametrize(
    ("votes", "words"),
    [
        ({"x": ["a"], "y": ["b"], "z": ["c"]}, "3 versions"),
        ({"x": ["a"], "y": ["b"]}, "2 versions, 1 unreadable"),
        ({}, "0 versions, 3 unreadable"),
    ],
)
def test_without_a_majority_the_versions_are_counted(votes: dict[str, list[str]], words: str) -> None:
    assert render_scrub.diagnosis_in_words(finding(**(TIED | {"votes": votes}))) == words


def test_damage_that_comes_back_is_told_in_the_table_and_below_it() -> None:
    again = finding(recurring=2, last_repaired="2026-11-20T23:59:59.000Z")
    got = screen(render_scrub.scrub(report(again, finding(2, 2 * MIB), outcome="repaired")))
    assert "bit-flips" not in got
    assert got == text(
        """
ID   OFFSET  LENGTH  COPIES  VERDICT   ACTION    WHAT
 1  1048576     512  b       outvoted  repaired  1 bit flipped
                                                 again: repaired 2026-11-20
 2  2097152     512  b       outvoted  repaired  1 bit flipped

web01: 2 ranges, 1 KiB, were repaired and verified (copy b twice). Nothing is to
be done now; should copy b come up again, look at the storage behind it.

1 range of 512 B was damaged again after a repair (copy b once): there the
storage of copy b does not keep what is written to it, and another repair will
not change that.
"""
    )


def test_where_a_copy_that_missed_writes_did_not_vote() -> None:
    document = report(finding(5, 9 * MIB, **TIED), outcome="no-majority", uncounted=["c"])
    shown = " ".join(screen(render_scrub.scrub(document)).split())
    assert (
        "no version is held by enough copies to be trusted (copy c missed writes and did not vote). Nothing was written"
        " there; what guests read may be stale."
    ) in shown
