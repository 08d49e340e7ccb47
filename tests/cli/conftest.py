"""The program as people run it: a process of its own, directories of its own, a real daemon behind it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from unittest import mock

import jsonschema
import pytest

from qorumctl.cli import main as program
from qorumctl.daemon import process
from qorumctl.daemon.runtime import RuntimePaths
from tests.live import end_watcher, wait_for

MIB = 1 << 20
SIZE = 24 * MIB
SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
PROGRAM = [sys.executable, "-m", "qorumctl.cli.main"]


class Terminal:
    """A process on a terminal of 80 columns; its standard output and error are that terminal."""

    def __init__(self, process_: subprocess.Popen[bytes], master: int) -> None:
        self.process = process_
        self.seen = ""
        self._master = master
        os.set_blocking(master, False)

    def read(self) -> str:
        """All that was shown so far."""
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self._master, 65536):
                self.seen += data.decode(errors="replace")
        return self.seen

    def shows(self, words: str) -> None:
        wait_for(lambda: words in self.read() or self.process.poll() is not None, f"'{words}' on the terminal")
        assert words in self.read()

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Reads until the process has ended; its exit code."""
        wait_for(lambda: (self.read(), self.process.poll())[1] is not None, "the end of the process")
        self.read()
        return self.process.returncode

    def close(self) -> None:
        os.close(self._master)


class Machine:
    """Runs qorumctl. `directory` holds everything it writes, and the images."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runtime = directory / "r"
        self.environment = os.environ | {
            "QORUM_CONFIG_DIR": str(directory / "c"),
            "QORUM_STATE_DIR": str(directory / "s"),
            "QORUM_RUNTIME_DIR": str(self.runtime),
            "COLUMNS": "80",
        }
        self.images = {name: directory / f"{name}.raw" for name in "abc"}
        self._processes: list[subprocess.Popen[Any]] = []
        self._terminals: list[Terminal] = []

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def document(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """With `--json`; standard output holds one document, which fits its schema. In this process: that is fast."""
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            program.main(["--json", *arguments])
        assert ended.value.code == code, f"{arguments}: {ended.value.code}\n{out.getvalue()}\n{err.getvalue()}"
        document: dict[str, Any] = json.loads(out.getvalue())
        validate(document)
        return document

    def begin(
        self, *arguments: str, stream: IO[bytes] | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """In the background; standard error is to be read, unless both streams lead to `stream`."""
        begun = subprocess.Popen(
            [*PROGRAM, *arguments],
            env=self.environment | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=stream or subprocess.PIPE,
            stderr=stream or subprocess.PIPE,
            text=True,
        )
        self._processes.append(begun)
        return begun

    def on_a_terminal(self, *arguments: str, **environment: str) -> Terminal:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        begun = subprocess.Popen(
            [*PROGRAM, *arguments],
            env=self.environment | {"TERM": "xterm-256color"} | environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._processes.append(begun)
        self._terminals.append(Terminal(begun, master))
        return self._terminals[-1]

    def make(self, name: str = "w") -> None:
        """A set of equal images full of data, running."""
        self.create(name)
        self.document("start", name)

    def create(self, name: str = "w") -> None:
        """The same, stopped."""
        data = random.Random(name).randbytes(MIB) * (SIZE // MIB)
        for image in self.images.values():
            image.write_bytes(data)
        sources = [str(image) for image in self.images.values()]
        self.document("create", name, *sources, "--cache", "writeback")

    def flip(self, copy: str, offset: int, bits: int = 1) -> None:
        """Through the page cache, which is where the daemon reads (`--cache writeback`)."""
        with self.images[copy].open("r+b") as image:
            image.seek(offset)
            byte = image.read(1)[0]
            image.seek(offset)
            image.write(bytes([byte ^ bits]))

    def begin_slow_scrub(self, name: str = "w", *options: str) -> tuple[subprocess.Popen[str], int]:
        """A scrub of at least 6 s that is on its way, and its run."""
        begun = self.begin("scrub", name, "--rate", "4MiB/s", *options)
        return begun, self.wait_until_on_its_way(name, begun)

    def wait_until_on_its_way(self, name: str, begun: subprocess.Popen[Any]) -> int:
        def on_its_way() -> int | None:
            assert begun.poll() is None, "the scrub ended"
            scrub = self.document("status", name)["sets"][0]["scrub"]
            return scrub["run"] if scrub and scrub["position"] else None

        run: int = wait_for(on_its_way, "a scrub on its way")
        return run

    def close(self) -> None:
        for begun in self._processes:
            if begun.poll() is None:
                begun.kill()
            begun.wait()
            for stream in (begun.stdout, begun.stderr):
                if stream:
                    stream.close()
        for terminal in self._terminals:
            terminal.close()
        for directory in self.runtime.iterdir() if self.runtime.is_dir() else []:
            end_watcher(self.directory / "s" / directory.name)
            paths = RuntimePaths(directory)
            pid = process.running_pid(paths)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda paths=paths, pid=pid: process.running_pid(paths) != pid, f"the end of daemon {pid}")


def validate(document: dict[str, Any]) -> None:
    kind = document["schema"].removeprefix("qorum.").removesuffix("/1")
    jsonschema.validate(document, json.loads((SCHEMAS / f"qorum.{kind}-1.json").read_text()))


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """The program takes over its own loggers."""
    logger = logging.getLogger("qorumctl")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    logger.level, logger.propagate, logger.handlers = before


@pytest.fixture
def machine(short_dir: Path) -> Iterator[Machine]:
    made = Machine(short_dir)
    yield made
    made.close()
