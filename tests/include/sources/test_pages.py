"""Page headers are understood as Arrow understands them, or refused."""

from __future__ import annotations

import pytest

from include.sources.pages import Chunk, Repeated, UnsafePagesError, check_pages
from tests.include.sources.hostile_files import MIB, varint

I32, I64, STRUCT = 5, 6, 12
TYPE, UNPACKED, STORED, DATA, DICTIONARY, DATA_2 = 1, 2, 3, 5, 7, 8
END = b"\0"


def field(number: int, value: int | bytes, kind: int = I32) -> bytes:
    """A field with its number in full: of a struct if the value is bytes."""
    head = STRUCT if isinstance(value, bytes) else kind
    return bytes([head]) + varint(number) + (value if isinstance(value, bytes) else varint(value))


def page(count: int = 1, coding: int = 0) -> bytes:
    return field(1, count) + field(2, coding) + field(3, 3) + field(4, 3) + END


def checked(*fields: bytes, body: int = 0, width: int | None = None) -> Repeated:
    data = b"".join(fields) + END + bytes(body)
    return check_pages(Chunk("text", 0, len(data), MIB, "UNCOMPRESSED", width), memoryview(data), MIB)


HEAD = (field(TYPE, 0), field(UNPACKED, 10), field(STORED, 10))


@pytest.mark.parametrize("coding", [0, 3, 5, 6, 9])
def test_values_that_stand_for_themselves_add_nothing(coding: int) -> None:
    assert checked(*HEAD, field(DATA, page(400, coding)), body=10) == Repeated()


@pytest.mark.parametrize("width", [None, 12])
def test_a_value_that_shares_its_beginning_may_have_the_bytes_of_its_page(width: int | None) -> None:
    assert checked(*HEAD, field(DATA, page(400, 7)), body=10, width=width) == Repeated(400, 10)


@pytest.mark.parametrize("coding", [1, 10, 7 + (1 << 32)])
def test_a_coding_that_nobody_knows_is_refused(coding: int) -> None:
    with pytest.raises(UnsafePagesError, match=rf"'text' holds values in a coding that nobody knows \({coding}\)"):
        checked(*HEAD, field(DATA, page(400, coding)), body=10)


def test_only_the_header_of_the_page_s_type_counts() -> None:
    version_2 = field(1, 400) + field(2, 0) + field(3, 400) + field(4, 7) + field(5, 0) + field(6, 0) + END
    head = (field(TYPE, 3), *HEAD[1:])
    assert checked(*head, field(DATA, page()), field(DATA_2, version_2), body=10) == Repeated(400, 10)
    assert checked(*HEAD, field(DATA, page(400, 7)), field(DICTIONARY, page()), body=10) == Repeated(400, 10)
    with pytest.raises(UnsafePagesError, match="damaged page header"):
        checked(*HEAD, field(DATA_2, version_2), body=10)


@pytest.mark.parametrize(
    "again",
    [
        field(UNPACKED, 1 << 30),
        field(UNPACKED, 10, I64),  # skipped by Arrow, for its kind
        field(UNPACKED + (1 << 16), 1 << 30),  # the same number in 16 bits
        b"\x05" + varint(1)[:-1] + b"\x01" + varint(1 << 30),  # minus one
    ],
    ids=["twice", "another kind", "too large", "negative"],
)
def test_what_another_reader_could_take_for_another_size_is_refused(again: bytes) -> None:
    with pytest.raises(UnsafePagesError, match="damaged page header"):
        checked(*HEAD, again, field(DATA, page()), body=10)


@pytest.mark.parametrize("number", [TYPE, UNPACKED, STORED, DATA])
def test_a_value_of_another_kind_is_a_damaged_header(number: int) -> None:
    fields = {TYPE: HEAD[0], UNPACKED: HEAD[1], STORED: HEAD[2], DATA: field(DATA, page())}
    fields[number] = bytes([1]) + varint(number)  # true
    with pytest.raises(UnsafePagesError, match="damaged page header"):
        checked(*fields.values(), body=10)
