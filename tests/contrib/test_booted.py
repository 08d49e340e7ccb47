"""The units, run by a real systemd: a set from `enable` to `disable`. Where none can be had, the test is left out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qorumctl.copies import blkio
from qorumctl.logbook import News
from tests.contrib.booted import Booted, Unavailable
from tests.live import wait_for

STORAGE, WATCH, SCRUB, FRONT = (f"qorum-{kind}@web01.service" for kind in ("storage", "watch", "scrub", "front"))


@pytest.fixture
def booted(short_dir: Path) -> Iterator[Booted]:
    if os.geteuid() != 0:
        pytest.skip("only root can have namespaces in which systemd runs")
    made = Booted(short_dir)
    try:
        # A test may have something to lay into its files first.
        yield made
    finally:
        made.end()


def boot(booted: Booted) -> None:
    try:
        booted.boot()
    except Unavailable as missing:
        pytest.skip(str(missing))
    good(booted, "systemd-sysusers; systemd-tmpfiles --create qorum.conf; systemctl daemon-reload; chown qorum: /srv/?")
    good(booted, "qorumctl create web01 /srv/a/w /srv/b/w /srv/c/w --size 16MiB --cache writeback")


def good(booted: Booted, script: str) -> str:
    done = booted.run(f"set -e\n{script}")
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}\n{booted.run('journalctl -n 50').stdout}"
    return done.stdout


def shown(booted: Booted, unit: str, *names: str) -> list[str]:
    return [good(booted, f"systemctl show --value -p {name} {unit}").strip() for name in names]


def heard_by_a_hook(booted: Booted, last: str) -> list[dict[str, Any]]:
    """What it was told, once that ends with an event `last`."""
    lines = good(booted, "cat /var/lib/qorum/told || true").splitlines(keepends=True)
    heard = [json.loads(line) for line in lines if line.endswith("\n")]
    return heard if heard and heard[-1]["event"] == last else []


@pytest.mark.timeout(600)
def test_a_set_lives_under_systemd(booted: Booted) -> None:
    boot(booted)
    good(booted, "qorumctl enable web01 --schedule weekly; qorumctl start web01")
    assert shown(booted, STORAGE, "ActiveState", "UnitFileState") == ["active", "enabled"]
    state, pid = shown(booted, WATCH, "ActiveState", "MainPID")
    assert (state, good(booted, "cat /var/lib/qorum/web01/watch.lock").split()) == ("active", [pid, "watch"])
    assert STORAGE in good(booted, "cat /proc/$(cat /run/qorum/web01/qsd.pid)/cgroup")

    good(booted, "head -c 16M /dev/urandom | nbdcopy - $(qorumctl attach web01 --as uri)")
    good(booted, "dd if=/dev/zero of=/srv/b/w bs=512 seek=128 count=8 conv=notrunc,fsync status=none")
    hook = "/etc/qorum/hooks.d/10-keep"
    good(booted, f"printf '#!/bin/sh\\ncat >>/var/lib/qorum/told' >{hook}; chmod 755 {hook}")
    good(booted, f"systemctl start {SCRUB}")
    assert shown(booted, SCRUB, "Result", "ExecMainStatus") == ["success", "3"]
    (finding,) = json.loads(good(booted, "qorumctl --json report web01"))["findings"]
    message_id = News.FINDING.value.message_id
    (line,) = good(booted, f"journalctl --sync; journalctl -o json MESSAGE_ID={message_id}").splitlines()
    told = json.loads(line)
    assert told["_SYSTEMD_UNIT"] == SCRUB
    assert [told[f"QORUM_{field}"] for field in ("COPY", "OFFSET", "LENGTH", "ACTION")] == [
        "b", str(finding["offset"]), str(finding["length"]), "repaired",
    ]  # fmt: skip
    heard = wait_for(lambda: heard_by_a_hook(booted, "run-finished"), "the hook", deadline_s=60)
    assert [event["event"] for event in heard] == ["finding", "run-finished"]
    assert heard[0]["finding"] == finding
    assert shown(booted, "qorum-hooks@web01.service", "Result", "User") == ["success", "qorum"]
    (status,) = json.loads(good(booted, "qorumctl --json status web01"))["sets"]
    assert (status["state"], status["last_scrub"]["outcome"], status["unrepaired"]) == ("healthy", "repaired", 0)
    assert [(copy["name"], copy["repaired"]) for copy in status["copies"]] == [("a", 0), ("b", 1), ("c", 0)]
    metrics = good(booted, "qorumctl metrics web01").splitlines()
    assert 'qorum_scrub_repaired_findings_total{copy="b",set="web01"} 1.0' in metrics
    assert 'qorum_set_unrepaired_findings{set="web01"} 0.0' in metrics
    page = good(booted, "qorumctl report web01 --html -")
    assert f"<code>{finding['offset']}:{finding['length']}</code>" in page

    good(booted, "qorumctl restart web01")
    assert shown(booted, STORAGE, "ActiveState", "NRestarts") == ["active", "0"]
    good(booted, "qorumctl stop web01")
    assert shown(booted, STORAGE, "ActiveState", "Result") == ["inactive", "success"]
    assert shown(booted, WATCH, "ActiveState") == ["inactive"]
    good(booted, "qorumctl disable web01; qorumctl delete web01 --images --yes")
    assert good(booted, "ls /etc/systemd/system /var/lib/qorum | grep -c qorum- || true") == "1\n"


@pytest.mark.timeout(600)
def test_a_front_lives_under_systemd(booted: Booted) -> None:
    """It outlasts the death and a restart of its set, ends with its stop; one that died is not followed by another."""
    boot(booted)
    good(booted, f"qorumctl enable web01 --schedule weekly; qorumctl start web01; systemctl start {FRONT}")
    front = shown(booted, FRONT, "ActiveState", "MainPID")
    assert front[0] == "active"

    died = good(booted, "cat /run/qorum/web01/qsd.pid; kill -9 $(cat /run/qorum/web01/qsd.pid)")
    again = 'test -e /run/qorum/web01/qsd.pid && test "$(cat /run/qorum/web01/qsd.pid)" != ' + died
    wait_for(lambda: booted.run(again).returncode == 0, "the set's daemon, started by systemd")
    good(booted, f"systemctl start {STORAGE}")
    assert shown(booted, FRONT, "ActiveState", "MainPID") == front
    good(booted, "qorumctl restart web01 --force")
    assert shown(booted, FRONT, "ActiveState", "MainPID") == front
    good(booted, f"systemctl stop {STORAGE}")
    assert shown(booted, FRONT, "ActiveState", "Result") == ["inactive", "success"]

    good(booted, f"qorumctl start web01; systemctl start {FRONT}; kill -9 $(cat /run/qorum/web01/front.pid)")
    wait_for(lambda: shown(booted, FRONT, "ActiveState") == ["failed"], "systemd")
    assert "ended without being stopped" in good(booted, "qorumctl --json status web01 || true; qorumctl status web01")
    assert booted.run(f"systemctl start {FRONT}").returncode != 0
    good(booted, f"qorumctl front web01 --stop; systemctl start {FRONT}; systemctl stop {FRONT}")
    assert shown(booted, FRONT, "ActiveState", "Result") == ["inactive", "success"]
    assert good(booted, "ls /run/qorum/web01 | grep front") == "front.log\n"


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("shared_memory")
def test_a_scrub_under_systemd_reads_through_shared_memory(booted: Booted) -> None:
    """The unit's confinement lets it follow the descriptors of the set's daemon, and share memory with its reader."""
    # Where it is not named, it is the system's own, and so is there as well.
    library = os.environ.get(blkio.VARIABLE)
    inside = booted.with_library(Path(library).resolve()) if library else ""
    boot(booted)
    good(booted, f"echo {blkio.VARIABLE}={inside} >/etc/default/qorum")
    good(booted, f"mkdir /etc/systemd/system/{SCRUB}.d")
    insisting = "[Service]\\nExecStart=\\nExecStart=/usr/local/bin/qorumctl scrub %%i --transport shm\\n"
    good(booted, f"printf '{insisting}' >/etc/systemd/system/{SCRUB}.d/shm.conf; systemctl daemon-reload")
    good(booted, "qorumctl enable web01 --schedule weekly; qorumctl start web01")
    good(booted, "head -c 16M /dev/urandom | nbdcopy - $(qorumctl attach web01 --as uri)")
    good(booted, "dd if=/dev/zero of=/srv/b/w bs=512 seek=128 count=8 conv=notrunc,fsync status=none")
    good(booted, f"systemctl start {SCRUB}")
    assert shown(booted, SCRUB, "Result", "ExecMainStatus") == ["success", "3"]
    assert good(booted, "ls /run/qorum/web01 | grep -c -e shm- -e reader.pid || true") == "0\n"
    good(booted, "qorumctl stop web01")
