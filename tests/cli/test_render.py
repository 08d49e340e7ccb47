"""What people read about sets, at 80 columns, as a whole."""

from __future__ import annotations

from typing import Any

import pytest

from qorumctl.cli import render
from qorumctl.model.spec import SetSpec
from qorumctl.model.status import (
    AttachReport,
    CheckItem,
    CheckReport,
    ListReport,
    Result,
    SetListing,
    ShowReport,
    StatusReport,
)
from tests.cli.documents import GIB, copy, run_summary, set_status
from tests.cli.screen import screen, text


def shown(**keys: Any) -> str:
    return screen(render.status(StatusReport(sets=[set_status(**keys)])))


def test_a_healthy_set() -> None:
    assert shown() == text(
        """
      set: web01
    state: healthy
     size: 20 GiB in 3 copies
   policy: repair
threshold: 2 of 3 copies win a vote
   volume: nbd+unix:///volume?socket=/run/qorum/web01/nbd.sock
    scrub: run 12 found nothing, on 2026-11-22 03:04:12 UTC, in 4m12s
   copies:

  NAME  STATE    OUTVOTED  UNREADABLE  REPAIRED  SOURCE
  a     current         0           0         0  /mnt/nfs-a/web01.raw
  b     current         0           0         0  /mnt/nfs-b/web01.raw
  c     current         0           0         0  /mnt/nfs-c/web01.raw

errors: No known errors
"""
    )


def test_a_copy_that_is_at_fault_again_and_again_is_pointed_at() -> None:
    blame = {"scrubs": 5, "of_scrubs": 6, "days": 5, "outvoted": 22, "unreadable": 1, "recurring": 4, "others": 0}
    lines = shown(copies=[copy("a"), copy("b", outvoted=22, unreadable=1, blame=blame), copy("c")]).splitlines()
    assert "\n".join(lines[1:6]) == text(
        """
    state: healthy
   advice: Copy b was outvoted or unreadable in 5 of the last 6 scrubs, on 5
           days (23 ranges, 4 of them repaired before), and no other copy was:
           that appliance is the one to replace: 'qorumctl copy replace web01 b
           SOURCE'.
"""
    )
    told = shown(copies=[copy("b", blame=blame | {"unreadable": 0, "recurring": 0, "others": 1})])
    assert "Copy b was outvoted in 5 of the last 6 scrubs" in told
    assert "; another copy was in 1 of them: that" in " ".join(told.split())


def test_a_degraded_set_with_a_scrub_at_work_and_long_paths() -> None:
    long = "nbd+unix:///web01?socket=/srv/a-very-long-directory-name/that-goes-on/nbd.sock"
    got = shown(
        state="degraded",
        reason="Copy b missed writes while its server was away.",
        definition_differs=True,
        unrepaired=2,
        scrub={"run": 13, "mode": "repair", "position": 9 * GIB, "pid": 812},
        copies=[
            copy("a"),
            copy("b", state="stale", outvoted=3, repaired=1, note="missed writes since 03:12", source=long),
            copy("c", unreadable=12574),
        ],
    )
    assert got == text(
        """
      set: web01
    state: degraded
   reason: Copy b missed writes while its server was away.
   action: Run 'qorumctl scrub web01': it compares every copy and brings it up
           to date.
     size: 20 GiB in 3 copies
   policy: repair
threshold: 2 of 3 copies win a vote
   volume: nbd+unix:///volume?socket=/run/qorum/web01/nbd.sock
    scrub: run 13 (repair) is at 45 % of 20 GiB, process 812
     note: The definition was changed since the start; 'qorumctl restart web01'
           applies it.
   copies:

  NAME  STATE    OUTVOTED  UNREADABLE  REPAIRED  SOURCE
  a     current         0           0         0  /mnt/nfs-a/web01.raw
  b     stale           3           0         1  nbd+unix:///web01?socket=/srv/a
                                                 -very-long-directory-name/that-
                                                 goes-on/nbd.sock
                                                 (missed writes since 03:12)
  c     current         0      12,574         0  /mnt/nfs-c/web01.raw

errors: 2 findings are open: see 'qorumctl report web01'
"""
    )


@pytest.mark.parametrize(
    ("keys", "action"),
    [
        ({"state": "healthy"}, None),
        ({"state": "stopped"}, "Start it with 'qorumctl start web01'."),
        ({"state": "failed"}, "Look at 'qorumctl check web01', then run 'qorumctl start web01'."),
        ({"state": "stalled"}, "Guests wait. Look at the storage of the copies: one that hangs holds up all."),
        (
            {"state": "damaged"},
            "See 'qorumctl report web01', and decide on each range without a majority with "
            "'qorumctl resolve'; or have a guest write them anew, from a backup, and run 'qorumctl scrub web01'.",
        ),
        (
            {"state": "degraded", "copies": [copy("a"), copy("b"), copy("c", state="missing")]},
            "Bring the storage of the copy back, then run 'qorumctl restart web01'.",
        ),
        (
            {"state": "degraded", "copies": [copy("a"), copy("b"), copy("c", state="suspect")]},
            "Run 'qorumctl scrub web01': it compares every copy and brings it up to date.",
        ),
        (
            {"state": "degraded", "copies": [copy("a"), copy("b"), copy("c", state="suspect", failing=True)]},
            "Replace copy c: 'qorumctl copy replace web01 c SOURCE'.",
        ),
        (
            {"state": "degraded", "policy": "report", "unrepaired": 1, "copies": [copy("a", state="suspect")]},
            "See 'qorumctl report web01'. Nothing is repaired with policy report: set policy = \"repair\" in the "
            "definition, run 'qorumctl restart web01', then 'qorumctl scrub web01'.",
        ),
    ],
)
def test_every_state_says_what_to_do(keys: dict[str, Any], action: str | None) -> None:
    assert render.action(set_status(**keys)) == action


@pytest.mark.parametrize(
    ("run", "line"),
    [
        ({}, "run 12 found nothing, on 2026-11-22 03:04:12 UTC, in 4m12s"),
        (
            {"outcome": "repaired", "findings": {"repaired": 3}},
            "run 12 repaired 3 findings, on 2026-11-22 03:04:12 UTC, in 4m12s",
        ),
        (
            {"outcome": "damaged", "findings": {"repaired": 2, "left": 1}},
            "run 12 left damage: 3 findings, on 2026-11-22 03:04:12 UTC, in 4m12s",
        ),
        (
            {"outcome": "no-majority", "findings": {"left": 1}},
            "run 12 found ranges without a majority (1 finding in all), on 2026-11-22 03:04:12 UTC, in 4m12s",
        ),
        (
            {"outcome": "unfinished", "scanned_bytes": 9 * GIB, "finished": None, "resumable": True},
            "run 12 stopped at 45 %, can be resumed: 0 findings, on 2026-11-22 03:00:00 UTC",
        ),
    ],
)
def test_the_last_scrub(run: dict[str, Any], line: str) -> None:
    assert render.scrub_line(set_status(last_scrub=run_summary(**run))) == line


def test_a_set_that_was_never_scrubbed_is_not_said_to_be_free_of_errors() -> None:
    one = set_status(last_scrub=None)
    assert render.scrub_line(one) == "never"
    assert render.errors_line(one).plain == "None known; the set was never scrubbed"


def test_no_set() -> None:
    nothing = "No set is defined. 'qorumctl create' makes one."
    assert screen(render.status(StatusReport(sets=[]))) == nothing
    assert screen(render.sets(ListReport(sets=[]))) == nothing


def test_a_list() -> None:
    listing = ListReport(
        sets=[
            SetListing(name="db", state="stopped", size=3 * GIB // 2, copies=5),
            SetListing(name="web01", state="healthy", size=20 * GIB, copies=3),
            SetListing(name="x", state="failed", size=None, copies=None, error="x.toml: unknown key 'threshhold'."),
        ]
    )
    assert screen(render.sets(listing)) == text(
        """
NAME   STATE        SIZE  COPIES
db     stopped  1.50 GiB       5
web01  healthy    20 GiB       3
x      failed          -       -

x: x.toml: unknown key 'threshhold'.
"""
    )


def test_show() -> None:
    sources = [{"type": "file", "path": f"/mnt/{name}/web01.raw"} for name in "abc"]
    spec = SetSpec.model_validate(
        {
            "name": "web01",
            "uuid": "6f1d0a52-9b6e-4a54-8a53-0d7b6f5b6a11",
            "size": "20GiB",
            "copies": [{"name": n, "source": s} for n, s in zip("abc", sources, strict=True)],
            "volume": {"group": "kvm", "mode": "0660"},
        }
    )
    document = ShowReport(
        definition=spec,
        definition_path="/etc/qorum/sets/web01.toml",
        state_directory="/var/lib/qorum/web01",
        runtime_directory="/run/qorum/web01",
    )
    assert screen(render.show(document)) == text(
        """
       set: web01
      uuid: 6f1d0a52-9b6e-4a54-8a53-0d7b6f5b6a11
      size: 20GiB (21,474,836,480 bytes)
 threshold: 2 of 3
    policy: repair
    volume: socket mode 0660, group kvm
scrub rate: what guests leave room for
definition: /etc/qorum/sets/web01.toml
     state: /var/lib/qorum/web01
   runtime: /run/qorum/web01

  COPY  TYPE  FORMAT  CACHE  SOURCE
  a     file  raw     none   /mnt/a/web01.raw
  b     file  raw     none   /mnt/b/web01.raw
  c     file  raw     none   /mnt/c/web01.raw
"""
    )


def test_a_check_that_found_something() -> None:
    items = [
        CheckItem(subject="definition", ok=True, detail="/etc/qorum/sets/web01.toml"),
        CheckItem(subject="copy b", ok=False, detail="it is missing", remedy="Bring it back: /mnt/b/web01.raw."),
    ]
    assert screen(render.checks(CheckReport(set="web01", ok=False, items=items))) == text(
        """
ok   definition: /etc/qorum/sets/web01.toml
BAD  copy b: it is missing
     Bring it back: /mnt/b/web01.raw.

1 thing to put right.
"""
    )


def test_attach_prints_lines_that_can_be_pasted_whole() -> None:
    document = AttachReport(
        set="web01",
        uri="nbd+unix:///volume?socket=/run/qorum/web01/nbd.sock",
        qemu=["-blockdev", '{"driver":"nbd","node-name":"web01"}', "-device", "virtio-blk-pci,drive=web01"],
        libvirt="<disk>\n  <target dev='vda'/>\n</disk>\n",
    )
    assert "\n".join(render.attach(document)) == text(
        r"""
NBD URI
    nbd+unix:///volume?socket=/run/qorum/web01/nbd.sock

qemu-system-x86_64
    -blockdev '{"driver":"nbd","node-name":"web01"}' \
    -device virtio-blk-pci,drive=web01

libvirt
    <disk>
      <target dev='vda'/>
    </disk>
"""
    )


@pytest.mark.parametrize(
    ("done", "sentence"),
    [
        (Result(set="w", command="create", changed=True), "w is created. Start it with 'qorumctl start w'."),
        (Result(set="w", command="start", changed=False), "w runs already: nothing was changed."),
        (Result(set="w", command="stop", changed=True), "w is stopped."),
        (Result(set="w", command="delete", changed=True), "w is deleted."),
    ],
)
def test_commands_that_change_a_set_say_one_sentence(done: Result, sentence: str) -> None:
    assert screen(render.result(done)) == sentence


def test_escape_sequences_in_a_path_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in shown(copies=[copy("a", source="/mnt/\x1b[2Ja.raw"), copy("b"), copy("c")])
