"""What is remembered of each copy of a real set, and the one that is pointed at."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qorumctl.core.findings import Action, Checkpoint
from qorumctl.model.schema import schema_of
from tests.integration.absence import write
from tests.integration.harness import NAME, LiveSet
from tests.live import MIB, NbdServer, faulty_server, wait_for
from tests.store.samples import outvoted

pytestmark = pytest.mark.live
LiveSets = Callable[..., LiveSet]
Nbdkit = Callable[..., NbdServer]
SIZE = 4 * MIB
AT = 1 * MIB


def told(live: LiveSet, kind: str, *arguments: str) -> dict[str, Any]:
    """The document of a command that ends with code 0, which its schema describes."""
    running = live.cli("--json", *arguments, stderr=subprocess.PIPE)
    said, complaints = running.communicate(timeout=60)
    assert running.returncode == 0, complaints.decode()
    document: dict[str, Any] = json.loads(said)
    jsonschema.validate(document, schema_of(kind))
    return document


def entries(live: LiveSet) -> dict[str, dict[str, int]]:
    document = told(live, "history", "history", NAME)
    for copy in document["copies"]:
        assert all(entry["first"] <= entry["last"] for entry in copy["entries"])
    return {copy["name"]: {e["kind"]: e["number"] for e in copy["entries"]} for copy in document["copies"]}


async def test_a_repaired_sector_that_rots_again_is_recurring(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    shadow = live.fill()
    live.flip("b", AT + 5)
    first = await live.scrub()
    live.flip("b", AT + 300)
    live.flip("b", 2 * AT)
    again = await live.scrub()
    assert [(f.recurring, f.last_repaired) for f in first.findings] == [(0, None)]
    assert [(f.offset, f.action, f.recurring, f.last_repaired) for f in again.findings] == [
        (AT, "repaired", 1, first.findings[0].confirmed),
        (2 * AT, "repaired", 0, None),
    ]
    assert live.contents("b") == shadow
    report = told(live, "scrub-report", "report", NAME)
    assert [found["recurring"] for found in report["findings"]] == [1, 0]
    assert entries(live) == {"b": {"outvoted": 3, "repaired": 3, "recurring": 1}}


async def test_a_copy_s_leaving_and_coming_back_and_its_write_errors_are_on_record(
    live_set: LiveSets, nbdkit: Nbdkit
) -> None:
    live = live_set(size_bytes=SIZE)
    paths, trigger = live.paths(), live.images_dir / "fails"
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    server = faulty_server(nbdkit, Path(paths[2]), [], once=trigger)
    await live.create(sources=[*paths[:2], server.uri], size_bytes=None)
    live.sources = paths
    await live.start()
    shadow = bytearray(SIZE)
    fails = Path(f"{trigger}.write")
    fails.touch()
    write(live, shadow)
    wait_for(lambda: "write-error" in entries(live).get("c", {}), "the write error on record")
    fails.unlink()
    assert (await live.scrub()).outcome == "repaired"
    of_c = entries(live)["c"]
    assert min(of_c.pop(kind) for kind in ("write-error", "outvoted", "repaired")) > 0
    assert of_c == {"missed-write": 1, "cleared": 1}

    for _ in range(2):
        await live.sets.detach(NAME, "b")
        write(live, shadow)
        await live.sets.rejoin(NAME, "b")
    await live.sets.stop(NAME)
    away = Path(f"{live.image('b')}.away")
    live.image("b").rename(away)
    await live.start(degraded=True)
    away.rename(live.image("b"))
    await live.sets.rejoin(NAME, "b")
    assert entries(live)["b"] == {"detached": 2, "left-out": 1, "rejoined": 3}
    assert live.equal_to(shadow) == {"a": True, "b": True, "c": True}


async def test_status_points_at_the_copy_that_is_at_fault_day_after_day_and_stays_healthy(live_set: LiveSets) -> None:
    live = live_set(size_bytes=SIZE)
    await live.create()
    await live.start()
    with live.sets._context(NAME).store() as store:
        for day in range(1, 7):
            store._now = lambda day=day: f"2026-11-{day:02}T03:00:00.000Z"  # type: ignore[misc]
            run = store.begin_run("repair", SIZE, None, False, None, os.getpid())
            found = [outvoted(9 * day + n, Action.REPAIRED, copies="b") for n in range(day if day != 2 else 0)]
            store.journal(run.id).conclude([], found, Checkpoint(SIZE))
            store.finish_run(run.id)
    (status,) = told(live, "status", "status", NAME)["sets"]
    assert (status["state"], status["reason"]) == ("healthy", None)
    assert [copy["blame"] for copy in status["copies"]] == [
        None,
        {"scrubs": 5, "of_scrubs": 6, "days": 5, "outvoted": 19, "unreadable": 0, "recurring": 0, "others": 0},
        None,
    ]
    shown = live.cli("status", NAME)
    said = " ".join(shown.communicate(timeout=60)[0].decode().split())
    assert shown.returncode == 0
    assert "advice: Copy b was outvoted in 5 of the last 6 scrubs, on 5 days (19 ranges), and no other copy was" in said
    assert f"'qorumctl copy replace {NAME} b SOURCE'" in said
