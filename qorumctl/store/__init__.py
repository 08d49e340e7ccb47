"""What a set remembers: runs, findings, checkpoints, events, marks; and the lock that one command holds at a time."""

from qorumctl.store.journal import RunJournal
from qorumctl.store.lock import SetLock
from qorumctl.store.records import RunRecord, RunState
from qorumctl.store.reports import range_document
from qorumctl.store.state import Store, set_aside

__all__ = ["RunJournal", "RunRecord", "RunState", "SetLock", "Store", "range_document", "set_aside"]
