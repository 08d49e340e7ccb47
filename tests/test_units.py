"""Sizes, rates and durations: what people type is read as meant, and what is shown can be typed again."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorumctl.errors import UsageError
from qorumctl.units import format_duration, format_exact_size, format_size, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("20GiB", 20 << 30),
        ("20 GiB", 20 << 30),
        ("20gib", 20 << 30),
        ("20G", 20 << 30),
        ("1.5T", 3 << 39),
        (" 1KiB ", 1024),
        (4096, 4096),
    ],
)
def test_what_is_a_size(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1GB", "1 KB", "1.5", "0.3KiB", "1e9", "ten", "1GiB/s", -1, True])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert caught.value.remedy


@pytest.mark.parametrize(("text", "rate"), [("200MiB/s", 200 << 20), ("1K", 1024), (5, 5)])
def test_what_is_a_rate(text: str | int, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["0", "0MiB/s", 0, "fast", "1MiB/min"])
def test_what_is_no_rate(text: str | int) -> None:
    with pytest.raises(UsageError):
        parse_rate(text)


@given(st.integers(0, 1 << 64))
def test_an_exact_size_reads_back_as_the_same_number(size_bytes: int) -> None:
    assert parse_size(format_exact_size(size_bytes)) == size_bytes


@given(st.integers(1, 1 << 50))
def test_a_shown_size_is_right_to_one_percent(size_bytes: int) -> None:
    number, unit = format_size(size_bytes).split()
    factor = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[unit]
    assert abs(float(number) * factor - size_bytes) <= size_bytes / 100


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    for parse in (parse_size, parse_rate):
        with contextlib.suppress(UsageError):
            assert parse(text) >= 0


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (511, "511 B"), (1024, "1 KiB"), (1536, "1.50 KiB"), (3 << 29, "1.50 GiB"), (20 << 30, "20 GiB")],
)
def test_how_a_size_is_shown(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2s"), (42, "42s"), (65, "1m05s"), (3725.2, "1h02m05s"), (90000, "25h00m00s")]
)
def test_how_a_duration_is_shown(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
