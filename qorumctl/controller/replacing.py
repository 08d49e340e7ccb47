"""`copy replace`: another image takes the place of a copy while guests work; redundancy does not fall meanwhile.

    vet         the new image, before anything is changed
    note        on record; the image is made
    catch up    it is seeded outside the quorum, comes in as a further child, is settled and proven (catching_up.py)
    succeed     definition, sidecars, exports; the old image leaves (succession.py)

An old image that has missed writes leaves before the new one comes in. QEMU counts every child: what the old one lacks
the new one may lack for a moment, too, and two that agree could win against two that hold what was acknowledged.

Killed anywhere, the same command goes on.
"""

from __future__ import annotations

from dataclasses import replace

from qorumctl import definitions
from qorumctl.controller import detaching, newcomer, succession, suspects, watcher
from qorumctl.controller.catching_up import CatchUp, Words
from qorumctl.controller.context import SetContext
from qorumctl.controller.fenced_work import Bench, carry_out
from qorumctl.controller.observer import Observer, ScrubControl
from qorumctl.controller.options import ReplaceOptions
from qorumctl.controller.rejoining import flush_others, outvoted_words
from qorumctl.controller.returning import Teller
from qorumctl.daemon import graph
from qorumctl.daemon.graph import key_of_any_node, next_key
from qorumctl.errors import CopyError, DaemonError, QorumError, RefusedError
from qorumctl.model.spec import SetSpec, Source
from qorumctl.model.status import CopyResult
from qorumctl.store.absent import Absence
from qorumctl.store.records import now
from qorumctl.store.replacing import Replacement


async def replace_copy(
    context: SetContext,
    spec: SetSpec,
    name: str,
    source: str | None,
    options: ReplaceOptions,
    finished: list[Replacement],
    observer: Observer,
    control: ScrubControl,
) -> CopyResult:
    """Under the set's lock; the set runs. `finished`: replacements whose last steps were just done."""
    detaching.check_known(spec, name)
    wanted = None if source is None else newcomer.source_of(source, options)
    done = next((note for note in finished if note.copy == name), None)
    if done is not None and wanted in {None, done.source}:
        return _result(spec, done, changed=True)
    await watcher.outlast_throttle(context)
    standing = f"copy {name} of {spec.name} is not replaced yet"
    teller = Teller(
        spec, f"copy {name}", "replace", standing, observer, control, options.rate_bytes_per_s or spec.scrub.cap
    )
    async with context.scrub_monitor() as monitor:
        quorum = context.quorum(spec, monitor)
        await detaching.assembled(context, quorum)
        return await carry_out(
            context, spec, quorum, teller, control, lambda bench: _Replace(bench, name, wanted, options).run()
        )


async def cancel(context: SetContext, spec: SetSpec, name: str, finished: list[Replacement]) -> CopyResult:
    """Under the set's lock, after `settle_leftovers`: the newcomer is in no quorum. The set may be stopped, and the
    definition know the copy no more."""
    if name not in context.replacements():
        detaching.check_known(spec, name)
    if any(note.copy == name for note in finished):
        raise RefusedError(
            f"It is too late to cancel: copy {name} of {spec.name} has been replaced.",
            remedy="The last steps of that, which had been interrupted, were done now.",
            set_name=spec.name,
            copy=name,
        )
    with context.store() as store:
        note = store.replacements().get(name)
        if note is None:
            return CopyResult(set=spec.name, copy_=name, command="replace", changed=False, cancelled=True)
        if context.pid() is not None:
            async with context.scrub_monitor() as monitor:
                quorum = context.quorum(spec, monitor)
                await succession.withdraw(context, spec, quorum, store, note)
                await quorum.missed.drop([record.name for record in await quorum.missed.of(note.key)])
        newcomer.take_away(spec, note)
        store.clear_suspicions({s.key: s.serial for s in store.suspicions() if s.copy == note.key})
        store.forget_replacement(name)
        warnings = [away_words(spec, name)] if name in store.absences() and name in spec.copy_names else []
    return _result(spec, note, changed=True).model_copy(update={"cancelled": True, "warnings": warnings})


def away_words(spec: SetSpec, name: str) -> str:
    """One that missed writes left before the new image came in; another may have been away all the time."""
    return f"Copy {name} itself is away: 'qorumctl copy rejoin {spec.name} {name}' brings it back."


class _Replace:
    def __init__(self, bench: Bench, name: str, wanted: Source | None, options: ReplaceOptions) -> None:
        self._bench = bench
        self._context = bench.context
        self._spec = bench.spec
        self._quorum = bench.quorum
        self._store = bench.store
        self._fence = bench.fence
        self._name = name
        self._wanted = wanted
        self._options = options

    def run(self) -> CopyResult:
        self._fence.run(self._quorum.sweep())
        note = self._store.replacements().get(self._name)
        if note is None:
            if self._wanted is None:
                raise newcomer.unknown_source(self._spec, self._name)
            if self._is_there_already(self._wanted):
                return CopyResult(
                    set=self._spec.name,
                    copy_=self._name,
                    command="replace",
                    changed=False,
                    source=self._wanted.label,
                )
        self._refuse_other(note)
        self._refuse_too_few()
        self._refuse_unflushed(self._wanted if note is None else note.source)
        fresh = note is None
        if note is None:
            assert self._wanted is not None
            note = self._note(self._wanted)
        else:
            newcomer.clear_half_made(self._spec, note)
            self._vet(note.source)
        try:
            catch_up = self._open(newcomer.make(self._bench, note))
        except QorumError as error:
            # Of one that goes on, what was done is kept.
            if fresh and not isinstance(error, DaemonError):
                self._take_back(note)
            raise
        found = catch_up.bring_in(enter=self._let_a_stale_one_leave)
        note = self._succeed(catch_up)
        warnings = outvoted_words(self._spec, found) + flush_others(self._bench, self._name)
        full = catch_up.full and catch_up.reason != newcomer.NEW
        return _result(self._spec, note, changed=True).model_copy(
            update={
                "full": full,
                "reason": catch_up.reason if full else None,
                "warnings": warnings,
                **catch_up.figures,
            }
        )

    # -- before

    def _is_there_already(self, source: Source) -> bool:
        """The same request again finds its work done."""
        if source.label != self._spec.copy_named(self._name).source.label:
            return False
        state = self._fence.run(self._quorum.describe())
        if self._name in state.copies and self._name not in self._store.absences():
            return True
        raise RefusedError(
            f"{source.label} is where copy {self._name} of {self._spec.name} lies now.",
            remedy="Nothing was changed. If another image stands there, of the right length, run 'qorumctl copy rejoin "
            f"{self._spec.name} {self._name} --full'; or name another path.",
            set_name=self._spec.name,
            copy=self._name,
            path=source.label,
        )

    def _refuse_unflushed(self, source: Source | None) -> None:
        """The volume is written through where a copy was a qcow2 at the start (graph.volume_export). One that has come
        in since is outvoted where it loses writes with the daemon; two would agree on what they have lost."""
        if source is None or not graph.is_qcow2(source) or self._context.written_through(self._store):
            return
        others = [copy.name for copy in self._spec.copies if copy.name != self._name and graph.is_qcow2(copy.source)]
        if others:
            raise RefusedError(
                f"Copy {', '.join(others)} of {self._spec.name} is a qcow2 image, and nothing says that its volume is "
                "written through; with one more, writes that were flushed could be lost if the daemon were killed.",
                remedy=f"Nothing was changed. Restart {self._spec.name} first, or use a raw image.",
                set_name=self._spec.name,
                copy=self._name,
            )

    def _refuse_other(self, note: Replacement | None) -> None:
        if note is not None and self._wanted is not None and self._wanted.label != note.source.label:
            raise RefusedError(
                f"Copy {self._name} of {self._spec.name} is being replaced by {note.source.label} already.",
                remedy=f"Nothing was changed. 'qorumctl copy replace {self._spec.name} {self._name}' goes on with "
                "that; with --cancel, it is given up.",
                set_name=self._spec.name,
                copy=self._name,
                path=note.source.label,
            )
        if definitions.digest(self._context.spec()) != definitions.digest(self._spec):
            raise RefusedError(
                f"The definition of {self._spec.name} was changed since the set was started.",
                remedy=f"Nothing was changed. Run 'qorumctl restart {self._spec.name}', or undo that; then repeat the "
                "command.",
                set_name=self._spec.name,
                path=str(self._context.definition_path),
            )

    def _refuse_too_few(self) -> None:
        state = self._fence.run(self._quorum.describe())
        detaching.refuse_unfit(self._context, self._spec, state, self._store, self._name, self._store.absences())

    def _vet(self, source: Source) -> bool:
        return newcomer.vet(self._context, self._spec, self._name, source, self._options)

    def _note(self, source: Source) -> Replacement:
        created = self._vet(source)
        state = self._fence.run(self._quorum.describe())
        nodes = (key for node in state.nodes if (key := key_of_any_node(node)) is not None)
        key = next_key(self._name, [*nodes, *(record.copy for record in state.missed)])
        mark = Absence(key, now(), "new", left=True, kept=False, lost=newcomer.NEW)
        note = Replacement(
            copy=self._name,
            key=key,
            source=source,
            old_source=self._spec.copy_named(self._name).source.label,
            created=created,
            # Of a file it is known: it is new, or nothing was ever written to it.
            checked=source.type == "file" or self._options.overwrite,
            mark=mark,
            serials={s.key: s.serial for s in self._store.suspicions() if s.copy == self._name},
        )
        self._store.note_replacement(note)
        self._quorum.newcomers.add(key)
        return note

    def _take_back(self, note: Replacement) -> None:
        """Its nodes are closed: nothing has come of it."""
        records = self._fence.run(self._quorum.missed.of(note.key))
        self._fence.run(self._quorum.missed.drop([record.name for record in records]))
        newcomer.take_away(self._spec, note)
        self._store.forget_replacement(self._name)
        self._quorum.newcomers.discard(note.key)

    # -- its way into the quorum

    def _open(self, note: Replacement) -> CatchUp:
        words = Words(
            copy=self._name,
            who=f"The new image of copy {self._name}",
            cannot="cannot take its place",
            stays=f"Copy {self._name} keeps its old image.",
            out=f"It was taken out again; copy {self._name} keeps its old image.",
            mend=f"Run 'qorumctl scrub {self._spec.name}'; what that has to leave, write anew through the volume, from "
            "a backup. Then repeat the command.",
        )
        copy = newcomer.as_copy(self._spec, note)
        catch_up = CatchUp(self._bench, copy, note.mark, self._save, words, full=False)
        catch_up.close()
        if not note.checked:
            # The record is begun afterwards: nothing lies in it for a mark to tell of.
            self._check_content(note, catch_up)
        catch_up.open(0 if note.source.type == "file" else None)
        return catch_up

    def _check_content(self, note: Replacement, catch_up: CatchUp) -> None:
        children, copy = self._quorum.children, newcomer.as_copy(self._spec, note)
        try:
            self._fence.run(children.open(copy, read_only=False, exported=False))
            self._fence.run(children.check_length(copy))
            newcomer.refuse_content(self._bench, note, self._bench.teller.pause)
        finally:
            catch_up.close()
        self._store.note_replacement(replace(note, checked=True))

    def _save(self, mark: Absence) -> None:
        note = self._store.replacements()[self._name]
        self._store.note_replacement(replace(note, mark=mark))

    def _let_a_stale_one_leave(self) -> None:
        """See above. It does not count, so redundancy does not fall."""
        state = self._fence.run(self._quorum.describe())
        stale = suspects.stale(self._store, self._spec)
        if self._name in state.copies and self._name in stale:
            leaving = detaching.take_out(self._context, self._spec, self._quorum, self._name)
            self._fence.run(leaving)

    # -- the end

    def _succeed(self, catch_up: CatchUp) -> Replacement:
        note = self._store.replacements()[self._name]
        try:
            # What the daemon holds back of a write that failed a moment ago is a reason not to.
            self._fence.run(watcher.outlast_throttle(self._context))
            if catch_up.missed_since_begin():
                raise CopyError(
                    f"The new image of copy {self._name} missed a write.",
                    remedy=f"It was taken out again; copy {self._name} keeps its old image. Look at its storage, "
                    "then repeat the command.",
                    set_name=self._spec.name,
                    copy=self._name,
                )
            self._refuse_too_few()
            note = succession.begin(self._context, self._spec, self._store, note)
        except QorumError:
            note = self._store.replacements()[self._name]
            if not self._context.has_succeeded(note):
                self._fence.close()
                self._fence.run(succession.withdraw(self._context, self._spec, self._quorum, self._store, note))
                raise
        self._fence.close()
        self._fence.run(succession.finish(self._context, self._spec, self._quorum, self._store, note))
        return note


def _result(spec: SetSpec, note: Replacement, *, changed: bool) -> CopyResult:
    return CopyResult(
        set=spec.name,
        copy_=note.copy,
        command="replace",
        changed=changed,
        source=note.source.label,
        old_source=note.old_source,
    )
