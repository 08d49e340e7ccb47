"""How `state.db` is laid out, version by version."""

from __future__ import annotations

_SCHEMA_1 = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    mode TEXT NOT NULL, state TEXT NOT NULL, outcome TEXT, message TEXT,
    started TEXT NOT NULL, finished TEXT,
    size INTEGER NOT NULL, within_offset INTEGER, within_length INTEGER,
    thorough INTEGER NOT NULL, cause TEXT, parameters TEXT NOT NULL,
    cursor INTEGER NOT NULL, scanned INTEGER NOT NULL, skipped INTEGER NOT NULL,
    read_bytes TEXT NOT NULL, suspects INTEGER NOT NULL, busy TEXT NOT NULL,
    request TEXT, pid INTEGER, position INTEGER NOT NULL
) STRICT;
CREATE TABLE findings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL REFERENCES runs(id),
    start INTEGER NOT NULL, length INTEGER NOT NULL,
    verdict TEXT NOT NULL, copies TEXT NOT NULL, action TEXT NOT NULL,
    diagnosis TEXT NOT NULL, confirmed TEXT NOT NULL, source TEXT NOT NULL, cause TEXT
) STRICT;
CREATE INDEX findings_by_run ON findings (run, action, verdict);
CREATE INDEX findings_by_offset ON findings (run, start, id);
CREATE INDEX findings_by_copies ON findings (copies, verdict, action);
CREATE TABLE versions (
    finding INTEGER NOT NULL REFERENCES findings(id) ON DELETE CASCADE,
    rank INTEGER NOT NULL, digest TEXT NOT NULL, copies TEXT NOT NULL, sample BLOB NOT NULL,
    PRIMARY KEY (finding, rank)
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, kind TEXT NOT NULL, copy TEXT, detail TEXT NOT NULL
) STRICT;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

_SCHEMA_2 = """
ALTER TABLE findings ADD COLUMN newest_run INTEGER NOT NULL DEFAULT 0;
UPDATE findings SET newest_run = max(run, (SELECT coalesce(max(id), 0) FROM runs WHERE started <= confirmed));
INSERT INTO meta SELECT 'set', '' WHERE EXISTS (SELECT 1 FROM meta) OR EXISTS (SELECT 1 FROM runs);
PRAGMA application_id = 1366455661;
"""
"""`newest_run`: the newest run that had begun when the finding was written. Which of two things was first must not be
asked of the clock: it jumps. `set`: whose state this is; '' of one that was written before this was noted."""

_SCHEMA_3 = """
ALTER TABLE findings ADD COLUMN blamed TEXT NOT NULL DEFAULT '[]';
ALTER TABLE findings ADD COLUMN known INTEGER NOT NULL DEFAULT 0;
ALTER TABLE findings ADD COLUMN recurring INTEGER NOT NULL DEFAULT 0;
ALTER TABLE findings ADD COLUMN last_repaired TEXT;
ALTER TABLE findings ADD COLUMN width INTEGER NOT NULL DEFAULT 0;
UPDATE findings SET width = length(printf('%x', length)), known = action <> 'repaired';
UPDATE findings SET blamed = copies WHERE verdict <> 'no-majority'
    AND run NOT IN (SELECT id FROM runs WHERE parameters LIKE '%"uncounted"%' OR parameters LIKE '%.missed"%');
CREATE INDEX findings_by_place ON findings (width, start);
CREATE INDEX findings_by_blame ON findings (run, known, blamed, verdict, recurring);
CREATE INDEX findings_open ON findings (run, newest_run, copies, verdict, action, length)
    WHERE action IN ('left', 'failed', 'pending');
CREATE TABLE chronicle (
    copy TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, first TEXT NOT NULL, last TEXT NOT NULL,
    run INTEGER, newest_run INTEGER NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (copy, kind)
) STRICT;
INSERT INTO chronicle SELECT copy, 'write-error', count(*), min(time), max(time), NULL, 0, '' FROM events
    WHERE copy IS NOT NULL AND detail LIKE '%"missed_write": true%' GROUP BY copy;
"""
"""What speaks against a copy: see store/faults.py for the columns, store/chronicle.py for the table."""

_SCHEMA_4 = """
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, event TEXT NOT NULL, document TEXT NOT NULL
) STRICT;
CREATE TABLE hooks (
    name TEXT PRIMARY KEY, upto INTEGER NOT NULL, tries INTEGER NOT NULL, failures INTEGER NOT NULL,
    given_up INTEGER NOT NULL, since TEXT, last TEXT, reason TEXT NOT NULL, output TEXT NOT NULL
) STRICT;
ALTER TABLE runs ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
"""
"""Events for hooks, and how far each has come: see store/outbox.py. `told`: findings of the run that were told."""

MIGRATIONS: tuple[str, ...] = (_SCHEMA_1, _SCHEMA_2, _SCHEMA_3, _SCHEMA_4)
"""MIGRATIONS[n] leads from version n to n + 1. Applied in one transaction; never changed once released."""
