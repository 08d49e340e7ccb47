from __future__ import annotations

import shutil

import pytest

from qorumctl.controller.schedule import WORDS, Schedule, parse_budget, parse_schedule
from qorumctl.errors import UsageError

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_spread_so_that_many_sets_do_not_hit_one_appliance_together(word: str) -> None:
    assert parse_schedule(word).delay in {"30min", "1h", "6h", "1d"}


def test_nightly_scrubs_pause_by_themselves() -> None:
    assert {word for word, schedule in WORDS.items() if schedule.budget_s} == {"nightly"}


def test_a_budget_can_be_given_to_each() -> None:
    assert parse_schedule("weekly", "90min") == Schedule("weekly", "6h", 5400)
    assert parse_schedule("nightly", "0").budget_s == 0


@with_systemd
def test_an_expression_is_taken_as_it_is() -> None:
    assert parse_schedule("Sat *-*-1..7 03:00") == Schedule("Sat *-*-1..7 03:00", "15min")


@with_systemd
@pytest.mark.parametrize("text", ["", "whenever", "Sat 25:00", "--help", "weekly\nUnit=other.service", "weekly\0"])
def test_what_systemd_does_not_take_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a schedule"):
        parse_schedule(text)


def test_without_systemd_analyze_words_still_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert parse_schedule("weekly").on_calendar == "weekly"
    with pytest.raises(UsageError, match="cannot be told"):
        parse_schedule("Sat 03:00")


@pytest.mark.parametrize(("text", "seconds"), [("4h", 14400), ("90min", 5400), ("30s", 30), ("0", 0)])
def test_budgets(text: str, seconds: int) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "4", "0h", "-1h", "4 h", "4h30", "1e3s", "123456s"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_budget(text)
