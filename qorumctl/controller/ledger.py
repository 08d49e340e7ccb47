"""What one run has found, told bit by bit: however many findings there are, none of it is in memory at once.

For the command line. Other programs have `QuorumSets.report`, which holds all, and `QuorumSets.findings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qorumctl.controller import dossier
from qorumctl.controller.context import SetContext
from qorumctl.core.disk_map import Mark
from qorumctl.core.tally import Tally
from qorumctl.model.report import FindingDocument, ScrubReport
from qorumctl.store import Store


class Ledger:
    """Of `run`, or of the newest. Takes no lock and changes nothing; every method raises StoreError."""

    def __init__(self, context: SetContext, run: int | None = None) -> None:
        self._context = context
        with self._store() as store:
            self.run = dossier.run_of(store, context.name, run)

    def report(self) -> ScrubReport:
        """Without its findings."""
        with self._store() as store:
            return store.scrub_report(self.run, with_findings=False)

    def tally(self) -> Tally:
        with self._store() as store:
            return store.of_run(self.run).tally()

    def worst(self, most: int, of: Tally) -> list[FindingDocument]:
        """The first `most`: what somebody has to act on before the rest. `of`: the tally."""
        with self._store() as store:
            return store.of_run(self.run).worst(most, of)

    def findings(self) -> Iterator[FindingDocument]:
        """All, by offset."""
        with self._store() as store:
            yield from store.of_run(self.run).all()

    def marks(self) -> Iterator[Mark]:
        """All, by offset, as a map shows them."""
        with self._store() as store:
            yield from store.of_run(self.run).marks()

    @contextmanager
    def _store(self) -> Iterator[Store]:
        with self._context.store(read_only=True) as store:
            yield store
