"""What is said of hooks: in `hooks list`, in `hooks test`, and in `status`."""

from __future__ import annotations

from typing import Any

from qorumctl.cli import render, render_hooks
from qorumctl.model.hooks import HookedSet, HookEntry, HookFailure, HookOutcome, HooksReport, HookTest
from tests.cli.documents import set_status
from tests.cli.screen import screen

FAILURE = HookFailure(
    hook="10-mail",
    since="2026-11-22T03:00:00.000Z",
    last="2026-11-22T04:00:00.000Z",
    failures=5,
    given_up=2,
    reason="it ended with exit code 1",
    output="no route\x1b[31m\n",
)


def listed(**keys: Any) -> str:
    values: dict[str, Any] = {"ok": True, "directory": "/etc/qorum/hooks.d", "hooks": [], "sets": []}
    return screen(render_hooks.hooks(HooksReport.model_validate(values | keys)))


def test_no_hooks() -> None:
    assert "No hooks. An executable that is put there is run for each event." in listed()


def test_hooks_and_why_one_is_not_run() -> None:
    hooks = [
        HookEntry(name="10-mail", state="runs"),
        HookEntry(name="20-off", state="passed-over", reason="it is not executable"),
        HookEntry(name="30-open", state="refused", reason="X can be written.", remedy="Run chmod."),
    ]
    text = listed(hooks=hooks)
    assert "10-mail  runs\n" in text
    assert "20-off   not run  it is not executable\n" in text
    assert "30-open  REFUSED  X can be written. Run chmod." in text


def test_a_directory_that_is_refused() -> None:
    text = listed(problem="/etc/qorum/hooks.d can be written by other users.", remedy="Run chmod go-w /etc.")
    assert "None is run: /etc/qorum/hooks.d can be written by other users. Run chmod go-w" in text


def test_one_that_fails_and_the_end_of_what_it_said() -> None:
    text = listed(sets=[HookedSet(set="web01", waiting=3, failures=[FAILURE])])
    assert "web01: 3 events to be delivered.\n" in text
    said = " ".join(text.split())
    assert "Hook 10-mail has failed 5 times since 2026-11-22 03:00:00 UTC, last on 2026-11-22 04:00:00 UTC" in said
    assert "it ended with exit code 1. 2 events never reached it." in said
    assert "    no route" in text
    assert "\x1b" not in text


def test_a_set_for_which_nothing_waits_is_left_out() -> None:
    assert "web01" not in listed(sets=[HookedSet(set="web01", waiting=0, failures=[])])


def test_a_test() -> None:
    outcomes = [
        HookOutcome(hook="10-mail", ok=True, output="sent\n", took_s=0.25),
        HookOutcome(hook="20-log", ok=False, reason="it took more than 30 s and was killed", output="", took_s=30.0),
    ]
    text = screen(render_hooks.test(HookTest(set="web01", ok=False, hooks=outcomes)))
    assert text.splitlines() == [
        "10-mail: it works. (0.2 s)",
        "    sent",
        "20-log: it took more than 30 s and was killed. (30.0 s)",
    ]


def test_status_says_that_one_fails() -> None:
    assert "hooks" not in screen(render.status(report()))
    text = " ".join(screen(render.status(report(hook_failures=[FAILURE]))).split())
    assert "hooks: 10-mail fails, and events may go unheard: see 'qorumctl hooks list web01'" in text
    directory = FAILURE.model_copy(update={"hook": "."})
    text = " ".join(screen(render.status(report(hook_failures=[directory, FAILURE]))).split())
    assert "hooks: the directory, 10-mail fail, and" in text


def report(**keys: Any) -> Any:
    from qorumctl.model.status import StatusReport

    return StatusReport(sets=[set_status(**keys)])
