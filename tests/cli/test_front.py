"""`front` as it is typed, and what is printed about one."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from qorumctl.cli import render_front
from qorumctl.cli.main import main
from qorumctl.cli.render import shell_lines
from qorumctl.controller.attach import vhost_user_arguments
from qorumctl.daemon.front import FrontOptions, arguments
from qorumctl.daemon.runtime import FrontPaths, RuntimePaths
from qorumctl.errors import UsageError
from qorumctl.model.status import FrontReport, FrontStatus

RUNTIME = Path("/run/qorum/web01")
SOCKET = RUNTIME / "front.sock"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def front(**keys: object) -> FrontStatus:
    values = {"pid": 7, "guest": False, "connected": True, "write_through": True, "num_queues": 1}
    return FrontStatus.model_validate({"socket": str(SOCKET), **values, **keys})


@pytest.mark.parametrize("line", ["front web01 --stop --num-queues 2", "front web01 --stop --config-wce-off"])
def test_what_is_stopped_has_no_options(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 2
    assert "--stop goes with no option but --force" in capsys.readouterr().err


def test_force_is_for_stopping(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("front", "web01", "--force") == 2
    assert "--force goes with --stop alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (front(), f"{SOCKET} (vhost-user-blk), pid 7, no guest"),
        (front(guest=True), f"{SOCKET} (vhost-user-blk), pid 7, a guest is connected"),
        (front(write_through=False), f"{SOCKET} (vhost-user-blk, for a guest with config-wce=off), pid 7, no guest"),
        (
            front(connected=False),
            f"{SOCKET} (vhost-user-blk), pid 7, no guest; not connected to the volume, until a guest asks for it",
        ),
        (
            front(pid=None, write_through=None, num_queues=None),
            "ended without being stopped: power off its guest, then run 'qorumctl front web01 --stop'",
        ),
    ],
)
def test_a_line_of_status(status: FrontStatus, line: str) -> None:
    assert render_front.front_line("web01", status) == line


@pytest.mark.parametrize(
    ("changed", "status", "begins"),
    [
        (True, front(), "The front of web01 is started."),
        (False, front(), "The front of web01 runs already: nothing was changed."),
        (True, None, "The front of web01 is stopped."),
        (False, None, "web01 has no front."),
    ],
)
def test_the_answer_of_front(changed: bool, status: FrontStatus | None, begins: str) -> None:
    assert render_front.front(FrontReport(set="web01", changed=changed, front=status, qemu=[])).startswith(begins)


def test_a_guest_shares_its_memory_and_never_connects_again() -> None:
    words = vhost_user_arguments("web01", SOCKET, FrontOptions(num_queues=4), memory_bytes=2 << 30)
    assert words == [
        *("-m", "2048M"),
        *("-object", "memory-backend-memfd,id=qorum-memory,size=2048M,share=on"),
        *("-machine", "memory-backend=qorum-memory"),
        *("-chardev", f"socket,id=qorum-web01,path={SOCKET}"),
        *("-device", "vhost-user-blk-pci,chardev=qorum-web01,num-queues=4,id=disk-web01"),
    ]
    assert shlex.split(" ".join(shell_lines(words)).replace("\\", "")) == words
    assert vhost_user_arguments("w", SOCKET, FrontOptions(config_wce_off=True))[-1].endswith(",config-wce=off")
    assert f"path={'/a,,b/front.sock'}" in vhost_user_arguments("w", Path("/a,b/front.sock"), FrontOptions())[7]
    for odd in (0, (1 << 20) + 1):
        with pytest.raises(UsageError, match="multiple of 1 MiB"):
            vhost_user_arguments("w", SOCKET, FrontOptions(), memory_bytes=odd)


@pytest.mark.parametrize("config_wce_off", [False, True])
def test_a_front_writes_through_unless_the_guest_flushes(config_wce_off: bool) -> None:
    words = " ".join(arguments(FrontPaths(RUNTIME), RUNTIME / "nbd.sock", FrontOptions(1, config_wce_off)))
    assert f'"writethrough": {"false" if config_wce_off else "true"}' in words
    assert '"driver": "nbd"' in words
    assert '"reconnect-delay": 30' in words


def test_its_socket_s_path_is_no_longer_than_the_set_s_own() -> None:
    own, front_s = RuntimePaths(RUNTIME).sockets, FrontPaths(RUNTIME).sockets
    assert max(len(str(path)) for path in front_s) <= max(len(str(path)) for path in own)
