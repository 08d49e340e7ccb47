"""How a guest uses the volume: what is printed works as pasted, whatever the path of the socket holds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from qorumctl.cli.render import shell_lines
from qorumctl.controller.attach import attachment
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.front import RECONNECT_DELAY_S
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.model.status import AttachReport
from tests.live import SIZE, Daemons, make_spec

SOCKET = Path("/run/qorum/web01/nbd.sock")
ODD_NAME = "a b,c&d'e\"f<g>%h#i?j+k=l$m;é"
LONGEST_NAME = "a" + "-_x9" * 7 + "xyz"
LEGAL_ID = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]{0,30}")
DEADLINE_S = 60.0


def _pasted(report: AttachReport) -> str:
    """What `attach --as qemu` prints."""
    return "\n".join(shell_lines(report.qemu))


def options(report: AttachReport) -> tuple[dict[str, Any], dict[str, str]]:
    """The -blockdev and the -device of a report, taken apart."""
    assert report.qemu[::2] == ["-blockdev", "-device"]
    driver, *keys = report.qemu[3].split(",")
    return json.loads(report.qemu[1]), {"driver": driver, **dict(key.split("=") for key in keys)}


# --- what it says


def test_the_uri_names_export_and_socket() -> None:
    assert attachment("web01", SOCKET).uri == "nbd+unix:///volume?socket=/run/qorum/web01/nbd.sock"


def test_qemu_is_told_to_reconnect() -> None:
    blockdev, device = options(attachment("web01", SOCKET))
    assert blockdev == {
        "driver": "nbd",
        "node-name": "qorum-web01",
        "server": {"type": "unix", "path": str(SOCKET)},
        "export": "volume",
        "reconnect-delay": RECONNECT_DELAY_S,
        "discard": "unmap",
    }
    assert device == {"driver": "virtio-blk-pci", "drive": "qorum-web01", "id": "disk-web01"}


@pytest.mark.parametrize("name", ["a", "9lives", "web01", "x" * 25, "x" * 26, LONGEST_NAME])
def test_node_names_and_ids_are_legal_in_qemu_whatever_the_set_is_called(name: str) -> None:
    blockdev, device = options(attachment(name, SOCKET))
    assert LEGAL_ID.fullmatch(blockdev["node-name"])
    assert LEGAL_ID.fullmatch(device["id"])
    assert device["drive"] == blockdev["node-name"]


def test_two_long_names_that_begin_alike_stay_apart() -> None:
    one, two = (options(attachment("x" * 31 + end, SOCKET))[0]["node-name"] for end in "ab")
    assert one != two


@pytest.mark.parametrize("socket", [SOCKET, Path("/run") / ODD_NAME / "nbd.sock"], ids=["plain", "odd"])
def test_libvirt_gets_a_disk_that_reconnects(socket: Path) -> None:
    disk = ElementTree.fromstring(attachment("web01", socket).libvirt)
    assert (disk.tag, disk.attrib) == ("disk", {"type": "network", "device": "disk"})
    source = disk.find("source")
    assert source is not None
    assert source.attrib == {"protocol": "nbd", "name": "volume"}
    assert [(part.tag, part.attrib) for part in source] == [
        ("host", {"transport": "unix", "socket": str(socket)}),
        ("reconnect", {"delay": str(RECONNECT_DELAY_S)}),
    ]
    driver, target = disk.find("driver"), disk.find("target")
    assert driver is not None
    assert driver.attrib["type"] == "raw"
    assert target is not None
    assert target.attrib["bus"] == "virtio"


def test_a_shell_splits_the_line_into_the_same_arguments() -> None:
    report = attachment("web01", Path("/run") / ODD_NAME / "nbd.sock")
    assert shlex.split(_pasted(report).replace("\\\n", " ")) == report.qemu


# --- and that it works


def shell(command: str, *, stdin: str = "") -> str:
    ran = subprocess.run(
        ["sh", "-c", command], input=stdin, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def need(tool: str, package: str) -> str:
    """A tool that the set-up installs. Its absence is a failure: a skipped test would look like a passed one."""
    found = shutil.which(tool)
    if found is None:
        pytest.fail(f"{tool} is not installed: apt-get install --no-install-recommends {package}")
    return found


Attached = tuple[AttachReport, bytes]


@pytest.fixture
def runtime(short_dir: Path) -> Path:
    """The worst path that a runtime directory may have."""
    directory = short_dir / ODD_NAME
    directory.mkdir()
    return directory


async def check_on_a_running_set(
    runtime: Path, image: Callable[..., Path], name: str, check: Callable[[AttachReport, bytes], None]
) -> None:
    content = bytes(range(256)) * (SIZE // 256)
    spec = make_spec({copy: image(copy, content=content) for copy in "abc"}, name=name)
    daemons = Daemons(runtime)
    try:
        paths, _ = await daemons.spawn()
        async with await Monitor.open(paths.control_sock) as monitor:
            quorum = QuorumSet(spec, monitor)
            await quorum.open_copies(read_only=False)
            await quorum.assemble()
            await quorum.export_volume()
            check(attachment(name, paths.nbd_sock), content)
    finally:
        daemons.end_all()


@pytest.mark.live
async def test_the_nbd_tools_take_the_uri_as_pasted(runtime: Path, image: Callable[..., Path]) -> None:
    for tool, package in (("nbdinfo", "libnbd-bin"), ("nbdcopy", "libnbd-bin"), ("qemu-img", "qemu-utils")):
        need(tool, package)

    def check(report: AttachReport, content: bytes) -> None:
        uri = shlex.quote(report.uri)
        assert int(shell(f"nbdinfo --size {uri}")) == SIZE
        assert json.loads(shell(f"nbdinfo --json {uri}"))["exports"][0]["is_read_only"] is False
        copied = runtime / "copied"
        shell(f"nbdcopy {uri} {shlex.quote(str(copied))}")
        assert copied.read_bytes() == content
        assert json.loads(shell(f"qemu-img info --output=json {uri}"))["virtual-size"] == SIZE
        shell(f"qemu-img compare -f raw -F raw {uri} {shlex.quote(str(copied))}")

    await check_on_a_running_set(runtime, image, "web01", check)


@pytest.mark.live
@pytest.mark.parametrize("name", ["web01", LONGEST_NAME])
async def test_a_real_virtual_machine_opens_the_volume(runtime: Path, image: Callable[..., Path], name: str) -> None:
    machine = need("qemu-system-x86_64", "qemu-system-x86")
    asked = ("qmp_capabilities", "query-block", "query-named-block-nodes", "quit")
    commands = "".join(json.dumps({"execute": command, "id": command}) + "\n" for command in asked)

    def check(report: AttachReport, content: bytes) -> None:
        # No firmware runs: the disk is opened, and its device made, before the first instruction.
        start = f"{machine} -accel tcg -m 32 -nodefaults -display none -S -qmp stdio {_pasted(report)}"
        said = [json.loads(line) for line in shell(start, stdin=commands).splitlines()]
        answers = {line["id"]: line["return"] for line in said if "return" in line}
        blockdev, device = options(report)
        (node,) = (n for n in answers["query-named-block-nodes"] if n["node-name"] == blockdev["node-name"])
        assert node["image"]["virtual-size"] == len(content)
        assert node["ro"] is False
        (disk,) = answers["query-block"]
        assert device["id"] in disk["qdev"]
        assert disk["inserted"]["node-name"] == blockdev["node-name"]

    await check_on_a_running_set(runtime, image, name, check)
