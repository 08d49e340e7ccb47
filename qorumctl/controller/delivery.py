"""Delivers the events that wait in a set's record to its hooks: a process of its own, one for each set.

Each hook gets each event in order, at least once; a hook that fails is tried again, and then the event is given up for
it. One that fails comes after those that work, so that it costs them no more than its time limit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qorumctl import hook_files
from qorumctl.controller import hook_run
from qorumctl.controller.context import SetContext
from qorumctl.controller.hook_run import Stopping
from qorumctl.controller.waking import LOCK_NAME
from qorumctl.errors import LockedError
from qorumctl.hook_files import HookDirectory, HookFile
from qorumctl.model.hooks import HookEvent
from qorumctl.store import SetLock, Store
from qorumctl.store.outbox import Course, Waiting
from qorumctl.store.records import now

PURPOSE = "hooks deliver"
DIRECTORY = "."
"""In place of a hook's name, where the directory itself is refused."""
RESTS_S = (1.0, 5.0, 25.0)
"""After a first failure, the next, and the next; then an event is given up. A mail server that is restarted is back
within them. A hook that has failed at a whole event gets one try for each of the next, until it works again."""

_BREAKS = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")
"""Control characters, and what ends a line."""


def deliver(context: SetContext, *, rests_s: Sequence[float] = RESTS_S) -> bool:
    """All that waits; in the main thread. Returns whether there was anything. Raises StoreError, and KeyboardInterrupt
    where SIGTERM has ended it, in order: `stop` of the unit, `delete` of the set.

    Where another process is at it, there is nothing to be done: it looks again after it has let go of the lock.
    """
    with Stopping() as stopping:
        return _deliver(context, rests_s, stopping)


def _deliver(context: SetContext, rests_s: Sequence[float], stopping: Stopping) -> bool:
    busy = False
    # Taking the lock of a set that was deleted would make its directory anew.
    while context.is_defined() and context.state_dir.is_dir():
        try:
            lock = SetLock.acquire(context.state_dir, purpose=PURPOSE, file_name=LOCK_NAME)
        except LockedError:
            return busy
        with lock:
            delivery = _Delivery(context, rests_s, stopping)
            stuck = not delivery.run()
        busy |= delivery.moved
        with context.store(read_only=True) as store:
            # What was told while we held the lock, and after we had looked: nobody else has begun a delivery for it.
            if stuck or not store.outbox.waiting():
                return busy
    return busy


@dataclass(slots=True)
class _Delivery:
    context: SetContext
    rests_s: Sequence[float]
    stopping: Stopping
    _due_s: dict[str, float] = field(default_factory=dict)
    """Hook -> when it may be tried again."""
    moved: bool = False
    """An event came to its end for some hook."""

    def run(self) -> bool:
        """Until nothing waits. False: it cannot be delivered."""
        with self.context.store() as store:
            while not self.stopping.asked():
                found = hook_files.look(self.context.directories.hooks)
                if found.problem is not None:
                    # All is kept: what is wrong is the place and not the hooks.
                    store.outbox.failed(DIRECTORY, now(), found.problem, "", give_up=None)
                    return False
                store.outbox.tidy([hook.name for hook in found.meant])
                choice = self._next(store, found)
                if choice is None:
                    return True
                hook, course, event = choice
                wait_s = self._due_s.get(hook.name, 0.0) - time.monotonic()
                if wait_s > 0:
                    # Events that come meanwhile are not waited for: those who work are asked again.
                    self.stopping.asked(within_s=min(wait_s, 1.0))
                    continue
                self.moved |= self._run(store, hook, course, event)
        raise KeyboardInterrupt

    def _next(self, store: Store, found: HookDirectory) -> tuple[HookFile, Course, Waiting] | None:
        """Those that work first, then the oldest event, then by name; of those that rest, the first that is due."""
        courses = store.outbox.courses(hook.name for hook in found.meant)
        open_ = [
            (hook, course, event)
            for hook in found.meant
            if (event := store.outbox.next_after((course := courses[hook.name]).upto)) is not None
        ]
        return min(
            open_,
            key=lambda one: (self._rests(one[0]), one[1].failures > 0, one[2].id, one[0].name),
            default=None,
        )

    def _rests(self, hook: HookFile) -> float:
        due_s = self._due_s.get(hook.name, 0.0)
        return due_s if due_s > time.monotonic() else 0.0

    def _run(self, store: Store, hook: HookFile, course: Course, event: Waiting) -> bool:
        """Returns whether the event is done with, for this hook."""
        last = course.tries >= len(self.rests_s) or course.failures > len(self.rests_s) or hook.problem is not None
        if hook.problem is not None:
            store.outbox.failed(hook.name, now(), hook.problem, "", give_up=event.id)
            return True
        if course.tries > len(self.rests_s):
            words = "it was run again and again, and each time the delivery was killed"
            store.outbox.failed(hook.name, now(), words, "", give_up=event.id)
            return True
        try:
            document = HookEvent.model_validate({"set": self.context.name, **event.document})
        except ValueError:
            # Another version's, which knew more.
            store.outbox.failed(hook.name, now(), "the event cannot be understood", "", give_up=event.id)
            return True
        store.outbox.begin(hook.name, event.id)
        outcome = run_hook(self.context, hook.path, document, self.stopping)
        if outcome.stopped:
            store.outbox.interrupted(hook.name)
        if outcome.gone or outcome.stopped:
            return False
        if outcome.reason is None:
            store.outbox.took(hook.name, event.id)
            return True
        store.outbox.failed(hook.name, now(), outcome.reason, outcome.output, give_up=event.id if last else None)
        if not last:
            self._due_s[hook.name] = time.monotonic() + self.rests_s[course.tries]
        return last


def run_hook(
    context: SetContext, path: Path, document: HookEvent, stopping: Stopping | None = None
) -> hook_run.Outcome:
    """Once. `text` begins with the set's name, and is one line whatever a server or QEMU has worded: it is the subject
    of a mail."""
    told = document.model_copy(update={"text": f"{context.name}: {_BREAKS.sub(' ', document.text)}"})
    text = told.model_dump_json(by_alias=True) + "\n"
    limit_s = context.timeouts.hook_s
    keys = {"set_name": context.name, "event": str(document.event)}
    return hook_run.run(path, text.encode(), **keys, limit_s=limit_s, stopping=stopping)
