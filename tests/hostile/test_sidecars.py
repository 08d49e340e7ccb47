"""IMAGE.qorum with anything in it: it is what it says, or it is refused, and no image is touched either way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qorumctl import identity
from qorumctl.errors import RefusedError
from tests.attack import Attack
from tests.hostile.common import fingerprint, run_cli, settle
from tests.hostile.test_state import Stopped
from tests.integration.harness import NAME

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, 1.0, float("nan"), "", "a", "x" * 40_000, "y" * 65,
    "\x00", "\x1b[2J\x1b]0;owned\x07", "\ud800", "../../etc/passwd", [], {}, ["a"], ["a", "b", "c"], ["a"] * 5000,
    [["a"]], [None], [1], {"a": 1},
]  # fmt: skip


@pytest.fixture
def stopped(memory_dir: Path) -> Stopped:
    return Stopped(memory_dir)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), JSON.map(lambda value: json.dumps(value).encode())))
def test_anything_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.raw"
    identity.sidecar_path(path).write_bytes(content)
    assert isinstance(settle(lambda: identity.read(path)), RefusedError)


@pytest.mark.parametrize("content", [
    b"[" * 65_000, b'{"a":' * 10_000, b"9" * 60_000, b'"' + b"x" * 65_000 + b'"', b"\x00" * 65_536, b"\xef\xbb\xbf{}",
    b'{"schema": "qorum.sidecar/1", "schema": "qorum.sidecar/1"}', b"\xff" * 65_537,
])  # fmt: skip
def test_large_and_deep(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.raw"
    identity.sidecar_path(path).write_bytes(content)
    assert isinstance(settle(lambda: identity.read(path)), RefusedError)


@pytest.mark.attack("a sidecar of any content ends in a clear error", "sidecars spoiled in one to three places")
def test_spoiled_in_places(stopped: Stopped, attack: Attack) -> None:
    """Each key with each value, in one sidecar or in all: what only looks says so, and touches nothing."""
    good = {image: identity.sidecar_path(image).read_text() for image in stopped.images}
    before = fingerprint(stopped.images)
    errors = count = 0
    for seed in attack.rounds(150):
        dice = random.Random(seed)
        for image, text in good.items():
            content = json.loads(text)
            if dice.random() < 0.6:
                for _ in range(dice.randint(1, 3)):
                    _spoil(content, dice)
            identity.sidecar_path(image).write_text(json.dumps(content))
        for command in (lambda: stopped.sets.check(NAME), lambda: _judge(stopped)):
            count += 1
            errors += settle(command) is not None
    assert fingerprint(stopped.images) == before
    attack.count(commands=count, clear_errors=errors)


def _spoil(content: dict[str, Any], dice: random.Random) -> None:
    key = dice.choice([*content, "more"])
    if dice.random() < 0.2:
        content.pop(key, None)
    else:
        content[key] = dice.choice(VALUES)


def _judge(stopped: Stopped) -> None:
    """As a start does, up to what it would write."""
    host = identity.this_host()
    who = identity.judge(identity.read_all(stopped.spec), stopped.spec, host.id)
    for sidecar in who.sidecars.values():
        if sidecar is not None:
            after = identity.prepared(sidecar, who.highest + 1)
            members = identity.members_after(stopped.spec, who, frozenset())
            identity.committed(after, who.highest + 1, members, host).model_dump_json()


@pytest.mark.parametrize("generation", [10**18, 2**63, 10**30, 10**4200])
def test_a_generation_that_no_set_reaches(stopped: Stopped, generation: int) -> None:
    """It would make each other copy stale, and the next start would have to count on from it."""
    sidecar = identity.sidecar_path(stopped.images[0])
    sidecar.write_text(sidecar.read_text().replace('"generation": 0', f'"generation": {generation}'))
    assert isinstance(settle(lambda: identity.read(stopped.images[0])), RefusedError)


def test_what_a_sidecar_says_does_not_reach_a_terminal_raw(
    stopped: Stopped, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, place in (("CONFIG", "config"), ("STATE", "state"), ("RUNTIME", "runtime")):
        monkeypatch.setenv(f"QORUM_{variable}_DIR", str(getattr(stopped.directories, place)))
    for key in ("set", "copy", "host", "uuid"):
        for image in stopped.images:
            identity.remove(image)
        identity.found(stopped.spec, identity.this_host())
        path = identity.sidecar_path(stopped.images[0])
        content = json.loads(path.read_text())
        content[key] = "\x1b[2J\x1b]0;owned\x07" + "x" * (30_000 if key == "uuid" else 40)
        content |= {"clean": False, "host_id": "elsewhere"} if key == "host" else {}
        path.write_text(json.dumps(content))
        for command in ("check", "start"):
            code, text = run_cli(capsys, command, NAME)
            assert code == 1
            assert "\x1b]" not in text
            assert "\x1b[2J" not in text
            assert len(text) < 4000
