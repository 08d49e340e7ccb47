"""The front: a second daemon that exports a set's volume as vhost-user-blk, over an NBD connection to `volume`.

Never the set's own daemon: it would hand the guest's memory to each copy's write at another moment, and a guest that
changes a page under I/O would split the copies (12,574 of 16,384 sectors, measured). NBD copies the payload once.

Facts this rests on (7.2.22 and 10.0.2, alike, measured unless it says otherwise):
* The export offers CONFIG_WCE, with `wce` 0 whatever its `writethrough` is: a guest whose device leaves `config-wce` on
  takes the disk for write-through and never flushes. So `writethrough` is on, unless nobody can read `wce`. A guest
  that sets `wce` itself (`cache_type` in Linux) is obeyed.
* It does not offer VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD. A QEMU that reconnects after the death of a front goes on
  where the *used* ring ends: with requests completed out of order, one in flight is lost and a completed one is done
  again, with whatever the guest's memory holds by then (read in its code: virtio_queue_restore_last_avail_idx). So no
  guest is told to reconnect. (After SIGTERM the two ends agree: the daemon completes what it has taken.)
* While the set's daemon is gone, requests wait up to `reconnect-delay`, counted from when the next request notices the
  loss, and are sent again; after that they fail, until the client, which looks every 16 s at most, is connected.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from qorumctl.daemon.graph import VOLUME
from qorumctl.daemon.runtime import FrontPaths

RECONNECT_DELAY_S = 30
"""Longer than a restart of a set takes; shorter than the 120 s after which Linux complains about a blocked task."""
MOST_QUEUES = 64
"""More serve nobody: one thread works them all."""


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """`config_wce_off`: the operator's word that the guest's device has it, so that the guest sends flushes."""

    num_queues: int = 1
    config_wce_off: bool = False


def arguments(paths: FrontPaths, nbd_sock: Path, options: FrontOptions) -> list[str]:
    """All of it on the command line: a front is there as a whole or not at all, and tells what it is (`options_of`)."""
    blockdev = {
        "driver": "nbd",
        "node-name": VOLUME,
        "server": {"type": "unix", "path": str(nbd_sock)},
        "export": VOLUME,
        "reconnect-delay": RECONNECT_DELAY_S,
        "discard": "unmap",
    }
    export = {
        "type": "vhost-user-blk",
        "id": "front",
        "node-name": VOLUME,
        "addr": {"type": "unix", "path": str(paths.server)},
        "writable": True,
        "num-queues": options.num_queues,
        "writethrough": not options.config_wce_off,
    }
    return ["--blockdev", json.dumps(blockdev), "--export", json.dumps(export)]


def options_of(pid: int) -> FrontOptions | None:
    """What a running front was started with; None where it has ended meanwhile."""
    try:
        words = [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        export = json.loads(words[words.index("--export") + 1])
        return FrontOptions(int(export["num-queues"]), not export["writethrough"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
