"""Every byte that differs is shown as such, as far as there is room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from qorumctl.cli.hex_diff import ROW_BYTES, Piece, hex_diff


@given(some.integers(0, 1 << 40), some.lists(some.binary(max_size=70), min_size=1, max_size=4), some.integers(1, 5))
def test_rows_hold_what_the_versions_hold_and_mark_what_differs(offset: int, versions: list[bytes], most: int) -> None:
    got = hex_diff(offset, versions, most)
    places = sorted({row.offset for row in got.rows})
    differing = {
        i // ROW_BYTES
        for version in versions
        for i in range(max(map(len, versions)))
        if version[i : i + 1] != versions[0][i : i + 1]
    }
    assert len(places) + got.more == len(differing)
    assert len(places) == min(most, len(differing))
    for row in got.rows:
        at = row.offset - offset
        part, reference = versions[row.version][at : at + ROW_BYTES], versions[0][at : at + ROW_BYTES]
        words = [(word, piece.differs) for piece in row.pieces for word in piece.text.split()]
        assert bytes.fromhex("".join(word for word, _ in words)) == part
        assert [differs for _, differs in words] == [part[i] not in reference[i : i + 1] for i in range(len(part))]
        assert sum(len(piece.text) for piece in row.letters) == len(part)


def test_a_row() -> None:
    row = hex_diff(4096, [b"good data, all of it", b"good dXtX, all of it"], 8).rows[1]
    assert row.offset == 4096
    assert row.letters == [Piece("good d", False), Piece("X", True), Piece("t", False), Piece("X", True),
                           Piece(", all o", False)]  # fmt: skip
    assert row.pieces[1] == Piece("58", True)


def test_equal_versions_have_no_rows() -> None:
    assert hex_diff(0, [b"x" * 99] * 3, 8).rows == []
    assert hex_diff(0, [], 8).rows == []
