"""Corpora made to break in, or to break things: each is refused with a reason, in bounded memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from include import ingest
from include.modes import MODES
from include.sources import reader as reader_module
from include.sources.corpus import SourceError, resolve_corpus
from include.sources.reader import audio_reader, read_metadata
from include.sources.recipe import MOST_KEY_BYTES, MOST_LABEL_BYTES, MOST_TEXT_BYTES, accent, first_answer, verbatim
from include.storage.staging import list_unmapped
from include.storage.warehouse import Warehouse
from tests.include.sources.corpus_files import TOY, TOY_SCHEMA, toy_row, write_corpus
from tests.include.sources.hostile_files import MIB, peak_mib, repeated, rewritten, varint, write_toy

MOST_MIB = 1024
"""What reading any file may take: several times the limits of the reader, far below what the files stand for."""

# The loader asks for the code of a recipe, so it has the name of one.
LOADED = replace(TOY, name="ravdess", max_reject_share=1.0)
SPOKEN = replace(LOADED, fields={**TOY.fields, "speaker": verbatim("speaker"), "accent": accent("accent")})
SPOKEN_SCHEMA = TOY_SCHEMA.append(pa.field("speaker", pa.string())).append(pa.field("accent", pa.string()))
STAGE = """
corpus = resolve_corpus(TOY, sys.argv[1])
rows, rejected = 0, {}
for file in corpus.files:
    for batch in read_metadata(corpus, file, TOY):
        staged = TOY.stage(batch)
        rows += len(batch)
        for entry in staged.table.column("reject_reason").value_counts().to_pylist():
            rejected[entry["values"]] = rejected.get(entry["values"], 0) + entry["counts"]
print(rows, rejected)
"""
REFUSED = """
try:
    {code}
except SourceError as error:
    print(error)
"""


def read_all(hub: Path) -> pa.Table:
    corpus = resolve_corpus(TOY, str(hub))
    return pa.concat_tables(table for file in corpus.files for table in read_metadata(corpus, file, TOY))


def load(warehouse: Warehouse, hub: Path, recipe: Any = SPOKEN) -> dict[str, Any]:
    groups = ingest.resolve_revision(recipe, str(hub), warehouse, run_id="1")
    merged = ingest.merge_groups(recipe, [ingest.load_group(recipe, group, warehouse) for group in groups], warehouse)
    ingest.count_samples(recipe, list(MODES), 3, warehouse)
    assert ingest.describe_load(recipe, merged, warehouse)
    return merged


def samples(warehouse: Warehouse) -> dict[str, dict[str, Any]]:
    with warehouse.connection() as connection:
        rows = connection.execute("select * from staging.samples").fetchall()
    return {row["sample_id"].partition("/")[2]: row for row in rows}


# Bombs ---------------------------------------------------------------------------------------------------------------


def test_a_value_that_a_million_rows_repeat_is_read_piece_by_piece(tmp_path: Path) -> None:
    file = write_toy(tmp_path, {"emotion": repeated("x" * 64_000, 60_000)}, rows=60_000)
    assert file.stat().st_size < 200_000  # for 4 GB
    grown, said = peak_mib(STAGE, str(tmp_path))
    assert said == "60000 {'label too long': 60000}"
    assert grown < MOST_MIB


@pytest.mark.slow
def test_transcripts_of_a_gigabyte_are_refused_before_they_are_decompressed(tmp_path: Path) -> None:
    write = """
text = pa.array(["x" * (1 << 30)])
write_toy(pathlib.Path(sys.argv[1]), {"transcription": text}, rows=1, use_dictionary=False, write_statistics=False)
"""
    peak_mib("import pathlib\n" + write, str(tmp_path))  # its gigabytes go with its process
    file = tmp_path / "org/toy/data/train-00000-of-00001.parquet"
    assert file.stat().st_size < MIB
    grown, said = peak_mib(REFUSED.format(code=STAGE.replace("\n", "\n    ").strip()), str(tmp_path))
    assert "row group 0 of data/train-00000-of-00001.parquet holds 1,024 MiB in the columns that are read" in said
    assert "leave the source out" in said
    assert grown < 300


@pytest.mark.parametrize("use_dictionary", [False, True])
def test_a_footer_that_lies_is_found_out_by_the_pages(tmp_path: Path, use_dictionary: bool) -> None:
    big = 280 * MIB
    peak_mib(
        "import pathlib\nwrite_toy(pathlib.Path(sys.argv[1]), {'transcription': pa.array(['x' * "
        f"{big}])}}, rows=1, use_dictionary={use_dictionary}, write_statistics=False)",
        str(tmp_path),
    )
    file = tmp_path / "org/toy/data/train-00000-of-00001.parquet"
    metadata = pq.read_metadata(file)
    declared = next(
        metadata.row_group(0).column(index).total_uncompressed_size
        for index in range(metadata.num_columns)
        if metadata.row_group(0).column(index).path_in_schema == "transcription"
    )
    content = file.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    said = varint(declared)
    assert content.count(said, footer) >= 1
    small = varint(1 << 27)  # as long as the number in its place, and within the limit
    assert len(small) == len(said)
    file.write_bytes(content[:footer] + content[footer:].replace(said, small[:-1] + b"\x01"))
    grown, answer = peak_mib(REFUSED.format(code=STAGE.replace("\n", "\n    ").strip()), str(tmp_path))
    assert "column 'transcription' decompresses to" in answer and "leave the source out" in answer
    assert grown < 300


def test_rows_by_the_billion_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path, [toy_row(number) for number in range(9)])
    monkeypatch.setattr(reader_module, "MOST_FILE_ROWS", 8)
    with pytest.raises(SourceError, match=r"train-00000-of-00001.parquet says that it has 9 rows \(most: 8\)"):
        read_all(tmp_path)


def test_many_equal_rows_in_one_row_group_take_little_memory(tmp_path: Path) -> None:
    write_toy(tmp_path, rows=1_000_000)
    grown, said = peak_mib(STAGE, str(tmp_path))
    assert said.startswith("1000000 ")
    assert grown < MOST_MIB


def test_a_footer_is_no_place_for_megabytes(tmp_path: Path) -> None:
    file = write_toy(tmp_path)
    with file.open("r+b") as handle:
        handle.truncate(200 * MIB)  # sparse
        handle.seek(-8, 2)
        handle.write((100 * MIB).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(SourceError, match="has a footer of 100 MiB, which no sound file has"):
        resolve_corpus(TOY, str(tmp_path))


def test_a_list_that_repeats_a_long_answer_is_refused(tmp_path: Path) -> None:
    recipe = replace(TOY, task="answer", fields={**TOY.fields, "answer": first_answer("answers")})
    rows = 50_000
    answers = pa.ListArray.from_arrays(
        pa.array([0, rows, *[rows] * 3], pa.int32()),
        pa.StructArray.from_arrays([repeated("y" * 20_000, rows)], ["text"]),
    )
    file = write_toy(tmp_path)
    table = pq.read_table(file).append_column("answers", answers)
    pq.write_table(table, file, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 30)
    corpus = resolve_corpus(recipe, str(tmp_path))
    with pytest.raises(SourceError, match=r"holds 953 MiB of answers, too much to read at once"):
        list(read_metadata(corpus, corpus.files[0], recipe))


def test_a_clip_that_many_rows_repeat_is_refused_by_whoever_reads_audio(tmp_path: Path) -> None:
    rows = 2_000
    clip = b"RIFF\0\0\0\0WAVE" + bytes(MIB)
    file = write_toy(tmp_path, rows=rows)
    table = pq.read_table(file)
    audio = pa.StructArray.from_arrays([repeated(clip, rows), repeated("a.wav", rows)], ["bytes", "path"])
    table = table.set_column(table.schema.get_field_index("audio"), "audio", audio)
    pq.write_table(
        table, file, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 30, row_group_size=rows
    )
    assert file.stat().st_size < MIB  # for 2 GB
    read = "audio_reader(resolve_corpus(TOY, sys.argv[1]))('data/train-00000-of-00001.parquet', 0)"
    grown, said = peak_mib(REFUSED.format(code=read), str(tmp_path))
    assert "MiB of audio, too much to read at once (most: 512 MiB)" in said
    assert grown < MOST_MIB


def test_a_long_clip_among_short_ones_in_a_dictionary_is_read(tmp_path: Path) -> None:
    clips = [b"RIFF\0\0\0\0WAVE" + bytes([number]) * 99 for number in range(200)]
    clips[7] += bytes(8 * MIB)  # for a bound by the largest clip, 200 of these would be too many
    rows = [toy_row(number, audio={"bytes": clip, "path": f"{number}.wav"}) for number, clip in enumerate(clips)]
    write_corpus(tmp_path, rows, row_group_size=500)
    read = audio_reader(resolve_corpus(TOY, str(tmp_path)))("data/train-00000-of-00001.parquet", 0)
    assert read.field("bytes").to_pylist() == clips


def shared_beginnings(hub: Path, column: str, values: pa.Array) -> Path:
    """A file in which each value of a column is told by what it shares with the one before it."""
    return write_toy(
        hub,
        {column.partition(".")[0]: values},
        rows=len(values),
        use_dictionary=False,
        column_encoding={column: "DELTA_BYTE_ARRAY"},
        write_statistics=False,
    )


def test_values_that_share_their_beginning_are_read_piece_by_piece(tmp_path: Path) -> None:
    rows = 130
    file = shared_beginnings(tmp_path, "transcription", repeated("x" * MIB, rows).dictionary_decode())
    assert file.stat().st_size < 10_000  # for 130 MiB
    opened = reader_module._OpenedFile("toy", file.name, file.open("rb"))
    sizes = [(len(batch), batch.nbytes) for batch in opened.batches([0], TOY)]
    opened.close()
    assert sum(count for count, _ in sizes) == rows
    assert max(size for _, size in sizes) <= reader_module.MOST_BATCH_BYTES


def test_texts_as_other_writers_code_them_are_read(tmp_path: Path) -> None:
    texts = [f"Sentence number {number}." for number in range(5_000)]
    shared_beginnings(tmp_path, "transcription", pa.array(texts))
    assert read_all(tmp_path).column("transcription").to_pylist() == texts


def test_clips_that_share_their_beginning_are_counted_as_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 20
    clips = repeated(b"RIFF\0\0\0\0WAVE" + bytes(MIB), rows).dictionary_decode()
    audio = pa.StructArray.from_arrays([clips, pa.array(["a.wav"] * rows)], ["bytes", "path"])
    shared_beginnings(tmp_path, "audio.bytes", audio)
    read = audio_reader(resolve_corpus(TOY, str(tmp_path)))
    assert read("data/train-00000-of-00001.parquet", 0).equals(audio)
    monkeypatch.setattr(reader_module, "MOST_ROW_GROUP_BYTES", 8 * MIB)
    with pytest.raises(SourceError, match="MiB of audio, too much to read at once"):
        read("data/train-00000-of-00001.parquet", 0)


def test_clips_are_not_fetched_if_they_are_stored_in_more_bytes_than_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [toy_row(0, audio={"bytes": b"RIFF\0\0\0\0WAVE" + bytes(2 * MIB), "path": "0.wav"})]
    table = pa.Table.from_pylist(rows, schema=TOY_SCHEMA)
    file = write_toy(tmp_path, {"audio": table.column("audio")}, rows=1, compression="none", use_dictionary=False)
    size = varint(pq.read_metadata(file).row_group(0).column(1).total_uncompressed_size)
    small = varint(1 << 20)[:-1] + b"\x01"  # as long as the number in its place
    assert len(small) == len(size)
    rewritten(file, b"\x16" + size + b"\x16" + size, b"\x16" + small + b"\x16" + size)  # unpacked, as stored
    monkeypatch.setattr(reader_module, "MOST_ROW_GROUP_BYTES", 3 * MIB // 2)
    monkeypatch.setattr(reader_module.CheckedFile, "fetch", lambda *_: pytest.fail("it was fetched"))
    with pytest.raises(SourceError, match="holds 2 MiB of audio, too much to read at once"):
        audio_reader(resolve_corpus(TOY, str(tmp_path)))("data/train-00000-of-00001.parquet", 0)


def test_clips_of_a_fixed_length_are_refused(tmp_path: Path) -> None:
    rows = 300
    clips = pa.nulls(rows, pa.binary(MIB))
    audio = pa.StructArray.from_arrays([clips, pa.array(["a.wav"] * rows)], ["bytes", "path"])
    file = write_toy(tmp_path, {"audio": audio}, rows=rows)
    assert file.stat().st_size < 10_000  # for 300 MiB
    with pytest.raises(SourceError, match=r"each value of column 'audio.bytes', nulls too, 1,048,576 bytes"):
        audio_reader(resolve_corpus(TOY, str(tmp_path)))("data/train-00000-of-00001.parquet", 0)


@pytest.mark.parametrize("at", range(4, 40, 3))
def test_damaged_page_headers_are_errors_of_the_source(tmp_path: Path, at: int) -> None:
    file = write_toy(tmp_path, compression="none")
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)
    corpus = resolve_corpus(TOY, str(tmp_path))
    try:
        list(read_metadata(corpus, corpus.files[0], TOY))
    except SourceError as error:
        assert "toy: cannot read data/train-00000-of-00001.parquet" in str(error)


# Text ----------------------------------------------------------------------------------------------------------------


def invalid(*values: bytes) -> pa.Array:
    """Strings that are no UTF-8, as a careless writer makes them."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize("column", ["file", "transcription", "emotion", "speaker", "accent"])
@pytest.mark.parametrize(
    "value", [b"caf\xe9", b"\xed\xa0\x80", b"\xff\xfe", b"\xf0\x9f"], ids=["latin-1", "surrogate", "ff", "cut"]
)
def test_a_row_with_invalid_utf8_is_rejected(warehouse: Warehouse, tmp_path: Path, column: str, value: bytes) -> None:
    rows = [toy_row(number, speaker="s", accent="a") for number in range(3)]
    write_corpus(tmp_path, rows, schema=SPOKEN_SCHEMA)
    (file,) = (tmp_path / "org/toy/data").glob("*.parquet")
    table = pq.read_table(file)
    broken = invalid(value, *(str(row[column]).encode() for row in rows[1:]))
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, broken), file)
    assert load(warehouse, tmp_path)["rejected"] == {"invalid UTF-8": 1}
    assert set(samples(warehouse)) == {"001.wav", "002.wav"}


@pytest.mark.parametrize(
    ("column", "most", "reason"),
    [
        ("file", MOST_KEY_BYTES, "key too long"),
        ("transcription", MOST_TEXT_BYTES, "text too long"),
        ("emotion", MOST_LABEL_BYTES, "label too long"),
        ("speaker", MOST_LABEL_BYTES, "label too long"),
        ("accent", MOST_LABEL_BYTES, "label too long"),
    ],
)
def test_what_is_too_long_is_rejected_and_not_kept(
    warehouse: Warehouse, tmp_path: Path, column: str, most: int, reason: str
) -> None:
    # Of what does not compress: PostgreSQL's index has to take the longest key.
    words = "".join(chr(0x4E00 + (number * 7919) % 20_000) for number in range(most))
    longest = words.encode()[:most].decode(errors="ignore")
    rows = [
        toy_row(0, **{column: longest}),
        toy_row(1, **{column: longest + "xxx"}),
        toy_row(2, **{column: "z" * 5 * most}),
    ]
    write_corpus(tmp_path, [{"speaker": "s", "accent": "a", **row} for row in rows], schema=SPOKEN_SCHEMA)
    assert load(warehouse, tmp_path)["rejected"] == {reason: 2}
    assert len(samples(warehouse)) == 1
    with warehouse.connection() as connection:
        kept = connection.execute("select max(length(r::text)) as longest from staging.rejects as r").fetchone()
    assert kept and kept["longest"] < 2_000


def test_nul_is_no_reason_to_fail_a_load(warehouse: Warehouse, tmp_path: Path) -> None:
    rows = [
        toy_row(0, transcription="a\0b", emotion="hap\0py", gender="\0x", speaker="s\0t", accent="u\0v"),
        toy_row(1, file="k\0ey", speaker="s", accent="a"),
        toy_row(2, file="line\nend", speaker="\0", accent="\0"),
        toy_row(3, transcription="\0", speaker="s", accent="a"),
    ]
    write_corpus(tmp_path, rows, schema=SPOKEN_SCHEMA)
    merged = load(warehouse, tmp_path)
    assert merged["rejected"] == {"unprintable key": 2, "empty text": 1}
    (sample,) = samples(warehouse).values()
    assert (sample["text"], sample["speaker"], sample["accent"]) == ("a b", "s t", "u v")
    assert (sample["emotion"], sample["gender"]) == ("happy", None)
    assert [row["raw_value"] for row in list_unmapped(warehouse)] == ["x"]


@pytest.mark.parametrize(
    "features",
    [
        '{"info": {"features": {"emotion": {"_type": "ClassLabel", "names": ["\\ud800"]}}}}',
        '{"info": {"features": {"emotion": {"_type": "ClassLabel", "names": 7}}}}',
        '{"info": {"features": {"emotion": {"_type": "ClassLabel"}}}}',
        '{"info": {"features": [1]}}',
        '{"info": 3}',
        "[" * 100_000,
        "not JSON",
    ],
    ids=["surrogate", "number", "none", "list", "info", "deep", "text"],
)
def test_features_that_cannot_be_read_are_an_error_of_the_source(tmp_path: Path, features: str) -> None:
    file = write_toy(tmp_path)
    table = pq.read_table(file).replace_schema_metadata({"huggingface": features})
    pq.write_table(table, file)
    with pytest.raises(SourceError, match=r"toy: .*train-00000-of-00001.parquet declares features"):
        read_all(tmp_path)


def test_class_names_of_any_length_are_cut_and_rejected(warehouse: Warehouse, tmp_path: Path) -> None:
    position = TOY_SCHEMA.get_field_index("emotion")
    schema = TOY_SCHEMA.set(position, pa.field("emotion", pa.int64()))
    rows = [toy_row(number, emotion=number) for number in range(2)]
    write_corpus(tmp_path, rows, schema=schema, class_names={"emotion": ["happy", "x" * MIB]})
    assert load(warehouse, tmp_path, LOADED)["rejected"] == {"label too long": 1}


# Paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../../../etc/passwd.parquet", "/etc/passwd.parquet", "../secret/*.parquet"])
def test_a_card_leads_nowhere_outside_its_folder(tmp_path: Path, path: str) -> None:
    write_corpus(tmp_path, [toy_row(1)])
    (tmp_path / "org/secret").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "org/secret/a.parquet")
    card = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": path}]}]}
    (tmp_path / "org/toy/README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    with pytest.raises(SourceError, match="toy: "):
        resolve_corpus(TOY, str(tmp_path))
