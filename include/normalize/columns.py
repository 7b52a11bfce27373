"""Apply a rule about one label to a whole column, by way of its distinct values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from include.normalize.labels import MISSING, UnmappedLabelError


@dataclass(frozen=True)
class NormalisedColumn:
    """N canonical values, and the published labels that no table knew.

    Attributes:
        values: N strings or NULLs.
        unmapped: Published label -> number of rows.
    """

    values: pa.Array
    unmapped: dict[str, int] = field(default_factory=dict)


def map_labels(column: pa.Array, canonical: Callable[[str], str | None]) -> NormalisedColumn:
    """Map N published labels through a rule about one label.

    Args:
        column: N labels of any type; NULL, blanks and spellings of "missing" become NULL.
        canonical: Maps one stripped, lower-cased label; raises UnmappedLabelError for one it does not know.

    Returns:
        N canonical values, and the counts of what was unknown.
    """
    text = pc.utf8_lower(pc.utf8_trim_whitespace(column.cast(pa.string())))
    encoded = pc.dictionary_encode(text)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    mapped: list[str | None] = []
    unknown: list[str] = []
    for label in encoded.dictionary.to_pylist():
        value = None
        if label not in MISSING:
            try:
                value = canonical(label)
            except UnmappedLabelError:
                unknown.append(label)
        mapped.append(value)
    values = pa.array(mapped, pa.string()).take(encoded.indices)
    return NormalisedColumn(values, _counted(text, unknown))


def _counted(text: pa.Array, labels: list[str]) -> dict[str, int]:
    if not labels:
        return {}
    counts = pc.value_counts(text.filter(pc.is_in(text, value_set=pa.array(labels))))
    return {entry["values"]: entry["counts"] for entry in counts.to_pylist()}
