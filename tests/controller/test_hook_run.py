"""One run of a hook: what it gets, and that nothing that it does harms or holds up whoever runs it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qorumctl.controller import hook_run
from qorumctl.controller.hook_run import Outcome
from tests.live import is_dead, wait_for

Hook = Callable[..., Outcome]
DOCUMENT = json.dumps({"event": "test"}).encode() + b"\n"
FAR_S = 60.0
PATIENCE_S = (1, 4, 16)
"""A busy machine may not have come so far in a second."""


@pytest.fixture
def hook(short_dir: Path) -> Hook:
    """`hook("exit 3")`: the outcome of a shell script; `$D` is a directory."""

    def run(script: str, *, limit_s: float = FAR_S, first_line: str = "#!/bin/sh") -> Outcome:
        path = short_dir / "10-hook"
        path.write_text(f"{first_line}\nD={short_dir}\n{script}\n")
        path.chmod(0o755)
        return hook_run.run(path, DOCUMENT, set_name="web01", event="test", limit_s=limit_s)

    return run


def test_it_gets_the_document_and_little_else(hook: Hook, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the caller")
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    script = "cat > $D/in; tr '\\0' '\\n' < /proc/self/environ > $D/env; pwd > $D/cwd; umask > $D/umask; ls /proc/$$/fd"
    try:
        done = hook(script)
    finally:
        os.close(secret)
    assert done.reason is None
    assert (short_dir / "in").read_bytes() == DOCUMENT
    environment = dict(line.split("=", 1) for line in (short_dir / "env").read_text().split())
    environment.pop("PWD", None)  # the shell's own
    assert environment == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "QORUM_SET": "web01",
        "QORUM_EVENT": "test",
    }
    assert ((short_dir / "cwd").read_text(), (short_dir / "umask").read_text()) == ("/\n", "0077\n")
    # 10: the shell's own.
    assert set(done.output.split()) <= {"0", "1", "2", "10"}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "it ended with exit code 3"),
        ("kill -TERM $$", "it was ended by SIGTERM"),
        ("kill -KILL 0", "it was ended by SIGKILL"),
        ("kill -40 $$", "it was ended by signal 40"),
        ("true", None),
    ],
)
def test_how_it_ends_is_told_in_words(hook: Hook, script: str, reason: str | None) -> None:
    assert hook(script).reason == reason


def test_an_interpreter_that_is_not_there_is_told(hook: Hook) -> None:
    assert hook("", first_line="#!/none").reason == "its interpreter does not exist"


def test_one_that_is_gone_is_no_failure(short_dir: Path) -> None:
    done = hook_run.run(short_dir / "none", DOCUMENT, set_name="w", event="test", limit_s=FAR_S)
    assert (done.gone, done.reason) == (True, None)


def test_the_end_of_what_it_says_is_kept(hook: Hook) -> None:
    done = hook("seq 100000; echo last >&2; printf '\\377\\0'")
    assert done.reason is None
    assert len(done.output) <= 2000
    assert done.output.endswith("100000\nlast\n\ufffd")


def test_one_that_hangs_is_killed_with_its_children(hook: Hook, short_dir: Path) -> None:
    for limit_s in PATIENCE_S:
        done = hook("trap '' TERM HUP INT; sleep 600 & echo $! > $D/pid; wait; sleep 600", limit_s=limit_s)
        assert done.reason == f"it took more than {limit_s} s and was killed"
        if (short_dir / "pid").exists() and (short_dir / "pid").read_text():
            break
    child = int((short_dir / "pid").read_text())
    wait_for(lambda: is_dead(child), "the end of its child")


def test_one_that_floods_is_read_and_killed(hook: Hook) -> None:
    for limit_s in PATIENCE_S:
        done = hook("yes flood", limit_s=limit_s)
        assert done.reason == f"it took more than {limit_s} s and was killed"
        if done.output:
            break
    assert "flood" in done.output
    assert len(done.output) <= 2000


def test_a_daemon_that_keeps_its_output_open_holds_nobody_up(hook: Hook, short_dir: Path) -> None:
    apart = "setsid sh -c 'echo $$ > '$D'/pid.new; mv '$D'/pid.new '$D'/pid; exec sleep 600' &"
    done = hook(f"{apart} sleep 600 & echo $! > $D/other; until test -e $D/pid; do sleep 0.01; done; echo begun")
    daemon, other = int((short_dir / "pid").read_text()), int((short_dir / "other").read_text())
    try:
        assert (done.reason, done.output) == (None, "begun\n")
        wait_for(lambda: is_dead(other), "the end of what was left in its group")
        assert not is_dead(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_large_document_that_nobody_reads_holds_nobody_up(short_dir: Path) -> None:
    path = short_dir / "10-hook"
    path.write_text("#!/bin/sh\nexec true\n")
    path.chmod(0o755)
    assert hook_run.run(path, bytes(1 << 22), set_name="w", event="test", limit_s=FAR_S).reason is None


def test_one_that_became_unsafe_meanwhile_is_not_run(short_dir: Path) -> None:
    path = short_dir / "10-hook"
    path.write_text(f"#!/bin/sh\ntouch {short_dir}/ran\n")
    path.chmod(0o777)
    done = hook_run.run(path, DOCUMENT, set_name="w", event="test", limit_s=FAR_S)
    assert done.reason == f"{path} can be written by other users"
    assert not (short_dir / "ran").exists()
