"""Apply a rule about one published value to a whole column, by way of its distinct values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.normalize.labels import MISSING, UnmappedLabelError


@dataclass(frozen=True)
class NormalisedColumn:
    """N canonical values, and what became of the published values that have none.

    Attributes:
        values: N canonical values or NULLs.
        unmapped: Published value that no rule knows -> number of rows.
        left_out: Published value that is known to have no canonical form -> number of rows.
    """

    values: pa.Array
    unmapped: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def map_labels(column: pa.Array, canonical: Callable[[str], str | None]) -> NormalisedColumn:
    """Map N published labels through a rule about one label.

    Args:
        column: N labels of any type; NULL, blanks and spellings of "missing" become NULL.
        canonical: Maps one stripped, lower-cased label; raises UnmappedLabelError for one it does not know.

    Returns:
        N canonical values, and the counts of what has none.
    """
    encoded = _encoded(column)
    counts = _counts(encoded)
    mapped: list[str | None] = []
    unmapped: dict[str, int] = {}
    left_out: dict[str, int] = {}
    for published, rows in zip(encoded.dictionary.to_pylist(), counts, strict=True):
        label = _label(published)
        value = None
        if label not in MISSING:
            try:
                value = canonical(label)
            except UnmappedLabelError:
                unmapped[label] = unmapped.get(label, 0) + rows
            else:
                if value is None:
                    left_out[label] = left_out.get(label, 0) + rows
        mapped.append(value)
    return NormalisedColumn(pa.array(mapped, pa.string()).take(encoded.indices), unmapped, left_out)


def parse_numbers(column: pa.Array, above: float | None = None) -> NormalisedColumn:
    """Read N measurements, given as numbers or as text.

    Args:
        column: N numbers; NULL, NaN and spellings of "missing" are missing.
        above: What a measurement must exceed to be one, if anything.

    Returns:
        N finite numbers or NULLs, and the counts of what is no measurement: text, infinities and what is one as a
        float32, too small numbers. Integers beyond 2**53 are rounded: no measurement has so many digits.
    """
    unmapped: dict[str, int] = {}
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        numbers = column
        if pa.types.is_integer(column.type):
            numbers = column.cast(pa.float64(), safe=False)
        elif pa.types.is_float16(column.type):  # Arrow cannot compare these
            numbers = column.cast(pa.float32())
    else:
        encoded = _encoded(column)
        parsed: list[float | None] = []
        for published, rows in zip(encoded.dictionary.to_pylist(), _counts(encoded), strict=True):
            label = _label(published)
            number = None
            if label not in MISSING:
                try:
                    number = float(label)
                except ValueError:
                    unmapped[label] = unmapped.get(label, 0) + rows
            parsed.append(number)
        numbers = pa.array(parsed, pa.float64()).take(encoded.indices)
    usable = pc.is_finite(numbers.cast(pa.float32(), safe=False))
    if above is not None:
        usable = pc.and_(usable, pc.greater(numbers, pa.scalar(above, numbers.type)))
    strange = numbers.filter(pc.and_not(pc.invert(pc.fill_null(usable, True)), pc.is_nan(numbers)))
    for entry in pc.value_counts(strange).to_pylist():
        unmapped[str(entry["values"])] = entry["counts"]
    return NormalisedColumn(pc.if_else(usable, numbers, pa.scalar(None, numbers.type)), unmapped)


def _label(published: str) -> str:
    """A label as it is looked up and counted; PostgreSQL cannot store NUL."""
    return published.replace("\0", "").strip().lower()


def _encoded(column: pa.Array) -> pa.DictionaryArray:
    """N values as text, each distinct one held once; NULL stays NULL."""
    encoded = pc.dictionary_encode(column.cast(pa.string()))
    return encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded


def _counts(encoded: pa.DictionaryArray) -> list[int]:
    """How often each entry of the dictionary occurs, in its order."""
    indices = encoded.indices.drop_null().to_numpy()
    counts: list[int] = np.bincount(indices, minlength=len(encoded.dictionary)).tolist()
    return counts
