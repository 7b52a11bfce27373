"""A rule about one label, over a column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from include.normalize.columns import map_labels, parse_numbers
from include.normalize.labels import canonical_age, canonical_emotion


def test_missing_is_not_unmapped_and_unknown_is_counted() -> None:
    column = pa.array([" Happy", "NaN", "", None, "unknown", "hangry", "hangry", "Calm"])
    result = map_labels(column, lambda label: canonical_emotion(label, also={"calm": None}))
    assert result.values.to_pylist() == ["happy", None, None, None, None, None, None, None]
    assert result.unmapped == {"hangry": 2}
    assert result.left_out == {"calm": 1}


def test_numbers_are_labels_too() -> None:
    assert map_labels(pa.array([25, None, 70]), canonical_age).values.to_pylist() == ["young adult", None, "senior"]


def test_each_distinct_label_is_looked_at_once() -> None:
    seen: list[str] = []
    map_labels(pa.array(["a", "b", "a"] * 1000), lambda label: seen.append(label) or label)
    assert sorted(seen) == ["a", "b"]


@pytest.mark.parametrize(
    ("column", "numbers", "unmapped"),
    [
        (pa.array([7, 2**53 + 1, -(2**63)]), [7.0, 2.0**53, None], {"-9.223372036854775808e+18": 1}),
        (pa.array([2**64 - 1, None], pa.uint64()), [2.0**64, None], {}),
        (pa.array([np.float16(7.5), np.float16("inf"), np.float16("nan"), None]), [7.5, None, None, None], {"inf": 1}),
        (pa.array([1e300, 3e38, float("-inf")]), [None, 3e38, None], {"1e+300": 1, "-inf": 1}),
        (pa.array(["1e300", "7", str(2**70)]), [None, 7.0, 2.0**70], {"1e+300": 1}),
    ],
    ids=["int64", "uint64", "float16", "float64", "text"],
)
def test_numbers_of_every_width_are_read(
    column: pa.Array, numbers: list[float | None], unmapped: dict[str, int]
) -> None:
    parsed = parse_numbers(column, above=0.0)
    assert parsed.values.to_pylist() == numbers
    assert {float(label): rows for label, rows in parsed.unmapped.items()} == {
        float(label): rows for label, rows in unmapped.items()
    }
