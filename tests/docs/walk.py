"""Runs the command lines of a document, and writes what they print back into it.

    python -m tests.docs.walk README.md        rewrites the outputs in its `console` blocks

A `console` block holds `$ command` lines, each followed by what it prints on standard output. All of a document's run
in order in one shell, with /srv and qorumctl's own directories in a scratch place. A block in another language whose
first line is `# /srv/NAME` is that file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
_MARK = "@@end-of-command@@"
_DEADLINE_S = 170
_IS_FILE = re.compile(r"# (/srv/[\w.-]+)\n")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str


@dataclass(frozen=True)
class Step:
    """One `$ command` and the lines under it."""

    command: str
    output: str


@dataclass(frozen=True)
class Scratch:
    """Where a document's paths lead while it is run."""

    images: Path
    run: Path

    @property
    def places(self) -> dict[str, Path]:
        return {
            "/srv": self.images,
            "/etc/qorum/sets": self.run / "c",
            "/etc/qorum/hooks.d": self.run / "hooks.d",
            "/var/lib/qorum": self.run / "s",
            "/run/qorum": self.run / "r",
        }

    def shown(self, text: str) -> str:
        """What a command printed, with the paths that a document shows."""
        for documented, real in self.places.items():
            text = text.replace(str(real), documented)
        return text


def blocks(document: str) -> list[Block]:
    return [Block(*match.groups()) for match in _FENCE.finditer((ROOT / document).read_text())]


def steps(block: Block) -> list[Step]:
    found: list[Step] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line.removeprefix("$ "), ""))
        else:
            found[-1] = replace(found[-1], output=f"{found[-1].output}{line}\n")
    return found


def files(document: str) -> dict[str, str]:
    """Path below /srv -> content."""
    found = [(_IS_FILE.match(block.text), block.text) for block in blocks(document)]
    return {match[1]: text for match, text in found if match}


def put_files(document: str, place: Scratch) -> None:
    for path, text in files(document).items():
        Path(_real(path, place)).write_text(_real(text, place))


@contextmanager
def scratch() -> Iterator[Scratch]:
    # Images where O_DIRECT works: /tmp may be a tmpfs. Sockets where paths are short.
    place = Scratch(
        Path(tempfile.mkdtemp(prefix="qorum-docs-", dir="/var/tmp")), Path(tempfile.mkdtemp(prefix="q", dir="/tmp"))
    )
    try:
        for name in "abc":
            (place.images / name).mkdir()
        (place.run / "c").mkdir(mode=0o700)
        program = place.run / "bin" / "qorumctl"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qorumctl.cli.main "$@"\n')
        program.chmod(0o700)
        yield place
    finally:
        _stop_all(place)
        shutil.rmtree(place.images, ignore_errors=True)
        shutil.rmtree(place.run, ignore_errors=True)


def outputs(commands: list[str], place: Scratch) -> list[str]:
    """What each command printed. One shell runs them all, and `$?` is that of the command before."""
    lines = [f"{_real(command, place)}\nkept=$?; printf '\\n{_MARK}\\n'; (exit $kept)" for command in commands]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        env=_environment(place),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    sys.stderr.write(done.stderr)
    printed = done.stdout.split(f"\n{_MARK}\n")
    if len(printed) != len(commands) + 1:
        raise AssertionError(f"a command ended the shell: {done.stdout}{done.stderr}")
    return [place.shown(text).rstrip("\n") for text in printed[:-1]]


def _real(command: str, place: Scratch) -> str:
    for documented, real in place.places.items():
        command = command.replace(f"{documented}/", f"{real}/")
    return command.replace(".venv/bin/python", sys.executable)


def _environment(place: Scratch) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{place.run / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "QORUM_CONFIG_DIR": str(place.places["/etc/qorum/sets"]),
        "QORUM_STATE_DIR": str(place.places["/var/lib/qorum"]),
        "QORUM_RUNTIME_DIR": str(place.places["/run/qorum"]),
        # A server that is killed leaves its temporary directory behind.
        "TMPDIR": str(place.run),
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
    }


def _stop_all(place: Scratch) -> None:
    """Whatever a failing document left running: sets, and servers that have a pidfile beside their images."""
    for definition in (place.run / "c").glob("*.toml"):
        command = [str(place.run / "bin" / "qorumctl"), "stop", "--force", definition.stem]
        subprocess.run(command, env=_environment(place), capture_output=True, timeout=_DEADLINE_S, check=False)
    for pidfile in place.images.rglob("*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(pidfile.read_text())
            if str(place.images) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def rewritten(document: str) -> str:
    """The document with what its commands print now."""
    text = (ROOT / document).read_text()
    consoles = [block for block in blocks(document) if block.language == "console"]
    commands = [step.command for block in consoles for step in steps(block)]
    with scratch() as place:
        put_files(document, place)
        printed = iter(outputs(commands, place))

    def renewed(found: re.Match[str]) -> str:
        block = Block(*found.groups())
        if block.language != "console":
            return found[0]
        new = "".join(f"$ {step.command}\n{_ended(next(printed))}" for step in steps(block))
        return f"```console\n{new}```"

    return _FENCE.sub(renewed, text)


def _ended(output: str) -> str:
    lines = [line.rstrip() for line in output.splitlines()]
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.docs.walk", description=__doc__)
    parser.add_argument("document", choices=DOCUMENTS)
    document = parser.parse_args().document
    (ROOT / document).write_text(rewritten(document))


if __name__ == "__main__":
    main()
