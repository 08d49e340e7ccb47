"""`qorumctl demo`: the whole job on a set of its own, told step by step."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qorumctl.cli import exit_codes, render_demo, render_scrub
from qorumctl.cli.outlet import Outlet
from qorumctl.cli.progress import display
from qorumctl.controller import demo_checks
from qorumctl.controller.demo import NAME, DemoSet, Stopped
from qorumctl.controller.demo_damage import ALL, HOPELESS, LOST, ONE_BIT, SIZE_BYTES
from qorumctl.controller.observer import ScrubControl, Silent, StopReason
from qorumctl.core.ranges import Range
from qorumctl.errors import QorumError
from qorumctl.model.demo import DemoDamage, DemoRead, DemoReport
from qorumctl.model.report import ScrubReport
from qorumctl.units import MIB

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qorumctl.model.status import CheckItem

_WATCHED_RATE = 32 * MIB
"""64 MiB would be compared in a tenth of a second: on a terminal the bar is to be seen."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(outlet: Outlet, *, keep: bool) -> int:
    """0: it went as told. 1: it did not. 130: Ctrl-C; everything was removed."""
    return asyncio.run(_run(outlet, keep=keep))


async def _run(outlet: Outlet, *, keep: bool) -> int:
    control = ScrubControl()
    kept = False
    with _signals(outlet, control) as received:
        demo = DemoSet(control)
        try:
            report = await _Story(outlet, demo, keep=keep).tell()
            kept = keep
        except Stopped:
            return exit_codes.INTERRUPTED if received[0] is signal.SIGINT else exit_codes.FAILED
        except QorumError:
            kept = keep
            # The error may speak of the daemon's log, which lies in there.
            outlet.note(
                f"The demo ends early; {demo.directory} {'stays' if keep else 'is removed (--keep leaves it)'}."
            )
            raise
        finally:
            if not kept:
                await demo.remove()
    outlet.document(report, *render_demo.ending(report))
    if kept and not outlet.as_json:
        outlet.text("\n".join(render_demo.going_on(report, await demo.pid(), _program())))
    return exit_codes.FINE if report.ok else exit_codes.FAILED


@contextmanager
def _signals(outlet: Outlet, control: ScrubControl) -> Iterator[list[signal.Signals]]:
    """Within an event loop. None of them ends the process: each asks the demo to stop, which then removes itself."""
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def handle(number: signal.Signals) -> None:
        received.append(number)
        control.stop(StopReason.INTERRUPTED)
        outlet.note("Stopping, and removing everything ...")

    for number in _SIGNALS:
        loop.add_signal_handler(number, handle, number)
    try:
        yield received
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _program() -> str:
    """How to call this program again: by its name where the shell finds it."""
    called = Path(sys.argv[0])
    return str(called.absolute()) if called.name == "qorumctl" and shutil.which("qorumctl") is None else "qorumctl"


class _Story:
    """Does each step, then tells it."""

    def __init__(self, outlet: Outlet, demo: DemoSet, *, keep: bool) -> None:
        self._outlet = outlet
        self._demo = demo
        self._keep = keep
        self._step = 0
        self._checks: list[CheckItem] = []

    async def tell(self) -> DemoReport:
        """Raises Stopped, and QorumError where a step could not be done."""
        fate = "left running at the end" if self._keep else "removed at the end"
        self._show(render_demo.opening(f"A real set of three copies, in {self._demo.directory}; {fate}."))
        await self._make()
        written = await self._write()
        await self._damage()
        reads = await self._read()
        first = await self._repair()
        await self._prove()
        second = await self._scrub_again()
        return DemoReport(
            ok=all(item.ok for item in self._checks),
            set=NAME,
            size=SIZE_BYTES,
            cache=self._demo.cache,
            written=written,
            damage=[
                DemoDamage(offset=one.at.offset, length=one.at.length, copy_=one.copy, what=one.what) for one in ALL
            ],
            reads=reads,
            scrub=first,
            scrub_exit_code=exit_codes.of_scrub(first),
            second_scrub=second,
            second_scrub_exit_code=exit_codes.of_scrub(second),
            checks=self._checks,
            directory=str(self._demo.directory) if self._keep else None,
            environment=self._demo.environment if self._keep else {},
        )

    async def _make(self) -> None:
        self._title("Make a disk of 64 MiB, kept as three copies, and start it")
        await self._demo.prepare()
        cache = "" if self._demo.cache == "none" else " --cache writeback"
        self._commands(
            f"qorumctl create demo {self._demo.directory}/{{a,b,c}}.raw \\",
            f"    --size 64MiB --policy report{cache}",
            "qorumctl start demo",
        )
        await self._demo.make()
        self._say(
            f"QEMU's storage daemon, pid {await self._demo.pid()}, now serves it to guests. For the moment its"
            " policy is report: QEMU must not repair, while we look, what the scrub is to find."
        )

    async def _write(self) -> str:
        self._title("Fill it as a guest would: 64 MiB of text, through the volume")
        written = await asyncio.to_thread(self._demo.write)
        found = await asyncio.to_thread(self._demo.digests)
        self._checks.append(demo_checks.written(written, found))
        self._say("SHA-256 of what was written, and of the three images:")
        self._show(render_demo.digests(written, found, self._demo.images))
        return written

    async def _damage(self) -> None:
        self._title("Damage the images, behind QEMU's back")
        await asyncio.to_thread(self._demo.damage, ALL)
        self._show(render_demo.damage(ALL), render_demo.GAP)
        self._say(f'One bit, and "Sector" begins with a small letter in copy a (offset {ONE_BIT.at.offset}):')
        self._show(render_demo.hex_rows(await self._contents(ONE_BIT.at)))

    async def _read(self) -> list[DemoRead]:
        self._title("Read it as a guest does: QEMU votes, request by request")
        reads = [
            await asyncio.to_thread(self._demo.read, at, [one.copy for one in damages])
            for at, damages in demo_checks.requests()
        ]
        self._checks += demo_checks.voted(reads)
        self._show(render_demo.reads(reads), render_demo.GAP)
        self._say(
            "QEMU compares whole requests: where two copies are damaged, each in another sector, no two answers are"
            " equal, and the guest gets an I/O error although each sector has a majority. And nobody looks at what no"
            " guest reads."
        )
        return reads

    async def _repair(self) -> ScrubReport:
        self._title("Scrub: every sector of every copy, and repair the minority")
        definition = self._demo.directories.definition_path(NAME)
        self._commands(f'sed -i \'s/"report"/"repair"/\' {definition}', "qorumctl restart demo", "qorumctl scrub demo")
        await self._demo.allow_repair()
        return await self._scrub()

    async def _prove(self) -> None:
        self._title("Proof: what is in the images now")
        expected = await asyncio.to_thread(self._demo.written_digest, without=LOST)
        found = await asyncio.to_thread(self._demo.digests, without=LOST)
        lost = await self._contents(LOST)
        self._checks += [demo_checks.repaired(expected, found), demo_checks.untouched(lost)]
        self._say(f"SHA-256 of all but sector {HOPELESS[0].sector}:")
        self._show(render_demo.digests(expected, found, self._demo.images), render_demo.GAP)
        self._say(f"Sector {HOPELESS[0].sector} is as it was before, for a person to judge:")
        self._show(render_demo.hex_rows(lost))

    async def _scrub_again(self) -> ScrubReport:
        self._title("Scrub again: only that sector is left")
        self._commands("qorumctl scrub demo")
        report = await self._scrub(first=False)
        self._checks.append(demo_checks.scrubbed_again(report))
        return report

    async def _scrub(self, *, first: bool = True) -> ScrubReport:
        if self._outlet.as_json:
            report = await self._demo.scrub(Silent(), rate_bytes_per_s=None)
        else:
            watched = self._outlet.err.is_terminal
            with display(self._outlet) as shown:
                report = await self._demo.scrub(shown, rate_bytes_per_s=_WATCHED_RATE if watched else None)
        if first:
            self._checks += demo_checks.scrubbed(report)
        self._show(*(render_demo.indented(one) for one in render_scrub.scrub(report)))
        self._show(render_demo.GAP, render_demo.exit_code(exit_codes.of_scrub(report)))
        return report

    async def _contents(self, at: Range) -> dict[str, bytes]:
        return {copy: await asyncio.to_thread(self._demo.content, copy, at) for copy in self._demo.images}

    # telling

    def _title(self, title: str) -> None:
        self._demo.proceed()
        self._step += 1
        self._show(*render_demo.step(self._step, title))

    def _say(self, text: str) -> None:
        self._show(render_demo.told(text))

    def _commands(self, *lines: str) -> None:
        if not self._outlet.as_json:
            self._outlet.text(render_demo.commands(*lines))

    def _show(self, *renderables: RenderableType) -> None:
        if not self._outlet.as_json:
            self._outlet.show(*renderables)
