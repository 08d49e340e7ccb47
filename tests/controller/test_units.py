from __future__ import annotations

import shutil
import subprocess
from uuid import uuid4

import pytest

from qorumctl.controller.schedule import WORDS
from qorumctl.controller.units import drop_ins, image_directories, mount_points, mount_unit
from qorumctl.errors import RefusedError
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, NbdSource, SetSpec

TABLE = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 21 0:41 / /srv/a rw,relatime shared:7 - nfs4 far:/a rw
41 21 0:42 / /srv/with\040blank rw - nfs4 far:/b rw
"""


def spec(*sources: FileSource | DeviceSource | NbdSource) -> SetSpec:
    copies = tuple(CopySpec(name="abc"[at], source=source) for at, source in enumerate(sources))
    return SetSpec(name="web01", uuid=uuid4(), size=1 << 20, copies=copies)


LOCAL = spec(*(FileSource(path=f"/srv/{name}/web01.raw") for name in "abc"))
MIXED = spec(
    FileSource(path="/srv/a/web01.raw"), DeviceSource(path="/dev/vg/web01"), NbdSource(uri="nbd://far.example/web01")
)


def test_the_mounts_of_the_copies_are_waited_for_and_not_required() -> None:
    """One appliance that is away must not keep the others from serving."""
    text = drop_ins(LOCAL, ["/srv/a"], ["/srv/a", "/srv/b-1", "/"], WORDS["monthly"])["qorum-storage@web01.service"]
    assert "[Unit]\nWants=srv-a.mount srv-b\\x2d1.mount\nAfter=srv-a.mount srv-b\\x2d1.mount\n" in text
    assert "Requires" not in text


def test_copies_behind_the_network_wait_for_it() -> None:
    texts = drop_ins(MIXED, image_directories(MIXED), ["/"], WORDS["monthly"])
    assert "Wants=network-online.target\nAfter=network-online.target\n" in texts["qorum-storage@web01.service"]


def test_nothing_to_wait_for() -> None:
    assert "[Unit]" not in drop_ins(LOCAL, [], ["/"], WORDS["monthly"])["qorum-storage@web01.service"]


def test_images_can_be_written_to_and_one_that_is_away_is_no_obstacle() -> None:
    assert image_directories(MIXED) == ["/srv/a"]
    texts = drop_ins(MIXED, ["/srv/a", '/srv/50% "b"'], [], WORDS["monthly"])
    for unit in ("qorum-storage@web01.service", "qorum-scrub@web01.service"):
        assert 'ReadWritePaths="-/srv/a"\nReadWritePaths="-/srv/50%% \\"b\\""\n' in texts[unit]


def test_a_path_that_no_unit_file_can_hold_is_refused() -> None:
    with pytest.raises(RefusedError, match="no unit file can"):
        drop_ins(LOCAL, ["/srv/a\tb"], [], WORDS["monthly"])


def test_a_path_that_systemd_would_drop_is_refused() -> None:
    """With a line in its log: "path is not normalized, ignoring"."""
    with pytest.raises(RefusedError, match=r"no path with '\.\.' in it: /srv/a/\.\./b\.") as refused:
        drop_ins(LOCAL, ["/srv/a/../b"], [], WORDS["monthly"])
    assert refused.value.path == "/srv/a/../b"
    assert drop_ins(LOCAL, ["/srv/a..b"], [], WORDS["monthly"])


def test_a_directory_is_named_as_the_mount_table_does() -> None:
    images = spec(*(FileSource(path=f"//srv/./{path}.raw") for path in ("a/x", "b/y", "b/z")))
    assert image_directories(images) == ["/srv/a", "/srv/b"]


def test_the_schedule_takes_the_place_of_the_template_s() -> None:
    texts = drop_ins(LOCAL, [], [], WORDS["nightly"])
    assert "OnCalendar=\nOnCalendar=*-*-* 01:00:00\n" in texts["qorum-scrub@web01.timer"]
    assert "Environment=BUDGET=4h\n" in texts["qorum-scrub@web01.service"]


def test_mount_points_are_read_from_the_table() -> None:
    directories = ["/srv/a/deep/er", "/srv/a", "/srv/ab", "/srv/with blank/x"]
    assert mount_points(directories, TABLE) == ["/srv/a", "/", "/srv/with blank"]
    assert mount_points(["/srv"], "") == ["/"]


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="systemd-escape is not installed")
@pytest.mark.parametrize("path", ["/srv/a", "/srv/a-b", "/.hidden/.x", "/with blank", "/ü", "/a\\b", "/a_b:c.d/e"])
def test_mount_units_are_named_as_systemd_names_them(path: str) -> None:
    command = ["systemd-escape", "--path", "--suffix=mount", "--", path]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert mount_unit(path) == said
