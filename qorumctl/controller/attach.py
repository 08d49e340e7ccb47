"""How a guest uses a set's volume: words to paste. Pure: what is printed here is run as it stands by a test.

Measured (7.2.22 and 10.0.2): a QEMU client with `reconnect-delay` 0 answers EIO not only to the request whose reply was
lost but to every other one in flight, and to all until it is connected again, some milliseconds later. With a delay
they are sent again, so a guest outlives a restart of the set. The price: QEMU's server answers a read of a sector
without a majority by closing the connection, and such a client then sends that read again and again, without end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from qorumctl.daemon.front import RECONNECT_DELAY_S, FrontOptions
from qorumctl.daemon.graph import VOLUME
from qorumctl.daemon.runtime import escaped
from qorumctl.errors import UsageError
from qorumctl.model.status import AttachReport

GUEST_MEMORY_BYTES = 1 << 30
MOST_ID_BYTES = 31
"""QEMU's BDRVState holds a node name in 32 bytes, the last one NUL."""
_HASH_DIGITS = 8


def attachment(set_name: str, socket: Path, vhost_user_blk: Sequence[str] = ()) -> AttachReport:
    """`socket`: the absolute path of the set's NBD server. `vhost_user_blk`: of its front, as below."""
    return AttachReport(
        set=set_name,
        uri=uri(socket),
        qemu=_qemu_arguments(set_name, socket),
        libvirt=_libvirt_disk(socket),
        vhost_user_blk=list(vhost_user_blk),
    )


def vhost_user_arguments(
    set_name: str, socket: Path, front: FrontOptions, *, memory_bytes: int = GUEST_MEMORY_BYTES
) -> list[str]:
    """The front maps the guest's memory, so that has to be shared. No `reconnect`: see daemon/front.py. Raises
    UsageError for a memory that is not of whole MiB."""
    mib, rest = divmod(memory_bytes, 1 << 20)
    if rest or not mib:
        raise UsageError("A guest's memory is a multiple of 1 MiB.", remedy="Say what its -m says, such as 2GiB.")
    chardev = _identifier("qorum", set_name)
    device = f"vhost-user-blk-pci,chardev={chardev},num-queues={front.num_queues},id={_identifier('disk', set_name)}"
    return [
        *("-m", f"{mib}M"),
        *("-object", f"memory-backend-memfd,id=qorum-memory,size={mib}M,share=on"),
        *("-machine", "memory-backend=qorum-memory"),
        *("-chardev", f"socket,id={chardev},path={escaped(socket)}"),
        *("-device", f"{device},config-wce=off" if front.config_wce_off else device),
    ]


def uri(socket: Path) -> str:
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
