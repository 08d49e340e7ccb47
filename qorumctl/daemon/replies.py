"""What the daemon answers, as far as anything depends on it: refused where it is something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qorumctl.errors import DaemonError


@contextmanager
def understood(command: str) -> Iterator[None]:
    """For the lines that pick an answer to `command` apart. DaemonError where it is not of the shape that QEMU's schema
    says: another version, or no QEMU at the other end."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as error:
        raise DaemonError(
            f"The daemon's answer to {command} makes no sense ({type(error).__name__}).",
            remedy="Nothing was made of it. Run 'qorumctl doctor': this QEMU may be too new, or too old.",
        ) from error


def names(command: str, answer: object, key: str) -> list[str]:
    """The text under `key` of each object in a list: ids, names. Raises DaemonError."""
    with understood(command):
        if not isinstance(answer, list):
            raise TypeError("no list")
        found = [item[key] for item in answer]
        if not all(isinstance(name, str) for name in found):
            raise TypeError("no text")
        return found
