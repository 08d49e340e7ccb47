"""The block graph of a set as QMP arguments. Pure: a SetSpec in, dictionaries out. The names are a contract.

volume (NBD, writable), heal (NBD, read-only)
    fence       copy-on-read: makes each read serialise against writes, so vote-and-rewrite cannot lose one
        quorum      the vote
            copy-NAME       raw or qcow2, also exported read-only as copy-NAME
                copy-NAME-file      file, host_device or nbd

Two nodes cannot share a name, nor can one be renamed. So an image that takes a copy's place while the set runs has a
key of its own, NAME.2 (no copy's name holds a dot), and its nodes are copy-NAME.2 and copy-NAME.2-file until the next
start. The export copy-NAME is always that of the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import assert_never

from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, NbdEndpoint, NbdSource, SetSpec, Source

QmpArguments = dict[str, object]

QUORUM = "quorum"
FENCE = "fence"
VOLUME = "volume"
HEAL = "heal"
CLAIM = "qorum-claim"
"""A quorum of one copy, for a moment: see children.py."""
COPY_PREFIX = "copy-"
FILE_SUFFIX = "-file"
TLS_PREFIX = "tls-"
DEFAULT_TLS_DIRECTORY = "/etc/pki/qemu"
"""Where libvirt and QEMU's documentation put client certificates. QEMU has no default and refuses without one."""


def copy_node(name: str) -> str:
    """The top node of a copy, and the id and name of its export."""
    return f"{COPY_PREFIX}{name}"


def file_node(name: str) -> str:
    """The protocol node of a copy."""
    return f"{COPY_PREFIX}{name}{FILE_SUFFIX}"


def copy_of_node(node: str) -> str | None:
    """`copy-a` -> `a`; None for any node that is not the top of a copy."""
    if not node.startswith(COPY_PREFIX) or node.endswith(FILE_SUFFIX):
        return None
    return node.removeprefix(COPY_PREFIX)


def copy_of_key(key: str) -> str:
    """`a`, and `a.2` -> `a`."""
    return key.partition(".")[0]


def key_number(key: str) -> int:
    """`a` -> 1, `a.2` -> 2."""
    number = key.partition(".")[2]
    return int(number) if number.isdecimal() else 1


def key_of_any_node(node: str) -> str | None:
    """As `copy_of_node`, also for a protocol node."""
    return copy_of_node(node.removesuffix(FILE_SUFFIX))


def next_key(name: str, taken: Iterable[str]) -> str:
    """Of an image that is to take the place of a copy. `taken`: keys in use, of any copy."""
    return f"{name}.{1 + max((key_number(key) for key in taken if copy_of_key(key) == name), default=1)}"


def tls_id(name: str) -> str:
    return f"{TLS_PREFIX}{name}"


def tls_object(copy: CopySpec) -> QmpArguments | None:
    """`object-add` for a copy behind nbds://, None for any other."""
    if not isinstance(copy.source, NbdSource) or not copy.source.endpoint.tls:
        return None
    return {
        "qom-type": "tls-creds-x509",
        "id": tls_id(copy.name),
        "endpoint": "client",
        "verify-peer": True,
        "dir": copy.source.endpoint.tls_certificates or DEFAULT_TLS_DIRECTORY,
    }


def protocol_node(copy: CopySpec, *, read_only: bool) -> QmpArguments:
    """`blockdev-add` of the node that reaches the storage."""
    # auto-read-only would silently give a read-only copy that then misses every write.
    node: QmpArguments = {"node-name": file_node(copy.name), "read-only": read_only, "auto-read-only": False}
    match copy.source:
        case FileSource(path=path):
            return {**node, "driver": "file", "filename": path, "locking": "on", **_access(copy)}
        case DeviceSource(path=path):
            return {**node, "driver": "host_device", "filename": path, **_access(copy)}
        case NbdSource() as source:
            return {**node, **_nbd(copy.name, source.endpoint)}
        case _:
            assert_never(copy.source)


def format_node(copy: CopySpec, *, read_only: bool) -> QmpArguments:
    """`blockdev-add` of the node that the quorum, and the copy's export, sit on. The format is stated, never probed."""
    node: QmpArguments = {
        "node-name": copy_node(copy.name),
        "driver": copy.source.format,
        "file": file_node(copy.name),
        "read-only": read_only,
        "auto-read-only": False,
    }
    if copy.source.format == "qcow2":
        # Otherwise QEMU opens whatever the image's header names.
        node["backing"] = None
    if not isinstance(copy.source, NbdSource):
        node["cache"] = _cache(copy)
    return node


def quorum_node(spec: SetSpec, *, without: Set[str] = frozenset()) -> QmpArguments:
    """`blockdev-add` of the vote, of all copies but those in `without`. Never `blkverify`: it ends the whole daemon on
    the first mismatch."""
    return {
        "driver": "quorum",
        "node-name": QUORUM,
        "vote-threshold": spec.threshold,
        "rewrite-corrupted": spec.policy == "repair",
        "children": [copy_node(name) for name in spec.copy_names if name not in without],
    }


def fence_node() -> QmpArguments:
    """`blockdev-add` of the filter without which rewriting loses acknowledged writes (invariant 3)."""
    return {"driver": "copy-on-read", "node-name": FENCE, "file": QUORUM}


def export(name: str, node: str, *, writable: bool = False, bitmaps: Sequence[str] = ()) -> QmpArguments:
    """`block-export-add` over NBD; the export's id is its NBD name."""
    arguments: QmpArguments = {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": writable}
    if bitmaps:
        arguments["bitmaps"] = list(bitmaps)
    return arguments


def copy_export(name: str) -> QmpArguments:
    return export(copy_node(name), copy_node(name))


def heal_export() -> QmpArguments:
    return export(HEAL, FENCE)


def volume_export(copies: Sequence[CopySpec] = ()) -> QmpArguments:
    """Each write is flushed before it is acknowledged where a copy is a qcow2: QEMU keeps in memory where new clusters
    lie, a daemon that dies takes that with it, and a client that connects again would have its flush answered by the
    next daemon although what it wrote is gone (seen, 7.2: zeros in its place)."""
    arguments = export(VOLUME, FENCE, writable=True)
    if writes_through(copies):
        arguments["writethrough"] = True
    return arguments


def writes_through(copies: Sequence[CopySpec]) -> bool:
    """Whether the volume of such a set does."""
    return any(is_qcow2(copy.source) for copy in copies)


def is_qcow2(source: Source) -> bool:
    return isinstance(source, FileSource) and source.format == "qcow2"


def _access(copy: CopySpec) -> QmpArguments:
    """How a file or device is read and written.

    QEMU's default, a pool of threads, lets two overlapping writes that are in flight together reach one copy in one
    order and another in the other: both are acknowledged, and the copies differ for good. Measured with 8 writes to one
    block in flight, 2,000 times, on ext4: 413 blocks differed with threads, 1 with io_uring, none with native, which
    hands them to the kernel in order from one thread. It needs O_DIRECT.
    """
    return {"cache": _cache(copy), "aio": "native" if copy.cache == "none" else "threads"}


def _cache(copy: CopySpec) -> QmpArguments:
    return {"direct": copy.cache == "none", "no-flush": False}


def _nbd(name: str, endpoint: NbdEndpoint) -> QmpArguments:
    if endpoint.socket is not None:
        server: QmpArguments = {"type": "unix", "path": endpoint.socket}
    else:
        server = {"type": "inet", "host": endpoint.host, "port": str(endpoint.port)}
    node: QmpArguments = {"driver": "nbd", "server": server, "export": endpoint.export}
    # A request on a lost connection fails at once. With a delay it would wait, and hold up all copies and each drain.
    node["reconnect-delay"] = 0
    if endpoint.tls:
        node["tls-creds"] = tls_id(name)
        if endpoint.socket is not None:
            # A socket has no host name, and QEMU refuses to check a certificate against none.
            node["tls-hostname"] = "localhost"
    return node
