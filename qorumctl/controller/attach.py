"""How a guest uses a set's volume: words to paste. Pure: what is printed here is run as it stands by a test.

Measured (7.2.22 and 10.0.2): a QEMU client with `reconnect-delay` 0 answers EIO not only to the request whose reply was
lost but to every other one in flight, and to all until it is connected again, some milliseconds later. With a delay
they are sent again, so a guest outlives a restart of the set. The price: QEMU's server answers a read of a sector
without a majority by closing the connection, and such a client then sends that read again and again, without end.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from qorumctl.daemon.graph import VOLUME
from qorumctl.model.status import AttachReport

RECONNECT_DELAY_S = 30
"""Longer than a restart of a set takes; shorter than the 120 s after which Linux complains about a blocked task."""
MOST_ID_BYTES = 31
"""QEMU's BDRVState holds a node name in 32 bytes, the last one NUL."""
_HASH_DIGITS = 8


def attachment(set_name: str, socket: Path) -> AttachReport:
    """`socket`: the absolute path of the set's NBD server."""
    return AttachReport(
        set=set_name, uri=_uri(socket), qemu=_qemu_arguments(set_name, socket), libvirt=_libvirt_disk(socket)
    )


def _uri(socket: Path) -> str:
    """As libnbd and QEMU read it: what a path may hold and a URI may not is percent-encoded."""
    return f"nbd+unix:///{VOLUME}?socket={quote(str(socket))}"


def _qemu_arguments(set_name: str, socket: Path) -> list[str]:
    node = _identifier("qorum", set_name)
    # JSON: in the key=value form a comma in the path has to be doubled, and a shell's quotes do not help.
    blockdev = {
        "driver": "nbd",
        "node-name": node,
        "server": {"type": "unix", "path": str(socket)},
        "export": VOLUME,
        "reconnect-delay": RECONNECT_DELAY_S,
        # Frees nothing, neither by TRIM nor by zeros (measured, 7.2 and 10.0): the quorum has no discard. With it zeros
        # go to the copies as such, and a scrub need not read them.
        "discard": "unmap",
    }
    device = f"virtio-blk-pci,drive={node},id={_identifier('disk', set_name)}"
    return ["-blockdev", json.dumps(blockdev), "-device", device]


def _libvirt_disk(socket: Path) -> str:
    """Fits the schema of libvirt 11.3 (Debian 13); that of 9.0 (Debian 12) does not know `reconnect` for NBD."""
    return "\n".join(
        [
            "<disk type='network' device='disk'>",
            "  <driver name='qemu' type='raw' discard='unmap'/>",
            f"  <source protocol='nbd' name={quoteattr(VOLUME)}>",
            f"    <host transport='unix' socket={quoteattr(str(socket))}/>",
            f"    <reconnect delay='{RECONNECT_DELAY_S}'/>",
            "  </source>",
            "  <target dev='vdb' bus='virtio'/>",
            "</disk>",
        ]
    )


def _identifier(prefix: str, set_name: str) -> str:
    """`qorum-web01`: unique among the sets of a host, and legal in QEMU, where a set's name can be too long."""
    whole = f"{prefix}-{set_name}"
    if len(whole) <= MOST_ID_BYTES:
        return whole
    digest = hashlib.sha256(set_name.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{whole[: MOST_ID_BYTES - _HASH_DIGITS - 1]}-{digest}"
