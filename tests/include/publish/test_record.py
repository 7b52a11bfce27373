"""Records: columns, missing values, the chat, and what `datasets` makes of the schema."""

from __future__ import annotations

import pyarrow as pa
import pytest
from datasets import Audio, Features

from include.modes import MODES
from include.publish.record import (
    PUBLISHED_SCHEMA,
    build_records,
    card_features,
    file_names,
    modes_or_tasks,
    published_features,
)


@pytest.fixture
def rows(make_corpus) -> pa.Table:
    return make_corpus("ravdess", 2).table()


def audio(count: int) -> pa.StructArray:
    return pa.array([{"bytes": b"clip", "path": "a.wav"}] * count, PUBLISHED_SCHEMA.field("audio").type)


def test_columns_are_those_of_the_schema_in_its_order(rows: pa.Table) -> None:
    assert build_records(rows, audio(len(rows))).schema.equals(PUBLISHED_SCHEMA)
    assert " ".join(PUBLISHED_SCHEMA.names) == (
        "audio text emotion gender age pace accent volume mode sift_response source_dataset "
        "sample_id task instruction messages"
    )


def test_rows_keep_their_order_and_missing_values_become_empty(rows: pa.Table) -> None:
    records = build_records(rows, audio(len(rows))).to_pylist()
    assert [record["mode"] for record in records] == [*MODES, *MODES]
    assert [record["sift_response"] for record in records] == rows["response"].to_pylist()
    assert {record["source_dataset"] for record in records} == {"ravdess"}
    assert {record["task"] for record in records} == {"sift"}
    assert [record["emotion"] for record in records] == ["happy"] * 3 + [""] * 3
    assert {record["age"] for record in records} == {""}


def test_messages_ask_as_the_trainer_does_with_one_placeholder(rows: pa.Table) -> None:
    records = {record["mode"]: record for record in build_records(rows, audio(len(rows))).to_pylist()}
    assert records["sift_s"]["messages"] == [
        {"role": "user", "content": "<audio>"},
        {"role": "assistant", "content": "sift_s answers clip 1"},
    ]
    assert records["sift_s"]["instruction"] == ""
    assert records["sit_ssp"]["instruction"] == "Describe all information you can hear: "
    assert records["sit_ssp"]["messages"][0]["content"] == "<audio> Describe all information you can hear: "


def test_slices_and_empty_tables_are_built(rows: pa.Table) -> None:
    whole = build_records(rows, audio(len(rows)))
    assert build_records(rows.slice(2, 3), audio(3)).equals(whole.slice(2, 3))
    assert build_records(rows.slice(0, 0), audio(0)).num_rows == 0


def without_modes(rows: pa.Table, task: str) -> pa.Table:
    """The same rows as those of a task that has no modes."""
    for name, value in (("task", task), ("mode", "")):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array([value] * len(rows)))
    return rows


@pytest.mark.parametrize(
    ("task", "instruction", "asked"),
    [("transcribe", "Transcribe: ", "<audio> Transcribe: "), ("answer", "", "<audio>")],
)
def test_tasks_without_modes_ask_as_the_trainer_does(rows: pa.Table, task: str, instruction: str, asked: str) -> None:
    for record in build_records(without_modes(rows, task), audio(len(rows))).to_pylist():
        assert (record["task"], record["mode"], record["instruction"]) == (task, "", instruction)
        assert record["messages"][0] == {"role": "user", "content": asked}
        assert record["messages"][1] == {"role": "assistant", "content": record["sift_response"]}


def test_rows_are_counted_by_mode_or_by_task(rows: pa.Table) -> None:
    assert modes_or_tasks(rows).to_pylist() == [*MODES, *MODES]
    assert modes_or_tasks(without_modes(rows, "answer")).to_pylist() == ["answer"] * len(rows)


def test_a_row_of_sift_without_a_mode_is_refused(rows: pa.Table) -> None:
    with pytest.raises(ValueError, match="sift"):
        build_records(without_modes(rows, "sift"), audio(len(rows)))


def test_unknown_mode_is_refused_by_name(rows: pa.Table) -> None:
    wrong = rows.set_column(rows.column_names.index("mode"), "mode", pa.array(["shout"] * len(rows)))
    with pytest.raises(ValueError, match="shout"):
        build_records(wrong, audio(len(rows)))


def test_every_description_of_the_features_is_the_same() -> None:
    features = published_features()
    assert features["audio"] == Audio(sampling_rate=16_000)
    assert features.arrow_schema.equals(PUBLISHED_SCHEMA)
    assert Features.from_arrow_schema(PUBLISHED_SCHEMA) == features
    assert Features._from_yaml_list(card_features()) == features
    assert features._to_yaml_list() == card_features()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"03-01-06-01-11-01-09.wav", "03-01-06-01-11-01-09.wav"),
        ("clips/café 1.mp3".encode(), "café 1.mp3"),
        (b"../../etc/passwd", "passwd"),
        (b"/etc/passwd", "passwd"),
        (b"C:\\windows\\clip.wav", "clip.wav"),
        (b"..", None),
        (b"/", None),
        (b"", None),
        (None, None),
        (b".bashrc", "bashrc"),
        (b"a\0b\n.wav", "a_b_.wav"),
        (b'"><script>alert(1)<', "___script_alert(1)_"),
        (b"$(rm -rf ~)`id`;.wav", "_(rm -rf ~)_id__.wav"),
        (b"caf\xe9.wav", "caf\ufffd.wav"),
        (b"x" * 100_000 + b".wav", "x" * 196 + ".wav"),
    ],
)
def test_a_clip_s_path_names_a_file_and_leads_nowhere(path: bytes | None, name: str | None) -> None:
    assert file_names(pa.array([path], pa.binary()).view(pa.string())).to_pylist() == [name]
