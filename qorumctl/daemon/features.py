"""Can this qemu-storage-daemon do what a set needs? For `doctor`, and before a set is started."""

from __future__ import annotations

from qorumctl.daemon.client import Monitor
from qorumctl.daemon.replies import names
from qorumctl.errors import CommandError

COMMANDS = (
    "blockdev-add",
    "blockdev-create",
    "blockdev-del",
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove",
    "block-export-add",
    "block-export-del",
    "job-dismiss",
    "object-add",
    "object-del",
    "qom-list",
    "query-block-exports",
    "query-jobs",
    "query-named-block-nodes",
    "quit",
    "transaction",
    # Marked unstable by QEMU: a later version may lack or rename them.
    "x-blockdev-change",
    "x-debug-query-block-graph",
)
_NODE = "qorum-probe"
_ABSENT = "qorum-no-such-node"
# Each lacks something on purpose, so a daemon that knows the driver refuses it for that, and nothing is ever added.
# query-qmp-schema does not tell: it lists drivers that were left out of the build or moved into a missing module.
_PROBES: dict[str, dict[str, object]] = {
    "quorum": {"children": [], "vote-threshold": 1},
    "copy-on-read": {"file": _ABSENT},
    "throttle": {"file": _ABSENT, "throttle-group": _ABSENT},
    "qcow2": {"file": _ABSENT},
    "raw": {"file": _ABSENT},
    "nbd": {"server": {"type": "unix", "path": "/nonexistent/qorum-probe"}},
    "file": {"filename": "/nonexistent/qorum-probe"},
    "host_device": {"filename": "/nonexistent/qorum-probe"},
}
_UNKNOWN = ("Unknown driver", "does not accept value", "whitelist", "Invalid parameter")


async def missing_features(monitor: Monitor) -> list[str]:
    """`command NAME` and `block driver NAME` for each that is missing; empty when all is there. Changes nothing."""
    known = set(names("query-commands", await monitor.execute("query-commands"), "name"))
    missing = [f"command {name}" for name in COMMANDS if name not in known]
    for driver, options in _PROBES.items():
        try:
            await monitor.execute("blockdev-add", {"driver": driver, "node-name": _NODE, **options})
        except CommandError as error:
            if any(words in error.description for words in _UNKNOWN):
                missing.append(f"block driver {driver}")
    return missing
