"""Number to label: columns of measurements -> the specification's classes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from include.normalize.columns import NormalisedColumn, parse_numbers

# Phonetic symbols per second, as the AbstractTTS corpora publish speaking_rate (neither words nor syllables).
# Source: the specification's table, "slow (<6.0), normal (6-9), fast (>9.0)"; both edges are normal.
PACE_EDGES = (6.0, 9.0)

# dB, as the AbstractTTS corpora publish relative_db.
# Source: the specification's table, "quiet (<-16.4dB), loud (>-10dB), or omitted if normal".
VOLUME_EDGES_DB = (-16.4, -10.0)


def pace_labels(speaking_rate: pa.Array) -> NormalisedColumn:
    """Name the pace of N utterances.

    Args:
        speaking_rate: N numbers in phonetic symbols per second. NULL and NaN mean unknown; infinities, zero and less
            are no rate that anybody speaks at, and are counted as unmapped.

    Returns:
        N strings: "slow", "normal" or "fast"; NULL where unknown.
    """
    numbers = parse_numbers(speaking_rate, above=0.0)
    low, high = PACE_EDGES
    return NormalisedColumn(_binned(numbers.values, low, "slow", high, "fast", "normal"), numbers.unmapped)


def volume_labels(relative_db: pa.Array) -> NormalisedColumn:
    """Name a loudness only where it is worth mentioning.

    Args:
        relative_db: N numbers in dB. NULL and NaN mean unknown; infinities (silence) are counted as unmapped.

    Returns:
        N strings: "quiet" or "loud"; NULL for ordinary or unknown loudness.
    """
    numbers = parse_numbers(relative_db)
    low, high = VOLUME_EDGES_DB
    return NormalisedColumn(_binned(numbers.values, low, "quiet", high, "loud", None), numbers.unmapped)


def _binned(numbers: pa.Array, low: float, below: str, high: float, above: str, between: str | None) -> pa.Array:
    # float32 values are compared as float32: -16.4 as published must equal the edge, not lie 4e-7 above it.
    low_edge, high_edge = (pa.scalar(edge).cast(numbers.type, safe=False) for edge in (low, high))
    middle = pc.if_else(pc.is_valid(numbers), pa.scalar(between, pa.string()), pa.scalar(None, pa.string()))
    return pc.if_else(
        pc.fill_null(pc.less(numbers, low_edge), False),
        pa.scalar(below),
        pc.if_else(pc.fill_null(pc.greater(numbers, high_edge), False), pa.scalar(above), middle),
    )
