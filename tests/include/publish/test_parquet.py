"""Shards: the corpus's bytes unchanged and stored once, cuts, left-out clips, and what is refused."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from include.modes import MODES
from include.publish.manifest import ReleaseError
from include.publish.parquet import SourceFiles, WrittenSplit, write_source
from include.publish.record import PUBLISHED_SCHEMA
from tests.include.publish.clip_corpus import AUDIO_FILE, Corpus, wav


def write_all(directory: Path, corpus: Corpus, **limits: int) -> SourceFiles:
    return write_source(directory, corpus.source, corpus.rows(), corpus.audio, **limits)


def write(directory: Path, corpus: Corpus, **limits: int) -> WrittenSplit:
    """Write a corpus of which nothing is held out."""
    (split,) = write_all(directory, corpus, **limits).splits.values()
    return split


def read(directory: Path, written: WrittenSplit) -> pa.Table:
    return pa.concat_tables(pq.read_table(directory / file.name) for file in written.files)


def published_clips(directory: Path, written: WrittenSplit) -> list[bytes]:
    return [row["bytes"] for row in read(directory, written)["audio"].to_pylist()]


def test_rows_come_out_in_order_with_their_own_clip(tmp_path: Path, make_corpus) -> None:
    corpus = make_corpus("ravdess", 7, clips_per_row_group=3)
    written = write(tmp_path, corpus)
    table = read(tmp_path, written)
    assert table["sample_id"].to_pylist() == corpus.table()["sample_id"].to_pylist()
    assert table["mode"].to_pylist() == list(MODES) * 7
    assert published_clips(tmp_path, written) == [clip for clip in corpus.clips for _ in MODES]
    assert table["audio"].to_pylist()[3]["path"] == "clip_1.wav"
    assert corpus.asked_for == [0, 1, 2], "each row group of the corpus is read once"


def test_counts_and_hashes_are_those_of_the_files(tmp_path: Path, make_corpus) -> None:
    written = write(tmp_path, make_corpus("ravdess", 5))
    assert written.rows_by_mode == dict.fromkeys(MODES, 5)
    assert written.clips == 5
    for file in written.files:
        content = (tmp_path / file.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
        assert pq.read_metadata(tmp_path / file.name).num_rows == file.rows
    assert written.arrow_bytes == pytest.approx(read(tmp_path, written).nbytes, rel=0.02)


def test_files_read_back_with_the_schema_and_in_pandas(tmp_path: Path, make_corpus) -> None:
    corpus = make_corpus("ravdess", 3)
    written = write(tmp_path, corpus)
    path = tmp_path / written.files[0].name
    assert pq.read_schema(path).equals(PUBLISHED_SCHEMA, check_metadata=True)
    frame = pd.read_parquet(path)
    assert list(frame.columns) == PUBLISHED_SCHEMA.names
    assert frame["audio"][4]["bytes"] == corpus.clips[1]
    assert frame["messages"][2][0]["content"].startswith("<audio> Describe")
    samples, rate = sf.read(io.BytesIO(frame["audio"][0]["bytes"]))
    assert (rate, len(samples)) == (16_000, 1_600)


def test_a_clip_is_stored_once_in_its_row_group(tmp_path: Path, make_corpus) -> None:
    clips = [wav(seed, seconds=9.4) for seed in range(12)]
    three_copies = 3 * sum(map(len, clips))
    assert len(clips[0]) > 300_000
    written = write(tmp_path, make_corpus("ravdess", clips), row_group_bytes=1_000_000)
    assert sum(file.bytes for file in written.files) <= 0.4 * three_copies
    metadata = pq.read_metadata(tmp_path / written.files[0].name)
    assert metadata.num_row_groups == 4
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(0)
        assert column.path_in_schema == "audio.bytes"
        assert column.compression == "UNCOMPRESSED"
        assert column.total_compressed_size < 1_001_000
        assert column.statistics is None


def test_repeated_clips_are_stored_once_too(tmp_path: Path, make_corpus) -> None:
    clips = [wav(0), wav(1), wav(0), wav(2), wav(0)]
    written = write(tmp_path, make_corpus("ravdess", clips))
    assert published_clips(tmp_path, written) == [clip for clip in clips for _ in MODES]
    assert written.clips == 5
    content = (tmp_path / written.files[0].name).read_bytes()
    assert [content.count(clip) for clip in clips] == [1] * 5


def test_labels_are_compressed_and_have_statistics(tmp_path: Path, make_corpus) -> None:
    written = write(tmp_path, make_corpus("ravdess", 3))
    group = pq.read_metadata(tmp_path / written.files[0].name).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for name, column in columns.items() if name != "audio.bytes"} == {"ZSTD"}
    assert (columns["mode"].statistics.min, columns["mode"].statistics.max) == ("sift_s", "sit_ssp")
    assert columns["sift_response"].statistics is None


@pytest.mark.parametrize("cut", [1, 2, 5, 1000])
def test_limits_cut_between_clips_and_the_cut_of_tables_leaves_no_trace(tmp_path: Path, make_corpus, cut: int) -> None:
    corpus = make_corpus("ravdess", 11, clips_per_row_group=4, cut=cut)
    size = len(corpus.clips[0])
    written = write(tmp_path, corpus, shard_bytes=12 * size, row_group_bytes=2 * size)
    assert [file.name for file in written.files] == [
        f"train-{number:05d}-of-{len(written.files):05d}.parquet" for number in range(len(written.files))
    ]
    assert len(written.files) > 1
    assert sorted(path.name for path in tmp_path.glob("train*")) == [file.name for file in written.files]
    rows = [
        pq.read_metadata(tmp_path / file.name).row_group(group).num_rows
        for file in written.files
        for group in range(pq.read_metadata(tmp_path / file.name).num_row_groups)
    ]
    assert rows == [6] * 5 + [3]
    assert published_clips(tmp_path, written) == [clip for clip in corpus.clips for _ in MODES]
    corpus.cut = 3
    assert write(tmp_path / "again", corpus, shard_bytes=12 * size, row_group_bytes=2 * size) == written


def test_a_clip_above_the_limit_has_a_row_group_of_its_own(tmp_path: Path, make_corpus) -> None:
    written = write(tmp_path, make_corpus("ravdess", 3), row_group_bytes=10, shard_bytes=10)
    assert [file.rows for file in written.files] == [3, 3, 3]


def test_clips_that_are_not_audio_are_left_out_with_all_their_rows(tmp_path: Path, make_corpus) -> None:
    clips = [wav(0), None, b"", b"<html>404</html>", wav(1), b"RIFF", b"\xff\x00no"]
    source = write_all(tmp_path, make_corpus("ravdess", clips, clips_per_row_group=3))
    assert source.left_out == {"audio missing": 3, "audio empty": 3, "not audio": 9}
    written = source.splits["train"]
    assert (written.rows_by_mode, written.clips) == (dict.fromkeys(MODES, 2), 2)
    assert published_clips(tmp_path, written) == [clips[0]] * 3 + [clips[4]] * 3


@pytest.mark.parametrize(
    "head",
    [
        b"RIFF\x0a\xff\x00\x01WAVE",
        b"fLaC\x00",
        b"OggS\x00",
        b"ID3\x04",
        b"\xff\xfb\x90",
        b"\xff\xe3",
        b"\0\0\0\x20ftypM4A ",
    ],
)
def test_containers_are_told_by_their_first_bytes(tmp_path: Path, make_corpus, head: bytes) -> None:
    written = write_all(tmp_path, make_corpus("ravdess", [head + bytes(60)]))
    assert (written.splits["train"].clips, written.left_out) == (1, {})


def test_a_source_without_usable_clips_writes_nothing(tmp_path: Path, make_corpus) -> None:
    written = write_all(tmp_path / "data", make_corpus("ravdess", [None, b""]))
    assert (written.splits, sum(written.left_out.values())) == ({}, 6)
    assert not (tmp_path / "data").exists()


def test_large_binary_and_missing_structs_are_understood(tmp_path: Path, make_corpus) -> None:
    corpus = make_corpus("ravdess", 2)

    def audio(file: str, row_group: int) -> pa.StructArray:
        column = corpus.audio(file, row_group)
        large = column.field("bytes").cast(pa.large_binary())
        return pa.StructArray.from_arrays(
            [large, column.field("path")], ["bytes", "path"], mask=pa.array([True, False])
        )

    written = write_source(tmp_path, "ravdess", corpus.rows(), audio)
    assert written.left_out == {"audio missing": 3}
    assert published_clips(tmp_path, written.splits["train"]) == [corpus.clips[1]] * 3


def test_samples_with_missing_modes_keep_the_rest(tmp_path: Path, make_corpus) -> None:
    corpus = make_corpus("ravdess", 4)
    table = corpus.table().filter(pa.array([number not in (0, 4, 5) for number in range(12)]))
    source = write_source(tmp_path, "ravdess", iter([table.slice(0, 3), table.slice(3)]), corpus.audio)
    written = source.splits["train"]
    assert Counter(read(tmp_path, written)["mode"].to_pylist()) == written.rows_by_mode
    assert published_clips(tmp_path, written) == [corpus.clips[number] for number in (0, 0, 1, 2, 2, 2, 3, 3, 3)]


@pytest.mark.parametrize("cut", [1, 4, 1000])
def test_held_out_clips_go_into_files_of_their_own_in_one_pass(tmp_path: Path, make_corpus, cut: int) -> None:
    clips = [wav(seed) for seed in range(9)]
    clips[7] = None
    corpus = make_corpus("ravdess", clips, clips_per_row_group=4, cut=cut)
    corpus.held_out = (1, 5, 6, 7)
    source = write_all(tmp_path, corpus, row_group_bytes=2 * len(clips[0]))
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [
        "heldout-00000-of-00001.parquet", "train-00000-of-00001.parquet"
    ]  # fmt: skip
    for split, expected in (("train", (0, 2, 3, 4, 8)), ("heldout", (1, 5, 6))):
        written = source.splits[split]
        assert published_clips(tmp_path, written) == [clips[number] for number in expected for _ in MODES]
        assert (written.clips, written.rows_by_mode) == (len(expected), dict.fromkeys(MODES, len(expected)))
        assert read(tmp_path, written)["mode"].to_pylist() == list(MODES) * len(expected)
    assert source.left_out == {"audio missing": 3}
    assert corpus.asked_for == [0, 1, 2], "each row group of the corpus is read once"


def test_a_row_beyond_its_row_group_is_refused(tmp_path: Path, make_corpus) -> None:
    corpus = make_corpus("ravdess", 2)
    table = corpus.table()
    table = table.set_column(table.column_names.index("audio_row"), "audio_row", pa.array([7] * 6, pa.int32()))
    with pytest.raises(ReleaseError, match=r"ravdess.*row group 0.*2 rows.*ingest"):
        write_source(tmp_path, "ravdess", iter([table]), corpus.audio)


@pytest.mark.parametrize("order", [[3, 4, 5, 0, 1, 2], [0, 1, 2, 6, 7, 8, 3, 4, 5]])
def test_rows_out_of_order_are_refused(tmp_path: Path, make_corpus, order: list[int]) -> None:
    corpus = make_corpus("ravdess", 3)
    table = corpus.table().take(pa.array(order))
    with pytest.raises(ReleaseError, match=rf"{AUDIO_FILE}.*(not ordered|not together)"):
        write_source(tmp_path, "ravdess", iter([table.slice(0, 3), table.slice(3)]), corpus.audio)


def test_an_error_of_the_corpus_is_passed_on(tmp_path: Path, make_corpus) -> None:
    corpus = make_corpus("ravdess", 6)

    def audio(file: str, row_group: int) -> pa.StructArray:
        if row_group == 2:
            raise OSError("connection lost")
        return corpus.audio(file, row_group)

    with pytest.raises(OSError, match="connection lost"):
        write_source(tmp_path, "ravdess", corpus.rows(), audio, row_group_bytes=1)
    assert not list(tmp_path.glob("*.parquet"))


def test_clips_lie_in_the_file_as_they_were_published(tmp_path: Path, make_corpus) -> None:
    """What lets content-addressed storage share them between releases."""
    corpus = make_corpus("ravdess", 10)
    content = (tmp_path / write(tmp_path, corpus).files[0].name).read_bytes()
    assert all(content.count(clip) == 1 for clip in corpus.clips)
