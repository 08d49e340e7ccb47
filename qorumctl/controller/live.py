"""The copies and the fence of a set, as the thread that works on them uses them; and that thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import ParamSpec, TypeVar

from qorumctl.controller.bridge import LiveFence, QuietFence
from qorumctl.controller.context import SetContext
from qorumctl.controller.observer import ScrubControl, StopReason
from qorumctl.controller.options import Transport
from qorumctl.controller.transport import connected
from qorumctl.copies.base import CopyReader
from qorumctl.core.ranges import SECTOR_BYTES, Range
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
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    loop: asyncio.AbstractEventLoop,
    names: Sequence[str] = (),
    transport: Transport = "nbd",
) -> Iterator[tuple[LiveFence, list[CopyReader]]]:
    """Of a running set: the fence, and a reader of each named copy. At the end all connections are closed."""
    readers: list[CopyReader] = []

    def hang_up() -> None:
        for reader in readers:
            reader.close()

    def sign_of_life() -> None:
        for reader in readers:
            reader.observe(Range(0, SECTOR_BYTES))

    socket, timeouts = context.runtime.nbd_sock, context.timeouts
    fence = LiveFence(quorum, loop, socket, timeouts, spec.size, hang_up, sign_of_life)
    with connected(context, spec, loop, names, transport, readers), closing(fence):
        yield fence, readers


@contextmanager
def at_rest(
    context: SetContext,
    spec: SetSpec,
    loop: asyncio.AbstractEventLoop,
    names: Sequence[str],
    transport: Transport = "nbd",
) -> Iterator[tuple[QuietFence, list[CopyReader]]]:
    """As `reached`, of copies that were opened read-only and that nobody writes to."""
    readers: list[CopyReader] = []
    with connected(context, spec, loop, names, transport, readers):
        yield QuietFence(), readers
