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
    assert pace_labels(column).values.to_pylist() == [
        "slow",
        "normal",
        "normal",
        "normal",
        "fast",
        None,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_volume_edges_are_ordinary(kind: pa.DataType) -> None:
    column = pa.array([-16.5, -16.4, -13.0, -10.0, -9.9, *NO_NUMBERS], kind)
    assert volume_labels(column).values.to_pylist() == ["quiet", None, None, None, "loud", None, None, None, None]


def test_integers_and_empty_columns() -> None:
    assert pace_labels(pa.array([5, 7, 12])).values.to_pylist() == ["slow", "normal", "fast"]
    assert pace_labels(pa.array([], pa.float32())).values.to_pylist() == []


def test_numbers_written_as_text_are_numbers() -> None:
    labels = pace_labels(pa.array(["5.5", " 7 ", "nan", "", "fast", None, "inf"]))
    assert labels.values.to_pylist() == ["slow", "normal", None, None, None, None, None]
    assert labels.unmapped == {"fast": 1, "inf": 1}


def test_what_is_no_measurement_is_counted_and_missing_is_not() -> None:
    rates = pace_labels(pa.array([0.0, -1.0, math.nan, None, math.inf, 7.0], pa.float32()))
    assert rates.values.to_pylist() == [None, None, None, None, None, "normal"]
    assert rates.unmapped == {"0.0": 1, "-1.0": 1, "inf": 1}
    silence = volume_labels(pa.array([-math.inf, -math.inf, math.nan, -20.0], pa.float32()))
    assert silence.values.to_pylist() == [None, None, None, "quiet"]
    assert silence.unmapped == {"-inf": 2}
