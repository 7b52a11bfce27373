"""Corpora in the Hub's layout: files, revisions, locations, and clear errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from include.sources import RECIPES
from include.sources import reader as reader_module
from include.sources.corpus import CorpusFile, SourceError, group_files, resolve_corpus
from include.sources.reader import Place, audio_reader, choose_row_groups, read_clips, read_metadata
from include.sources.recipe import emotion
from tests.include.sources.corpus_files import TOY, TOY_SCHEMA, toy_row, write_corpus


def read_all(hub: Path) -> pa.Table:
    corpus = resolve_corpus(TOY, str(hub))
    return pa.concat_tables(table for file in corpus.files for table in read_metadata(corpus, file, TOY))


def test_every_row_knows_where_its_bytes_lie(tmp_path: Path) -> None:
    write_corpus(tmp_path, [toy_row(n) for n in range(7)], [toy_row(n) for n in range(7, 9)])
    rows = read_all(tmp_path)
    assert rows["audio_row_group"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 0, 0]
    assert rows["audio_row"].to_pylist() == [0, 1, 2, 0, 1, 2, 0, 0, 1]
    read_audio = audio_reader(resolve_corpus(TOY, str(tmp_path)))
    for row in rows.to_pylist():
        clip = read_audio(row["audio_file"], row["audio_row_group"])[row["audio_row"]].as_py()
        assert clip["path"] == row["file"]


def place_of(row: dict) -> Place:
    return Place("any", row["audio_file"], row["audio_row_group"], row["audio_row"], row["blob_id"])


def test_one_clip_is_read_and_those_that_follow_in_its_row_group(tmp_path: Path) -> None:
    write_corpus(tmp_path, [toy_row(n) for n in range(7)])
    rows = read_all(tmp_path).to_pylist()
    read_audio = audio_reader(resolve_corpus(TOY, str(tmp_path)))
    for row in rows:
        whole = read_audio(row["audio_file"], row["audio_row_group"]).to_pylist()[row["audio_row"] :]
        assert read_clips(TOY, str(tmp_path), place_of(row)) == [whole[0]["bytes"]]
        assert read_clips(TOY, str(tmp_path), place_of(row), count=8) == [clip["bytes"] for clip in whole]


def test_a_clip_of_a_file_that_changed_or_is_elsewhere_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, [toy_row(n) for n in range(3)])
    place = place_of(read_all(tmp_path).to_pylist()[0])
    for path in ("../../x.parquet", "/etc/passwd", "data/none.parquet", "."):
        with pytest.raises(SourceError, match="no file"):
            read_clips(TOY, str(tmp_path), replace(place, path=path))
    with pytest.raises(SourceError, match="no row 9 in row group 0"):
        read_clips(TOY, str(tmp_path), replace(place, row=9))
    write_corpus(tmp_path, [toy_row(n, transcription="other words") for n in range(3)])
    with pytest.raises(SourceError, match="changed since it was staged; ingest the source again"):
        read_clips(TOY, str(tmp_path), place)


def test_a_row_group_that_is_too_large_for_one_clip_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, [toy_row(n) for n in range(3)])
    place = place_of(read_all(tmp_path).to_pylist()[0])
    monkeypatch.setattr(reader_module, "MOST_ROW_GROUP_BYTES", 10)
    with pytest.raises(SourceError, match="too much to read at once"):
        read_clips(TOY, str(tmp_path), place)


def test_a_row_group_whose_audio_cannot_be_published_is_not_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {"bytes": b"RIFF" + bytes(2 << 20), "path": "3.wav"}
    write_corpus(tmp_path, [*(toy_row(n) for n in range(3)), toy_row(3, audio=long), toy_row(4, audio=long)])
    monkeypatch.setattr(reader_module, "MOST_ROW_GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(reader_module.CheckedFile, "fetch", lambda *_: pytest.fail("it was fetched"))
    with pytest.raises(SourceError, match=r"toy: row group 1 of data/train-00000-of-00001.parquet holds 2 MiB of aud"):
        read_all(tmp_path)
    # Of a row group that a cap leaves out nothing is read, whatever its size.
    monkeypatch.undo()
    monkeypatch.setattr(reader_module, "MOST_ROW_GROUP_BYTES", 1 << 20)
    corpus = resolve_corpus(TOY, str(tmp_path))
    first = replace(corpus.files[0], row_groups=(0,))
    assert [len(table) for table in read_metadata(corpus, first, TOY)] == [3]


def test_audio_bytes_are_never_read_for_metadata(tmp_path: Path) -> None:
    write_corpus(tmp_path, [toy_row(1)])
    assert "audio" not in read_all(tmp_path).column_names


def test_a_folder_has_one_revision_that_changes_with_its_files(tmp_path: Path) -> None:
    write_corpus(tmp_path, [toy_row(1)])
    first = resolve_corpus(TOY, str(tmp_path))
    assert resolve_corpus(TOY, str(tmp_path)) == first
    write_corpus(tmp_path, [toy_row(1, emotion="sad")])
    assert resolve_corpus(TOY, str(tmp_path)).revision != first.revision


def test_groups_are_balanced_and_hold_every_file_once() -> None:
    files = [CorpusFile(f"{n}.parquet", "train", size, "") for n, size in enumerate([100, 90, 10, 10, 5, 60, 30, 1, 1])]
    groups = group_files(files, 3)
    assert sorted(file.path for group in groups for file in group) == sorted(file.path for file in files)
    sizes = [sum(file.size for file in group) for group in groups]
    assert max(sizes) - min(sizes) <= 30
    assert len(group_files(files[:2], 8)) == 2


def chosen_rows(hub: Path, max_rows: int) -> list[str]:
    corpus = choose_row_groups(resolve_corpus(TOY, str(hub)), max_rows)
    return [row["file"] for f in corpus.files for t in read_metadata(corpus, f, TOY) for row in t.to_pylist()]


def test_a_cap_takes_whole_row_groups_the_same_ones_every_time(tmp_path: Path) -> None:
    rows = [toy_row(n) for n in range(90)]
    write_corpus(tmp_path, rows[:30], rows[30:60], rows[60:], row_group_size=5)
    few, more = chosen_rows(tmp_path, 23), chosen_rows(tmp_path, 50)
    assert (len(few), len(more)) == (20, 50)
    assert set(few) < set(more) and few == chosen_rows(tmp_path, 23)
    assert len(chosen_rows(tmp_path, 1)) == 5  # at least one row group
    assert len(chosen_rows(tmp_path, 90)) == len(chosen_rows(tmp_path, 1000)) == 90
    # Every row still knows where it lies.
    corpus = choose_row_groups(resolve_corpus(TOY, str(tmp_path)), 23)
    assert corpus.rows == 90
    read_audio = audio_reader(corpus)
    for file in corpus.files:
        for row in [row for table in read_metadata(corpus, file, TOY) for row in table.to_pylist()]:
            clip = read_audio(row["audio_file"], row["audio_row_group"])[row["audio_row"]].as_py()
            assert clip["path"] == row["file"]


def test_files_appended_to_a_corpus_leave_most_chosen_rows_chosen(tmp_path: Path) -> None:
    shards = [[toy_row(n) for n in range(start, start + 40)] for start in range(0, 400, 40)]
    write_corpus(tmp_path, *shards[:9], row_group_size=5)
    before = set(chosen_rows(tmp_path, 100))
    write_corpus(tmp_path, *shards, row_group_size=5)
    after = set(chosen_rows(tmp_path, 100))
    assert len(before & after) >= 80


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"toy: no folder org/toy .*SIFT_HUB"):
        resolve_corpus(TOY, str(tmp_path))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    schema = pa.schema([field for field in TOY_SCHEMA if field.name != "transcription"])
    write_corpus(tmp_path, [toy_row(1)], schema=schema)
    with pytest.raises(SourceError, match=r"train-00000-of-00001.parquet has no column 'transcription'"):
        read_all(tmp_path)


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    position = TOY_SCHEMA.get_field_index("speaking_rate")
    schema = TOY_SCHEMA.set(position, pa.field("speaking_rate", pa.bool_()))
    write_corpus(tmp_path, [toy_row(1, speaking_rate=True)], schema=schema)
    with pytest.raises(SourceError, match=r"holds bool in column 'speaking_rate' where the recipe expects number"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    "name, kind, said",
    [
        ("sound", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "the file has .*'sound', .* in .'sound'"),
        ("audio", pa.binary(), r"it holds binary, and clips in \[\]"),
        ("audio", pa.string(), "it holds string"),
        ("audio", pa.struct([("bytes", pa.binary())]), "it holds struct<bytes: binary>"),
        ("audio", pa.struct([("bytes", pa.list_(pa.uint8())), ("path", pa.string())]), "it holds struct<bytes: list"),
    ],
)
def test_clips_that_are_not_where_the_recipe_says_are_missed_before_a_row_is_read(
    tmp_path: Path, name: str, kind: pa.DataType, said: str
) -> None:
    schema = TOY_SCHEMA.set(TOY_SCHEMA.get_field_index("audio"), pa.field(name, kind))
    write_corpus(tmp_path, [{**toy_row(1), "audio": None}], schema=schema)
    where = r"toy: data/train-00000-of-00001.parquet has no clips \(struct of bytes and path\) in column 'audio'"
    with pytest.raises(SourceError, match=rf"{where}.*{said}.*set audio_column in include/sources/toy.py"):
        read_all(tmp_path)


def test_clips_may_have_no_names_and_large_offsets(tmp_path: Path) -> None:
    position = TOY_SCHEMA.get_field_index("audio")
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.null())])
    rows = [{**toy_row(n), "audio": {"bytes": b"RIFF", "path": None}} for n in range(2)]
    write_corpus(tmp_path, rows, schema=TOY_SCHEMA.set(position, pa.field("audio", kind)))
    assert len(read_all(tmp_path)) == 2
    clips = audio_reader(resolve_corpus(TOY, str(tmp_path)))("data/train-00000-of-00001.parquet", 0)
    assert clips.to_pylist() == [{"bytes": b"RIFF", "path": None}] * 2


@pytest.mark.parametrize("keep", [0, 3, 200, -20])
def test_a_truncated_file_is_named_before_anything_is_read(tmp_path: Path, keep: int) -> None:
    folder = write_corpus(tmp_path, [toy_row(n) for n in range(9)], [toy_row(9)])
    file = folder / "data" / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"train-00001-of-00002.parquet is not a whole Parquet file"):
        resolve_corpus(TOY, str(tmp_path))


def test_damage_inside_a_file_is_an_error_of_the_source(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, [toy_row(n) for n in range(500)], row_group_size=500)
    file = folder / "data" / "train-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"toy: cannot read data/train-00000-of-00001.parquet"):
        read_all(tmp_path)


def test_class_numbers_are_named_by_the_file_itself(tmp_path: Path) -> None:
    position = TOY_SCHEMA.get_field_index("emotion")
    schema = TOY_SCHEMA.set(position, pa.field("emotion", pa.int64()))
    rows = [toy_row(n, emotion=n - 1) for n in range(4)]
    write_corpus(tmp_path, rows, schema=schema, class_names={"emotion": ["neutral", "joy"]})
    assert read_all(tmp_path)["emotion"].to_pylist() == ["-1", "neutral", "joy", "2"]


def test_class_numbers_beyond_every_signed_one_have_no_name(tmp_path: Path) -> None:
    position = TOY_SCHEMA.get_field_index("emotion")
    schema = TOY_SCHEMA.set(position, pa.field("emotion", pa.uint64()))
    rows = [toy_row(n, emotion=value) for n, value in enumerate([1, 2**64 - 1, 2**53 + 1, None])]
    write_corpus(tmp_path, rows, schema=schema, class_names={"emotion": ["neutral", "joy"]})
    assert read_all(tmp_path)["emotion"].to_pylist() == ["joy", str(2**64 - 1), str(2**53 + 1), None]


def test_class_names_of_the_recipe_count_where_the_file_declares_none(tmp_path: Path) -> None:
    position = TOY_SCHEMA.get_field_index("emotion")
    schema = TOY_SCHEMA.set(position, pa.field("emotion", pa.int64()))
    write_corpus(tmp_path, [toy_row(n, emotion=n) for n in range(3)], schema=schema)
    named = replace(TOY, fields={**TOY.fields, "emotion": emotion("emotion", class_names=("joy", "fear"))})
    corpus = resolve_corpus(named, str(tmp_path))
    (table,) = read_metadata(corpus, corpus.files[0], named)
    assert table["emotion"].to_pylist() == ["joy", "fear", "2"]


@pytest.mark.parametrize("value", [True, b"happy"])
def test_labels_of_a_strange_type_are_drift(tmp_path: Path, value: object) -> None:
    position = TOY_SCHEMA.get_field_index("emotion")
    schema = TOY_SCHEMA.set(position, pa.field("emotion", pa.scalar(value).type))
    write_corpus(tmp_path, [toy_row(1, emotion=value)], schema=schema)
    with pytest.raises(SourceError, match=r"column 'emotion' where the recipe expects label"):
        read_all(tmp_path)


def test_the_real_corpora_can_be_read(shared_data: Path) -> None:
    for recipe in RECIPES.values():
        corpus = resolve_corpus(recipe, str(shared_data / "hub"))
        rows = sum(len(table) for file in corpus.files for table in read_metadata(corpus, file, recipe))
        assert rows > 30
