"""Does this daemon drain where confirmation relies on it (invariant 5)? Tried on a daemon and files of our own.

Three files under quorum and fence, as in a set; a throttle holds back what is written to the third. So a write is as
much in flight as can be: in two copies, not in the third, not answered. QEMU lifts a throttle while it drains, and only
then: if the write is in all copies when `transaction` returns, it drained; otherwise the write would wait for an hour.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qorumctl.controller.background import in_thread
from qorumctl.core.ranges import SECTOR_BYTES
from qorumctl.daemon import graph, process
from qorumctl.daemon.client import Monitor
from qorumctl.daemon.runtime import RuntimePaths
from qorumctl.daemon.watches import WATCH_PREFIX, Watches
from qorumctl.errors import CopyUnavailableError, DaemonError, QorumError
from qorumctl.model.status import CheckItem

if TYPE_CHECKING:
    from qorumctl.copies.nbd_link import NbdLink

T = TypeVar("T")

DRAIN = "drain"
WATCH = "write watch"
_STEP_TIMEOUT_S = 10.0
"""Each step takes milliseconds."""
_POLL_S = 0.002
_BLOCK_BYTES = 8 * SECTOR_BYTES
_IMAGE_BYTES = 16 * _BLOCK_BYTES
_COPIES = ("a", "b", "c")
_HELD = "c"
_GROUP = "qorum-probe-hold"
_WATCH_NAME = f"{WATCH_PREFIX}probe"
_OTHER_VERSION = (
    "Do not scrub a running set with this version: writes in flight would look like damage. "
    "Use qemu-storage-daemon 7.2 to 10.0, and report this."
)


@asynccontextmanager
async def temporary_daemon(*, deadline_s: float = 20.0) -> AsyncIterator[RuntimePaths]:
    """A daemon in a private directory; both are gone afterwards, however that comes. Raises DaemonError."""
    paths = RuntimePaths(_private_directory())
    pid = None
    try:
        pid = await process.spawn(paths, deadline_s=deadline_s)
        yield paths
    finally:
        # Nothing here waits, so that a second Ctrl-C cannot leave half of it behind.
        if pid is not None:
            process.kill(paths, pid)
        shutil.rmtree(paths.directory, ignore_errors=True)


def _private_directory() -> Path:
    try:
        directory = Path(tempfile.mkdtemp(prefix="qorum-"))
        try:
            RuntimePaths(directory).check()
        except QorumError:
            # A long TMPDIR leaves no room for a socket's name.
            directory.rmdir()
            directory = Path(tempfile.mkdtemp(prefix="qorum-", dir="/tmp"))
    except OSError as error:
        raise DaemonError(
            f"No temporary directory can be made: {error.strerror or error}.",
            remedy="Set TMPDIR to a directory that this user may write to.",
        ) from None
    return directory


async def probe(monitor: Monitor, paths: RuntimePaths) -> list[CheckItem]:
    """Two items, DRAIN and WATCH. The daemon behind `monitor` is left with the probe's nodes: it is to be ended."""
    items: list[CheckItem] = []
    try:
        async with asyncio.timeout(4 * _STEP_TIMEOUT_S):
            bench = await _build(monitor, paths)
            items.append(await _drain_item(bench))
            if items[0].ok:
                items.append(await _watch_item(bench))
    except (QorumError, OSError, TimeoutError, ImportError) as error:
        items.append(_not_probed(DRAIN if not items else WATCH, error))
    if len(items) == 1:
        items.append(_failed(WATCH, "not probed: it needs the drain", "Settle the drain first."))
    return items


async def _drain_item(bench: _Bench) -> CheckItem:
    written = await bench.hold_back(1)
    before_s = time.monotonic()
    await bench.watches.kick()
    taken_ms = (time.monotonic() - before_s) * 1e3
    missing = sorted(set(_COPIES) - bench.copies_with(1))
    if missing:
        detail = f"an empty transaction returned while a write in flight had not reached copy {', '.join(missing)}"
        return _failed(DRAIN, detail, _OTHER_VERSION)
    await bench.answered(written)
    return CheckItem(
        subject=DRAIN,
        ok=True,
        detail=f"a write in flight was in all three copies when a transaction returned ({taken_ms:.0f} ms)",
    )


async def _watch_item(bench: _Bench) -> CheckItem:
    await bench.watches.open(_WATCH_NAME, drain=True)
    written = await bench.hold_back(2)
    early_bytes, _ = await bench.bitmap()
    await bench.watches.freeze([_WATCH_NAME])
    marked_bytes, recording = await bench.bitmap()
    if bench.copies_with(2) != set(_COPIES) or marked_bytes != _BLOCK_BYTES:
        detail = (
            f"a write watch was frozen with {marked_bytes} bytes marked, while a write of {_BLOCK_BYTES} was in flight"
        )
        return _failed(WATCH, detail, _OTHER_VERSION)
    await bench.answered(written)
    written = await bench.hold_back(3)
    await bench.watches.kick()
    await bench.answered(written)
    later_bytes, _ = await bench.bitmap()
    if recording or later_bytes != marked_bytes:
        detail = f"a frozen write watch grew from {marked_bytes} to {later_bytes} bytes"
        return _failed(WATCH, detail, _OTHER_VERSION)
    when = "when it completes" if early_bytes == 0 else "when it begins"
    return CheckItem(
        subject=WATCH,
        ok=True,
        detail=f"a write is marked {when}; freezing waits for writes in flight and ends the record",
    )


class _Bench:
    """A set in small, and one client that writes to it, one block at a time."""

    def __init__(self, monitor: Monitor, link: NbdLink, images: Mapping[str, Path]) -> None:
        self._monitor = monitor
        self._link = link
        self._images = images
        self.watches = Watches(monitor, drain_timeout_s=_STEP_TIMEOUT_S)

    async def hold_back(self, block: int) -> asyncio.Future[None]:
        """Begins to write `block`, and returns when that is in flight: in all copies but one."""
        written = self.write(block)
        async with asyncio.timeout(_STEP_TIMEOUT_S):
            while not self.copies_with(block) >= set(_COPIES) - {_HELD}:
                if written.done():
                    await written
                await asyncio.sleep(_POLL_S)
        if _HELD in self.copies_with(block):
            raise DaemonError("The probe's throttle did not hold a write back.")
        return written

    def copies_with(self, block: int) -> set[str]:
        at = slice(block * _BLOCK_BYTES, (block + 1) * _BLOCK_BYTES)
        return {name for name, image in self._images.items() if image.read_bytes()[at] == _content(block)}

    async def bitmap(self) -> tuple[int, bool]:
        """How many bytes are marked as written, and whether the record goes on."""
        nodes: list[dict[str, Any]] = await self._monitor.execute(
            "query-named-block-nodes", {"flat": True}, timeout_s=_STEP_TIMEOUT_S
        )
        fence = next(node for node in nodes if node["node-name"] == graph.FENCE)
        found = next(bitmap for bitmap in fence.get("dirty-bitmaps", []) if bitmap["name"] == _WATCH_NAME)
        return found["count"], found["recording"]

    async def answered(self, future: asyncio.Future[T]) -> T:
        async with asyncio.timeout(_STEP_TIMEOUT_S):
            return await future

    def write(self, block: int) -> asyncio.Future[None]:
        def write() -> None:
            if not self._link.write(block * _BLOCK_BYTES, _content(block)):
                raise CopyUnavailableError("The volume refused a write.")

        return in_thread(write)


async def _build(monitor: Monitor, paths: RuntimePaths) -> _Bench:
    # Imported here: doctor also runs where libnbd is missing, and then says so.
    from qorumctl.copies.nbd_link import NbdLink

    async def run(command: str, **arguments: object) -> None:
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        await monitor.execute(command, words, timeout_s=_STEP_TIMEOUT_S)

    images = {name: paths.directory / f"{name}.raw" for name in _COPIES}
    for name, image in images.items():
        image.write_bytes(bytes(_IMAGE_BYTES))
        await run("blockdev-add", driver="file", node_name=graph.file_node(name), filename=str(image))
        if name != _HELD:
            await run("blockdev-add", driver="raw", node_name=graph.copy_node(name), file=graph.file_node(name))
    # The first write passes and fills the bucket; at one byte a second the next would wait for more than an hour.
    await run("object-add", qom_type="throttle-group", id=_GROUP, limits={"bps-write": 1})
    throttle = {"throttle_group": _GROUP, "file": graph.file_node(_HELD)}
    await run("blockdev-add", driver="throttle", node_name=graph.copy_node(_HELD), **throttle)
    children = [graph.copy_node(name) for name in _COPIES]
    await run("blockdev-add", driver="quorum", node_name=graph.QUORUM, vote_threshold=2, children=children)
    await run("blockdev-add", **graph.fence_node())
    await run("block-export-add", **graph.volume_export())
    connecting = in_thread(
        lambda: NbdLink(paths.nbd_sock, graph.VOLUME, who="The probe's volume", timeout_s=_STEP_TIMEOUT_S)
    )
    bench = _Bench(monitor, await connecting, images)
    await bench.answered(bench.write(0))
    return bench


def _content(block: int) -> bytes:
    return bytes([block + 1]) * _BLOCK_BYTES


def _not_probed(subject: str, error: Exception) -> CheckItem:
    if isinstance(error, TimeoutError):
        reason = f"no answer within {_STEP_TIMEOUT_S:g} s"
    elif isinstance(error, ImportError):
        reason = "libnbd is missing"
    else:
        reason = str(error.message if isinstance(error, QorumError) else error)
    return _failed(subject, f"not probed: {reason.rstrip('.')}", "Settle what the other lines name, then look again.")


def _failed(subject: str, detail: str, remedy: str) -> CheckItem:
    return CheckItem(subject=subject, ok=False, detail=detail, remedy=remedy)
