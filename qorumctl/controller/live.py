"""The copies and the fence of a running set, as its engine's thread uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qorumctl.controller.bridge import LiveFence
from qorumctl.controller.context import SetContext
from qorumctl.copies.nbd import NbdCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.model.spec import SetSpec


@contextmanager
def reached(
    context: SetContext, spec: SetSpec, quorum: QuorumSet, loop: asyncio.AbstractEventLoop, names: Sequence[str] = ()
) -> Iterator[tuple[LiveFence, list[NbdCopy]]]:
    """The fence, and a reader of each named copy. At the end all connections are closed."""
    readers: list[NbdCopy] = []

    def hang_up() -> None:
        for reader in readers:
            reader.close()

    def sign_of_life() -> None:
        for reader in readers:
            reader.observe(Range(0, SECTOR_BYTES))

    socket, timeouts = context.runtime.nbd_sock, context.timeouts
    fence = LiveFence(quorum, loop, socket, timeouts, spec.size, hang_up, sign_of_life)
    try:
        for name in names:
            readers.append(NbdCopy(name, socket, copy_node(name), timeout_s=timeouts.copy_s))
        yield fence, readers
    finally:
        fence.close()
        hang_up()
