"""The copies and the fence of a set, as the thread that works on them uses them; and that thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from qorumctl.controller.bridge import LiveFence, QuietFence
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import ScrubControl, StopReason
from qorumctl.copies.nbd import NbdCopy
from qorumctl.core.ranges import SECTOR_BYTES, Range
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.model.spec import SetSpec

P = ParamSpec("P")
T = TypeVar("T")


async def in_a_thread(control: ScrubControl, work: Callable[P, T], *arguments: P.args, **keys: P.kwargs) -> T:
    """Cancelled, it asks `control` to stop, and waits: the thread must end before the caller lets go of lock and
    monitor."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments, **keys))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        control.stop(StopReason.INTERRUPTED)
        # Whatever it ends with: asyncio would print an error that nobody has asked for.
        await asyncio.gather(working, return_exceptions=True)
        raise


@contextmanager
def reached(
    context: SetContext, spec: SetSpec, quorum: QuorumSet, loop: asyncio.AbstractEventLoop, names: Sequence[str] = ()
) -> Iterator[tuple[LiveFence, list[NbdCopy]]]:
    """Of a running set: the fence, and a reader of each named copy. At the end all connections are closed."""
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
        _connect(context, names, readers)
        yield fence, readers
    finally:
        fence.close()
        hang_up()


@contextmanager
def at_rest(context: SetContext, names: Sequence[str]) -> Iterator[tuple[QuietFence, list[NbdCopy]]]:
    """As `reached`, of copies that were opened read-only and that nobody writes to."""
    readers: list[NbdCopy] = []
    try:
        _connect(context, names, readers)
        yield QuietFence(), readers
    finally:
        for reader in readers:
            reader.close()


def _connect(context: SetContext, names: Sequence[str], readers: list[NbdCopy]) -> None:
    for name in names:
        readers.append(NbdCopy(name, context.runtime.nbd_sock, copy_node(name), timeout_s=context.timeouts.copy_s))
