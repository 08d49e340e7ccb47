"""What a screen of 80 columns shows."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console, RenderableType


def screen(renderables: Iterable[RenderableType], width: int = 80) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, markup=False, emoji=False, highlight=False)
    for renderable in renderables:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def text(block: str) -> str:
    """A block as it stands in a test: without its first and last line break."""
    return block.strip("\n")
