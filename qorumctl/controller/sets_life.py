"""The life of sets: made, started, stopped, enlarged, forgotten; fronts and units."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from qorumctl.controller.observer import Observer, ScrubControl, Silent
from qorumctl.controller.options import (
    CreateOptions,
)
from qorumctl.controller.set_access import SetAccess, at_work, settle
from qorumctl.daemon.front import FrontOptions
from qorumctl.errors import LockedError, QorumError, RefusedError
from qorumctl.model.status import (
    FrontReport,
    Result,
)

if TYPE_CHECKING:
    from qorumctl.controller import enabling, watching


class Life(SetAccess):
    """A part of QuorumSets."""

    async def create(
        self,
        name: str,
        sources: Sequence[str],
        options: CreateOptions,
        *,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> Result:
        """Makes images, or adopts equal ones (`observer` follows the comparison), and writes the definition.

        `sources`: 3, 5, 7 or 9 absolute paths, devices, or NBD URIs; the copies are called a, b, c ... in this order.
        The same request again is no error: `changed` is false. RefusedError where another set of this name is defined,
        where some images exist and some do not, are in use, belong to a set, or differ.
        """
        from qorumctl.controller import creation

        context = self._context(name)
        async with at_work(context, "create") as lock:
            try:
                return await creation.create(context, sources, options, observer or Silent(), control or ScrubControl())
            except RefusedError:
                lock.remove_if_alone()
                raise

    async def start(
        self,
        name: str,
        *,
        now: bool = False,
        takeover: bool = False,
        degraded: bool = False,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> Result:
        """Starts and assembles. After an unclean stop the copies are compared first, unless `now`: that takes as long
        as a scrub, and `recovery` is the run's number. `degraded`: without the copies that are away, stale or cannot be
        opened, as long as enough are left. `takeover`: from a host that did not stop it and is certainly down.

        A set that runs is left as it is: `changed` is false. RefusedError, naming the copy, where an image is missing,
        in use, of another length or stale; DaemonStartError. Whatever fails, no daemon is left.
        """
        from qorumctl.controller import inspection, serving, starting, textfile

        context = self._defined(name)
        try:
            lock = context.lock("start")
        except LockedError:
            # A scrub holds the lock for hours, and says nothing about whether guests are served.
            if not await serving.is_up(context):
                raise
            result = await starting.already_up(context)
        else:
            async with textfile.published(context):
                with lock:
                    await settle(context)
                    result = await starting.start(
                        context,
                        now=now,
                        takeover=takeover,
                        degraded=degraded,
                        observer=observer or Silent(),
                        control=control or ScrubControl(),
                    )
        return result.model_copy(update={"state": (await inspection.status(context)).state})

    async def stop(self, name: str, *, force: bool = False, keep_front: bool = False) -> Result:
        """Flushes every copy and ends the daemon. A set that does not run is left as it is: `changed` is false.

        RefusedError while a guest is connected or a front runs, unless `force`. CopyUnavailableError and
        DaemonStalledError where a copy hangs; with `force` the daemon is killed then, and the next start compares the
        copies. `keep_front`: with `force`, a front goes on, for a start that follows at once.
        """
        from qorumctl.controller import fronting, stopping

        context = self._context(name)
        if context.pid() is None:
            context.spec()
        alone = nullcontext() if force and keep_front else fronting.absent(context, "stop", force=force)
        async with at_work(context, "stop"), alone:
            return await stopping.stop(context, force=force)

    async def restart(
        self,
        name: str,
        *,
        force: bool = False,
        now: bool = False,
        takeover: bool = False,
        degraded: bool = False,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> Result:
        """Stop, then start, under one hold of the lock; refused before the stop where `start` would refuse. With
        `force` a front goes on, and connects again as other guests do."""
        from qorumctl.controller import fronting, inspection, starting, stopping, succession, vetting

        context = self._defined(name)
        alone = nullcontext() if force else fronting.absent(context, "restart")
        async with at_work(context, "restart"), alone:
            with suppress(QorumError):
                # What hinders that, `stop` tells; what is settled may be what would be refused.
                await succession.settle_leftovers(context)
            vetting.vet_restart(context, context.spec(), takeover=takeover, degraded=degraded)
            stopped = await stopping.stop(context, force=force)
            started = await starting.start(
                context,
                now=now,
                takeover=takeover,
                degraded=degraded,
                observer=observer or Silent(),
                control=control or ScrubControl(),
            )
        state = (await inspection.status(context)).state
        update = {"command": "restart", "state": state, "warnings": [*stopped.warnings, *started.warnings]}
        return started.model_copy(update=update)

    async def grow(
        self,
        name: str,
        size_bytes: int,
        *,
        thin: bool = False,
        observer: Observer | None = None,
        control: ScrubControl | None = None,
    ) -> Result:
        """Makes a stopped set larger: all copies or none. Devices and exports must have the new length already. `thin`:
        though the space may not do. One of that size is left as it is: `changed` is false. RefusedError, CopyError."""
        from qorumctl.controller import growing

        context = self._defined(name)
        async with at_work(context, "grow"):
            return await growing.grow(
                context, size_bytes, thin=thin, observer=observer or Silent(), control=control or ScrubControl()
            )

    async def delete(self, name: str, *, images: bool = False) -> Result:
        """Forgets a stopped set; with `images`, removes its image files too. There is no way back: ask before."""
        from qorumctl.controller import deletion, export_target, fronting, growing, interrupted

        context = self._context(name)
        if context.is_defined() or not interrupted.is_pending(context):
            context.spec()
        with context.lock("delete"):
            async with fronting.absent(context, "delete"):
                await export_target.settle(context)
                if not images:
                    # The images stay, and are of no use where some are longer than others.
                    with suppress(QorumError):
                        await growing.settle(context)
                return await deletion.delete(context, images_too=images)

    async def watch(self, name: str, audience: watching.Audience, *, detached: bool = False) -> None:
        """Tells `audience` of errors of the copies (EventDocument) until it is cancelled or the set is deleted; over
        ends of the daemon. `detached`: as the one that `start` begins, which ends where another listens."""
        from qorumctl.controller import watching

        await watching.watch(self._defined(name), audience, detached=detached)

    async def front(self, name: str, *, num_queues: int = 1, config_wce_off: bool = False) -> FrontReport:
        """A second daemon, for one guest that speaks vhost-user-blk. `config_wce_off`: your word that the guest's
        device has `config-wce=off`, so that it sends flushes; otherwise each write is durable when acknowledged.

        One that runs so is left as it is: `changed` is false. RefusedError for other options, DaemonGoneError where the
        set does not run, DaemonStartError.
        """
        from qorumctl.controller import fronting

        context = self._defined(name)
        with context.front_lock("front"):
            return await fronting.begin(context, FrontOptions(num_queues, config_wce_off))

    async def stop_front(self, name: str, *, force: bool = False) -> FrontReport:
        """Ends it; what it has taken from its guest is completed first. RefusedError while one is connected, unless
        `force`."""
        from qorumctl.controller import fronting

        context = self._defined(name)
        with context.front_lock("front --stop"):
            return await fronting.stop(context, force=force)

    def enable(
        self,
        name: str,
        when: str = "monthly",
        *,
        budget: str | None = None,
        systemd: enabling.Systemd | None = None,
    ) -> Result:
        """Has systemd run the set from boot to shutdown and scrub it. `when`: nightly, daily, weekly, monthly, or what
        OnCalendar= takes. `budget`: how long a scrub goes on before it pauses, such as 4h; "0": without end. What does
        not run yet is in `warnings`. The same again is no error: `changed` is false.

        For root. UsageError for a schedule or budget that cannot be taken; RefusedError where systemd does not run, its
        units are not installed, or the state is not that of the user qorum; QorumError where systemctl fails: what was
        changed is undone.
        """
        from qorumctl.controller import enabling, schedule

        systemd = systemd or enabling.Systemd()
        systemd.check("enable")
        return enabling.enable(self._context(name), schedule.parse_schedule(when, budget), systemd)

    def disable(self, name: str, *, systemd: enabling.Systemd | None = None) -> Result:
        """Takes back what `enable` did. A set that runs goes on; one that is not enabled is no error: `changed` is
        false. Errors as of `enable`."""
        from qorumctl.controller import enabling

        return enabling.disable(self._context(name), systemd or enabling.Systemd())
