"""A rule about one label, over a column."""

from __future__ import annotations

import pyarrow as pa

from include.normalize.columns import map_labels
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
