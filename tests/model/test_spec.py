"""What a definition may say, beyond what tests/test_definitions.py shows in TOML."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qorumctl.model.spec import LARGEST_BYTES, MOST_COPIES, CopySpec, FileSource, NbdEndpoint, SetSpec, parse_nbd_uri


def a_set(count: int = 3, **changes: Any) -> SetSpec:
    copies = [{"name": f"n{i}", "source": {"type": "file", "path": f"/i/{i}"}} for i in range(count)]
    return SetSpec.model_validate({"name": "web01", "uuid": UUID(int=1), "size": 512, "copies": copies} | changes)


@pytest.mark.parametrize(("count", "threshold"), [(3, 2), (5, 3), (7, 4), (9, 5)])
def test_the_default_threshold_is_the_smallest_strict_majority(count: int, threshold: int) -> None:
    assert a_set(count).threshold == threshold


@given(st.integers(0, MOST_COPIES + 3), st.integers(-1, MOST_COPIES + 3))
def test_only_an_odd_number_of_copies_and_a_strict_majority_are_taken(count: int, threshold: int) -> None:
    good = count >= 3 and count % 2 == 1 and count <= MOST_COPIES and count < 2 * threshold <= 2 * count
    if good:
        assert a_set(count, threshold=threshold).threshold == threshold
    else:
        with pytest.raises(ValidationError):
            a_set(count, threshold=threshold)


@pytest.mark.parametrize("size", [0, -512, 513, LARGEST_BYTES + 512, "0", 512.0 + 0.5, True, None])
def test_what_is_no_size_of_a_disk(size: object) -> None:
    with pytest.raises(ValidationError):
        a_set(size=size)


@pytest.mark.parametrize("name", ["", "A", "-a", "_a", "a b", "a/b", "a\n", "x" * 13, "a-file", "ä"])
def test_what_cannot_name_a_copy(name: str) -> None:
    with pytest.raises(ValidationError):
        CopySpec(name=name, source=FileSource(path="/i"))


@pytest.mark.parametrize(
    ("uri", "endpoint"),
    [
        ("nbd://h/e", NbdEndpoint(export="e", host="h")),
        ("nbd://h:1/a/b", NbdEndpoint(export="a/b", host="h", port=1)),
        ("nbd://[::1]:2/", NbdEndpoint(export="", host="::1", port=2)),
        ("nbd+unix:///e?socket=/run/s", NbdEndpoint(export="e", socket="/run/s")),
        ("nbd+unix:///a%20b?socket=/s%3f", NbdEndpoint(export="a b", socket="/s?")),
        ("nbds://h/e?tls-certificates=/pki", NbdEndpoint(export="e", host="h", tls=True, tls_certificates="/pki")),
    ],
)
def test_an_nbd_uri_says_where_the_export_is(uri: str, endpoint: NbdEndpoint) -> None:
    assert parse_nbd_uri(uri) == endpoint


@pytest.mark.parametrize(
    "uri",
    ["", "http://h/e", "nbd:///e", "nbd+unix:///e", "nbd+unix:///e?socket=", "nbd+unix:///e?socket=relative", "nbd://h:x/e",
     "nbd://h:70000/e", "nbd://u:p@h/e", "nbd://h/e#f", "nbd://h/e?socket=/s", "nbd://h/e?tls-certificates=/p",
     "nbds://h/e?tls-certificates=p", "nbd://[::1/e"],
)  # fmt: skip
def test_what_is_no_nbd_uri(uri: str) -> None:
    with pytest.raises(ValueError):
        parse_nbd_uri(uri)


@given(st.text())
def test_no_text_raises_anything_else(uri: str) -> None:
    try:
        parse_nbd_uri(uri)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - a message, whatever the URI
