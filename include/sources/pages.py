"""What Parquet pages say of themselves, looked at before anything is decompressed.

A few kilobytes of a file can stand for gigabytes: zeros compress a thousand times and more. The footer says how much a
column holds, but whoever writes the file writes the footer too, and the library that decodes a page believes the page's
own header. So these headers are read first: each is a small Thrift struct (compact protocol) in front of its page.

Source:
    parquet-format's `parquet.thrift` (PageHeader) and Thrift's `thrift-compact-protocol.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

MOST_CHUNK_VALUES = 20_000_000
"""Values of a column in one row group; run-length coding writes a billion in a few bytes."""

# Columns that lie closer than this are fetched together, up to a range of this size: what Arrow does by itself.
_HOLE_BYTES = 8_192
_RANGE_BYTES = 32 << 20

# Parquet's numbers: where a page's header says what, and by the page's type where it says the rest. An index page is
# written by nobody.
_TYPE, _UNPACKED, _STORED = 1, 2, 3
_DICTIONARY = 2
_FIELDS = {0: 5, _DICTIONARY: 7, 3: 8}  # of a data page, a dictionary, a data page of version 2
_COUNT = 1
_CODING = {0: 2, 3: 4}
# How values may be coded. By a dictionary (old and new), and as the length of the beginning that a value shares with
# the one before it, and the rest: these say much in few bytes. The latter (DELTA_BYTE_ARRAY) is what parquet-mr and
# arrow-rs write texts in when they are told to write version 2.
_DICTIONARY_CODED = (2, 8)
_SHARED_BEGINNINGS = 7
_OTHER_CODINGS = (0, 3, 4, 5, 6, 9)
# Codecs that Arrow knows by the same name.
_CODECS = ("SNAPPY", "GZIP", "ZSTD", "BROTLI")

# Thrift's types, as the compact protocol numbers them.
_BOOLEANS, _INTEGERS, _BINARY, _STRUCT = (1, 2), (4, 5, 6), 8, 12
_SIZES = {3: 1, 7: 8}  # byte and double
_VARINT_BITS = 70
_DEEPEST = 4  # a header holds a page's header, which holds statistics
_LAST_FIELD = 32_767


class UnsafePagesError(ValueError):
    """Pages that must not be decoded; the message says why."""


@dataclass(frozen=True)
class Chunk:
    """One column of one row group, as the footer tells it.

    Attributes:
        name: The column's path in the schema.
        start: Offset of its first page.
        length: Bytes of its pages as they are stored.
        declared: Bytes of its pages when they are decompressed.
        codec: How they are compressed, by Parquet's name.
        width: Bytes of each value; None where they may be of any length (BYTE_ARRAY).
    """

    name: str
    start: int
    length: int
    declared: int
    codec: str
    width: int | None


@dataclass(frozen=True)
class Repeated:
    """What decoding a chunk may add to the size of its pages: values that refer to its dictionary or to each other.

    Attributes:
        values: How many do.
        entry_bytes: Bytes that each may become. A value that shares its beginning with those before it has at most the
            bytes of its page, so this is far above what sound files hold: they are read in small pieces.
    """

    values: int = 0
    entry_bytes: int = 0


class CheckedFile:
    """A Parquet file of which chunks are fetched, and looked at, before a reader asks for them.

    Args:
        file: The file, open for reading.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self._fetched: list[tuple[int, bytes]] = []

    def fetch(self, chunks: Sequence[Chunk], most_bytes: int, small_entry: int = 0) -> list[Repeated]:
        """Fetch chunks, in as few ranges as Arrow would, in place of those fetched before.

        Args:
            chunks: N chunks.
            most_bytes: Bytes that the pages of each may have when they are decompressed.
            small_entry: A bound of a dictionary's entries that needs no closer look; 0: one with which all values
                together stay below `most_bytes`.

        Returns:
            What is repeated in each, in the order given.

        Raises:
            UnsafePagesError: If one must not be decoded.
        """
        ranges: list[tuple[int, int]] = []
        for chunk in sorted(chunks, key=lambda chunk: chunk.start):
            start, end = chunk.start, chunk.start + chunk.length
            if ranges and start - ranges[-1][1] <= _HOLE_BYTES and end - ranges[-1][0] <= _RANGE_BYTES:
                start, end = ranges[-1][0], max(ranges.pop()[1], end)
            ranges.append((start, end))
        self.forget()
        for start, end in ranges:
            self._file.seek(start)
            self._fetched.append((start, self._file.read(end - start)))
        return [check_pages(c, self._held(c.start, c.length), most_bytes, small_entry) for c in chunks]

    def forget(self) -> None:
        """Let go of what was fetched."""
        self._fetched = []

    def _held(self, start: int, size: int) -> memoryview:
        """Bytes that were fetched; empty if they were not."""
        for begin, data in self._fetched:
            if begin <= start and start + size <= begin + len(data):
                return memoryview(data)[start - begin : start - begin + size]
        return memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """Read bytes from where the file stands."""
        data = bytes(self._held(self._at, size)) if size > 0 else b""
        if not data:
            self._file.seek(self._at)
            data = self._file.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to an offset."""
        self._at = self._file.seek(offset, whence) if whence else offset
        return self._at

    def tell(self) -> int:
        """Say where the file stands."""
        return self._at

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._file.closed


def check_pages(chunk: Chunk, data: memoryview, most_bytes: int, small_entry: int = 0) -> Repeated:
    """Refuse a chunk whose pages are larger than is safe, or than the footer says.

    Args:
        chunk: What the footer says of it.
        data: Its bytes as they are stored.
        most_bytes: Bytes that its pages may have when they are decompressed.
        small_entry: As for `CheckedFile.fetch`.

    Returns:
        What is repeated in it.

    Raises:
        UnsafePagesError: Naming the column.
    """
    if len(data) != chunk.length:
        raise UnsafePagesError(f"column {chunk.name!r} does not lie where the footer says")
    size = values = repeated = largest = at = 0
    dictionary: tuple[memoryview, int] | None = None
    while at < len(data):
        try:
            header, at = _struct(data, at)
            kind, unpacked, stored = header[_TYPE], header[_UNPACKED], header[_STORED]
            page = header[_FIELDS[kind]]
            count, coding = page[_COUNT], page[_CODING[kind]] if kind in _CODING else None
            begin, at = at, at + stored
            fits = min(unpacked, stored, count) >= 0 and at <= len(data)
        except (IndexError, KeyError, TypeError):
            raise UnsafePagesError(f"column {chunk.name!r} has a damaged page header") from None
        if not fits:
            raise UnsafePagesError(f"column {chunk.name!r} has a page that does not fit its place")
        size += unpacked
        if size > most_bytes:
            raise UnsafePagesError(
                f"column {chunk.name!r} decompresses to more than {most_bytes >> 20} MiB in one row group"
            )
        values += count
        if values > MOST_CHUNK_VALUES:
            raise UnsafePagesError(
                f"column {chunk.name!r} holds more than {MOST_CHUNK_VALUES:,} values in one row group"
            )
        if kind == _DICTIONARY:
            dictionary = data[begin:at], unpacked
        elif coding in _DICTIONARY_CODED:
            repeated += count
        elif coding == _SHARED_BEGINNINGS:
            repeated += count
            largest = max(largest, unpacked)
        elif coding not in _OTHER_CODINGS:
            raise UnsafePagesError(f"column {chunk.name!r} holds values in a coding that nobody knows ({coding})")
    # Not every writer counts the headers: there is room for them.
    if size > chunk.declared + len(data):
        raise UnsafePagesError(
            f"column {chunk.name!r} decompresses to {size:,} bytes where the footer says {chunk.declared:,}"
        )
    if dictionary is not None:
        largest = max(largest, _largest_entry(chunk, *dictionary, small_entry or most_bytes // max(repeated, 1)))
    return Repeated(repeated, largest)


def _largest_entry(chunk: Chunk, page: memoryview, unpacked: int, small_entry: int) -> int:
    """Bytes of the largest entry of a dictionary, or a bound that is small enough."""
    if chunk.width is not None:
        return chunk.width
    if unpacked <= small_entry:
        return unpacked
    if chunk.codec in _CODECS:
        page = memoryview(pa.Codec(chunk.codec.lower()).decompress(page, decompressed_size=unpacked))
    elif chunk.codec != "UNCOMPRESSED":
        return unpacked
    largest = at = 0
    while at + 4 <= len(page):  # each entry follows its length
        length = int.from_bytes(page[at : at + 4], "little")
        largest = max(largest, length)
        at += 4 + length
    return largest


def _struct(data: memoryview, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A Thrift struct as field number -> integer, nested struct or None (whatever else), and where it ends.

    Whatever another reader could take for another field, or another of two values, is an IndexError.
    """
    if depth > _DEEPEST:
        raise IndexError
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        if number in fields or not 0 < number <= _LAST_FIELD:
            raise IndexError
        fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _BOOLEANS:  # the kind is the value
        return None, at
    if kind in _INTEGERS:
        return _integer(data, at)
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    if kind in _SIZES:
        return None, at + _SIZES[kind]
    if kind == _BINARY:
        length, at = _varint(data, at)
        return None, at + length
    raise IndexError  # lists, sets and maps stand in no page header


def _integer(data: memoryview, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < _VARINT_BITS:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise IndexError
