"""Edges of pace and volume, and numbers that are none."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from include.normalize.bins import pace_labels, volume_labels

NO_NUMBERS = [None, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_pace_edges_are_normal(kind: pa.DataType) -> None:
    column = pa.array([5.99, 6.0, 7.5, 9.0, 9.01, *NO_NUMBERS], kind)
    assert pace_labels(column).to_pylist() == ["slow", "normal", "normal", "normal", "fast", None, None, None, None]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_volume_edges_are_ordinary(kind: pa.DataType) -> None:
    column = pa.array([-16.5, -16.4, -13.0, -10.0, -9.9, *NO_NUMBERS], kind)
    assert volume_labels(column).to_pylist() == ["quiet", None, None, None, "loud", None, None, None, None]


def test_integers_and_empty_columns() -> None:
    assert pace_labels(pa.array([5, 7, 12])).to_pylist() == ["slow", "normal", "fast"]
    assert pace_labels(pa.array([], pa.float32())).to_pylist() == []
