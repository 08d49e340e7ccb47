"""Work on one copy of a running set, in a thread of its own: with the fence, and with readers of the copies that are
closed when a drain hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TypeVar

from qorumctl.controller.bridge import LiveFence
from qorumctl.controller.context import SetContext
from qorumctl.controller.live import in_a_thread, reached
from qorumctl.controller.observer import ScrubControl
from qorumctl.controller.returning import Teller
from qorumctl.copies.base import CopyReader
from qorumctl.copies.nbd import NbdCopy
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.model.spec import SetSpec
from qorumctl.store import Store

T = TypeVar("T")


@dataclass(slots=True)
class Bench:
    """What the work is done with. `teller` says how far it is, and whether it is to go on."""

    context: SetContext
    spec: SetSpec
    quorum: QuorumSet
    store: Store
    fence: LiveFence
    teller: Teller
    readers: list[CopyReader] = field(default_factory=list)

    def reader(self, stack: ExitStack, name: str) -> NbdCopy:
        """Of a copy's export, for as long as `stack` stands."""
        timeout_s = self.context.timeouts.copy_s
        reader = NbdCopy(name, self.context.runtime.nbd_sock, copy_node(name), timeout_s=timeout_s)
        stack.enter_context(closing(reader))
        self.readers.append(reader)
        stack.callback(self.readers.remove, reader)
        return reader


async def carry_out(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    teller: Teller,
    control: ScrubControl,
    work: Callable[[Bench], T],
) -> T:
    """Under the set's lock, with a monitor that is open throughout."""
    loop = asyncio.get_running_loop()
    return await in_a_thread(control, work_here, context, spec, quorum, teller, loop, work)


def work_here(
    context: SetContext,
    spec: SetSpec,
    quorum: QuorumSet,
    teller: Teller,
    loop: asyncio.AbstractEventLoop,
    work: Callable[[Bench], T],
) -> T:
    """In the thread that calls; QMP runs in `loop`."""
    with reached(context, spec, quorum, loop) as (fence, readers), context.store() as store:
        return work(Bench(context, spec, quorum, store, fence, teller, readers))
