"""Who is connected to a unix socket, as the kernel tells it: sock_diag(7), the interface behind `ss -x`.

It tells of one network namespace, and both ends of a connection are in that of the end that has connected: the one of
a guest in a container is known only from its server's descriptors (`elsewhere`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_REQUEST, _DUMP = 0x1, 0x300
_DONE, _ERROR = 3, 2
_SHOW_NAME, _SHOW_PEER = 0x1, 0x4
_NAME, _PEER = 0, 2
_ESTABLISHED, _ANY = 1 << 1, 0xFFFFFFFF
"""States of a socket."""
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=BBBBIII")
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Connection:
    """One end, by inode, and the other one."""

    inode: int
    peer: int


def connections(path: Path) -> list[Connection] | None:
    """Those whose server's end has this path. None where the kernel does not say: a sandbox, a kernel without it."""
    try:
        return [found for name, found in _dump(_ESTABLISHED) if name == os.fsencode(path)]
    except (OSError, struct.error):
        return None


def elsewhere(pid: int) -> bool | None:
    """Whether a process has a connection that was made in another network namespace; its own are all in ours, and
    unix sockets. None where nobody says."""
    try:
        before = inodes_of(pid)
        here = {found.inode for _, found in _dump(_ANY)}
        # Sockets come and go meanwhile.
        after = inodes_of(pid)
    except (OSError, struct.error):
        return None
    return None if before is None or after is None else bool((before & after) - here)


def inodes_of(pid: int) -> set[int] | None:
    """Of the sockets that a process has open; None where it may not be asked, or is gone."""
    found = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    except OSError:
        return None
    return found


def _dump(states: int) -> Iterator[tuple[bytes, Connection]]:
    """Name -> socket."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
        link.settimeout(_TIMEOUT_S)
        request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, states, 0, _SHOW_NAME | _SHOW_PEER, 0, 0)
        link.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _REQUEST | _DUMP, 1, 0) + request)
        while True:
            data = link.recv(1 << 18)
            at = 0
            while at < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _DONE:
                    return
                if kind == _ERROR or length < _HEADER.size:
                    raise OSError("sock_diag refuses")
                yield _connection(data[at + _HEADER.size : at + length])
                at += length + -length % 4


def _connection(message: bytes) -> tuple[bytes, Connection]:
    inode = _MESSAGE.unpack_from(message)[4]
    name, peer, at = b"", 0, _MESSAGE.size
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if length < 4:
            break
        value = message[at + 4 : at + length]
        if kind == _NAME:
            name = value.rstrip(b"\0")
        elif kind == _PEER:
            peer = struct.unpack("=I", value)[0]
        at += length + -length % 4
    return name, Connection(inode, peer)
