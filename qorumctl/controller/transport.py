"""How a scrub reads the copies: through memory that a reader shares (daemon/reader.py), or over NBD.

Only the scan does. What it takes for suspect is read again over NBD, from the set's own daemon, before anything is
believed or written: see scrub/confirm.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from qorumctl.controller.context import SetContext
from qorumctl.controller.options import Transport
from qorumctl.copies import blkio
from qorumctl.copies.base import CopyReader
from qorumctl.copies.nbd import NbdCopy
from qorumctl.copies.vhost import VhostCopy
from qorumctl.daemon import process, reader
from qorumctl.daemon.graph import copy_node
from qorumctl.daemon.reader import CannotShare, ReaderPaths
from qorumctl.errors import CopyUnavailableError, DaemonError, QorumError, RefusedError
from qorumctl.model.spec import SetSpec

Call = Callable[[Coroutine[Any, Any, Any]], Any]
_log = logging.getLogger("qorumctl.scrub")


@contextmanager
def connected(
    context: SetContext,
    spec: SetSpec,
    loop: asyncio.AbstractEventLoop,
    names: Sequence[str],
    wanted: Transport,
    readers: list[CopyReader],
) -> Iterator[None]:
    """For the time of the block `readers` holds one for each name, all of one kind, as their chunks are compared. In
    the calling thread; what is asynchronous runs in `loop`.

    Raises CopyUnavailableError, and RefusedError where `shm` is wanted and is not to be had.
    """

    def call(command: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(command, loop).result()

    try:
        for name in names:
            readers.append(_over_nbd(context, name))
        if wanted != "nbd" and names:
            try:
                _share(context, spec, call, readers)
            except CannotShare as error:
                with contextlib.suppress(QorumError):
                    call(reader.end(ReaderPaths(context.runtime.directory)))
                _put_up_with(context, wanted, str(error))
        yield
    finally:
        for one in readers:
            one.close()
        with contextlib.suppress(QorumError):
            call(reader.end(ReaderPaths(context.runtime.directory)))


def _share(context: SetContext, spec: SetSpec, call: Call, readers: list[CopyReader]) -> None:
    """Puts readers through shared memory in place of those over NBD, or leaves them and raises CannotShare."""
    if (why_not := blkio.why_not()) is not None:
        raise CannotShare(why_not)
    if (pid := context.pid()) is None:
        raise CannotShare("the daemon has ended")
    paths = ReaderPaths(context.runtime.directory)
    made: list[CopyReader] = []
    try:
        call(reader.end(ReaderPaths(context.runtime.directory)))
        with contextlib.suppress(OSError):
            paths.log.unlink()
        images = reader.images([spec.copy_named(one.name) for one in readers], pid)
        pid = call(process.spawn(paths, reader.arguments(paths, images)))
        reader.check_opened(images, pid)
        alive = partial(_is, paths, pid)
        for one in readers:
            assert isinstance(one, NbdCopy)
            made.append(VhostCopy(one, paths.socket(one.name), alive, timeout_s=context.timeouts.copy_s))
    except (RefusedError, DaemonError, CopyUnavailableError) as error:
        for half in made:
            half.close()
        readers[:] = [_over_nbd(context, one.name) for one in readers]
        raise CannotShare(error.message.rstrip(".")) from None
    readers[:] = made
    _log.debug("%s: the copies are read through shared memory.", context.name)


def _is(paths: ReaderPaths, pid: int) -> bool:
    return process.running_pid(paths) == pid


def _put_up_with(context: SetContext, wanted: Transport, why_not: str) -> None:
    if wanted == "shm":
        raise RefusedError(
            f"The copies of {context.name} cannot be read through shared memory: {why_not}.",
            remedy="Leave --transport out, or use nbd; 'qorumctl doctor' says what is missing.",
            set_name=context.name,
        )
    _log.debug("%s: the copies are read over NBD: %s.", context.name, why_not)


def _over_nbd(context: SetContext, name: str) -> NbdCopy:
    return NbdCopy(name, context.runtime.nbd_sock, copy_node(name), timeout_s=context.timeouts.copy_s)
