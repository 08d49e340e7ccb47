"""The bridge: the engine's synchronous fence, carried out by the asynchronous control plane and the NBD data plane."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from qorumctl.controller.options import Timeouts
from qorumctl.copies.nbd_link import NbdLink, Ticket
from qorumctl.core.ranges import SECTOR_BYTES, Range, align, between, coalesce, intersect, split, subtract
from qorumctl.daemon.graph import HEAL
from qorumctl.daemon.quorum_set import QuorumSet
from qorumctl.daemon.watches import WATCH_PREFIX
from qorumctl.errors import CopyUnavailableError, DaemonError, DaemonStalledError
from qorumctl.scrub.ports import Watch
from qorumctl.units import KIB, MIB

T = TypeVar("T")
_DIRTY = 1
"""NBD_STATE_DIRTY of a `qemu:dirty-bitmap:` context (QEMU's docs/interop/nbd.txt)."""
_QUESTION_GAP_BYTES = MIB
"""Ranges nearer than this are asked about together: an extent costs less than a round trip."""
_PUMP_S = 0.02
_SMALL_BYTES = 64 * KIB
"""A fenced read of this size is rarely overtaken for long."""


class LiveFence:
    """A scrub.ports.Fence on a running set. Used by the engine's thread; QMP runs in `loop`, elsewhere.

    `hang_up` closes the engine's own data connections. It is called when a drain misses its deadline: whoever holds
    the drain up, it must not be us. `sign_of_life` asks each copy for an answer; it raises CopyUnavailableError.
    """

    def __init__(
        self,
        quorum: QuorumSet,
        loop: asyncio.AbstractEventLoop,
        nbd_sock: Path,
        timeouts: Timeouts,
        size_bytes: int,
        hang_up: Callable[[], None],
        sign_of_life: Callable[[], None],
    ) -> None:
        self._quorum = quorum
        self._loop = loop
        self._socket = nbd_sock
        self._timeouts = timeouts
        self._size_bytes = size_bytes
        self._hang_up = hang_up
        self._sign_of_life = sign_of_life
        self._heal_link: NbdLink | None = None
        self._buffer = bytearray(MIB)
        self._stalled = False
        # Unique beyond this process: what a crashed one left must never be taken for ours.
        prefix = f"{WATCH_PREFIX}{os.getpid()}-{uuid4().hex[:6]}"
        self._names = (f"{prefix}-{n}" for n in itertools.count(1))

    def open_watch(self, *, drain: bool) -> Watch:
        name = next(self._names)
        self._call(self._quorum.open_watch(name, drain=drain))
        return Watch(name)

    def freeze(self, watches: Sequence[Watch]) -> None:
        self._call(self._quorum.freeze(watches))

    def written(self, watch: Watch, within: Sequence[Range]) -> list[Range]:
        if not within:
            return []
        with self.asking(watch) as ask:
            return ask(within)

    @contextmanager
    def asking(self, watch: Watch) -> Iterator[Callable[[Sequence[Range]], list[Range]]]:
        """As `written`, for a record that is too large to be asked for at once."""
        context = self._call(self._quorum.publish(watch))
        link = NbdLink(
            self._socket, watch, who="The record of guest writes", timeout_s=self._timeouts.copy_s, meta_context=context
        )

        def ask(within: Sequence[Range]) -> list[Range]:
            wanted = coalesce(within)
            dirty = [r for question in _questions(wanted) for r in self._dirty(link, question)]
            return intersect([align(r, SECTOR_BYTES, self._size_bytes) for r in dirty], wanted)

        try:
            yield ask
        finally:
            link.close()

    def _dirty(self, link: NbdLink, question: Range) -> list[Range]:
        extents = link.status(question) if link.has_status() else []
        if subtract([question], [r for r, _ in extents]):
            # Silence would read as "not written", and turn a write in flight into damage.
            raise DaemonError(
                "The daemon does not tell which ranges guests have written.",
                remedy="Nothing was changed. Run 'qorumctl doctor'.",
            )
        return [r for r, flags in extents if flags & _DIRTY]

    def forget(self, watches: Iterable[Watch]) -> None:
        # A stalled monitor would keep each clean-up waiting for another deadline; the next command sweeps.
        if self._stalled:
            return
        tidying = self._quorum.forget(list(watches))
        # Something has failed, and we are on our way out. A daemon that does not even answer now is itself what hangs,
        # and not the copy that seemed to.
        self._call(tidying if sys.exception() is None else self._soon(tidying))

    async def _soon(self, tidying: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(self._timeouts.monitor_s):
                await tidying
        except TimeoutError:
            raise self._quorum.monitor.stalled("what it was asked", self._timeouts.monitor_s) from None

    def heal(self, at: Range) -> bool:
        try:
            return bool(self._fenced_read(self._link(), at, None))
        except CopyUnavailableError as error:
            self.close()
            if error.copy is not None:
                raise
            return False

    def read(self, at: Range) -> bytearray | None:
        """What the volume holds: voted on, after every write that was begun before. None: no majority. At most 1 MiB,
        with nothing else of ours outstanding. Raises CopyUnavailableError where no answer can be had."""
        # Not a fresh one for each read: see NbdLink.
        answer = self._fenced_read(self._link(), at, self._buffer)
        if answer is None and at.length > _SMALL_BYTES:
            pieces = [self.read(piece) for piece in split([at], _SMALL_BYTES)]
            return None if None in pieces else bytearray().join(piece for piece in pieces if piece is not None)
        if answer is None:
            raise CopyUnavailableError(
                f"The volume could not be read at offset {at.offset} within {self._timeouts.heal_s:g} s: guests write "
                "there without pause.",
                remedy="Repeat the command when they write less.",
            )
        return self._buffer[: at.length] if answer else None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Any other call of the control plane, made from the engine's thread. Nothing of ours may be outstanding."""
        return self._call(coroutine)

    def _link(self) -> NbdLink:
        if self._heal_link is None:
            self._heal_link = NbdLink(self._socket, HEAL, who="The heal export", timeout_s=self._timeouts.copy_s)
        return self._heal_link

    def _fenced_read(self, link: NbdLink, at: Range, into: bytearray | None) -> bool | None:
        """A fenced read waits for overlapping writes, and new ones overtake it: under sustained writes it starves
        (None). A drain lets it through. While that runs we keep taking the reply, or we would be what holds it up."""
        ticket = link.submit_read(at, into)
        ends_at_s = time.monotonic() + self._timeouts.heal_s
        while (answer := link.wait(ticket, self._timeouts.kick_after_s)) is None:
            if time.monotonic() >= ends_at_s:
                self.close()
                return None
            answer = self._kick(link, ticket)
            if answer is not None:
                break
        return answer

    def _kick(self, link: NbdLink, ticket: Ticket) -> bool | None:
        # What waits may wait for a copy that hangs, and a drain would then block every monitor.
        self._sign_of_life()
        kick: Future[None] = asyncio.run_coroutine_threadsafe(self._quorum.kick(), self._loop)
        answer: bool | None = None
        try:
            while not kick.done():
                if answer is None:
                    answer = link.wait(ticket, _PUMP_S)
                else:
                    break
        except CopyUnavailableError:
            answer = False
        self._result(kick)
        return answer

    def close(self) -> None:
        """Drops the connection to `heal`. Idempotent; a later heal makes a new one."""
        if self._heal_link is not None:
            self._heal_link.close()
            self._heal_link = None

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._result(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def _result(self, future: Future[T]) -> T:
        """No deadline here: the control plane gives every command one."""
        try:
            return future.result()
        except DaemonStalledError:
            self._stalled = True
            self.close()
            self._hang_up()
            raise


class QuietFence:
    """The fence of copies that nobody can write: opened read-only, without a quorum. Heals nothing."""

    def open_watch(self, *, drain: bool) -> Watch:
        return Watch("quiet")

    def freeze(self, watches: Sequence[Watch]) -> None:
        return

    def written(self, watch: Watch, within: Sequence[Range]) -> list[Range]:
        return []

    def forget(self, watches: Iterable[Watch]) -> None:
        return

    def heal(self, at: Range) -> bool:
        raise AssertionError("copies that are open read-only cannot be healed")

    def close(self) -> None:
        return


def _questions(wanted: Sequence[Range]) -> list[Range]:
    questions: list[Range] = []
    for r in wanted:
        if questions and r.offset - questions[-1].end <= _QUESTION_GAP_BYTES:
            questions[-1] = between(questions[-1].offset, r.end)
        else:
            questions.append(r)
    return questions
