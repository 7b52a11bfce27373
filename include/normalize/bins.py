"""Number to label: columns of measurements -> the specification's classes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

# Phonetic symbols per second, as the AbstractTTS corpora publish speaking_rate (neither words nor syllables).
# Source: the specification's table, "slow (<6.0), normal (6-9), fast (>9.0)"; both edges are normal.
PACE_EDGES = (6.0, 9.0)

# dB, as the AbstractTTS corpora publish relative_db.
# Source: the specification's table, "quiet (<-16.4dB), loud (>-10dB), or omitted if normal".
VOLUME_EDGES_DB = (-16.4, -10.0)


def pace_labels(speaking_rate: pa.Array) -> pa.Array:
    """Name the pace of N utterances.

    Args:
        speaking_rate: N numbers in phonetic symbols per second; NULL, NaN and infinities mean unknown.

    Returns:
        N strings: "slow", "normal" or "fast"; NULL where unknown.
    """
    low, high = PACE_EDGES
    return _binned(speaking_rate, low, "slow", high, "fast", "normal")


def volume_labels(relative_db: pa.Array) -> pa.Array:
    """Name a loudness only where it is worth mentioning.

    Args:
        relative_db: N numbers in dB; NULL, NaN and infinities mean unknown.

    Returns:
        N strings: "quiet" or "loud"; NULL for ordinary or unknown loudness.
    """
    low, high = VOLUME_EDGES_DB
    return _binned(relative_db, low, "quiet", high, "loud", None)


def _binned(numbers: pa.Array, low: float, below: str, high: float, above: str, between: str | None) -> pa.Array:
    # float32 values are compared as float32: -16.4 as published must equal the edge, not lie 4e-7 above it.
    kind = numbers.type if pa.types.is_floating(numbers.type) else pa.float64()
    values = numbers.cast(kind)
    values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, kind))
    low_edge, high_edge = pa.scalar(low).cast(kind, safe=False), pa.scalar(high).cast(kind, safe=False)
    middle = pc.if_else(pc.is_valid(values), pa.scalar(between, pa.string()), pa.scalar(None, pa.string()))
    return pc.if_else(
        pc.fill_null(pc.less(values, low_edge), False),
        pa.scalar(below),
        pc.if_else(pc.fill_null(pc.greater(values, high_edge), False), pa.scalar(above), middle),
    )
