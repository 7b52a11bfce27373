"""Gates: what each measures, what fails it, and that every reason is named."""

from __future__ import annotations

import pytest

from include.publish.gates import given_up, one_generator, require, rows_add_up, unmapped_labels
from include.publish.manifest import FileEntry, ReleaseError, SourceEntry, SplitEntry
from include.schema import BadInputError


def entry(accepted: int, **rows: int) -> SourceEntry:
    """A source with so many rows in its splits, and one left out."""
    file = FileEntry(path="data/x/train-00000-of-00001.parquet", rows=1, bytes=1, sha256="a" * 64)
    return SourceEntry(
        fingerprint="f",
        revision="r",
        licence="x",
        redistributable=True,
        task="answer",
        accepted=accepted,
        modes={},
        prompts={},
        generator=None,
        splits={
            split: SplitEntry(rows_by_mode={"answer": count}, clips=1, arrow_bytes=1, files=(file,))
            for split, count in rows.items()
        },
        left_out={"not audio": 1},
    )


def test_rows_add_up_over_both_sides_and_what_was_left_out() -> None:
    (gate,) = rows_add_up({"meld": entry(9, train=7, heldout=1), "ami": entry(1)})
    assert gate.passed and gate.measured == "7 + 1 + 2" and gate.limit == "10 accepted rows"


def test_every_source_that_lost_rows_is_named() -> None:
    found = rows_add_up({"meld": entry(10, train=7, heldout=1), "ami": entry(1), "esd": entry(3, train=3)})
    assert [(gate.name.rpartition(", ")[2], gate.measured) for gate in found] == [
        ("meld", "7 + 1 + 1"),
        ("esd", "3 + 0 + 1"),
    ]
    with pytest.raises(ReleaseError, match=r"r9 is not promoted; .*meld: 7 \+ 1 \+ 1 .*10 accepted.*; .*esd: 3 \+ 0"):
        require(found, "r9")


def test_one_model_and_one_hash_a_mode_pass() -> None:
    found = one_generator({"meld": {"sift_s": "a" * 64}, "ami": {}}, {"meld": "m@1", "ami": None}, {})
    assert [(gate.name, gate.measured) for gate in found] == [
        ("model and revision", "m@1"),
        ("mode hash, sift_s", "a" * 12),
    ]
    require(found, "r1")


def test_another_model_or_hash_is_refused_also_in_a_part_that_is_kept() -> None:
    modes = {"meld": {"sift_s": "a" * 64}, "esd": {"sift_s": "b" * 64}}
    found = one_generator(modes, {"meld": "m@1", "esd": "m@2"}, {"meld": "not complete"})
    assert [gate.passed for gate in found] == [False, False]
    with pytest.raises(ReleaseError, match=r"m@1 for meld \(kept, not complete\); m@2 for esd.*aaaa.* for meld.*bbbb"):
        require(found, "r1")


def coverage(mode: str, staged: int, missing: int) -> dict[str, object]:
    return {"mode": mode, "staged": staged, "given_up": missing}


def test_samples_given_up_are_counted_by_mode_over_all_sources() -> None:
    rows = [coverage("sift_s", 100, 2), coverage("sift_s", 100, 0), coverage("sit_ssp", 100, 4)]
    found = given_up(rows, {"default": 0.01, "sit_ssp": 0.03})
    assert [(gate.measured, gate.limit, gate.passed) for gate in found] == [
        ("2 of 200 (1.00%)", "1.00%", True),
        ("4 of 100 (4.00%)", "3.00%", False),
    ]
    assert given_up([], {}) == []


def test_a_mode_without_a_limit_is_refused_by_name() -> None:
    with pytest.raises(BadInputError, match="sift_s"):
        given_up([coverage("sift_s", 1, 0)], {"sit_ssp": 0.5})


def test_unknown_labels_are_shares_of_a_sources_rows_by_column() -> None:
    def unmapped(source: str, field: str, value: str, count: int) -> dict[str, object]:
        return {"source": source, "field": field, "raw_value": value, "count": count}

    rows = [
        unmapped("meld", "emotion", "grumpy", 3),
        unmapped("meld", "emotion", "hangry", 2),
        unmapped("meld", "gender", "robot", 1),
        unmapped("waiting", "emotion", "x", 99),
    ]
    (gate,) = unmapped_labels(rows, {"meld": 100, "ami": 10}, 0.05)
    assert gate.passed and gate.measured == "at most 5.00% of a source's rows (meld.emotion)"
    (failed,) = unmapped_labels(rows, {"meld": 100, "ami": 10}, 0.04)
    assert not failed.passed
    assert failed.name.endswith("meld.emotion") and "'grumpy' 3, 'hangry' 2" in failed.measured
    assert unmapped_labels([], {"meld": 1}, 0.0)[0].measured == "none"
