"""What tests of copies that come and go share: the commands as processes, and what stands in the daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from qorumctl.daemon.client import Monitor
from qorumctl.daemon.quorum_set import GraphState, QuorumSet
from tests.integration.harness import NAME, LiveSet

AT = 1 << 20
NEW = b"\xc3" * 4096


def done(live: LiveSet, command: str, copy: str, *options: str) -> dict[str, Any]:
    """As a process of its own: writers share this one's interpreter."""
    running = live.cli("--json", "copy", command, NAME, copy, *options, stderr=subprocess.PIPE)
    said, complaints = running.communicate(timeout=120)
    assert running.returncode == 0, complaints.decode()
    document: dict[str, Any] = json.loads(said)
    return document


async def standing(live: LiveSet) -> GraphState:
    spec = live.sets.show(NAME).definition
    async with await Monitor.open(live.runtime.control_sock) as monitor:
        return await QuorumSet(spec, monitor).describe()


def write(live: LiveSet, shadow: bytearray, at: int = AT, data: bytes = NEW) -> None:
    """As a guest, whose write is acknowledged."""
    link = live.link()
    assert link.write(at, data)
    assert link.flush()
    link.close()
    shadow[at : at + len(data)] = data


def lose_the_daemon(live: LiveSet) -> None:
    """kill -9, as a power failure of the host."""
    live.end()


_VICTIM = """
import os, signal, sys
steps, last, begins_at = 0, int(sys.argv.pop(1)), sys.argv.pop(1)
begun = not begins_at
def stepping(wrapped):
    def step(*arguments, **keys):
        global steps
        steps += begun
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return wrapped(*arguments, **keys)
    return step
from qorumctl import definitions, identity
from qorumctl.daemon.client import Monitor
from qorumctl.store import saved
from qorumctl.store.database import Database
from qorumctl.copies.nbd_link import NbdLink
Monitor.execute = stepping(Monitor.execute)
Database.write = stepping(Database.write)
identity.write_atomically = stepping(identity.write_atomically)
saved.write_atomically = stepping(saved.write_atomically)
definitions.write_atomically = stepping(definitions.write_atomically)
NbdLink.flush, NbdLink.write = stepping(NbdLink.flush), stepping(NbdLink.write)
if begins_at:
    import importlib
    module, _, place = begins_at.partition(":")
    owner = getattr(importlib.import_module(module), place.split(".")[0])
    begins = getattr(owner, place.split(".")[1])
    def beginning(*arguments, **keys):
        global begun
        begun = True
        return begins(*arguments, **keys)
    setattr(owner, place.split(".")[1], beginning)
from qorumctl.cli.main import main
main(sys.argv[1:])
"""


def cut(live: LiveSet, step: int, *arguments: str, since: str = "", ends: Collection[int] = frozenset({0})) -> bool:
    """Runs qorumctl, and kills it just before its N-th QMP command, store transaction, sidecar, definition, direct
    write or flush; counted from the first call of the method `since` (`module:Class.method`). False: it had ended
    before that, with one of `ends`."""
    command = [sys.executable, "-c", _VICTIM, str(step), since, *arguments]
    ended = subprocess.run(command, env=live.environment, capture_output=True, timeout=120, check=False, cwd=_HOME)
    assert ended.returncode in {-9, *ends}, ended.stderr.decode()
    return ended.returncode == -9


_HOME = Path(__file__).resolve().parents[2]
EXPORTS = frozenset({"volume", "heal", "copy-a", "copy-b", "copy-c"})
NODES = frozenset({"quorum", "fence", *(f"copy-{c}{suffix}" for c in "abc" for suffix in ("", "-file"))})


def as_if_nothing_had_been(state: GraphState) -> bool:
    return (set(state.copies), state.exports, state.nodes, state.watches, state.missed) == (
        {"a", "b", "c"},
        EXPORTS,
        NODES,
        frozenset(),
        (),
    )
