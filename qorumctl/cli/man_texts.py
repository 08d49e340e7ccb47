"""What the man pages say beyond what commands, options and models say of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qorumctl.core.findings import Action, FindingVerdict
from qorumctl.model.status import CopyState, SetState

EXIT_STATUS = """
    0: it is done, or there was nothing to do. 1: it could not be done, or (check, doctor) something is wrong. 2: wrong
    usage, a definition that cannot be used, or no such set; nothing was touched. 130: Ctrl-C. What those of scrub and
    status tell stands there. Of several findings or sets the worst news wins.
"""

ENVIRONMENT = [
    ("QORUM_CONFIG_DIR", "Where definitions are, instead of /etc/qorum/sets (root, user qorum) or the XDG directory."),
    ("QORUM_STATE_DIR", "Where records of scrubs are, instead of /var/lib/qorum."),
    ("QORUM_RUNTIME_DIR", "Where sockets, pidfiles and logs are, instead of /run/qorum. Keep it short."),
    ("QORUM_QSD", "The storage daemon: a path, or a name on PATH; qemu-storage-daemon if unset."),
    ("QORUM_LIBBLKIO", "The library through which copies are read fast, where it is not among the system's."),
    ("QORUM_HOOKS_DIR", "Where hooks are, instead of hooks.d beside the directory of definitions."),
    ("QORUM_HOOKS_BY_UNIT", "Set in the units of systemd: hooks are run by a unit of their own, qorum-hooks@.service."),
    ("QORUM_SET", "For a hook: the set that it is told of."),
    ("QORUM_EVENT", "For a hook: the kind of the event, such as finding or daemon-gone."),
    ("QORUM_JOURNAL_SOCKET", "Where entries for the journal go, instead of /run/systemd/journal/socket."),
    ("QORUM_TEXTFILE_DIR", "Where each set's metrics are written for node_exporter; if unset, nowhere."),
]

FILES = [
    ("/etc/qorum/sets/NAME.toml", "The definition of a set, see qorumctl.toml(5)."),
    ("/var/lib/qorum/NAME/state.db", "Runs, findings, and samples of damaged data: readable by its owner only."),
    ("/var/lib/qorum/NAME/saved/", "What copies held before a 'resolve': guests' data, for their owner only."),
    ("/etc/qorum/hooks.d/", "Programs that are told of events: see qorumctl hooks list."),
    ("/run/qorum/NAME/nbd.sock", "Where guests connect: the NBD export 'volume'."),
    ("/run/qorum/NAME/front.sock", "Where a guest of 'qorumctl front' connects: vhost-user-blk."),
    ("/run/qorum/NAME/qsd.log", "What the storage daemon says."),
    ("IMAGE.qorum", "The identity of an image, beside it. Move, copy and restore the two together."),
]

DEFINITION = """
    NAME.toml, in the directory of definitions, is what a set is made of. 'qorumctl create' writes it; it may be
    edited, and is rewritten, with its comments, only by 'qorumctl copy replace' and 'qorumctl grow'. An unknown key is
    an error. A change takes effect at the next start or 'qorumctl restart', one in [scrub] at the next scrub. The file
    must not be writable by other users. 'qorumctl check' says whether the set could be started.

    Sizes are numbers of bytes, or words such as "20GiB".
"""

EXAMPLE = """
name = "web01"
uuid = "6f1c2b0e-6f0e-4c39-9f3e-0c4c0f5b8a11"
size = "64MiB"
threshold = 2
policy = "repair"

[[copies]]
name = "a"
cache = "none"
source = { type = "file", path = "/srv/a/web01.raw", format = "raw" }

[[copies]]
name = "b"
source = { type = "device", path = "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4" }

[[copies]]
name = "c"
source = { type = "nbd", uri = "nbd://storage-c.example.org/web01" }

[volume]
group = "libvirt-qemu"
mode = "0660"

[scrub]
rate = "200MiB/s"
"""

OVERVIEW = [
    (
        "DESCRIPTION",
        """
        A set is one disk, kept as three copies (or five, seven, nine), ideally on as many storage appliances that have
        nothing in common. A qemu-storage-daemon of its own serves it over NBD. Every write goes to all copies; every
        read is a vote, and what the threshold of copies agrees on, a strict majority, wins. Where nothing wins the
        read fails rather than lie.

        A scrub reads every copy of every sector, also of those that no guest ever reads, finds the copy that is wrong,
        proves that this is no write in flight, repairs it, reads it again, and keeps a record. It may run while guests
        work, may be stopped at any instant, and resumes.

        qorumctl is not in the data path: it may end, be upgraded or be absent, and guests do not notice.
        """,
    ),
    (
        "IDENTITY",
        """
        Beside each image file lies its identity, IMAGE.qorum: which set and copy it is, and of which generation. A new
        generation begins at each start, and whenever a copy leaves. An image that was not there is stale: it has missed
        writes, and no start takes it for current. Devices and NBD exports have none.
        """,
    ),
    (
        "WHAT IT CANNOT DO",
        """
        A version wins that enough copies return alike, be it right or wrong: copies must fail independently of each
        other. Three copies on one appliance are one copy. TRIM frees nothing.
        """,
    ),
]

WORDS: list[tuple[str, Iterable[Any], Mapping[Any, str]]] = [
    (
        "STATES OF A SET",
        SetState,
        {
            SetState.HEALTHY: "All copies are there, none is known to lack anything, and somebody listens for errors.",
            SetState.DEGRADED: "Guests have their data, but a copy is missing or suspect, or nobody listens.",
            SetState.DAMAGED: "There are ranges without a majority: reading there fails.",
            SetState.STALLED: "The daemon or a copy does not answer.",
            SetState.STOPPED: "The set does not run.",
            SetState.FAILED: "The daemon is gone without having been stopped, or the set cannot be told.",
        },
    ),
    (
        "STATES OF A COPY",
        CopyState,
        {
            CopyState.CURRENT: "It is there, and nothing is known to be wrong with it.",
            CopyState.SUSPECT: "It has missed a write, or may have; or has damage that was not repaired.",
            CopyState.STALE: "Its image is of an older generation. Such a copy is refused, or left out and missing.",
            CopyState.MISSING: "It is away, or every read of it fails.",
            CopyState.STALLED: "It does not answer: reads and writes wait for it.",
            CopyState.OFFLINE: "The set is stopped: nobody looked.",
        },
    ),
    (
        "VERDICTS OF A SCRUB",
        FindingVerdict,
        {
            FindingVerdict.OUTVOTED: "The copy holds something else than the majority.",
            FindingVerdict.UNREADABLE: "The copy cannot read the range.",
            FindingVerdict.NO_MAJORITY: "No version has enough votes: nothing is written there.",
        },
    ),
    (
        "WHAT A SCRUB DID",
        Action,
        {
            Action.PENDING: "Its repair was begun; the next scrub settles it.",
            Action.REPAIRED: "Written anew, flushed, read back and equal.",
            Action.LEFT: "Nothing was written.",
            Action.FAILED: "It was written, and does not hold what was written.",
            Action.RESOLVED: "No majority: written as an operator has decided, see 'resolve'.",
        },
    ),
]
