"""`resolve`, as a command: looks, or takes the lock and does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import ParamSpec

from qorumctl.controller import (
    detaching,
    fronting,
    inspection,
    record,
    resolving,
    restoring,
    serving,
    succession,
)
from qorumctl.controller.context import SetContext
from qorumctl.controller.deciding import Decision
from qorumctl.controller.live import in_a_thread
from qorumctl.controller.observer import ScrubControl
from qorumctl.controller.options import ResolveRequest
from qorumctl.controller.set_access import at_work
from qorumctl.errors import DaemonGoneError, UsageError
from qorumctl.model.evidence import ResolveReport
from qorumctl.store import saved

P = ParamSpec("P")


async def carry_out(context: SetContext, request: ResolveRequest, control: ScrubControl) -> ResolveReport:
    decision = _check(request)
    if request.dry_run:
        return await _look(context, request, decision, control)
    async with at_work(context, "resolve"):
        report = await _do(context, request, decision, control)
    return report.model_copy(update={"state": (await inspection.status(context)).state})


def _check(request: ResolveRequest) -> Decision | None:
    if (request.undo is None) == (request.finding is None) or (request.undo is None) != (request.decision is not None):
        raise UsageError("It is not said what is to be done.", remedy="Use --finding ID --with DECISION, or --undo ID.")
    return None if request.decision is None else Decision.parse(request.decision)


async def _look(
    context: SetContext, request: ResolveRequest, decision: Decision | None, control: ScrubControl
) -> ResolveReport:
    _refuse_stopped(context)
    spec = serving.spec_in_force(context)
    async with context.control() as monitor:
        # Of one that was killed copies may still be out: what would be written is known when that is settled.
        names = (await detaching.assembled(context, context.quorum(spec, monitor))).copies
    if decision is not None and request.finding is not None:
        return await in_a_thread(control, resolving.plan, context, spec, names, request.finding, decision, control)
    assert request.undo is not None
    manifest = await asyncio.to_thread(restoring.manifest_of, context, spec, request.undo)
    restoring.check_possible(context, spec, manifest, names)
    if not request.force:
        await in_a_thread(control, restoring.check_untouched, context, manifest, names)
    lost = await in_a_thread(control, restoring.forced, context, manifest, names) if request.force else []
    report = await in_a_thread(control, restoring.plan, context, manifest, names)
    return report.model_copy(update={"warnings": [*lost, *report.warnings]})


async def _do(
    context: SetContext, request: ResolveRequest, decision: Decision | None, control: ScrubControl
) -> ResolveReport:
    await succession.settle_leftovers(context)
    saved.sweep(context.state_dir)
    _refuse_stopped(context)
    spec = serving.spec_in_force(context)
    record.secure_aloud(context, spec, None)
    # With --force a front goes on, and connects again as other guests do.
    alone = nullcontext() if request.force else fronting.absent(context, "resolve")
    loop, expected, force = asyncio.get_running_loop(), request.expected_plan, request.force
    async with alone, context.scrub_monitor() as monitor:
        quorum = context.quorum(spec, monitor)
        await quorum.sweep()
        names = (await detaching.assembled(context, quorum)).copies
        for name in names:
            await quorum.children.export(name)
        if decision is not None and request.finding is not None:
            return await _to_its_end(
                control,
                resolving.resolve,
                context,
                spec,
                quorum,
                names,
                request.finding,
                decision,
                loop,
                expected=expected,
                force=force,
                heeded=control,
            )
        assert request.undo is not None
        manifest = await asyncio.to_thread(restoring.manifest_of, context, spec, request.undo)
        restoring.check_possible(context, spec, manifest, names)
        return await _to_its_end(
            control,
            restoring.undo,
            context,
            spec,
            quorum,
            names,
            manifest,
            loop,
            resolving.conclude,
            expected=expected,
            force=force,
        )


async def _to_its_end(
    control: ScrubControl, work: Callable[P, ResolveReport], *arguments: P.args, **keys: P.kwargs
) -> ResolveReport:
    """As `in_a_thread`. Interrupted when the copies were being written, it is done all the same, and whoever has done
    that must know of it, and under which number it is undone."""
    done: list[ResolveReport] = []

    def noted() -> None:
        done.append(work(*arguments, **keys))

    try:
        await in_a_thread(control, noted)
    except asyncio.CancelledError:
        if not done:
            raise
    return done[0]


def _refuse_stopped(context: SetContext) -> None:
    if context.pid() is None:
        raise DaemonGoneError(
            f"{context.name} is not running.", remedy=f"Run 'qorumctl start {context.name}'.", set_name=context.name
        )
