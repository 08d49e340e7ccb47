"""Modules that are imported when they are first used: a command waits for what it needs, and for nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Deferred:
    """Stands for a module. (Of the standard library's LazyLoader, two threads could see a module half made before
    Python 3.11.9: gh-114763.)"""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)
