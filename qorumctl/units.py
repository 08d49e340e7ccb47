"""Sizes, rates and durations: what people type, and what they are shown. Bytes and seconds inside."""

from __future__ import annotations

import re

from qorumctl.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_FACTORS: dict[str, int] = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
# qemu-img, dd and truncate read these letters as powers of two; so do the people who type them here.
_FACTORS |= {letter: _FACTORS[f"{letter}iB"] for letter in "KMGT"}
_BY_LOWER_CASE = {name.lower(): factor for name, factor in _FACTORS.items()}
_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s*([a-zA-Z]*)")

_BUDGET = re.compile(r"([1-9]\d{0,4})(s|min|h)")
_SECONDS = {"h": 3600, "min": 60, "s": 1}


def parse_size(text: str | int) -> int:
    """`20GiB`, `512`, `1.5T` -> bytes. Powers of 1024 only: `GB` is refused, it would be ambiguous.

    Raises UsageError for anything else, a fraction of a byte included.
    """
    if isinstance(text, int):
        if text < 0 or isinstance(text, bool):
            raise UsageError(f"'{text}' is not a size.", remedy="Use bytes, or a number with KiB, MiB, GiB or TiB.")
        return text
    match = _SIZE.fullmatch(text.strip())
    factor = _BY_LOWER_CASE.get(match[3].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"'{text}' is not a size.", remedy="Use bytes, or a number with KiB, MiB, GiB or TiB.")
    whole, fraction = int(match[1]), match[2] or ""
    scaled, rest = divmod(int(fraction or "0") * factor, int(10 ** len(fraction)))
    if rest:
        raise UsageError(f"'{text}' is not a whole number of bytes.", remedy="Use bytes, KiB, MiB, GiB or TiB.")
    return whole * factor + scaled


def parse_rate(text: str | int) -> int:
    """`200MiB/s` or `200MiB` -> bytes per second. Raises UsageError; zero is refused."""
    value = parse_size(text.strip().removesuffix("/s") if isinstance(text, str) else text)
    if value == 0:
        raise UsageError("A rate of 0 would never finish.", remedy="Leave the rate out for no limit.")
    return value


def parse_budget(text: str) -> int:
    """`4h`, `90min`, `30s`: how long something may take, in seconds. 0: as long as it does. Raises UsageError."""
    if text == "0":
        return 0
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is not a time that a scrub may take.", remedy="Use one such as 4h, 90min, or 0.")
    return int(match[1]) * _SECONDS[match[2]]


def format_budget(seconds: int) -> str:
    """As `parse_budget` reads it: 14400 -> `4h`."""
    for name, factor in _SECONDS.items():
        if seconds and seconds % factor == 0:
            return f"{seconds // factor}{name}"
    return "0"


def format_size(size_bytes: int) -> str:
    """1610612736 -> `1.5 GiB`; three significant digits at the most, exact values without a fraction."""
    for name in ("TiB", "GiB", "MiB", "KiB"):
        factor = _FACTORS[name]
        if size_bytes >= factor:
            value = size_bytes / factor
            if size_bytes % factor == 0:
                return f"{size_bytes // factor} {name}"
            return (
                f"{value:.2f} {name}" if value < 10 else f"{value:.1f} {name}" if value < 100 else f"{value:.0f} {name}"
            )
    return f"{size_bytes} B"


def format_exact_size(size_bytes: int) -> str:
    """A size that parse_size reads back to the same number: `20GiB`, `1536MiB`, `1000`."""
    for name in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _FACTORS[name] == 0:
            return f"{size_bytes // _FACTORS[name]}{name}"
    return str(size_bytes)


def format_duration(seconds: float) -> str:
    """3725.2 -> `1h02m05s`, 65 -> `1m05s`, 0.25 -> `0.2s`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m{secs:02d}s"
    return f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"
