"""Scrubs from the command line, on a real daemon: exit codes, signals, another terminal, the progress bar."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import MIB, Machine, validate
from tests.live import wait_for

pytestmark = pytest.mark.live


def test_nothing_found_is_0_and_damage_that_is_repaired_is_3(machine: Machine) -> None:
    machine.make()
    whole = machine.images["a"].read_bytes()
    assert machine.run("scrub", "w").stdout.startswith("w: no damage found; 24 MiB compared")

    machine.flip("b", 5 * MIB + 100)
    machine.flip("a", 7 * MIB)
    found = machine.document("scrub", "w", code=3)
    assert [(f["offset"], f["length"], f["copies"], f["action"]) for f in found["findings"]] == [
        (5 * MIB, 512, ["b"], "repaired"),
        (7 * MIB, 512, ["a"], "repaired"),
    ]
    assert {image.read_bytes() for image in machine.images.values()} == {whole}
    machine.run("scrub", "w")

    told = machine.run("report", "w", "2").stdout
    assert "1 bit flipped" in told
    assert "w: 2 ranges, 1 KiB, were repaired and verified (copy a once, copy b once)." in told
    assert [line.split()[0] for line in machine.run("history", "w").stdout.splitlines()[1:4]] == ["3", "2", "1"]


def test_damage_that_is_left_is_4_and_ranges_without_a_majority_are_5(machine: Machine) -> None:
    machine.make()
    machine.flip("c", 3 * MIB)
    machine.run("scrub", "w", "--report", code=4)
    assert machine.run("status", code=4).stdout.splitlines()[1] == "    state: degraded"
    for copy, bits in (("a", 1), ("b", 2), ("c", 4)):
        machine.flip(copy, 9 * MIB, bits)
    before = machine.images["a"].read_bytes()
    told = machine.run("scrub", "w", code=5).stdout
    assert f"at {9 * MIB}:512 (offset:length in" in told
    assert machine.images["a"].read_bytes() == before
    assert machine.run("status", code=5).stdout.splitlines()[1] == "    state: damaged"


def test_a_range_is_scrubbed_alone(machine: Machine) -> None:
    machine.make()
    machine.flip("b", 3 * MIB)
    machine.flip("b", 9 * MIB)
    assert len(machine.document("scrub", "w", "--range", "8MiB:2MiB", code=3)["findings"]) == 1
    refused = machine.document("scrub", "w", "--range", "23MiB:2MiB", code=2)
    assert refused["code"] == "usage"


def test_a_stopped_set_is_not_repaired_and_all_leaves_it_out(machine: Machine) -> None:
    machine.make()
    machine.run("stop", "w")
    assert machine.document("scrub", "w", "--repair", code=1)["code"] == "refused"
    assert machine.run("scrub", "--all").stderr == (
        "w is stopped and left out.\nNo set runs: there is nothing to scrub.\n"
    )


def test_several_sets_are_one_document_and_the_worst_exit_code(machine: Machine, tmp_path: Path) -> None:
    machine.make("one")
    first = machine.images
    machine.images = {name: machine.directory / f"two-{name}.raw" for name in "abc"}
    machine.make("two")
    machine.images = first
    machine.flip("a", MIB)
    done = machine.run("scrub", "--all", "--json", code=3)
    reports = json.loads(done.stdout)["sets"]
    for report in reports:
        validate(report)
    assert [(r["set"], r["outcome"]) for r in reports] == [("one", "repaired"), ("two", "clean")]
    machine.run("stop", "one")
    done = machine.run("scrub", "two", "one", "--repair", "--json", code=1)
    assert [document["schema"] for document in json.loads(done.stdout)["sets"]] == [
        "qorum.scrub-report/1",
        "qorum.error/1",
    ]
    assert machine.run("scrub", "two", "none", code=2).stdout == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 6)])
def test_a_signal_ends_it_in_order_and_the_next_scrub_resumes(
    machine: Machine, number: signal.Signals, code: int
) -> None:
    machine.make()
    machine.flip("b", 23 * MIB)
    begun, run = machine.begin_slow_scrub()
    begun.send_signal(number)
    out, _ = begun.communicate(timeout=20)
    assert begun.returncode == code
    assert "'qorumctl scrub w' resumes it there" in out
    report = machine.document("report", "w")
    assert (report["run"], report["outcome"], report["resumable"]) == (run, "unfinished", True)
    resumed = machine.run("scrub", "w", code=3)
    assert f"w: repair scrub, run {run}, 24 MiB, resumed at " in resumed.stderr


def test_pause_and_cancel_from_another_terminal(machine: Machine) -> None:
    machine.make()
    begun, run = machine.begin_slow_scrub()
    assert machine.document("pause", "w")["resumable"]
    assert begun.wait(timeout=20) == 6
    begun, again = machine.begin_slow_scrub()
    assert again == run
    cancelled = machine.run("cancel", "w").stdout
    assert re.fullmatch(rf"w: run {run} is cancelled at \d+ %; the next scrub begins anew\.\n", cancelled)
    assert begun.wait(timeout=20) == 6
    assert machine.document("scrub", "w")["run"] == run + 1
    assert machine.document("pause", "w", code=1)["code"] == "refused"


def test_ctrl_z_suspends_it_and_fg_lets_it_go_on(machine: Machine) -> None:
    machine.make()
    begun, _ = machine.begin_slow_scrub("w", "--range", "0:16MiB")
    begun.send_signal(signal.SIGTSTP)
    wait_for(lambda: state_of(begun.pid) == "T", "the process suspended")
    begun.send_signal(signal.SIGCONT)
    assert begun.wait(timeout=20) == 0


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class TestOnATerminal:
    def test_a_bar_shows_how_far_it_is_and_goes_away_at_the_end(self, machine: Machine) -> None:
        machine.make()
        machine.flip("b", MIB)
        terminal = machine.on_a_terminal("scrub", "w", "--rate", "12MiB/s")
        terminal.shows("w: repair scrub, run 1")
        terminal.shows("of 24 MiB")
        terminal.shows("left")
        assert terminal.end() == 3
        assert re.search(r"\d+ %", terminal.seen)
        assert re.search(r"\d+ findings?", terminal.seen)
        assert "w: 1 range of 512 B was repaired and verified (copy b once)." in terminal.seen

    def test_ctrl_c_is_130_and_leaves_the_cursor_visible(self, machine: Machine) -> None:
        machine.make()
        terminal = machine.on_a_terminal("scrub", "w", "--rate", "2MiB/s")
        terminal.shows("w: repair scrub, run 1")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "was interrupted at" in terminal.seen
        assert terminal.seen.rfind("\x1b[?25h") > terminal.seen.rfind("\x1b[?25l")

    def test_no_color_is_respected(self, machine: Machine) -> None:
        machine.make()
        colour = re.compile(r"\x1b\[[0-9;]*3[0-9]")
        for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            terminal = machine.on_a_terminal("status", **environment)
            assert terminal.end() == 0
            assert bool(colour.search(terminal.seen)) is coloured

    def test_a_held_terminal_does_not_hold_up_the_scrub(self, machine: Machine) -> None:
        machine.make()
        terminal = machine.on_a_terminal("scrub", "w", "--rate", "8MiB/s")
        terminal.shows("w: repair scrub, run 1")
        terminal.type("\x13")
        wait_for(lambda: machine.document("history", "w")["runs"][0]["outcome"] == "clean", "the end of the run")
        terminal.type("\x11")
        assert terminal.end() == 0


def test_a_scrub_that_is_killed_is_told_as_unfinished_and_resumes(machine: Machine) -> None:
    machine.make()
    begun, run = machine.begin_slow_scrub()
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait(timeout=20)
    assert machine.document("report", "w")["outcome"] == "unfinished"
    assert machine.document("scrub", "w")["run"] == run


def test_an_unclean_set_is_compared_before_guests_come_in(machine: Machine) -> None:
    machine.make()
    end_uncleanly(machine)
    machine.flip("b", MIB)
    started = machine.run("start", "w")
    assert "w: recovery scrub, run 1, 24 MiB. The set was not stopped cleanly" in started.stderr
    assert "after an unclean stop" in started.stdout
    assert started.stdout.splitlines()[-1].startswith("w is started.")
    machine.run("scrub", "w")


def test_ctrl_c_while_an_unclean_set_is_compared_stops_the_start(machine: Machine) -> None:
    machine.make()
    end_uncleanly(machine)
    definition = machine.directory / "c" / "w.toml"
    definition.write_text(definition.read_text().replace("[scrub]", '[scrub]\nrate = "1MiB/s"'))
    begun = machine.begin("start", "w")
    assert begun.stderr
    assert "recovery scrub" in begun.stderr.readline()
    begun.send_signal(signal.SIGINT)
    _, told = begun.communicate(timeout=20)
    assert begun.returncode == 130
    assert told.splitlines()[-1].startswith("qorumctl: The start of w was interrupted")
    assert machine.document("status", "w", code=1)["sets"][0]["pid"] is None


def end_uncleanly(machine: Machine) -> None:
    os.kill(machine.document("status", "w")["sets"][0]["pid"], signal.SIGKILL)
    wait_for(lambda: state_in_list(machine) == "failed", "the daemon gone")


def state_in_list(machine: Machine) -> str:
    state: str = machine.document("list")["sets"][0]["state"]
    return state


def test_a_scrub_that_is_out_of_time_is_6_and_the_next_one_goes_on_there(machine: Machine) -> None:
    """At 4 MiB/s 24 MiB take far longer than a second, however fast the machine is."""
    machine.make()
    stopped = machine.document("scrub", "w", "--rate", "4MiB/s", "--budget", "1s", code=6)
    assert (stopped["outcome"], stopped["resumable"], stopped["message"]) == (
        "unfinished",
        True,
        "Its time was used up.",
    )
    assert 0 < stopped["scanned_bytes"] < 24 * MIB
    told = machine.run("scrub", "w", "--rate", "4MiB/s", "--budget", "1s", code=6).stdout
    assert re.match(r"w: run 1 used up its time at \d+ %; 'qorumctl scrub w'\s+resumes it there\.", told)
    finished = machine.document("scrub", "w")
    assert (finished["run"], finished["outcome"], finished["message"]) == (stopped["run"], "clean", None)
    assert finished["scanned_bytes"] == 24 * MIB
