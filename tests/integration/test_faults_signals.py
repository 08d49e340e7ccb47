"""SIGTERM, Ctrl-C and Ctrl-Z at any instant, and commands that meet each other: told in words, nothing lost, nothing
left in the daemon, and no guest held up."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from qorumctl.core.ranges import Range
from qorumctl.daemon import process
from qorumctl.errors import LockedError
from tests.attack import Attack
from tests.integration.harness import NAME, SECTOR, LiveSet, Writers
from tests.integration.picture import nothing_changes, status_of
from tests.integration.test_crash import position, state_of
from tests.live import MIB, wait_for

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
LiveSets = Callable[..., LiveSet]
SIZE = 16 * MIB
_ENDS_S = 90.0


def say(live: LiveSet, *arguments: str) -> tuple[int, str]:
    return end(live.cli(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


def end(command: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit code and all that was said, which is never a traceback."""
    output, said = command.communicate(timeout=_ENDS_S)
    words = (output + said).decode()
    # Python itself may have been interrupted, before the first line of ours.
    loading = command.returncode in {1, -signal.SIGINT} and "KeyboardInterrupt" in words and "/qorumctl/" not in words
    if loading:
        return -signal.SIGINT, words
    assert "Traceback" not in words, words
    assert "should not have" not in words, words
    return command.returncode, words


class Interrupter:
    """Sends a signal at an instant between the beginning of a command and its end, and judges how it ends."""

    def __init__(self, live: LiveSet, dice: random.Random) -> None:
        self._live = live
        self.dice = dice
        self.longest_s: dict[str, float] = {}

    def complete(self, *arguments: str) -> int:
        began_s = time.monotonic()
        code, words = say(self._live, *arguments)
        assert code in {0, 3}, words
        self.longest_s[arguments[0]] = max(self.longest_s.get(arguments[0], 0), time.monotonic() - began_s)
        return code

    def cut(self, *arguments: str) -> bool:
        """Whether the signal was what ended it."""
        number = self.dice.choice([signal.SIGINT, signal.SIGTERM])
        command = self._live.cli(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            command.wait(self.longest_s.get(arguments[0], 1.0) * self.dice.uniform(0.0, 1.0))
        except subprocess.TimeoutExpired:
            command.send_signal(number)
        code, words = end(command)
        # Before the command has begun a signal ends it as it ends any program; a scrub stops in order.
        ended = {signal.SIGINT: {130, -2}, signal.SIGTERM: {143, -15, 6, 1}}[number]
        assert code in {0, 3} | ended, (arguments, number, code, words)
        return code not in {0, 3}


def nothing_left(live: LiveSet) -> None:
    if process.running_pid(live.runtime) is not None:
        left = live.leftovers()
        assert left["watches"] == frozenset()
        assert left["exports"] == {"volume", "heal", "copy-a", "copy-b", "copy-c"}


@pytest.mark.attack(
    "a signal ends every command in order, and the next one finishes its work",
    "SIGTERM and Ctrl-C at random instants of create, start, scrub and stop",
    weight=2,
)
async def test_signals_at_random_instants(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=SIZE)
    live.sources = live.paths()
    create = ("create", NAME, *live.sources, "--size", str(SIZE))

    def check() -> None:
        interrupter = Interrupter(live, random.Random(attack.first))
        interrupter.complete(*create)
        interrupter.complete("start", NAME)
        shadow = live.fill()
        for seed in attack.rounds(1):
            interrupter.dice = dice = random.Random(seed)
            cuts = 0
            # A scrub that repairs.
            sectors = sorted(dice.sample(range(SIZE // SECTOR), 12))
            for n, sector in enumerate(sectors):
                live.flip("abc"[n % 3], sector * SECTOR + dice.randrange(SECTOR))
            first = max((run.run for run in live.sets.history(NAME).runs), default=0)
            for _ in range(2):
                cuts += interrupter.cut("scrub", NAME, "--rate", "64MiB")
            interrupter.complete("scrub", NAME)
            found = [f.offset for run in live.sets.history(NAME).runs if run.run > first
                     for f in live.sets.report(NAME, run.run).findings]  # fmt: skip
            assert sorted(at // SECTOR for at in found) == sectors, "lost, or found twice"
            assert all(live.equal_to(shadow).values())
            nothing_left(live)
            # An orderly stop and start.
            cuts += interrupter.cut("stop", NAME)
            interrupter.complete("stop", NAME)
            assert process.running_pid(live.runtime) is None
            cuts += interrupter.cut("start", NAME)
            interrupter.complete("start", NAME)
            assert all(live.equal_to(shadow).values())
            # A start that has to compare, and repairs.
            live.end()
            live.poke("abc"[seed % 3], dice.randrange(SIZE // SECTOR) * SECTOR, b"lost".ljust(SECTOR))
            cuts += interrupter.cut("start", NAME)
            interrupter.complete("start", NAME)
            assert all(live.equal_to(shadow).values())
            nothing_left(live)
            interrupter.complete("scrub", NAME)
            assert asyncio.run(status_of(live.sets)).state == "healthy"
            attack.count(signals=cuts, findings=len(sectors))
        # A create.
        interrupter.complete("stop", NAME)
        interrupter.complete("delete", NAME, "--images", "--yes")
        interrupter.cut(*create)
        interrupter.complete(*create)
        assert len(list(live.images_dir.iterdir())) == 6
        assert process.running_pid(live.runtime) is None

    await asyncio.to_thread(check)


@pytest.mark.attack(
    "a suspended scrub never holds up a guest",
    "Ctrl-Z at random instants of scrubs with damage, beneath writers",
    weight=1,
)
async def test_ctrl_z_at_random_instants_beneath_writers(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=2 * SIZE)
    await live.create()
    await live.start()
    shadow = live.fill()
    hot = Range(SIZE, SIZE)

    def check() -> None:
        for seed in attack.rounds(1):
            dice = random.Random(seed)
            for n in range(24):
                live.flip("abc"[n % 3], dice.randrange(SIZE))
            with Writers(live, shadow, hot, count=2, seed=seed) as writers:
                scrub = live.cli("--json", "scrub", NAME, "--rate", "16MiB")
                suspended = suspend_at_random(live, scrub, writers, dice)
                output, _ = scrub.communicate(timeout=_ENDS_S)
            assert (scrub.returncode, json.loads(output)["outcome"]) == (3, "repaired")
            assert suspended >= 2
            assert all(live.equal_to(shadow).values())
            nothing_left(live)
            attack.count(suspensions=suspended, writes=writers.writes)

    await asyncio.to_thread(check)


def suspend_at_random(
    live: LiveSet, scrub: subprocess.Popen[bytes], writers: Writers, dice: random.Random, most: int = 6
) -> int:
    """How often it was stopped; each time the guests must go on."""
    wait_for(lambda: scrub.poll() is not None or position(live) > 0, "a scrub on its way")
    for done in range(most):
        scrub.send_signal(signal.SIGTSTP)
        wait_for(lambda: scrub.poll() is not None or state_of(scrub.pid) == "T", "a suspended scrub")
        if scrub.poll() is not None:
            return done
        enough = writers.writes + 20
        wait_for(lambda enough=enough: writers.writes > enough, "a guest that is not held up")
        os.kill(scrub.pid, signal.SIGCONT)
        instant(dice.uniform(0, 0.2))
    return most


def instant(after_s: float) -> None:
    """A random one is what these tests are about."""
    until_s = time.monotonic() + after_s
    wait_for(lambda: time.monotonic() > until_s, "the random instant")


async def test_whoever_comes_second_is_told_who_is_at_work(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    live.fill()
    scrub = live.cli("scrub", NAME, "--rate", "512KiB")
    try:
        await asyncio.to_thread(wait_for, lambda: position(live) > 0, "a scrub on its way")
        words = f"web01 is held by 'scrub' (pid {scrub.pid}). Wait until it ends, or run 'qorumctl pause web01' first."
        with nothing_changes(live):
            for work in (
                lambda: live.scrub(),
                lambda: live.sets.stop(NAME),
                lambda: live.sets.stop(NAME, force=True),
                lambda: live.sets.restart(NAME),
                lambda: live.sets.delete(NAME, images=True),
                lambda: live.create(),
            ):
                with pytest.raises(LockedError) as caught:
                    await work()
                assert str(caught.value) == words
            # Guests are served, and that is what start sees to.
            assert not (await live.sets.start(NAME)).changed
            code, said = await asyncio.to_thread(say, live, "scrub", NAME)
            assert (code, said) == (1, f"qorumctl: {words}\n")
        assert scrub.poll() is None
        assert (await live.sets.pause(NAME)).resumable
        assert await asyncio.to_thread(scrub.wait, _ENDS_S) == 6
    finally:
        scrub.kill()
        scrub.communicate()


@pytest.mark.attack(
    "commands that meet each other neither deadlock nor harm the set",
    "start, stop, scrub, status, pause and cancel begun together at random instants",
    weight=2,
)
async def test_commands_that_meet(live_set: LiveSets, attack: Attack) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    shadow = live.fill()

    def check() -> None:
        for seed in attack.rounds(1):
            dice = random.Random(seed)
            for n in range(6):
                live.flip("abc"[n % 3], dice.randrange(SIZE))
            verbs = ["start", "stop", "scrub", "scrub", "status", "pause", "cancel"]
            dice.shuffle(verbs)
            commands = []
            for verb in verbs:
                arguments = (verb, NAME, "--rate", "32MiB") if verb == "scrub" else (verb, NAME)
                commands.append((verb, live.cli(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)))
                instant(dice.uniform(0, 0.3))
            for verb, command in commands:
                code, words = end(command)
                assert code in {0, 1, 3, 4, 6}, (verb, code, words)
            for verb in ("start", "scrub"):
                code, words = say(live, verb, NAME)
                assert code in {0, 3}, (verb, code, words)
            found = asyncio.run(status_of(live.sets))
            assert found.state == "healthy", found.reason
            assert all(live.equal_to(shadow).values())
            nothing_left(live)
            attack.count(commands=len(commands))

    await asyncio.to_thread(check)
