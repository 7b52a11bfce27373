"""Six real corpora with one fault each (see their README): how each of them ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from include import ingest
from include.publish.parquet import write_source
from include.sources import RECIPES
from include.sources.corpus import SourceError, resolve_corpus
from include.sources.reader import audio_reader
from include.storage.releases import PUBLISHED_ROWS_SCHEMA
from include.storage.staging import list_rejects, list_unmapped
from include.storage.warehouse import Warehouse


@pytest.fixture
def broken(shared_data: Path) -> str:
    return str(shared_data / "hub_broken")


def run(source: str, hub: str, warehouse: Warehouse) -> dict[str, Any]:
    recipe = RECIPES[source]
    groups = ingest.resolve_revision(recipe, hub, warehouse, run_id="1")
    loads = [ingest.load_group(recipe, group, warehouse) for group in groups]
    return ingest.merge_groups(recipe, loads, warehouse)


def staged(warehouse: Warehouse, source: str) -> dict[str, dict[str, Any]]:
    with warehouse.connection() as connection:
        rows = connection.execute("select * from staging.samples where source = %s", [source]).fetchall()
    return {row["sample_id"]: row for row in rows}


def test_a_missing_column_is_named_and_nothing_is_staged(broken: str, warehouse: Warehouse) -> None:
    with pytest.raises(SourceError, match=r"crema_d: data/.*\.parquet has no column 'transcription'"):
        run("crema_d", broken, warehouse)
    assert staged(warehouse, "crema_d") == {}


def test_a_truncated_file_stops_the_run_before_the_whole_one_is_read(broken: str, warehouse: Warehouse) -> None:
    with pytest.raises(SourceError, match=r"train-00001-of-00002\.parquet is not a whole Parquet file"):
        run("ravdess", broken, warehouse)
    assert staged(warehouse, "ravdess") == {}


def test_an_emotion_that_nobody_knows_is_null_counted_and_reported(broken: str, warehouse: Warehouse) -> None:
    load = run("savee", broken, warehouse)
    assert load["staged"] == load["read"] == 24
    rows = staged(warehouse, "savee")
    for name in ("JE_h09.wav", "JE_f03.wav", "DC_h15.wav"):
        assert rows[f"savee/{name}"]["emotion"] is None
        assert rows[f"savee/{name}"]["raw"]["emotion"] == "hangry"
    assert [(row["field"], row["raw_value"], row["count"]) for row in list_unmapped(warehouse)] == [
        ("emotion", "hangry", 3)
    ]
    assert "WARNING emotion: no rule knows 'hangry' 3" in ingest.describe_load(RECIPES["savee"], load, warehouse)


def test_duplicates_keep_the_first_copy_whatever_the_later_one_says(broken: str, warehouse: Warehouse) -> None:
    load = run("esd", broken, warehouse)
    assert load["rejected"] == {"duplicate key": 4}
    assert load["staged"] == 30
    rejected = {row["sample_id"]: row["audio_file"] for row in list_rejects(warehouse, "esd")}
    assert set(rejected) == {f"esd/{name}.wav" for name in ("0011_000542", "0011_000910", "0013_000810", "0015_000346")}
    rows = staged(warehouse, "esd")
    assert all(rows[sample]["audio_file"] < file for sample, file in rejected.items())


def test_integer_labels_follow_the_names_that_the_file_declares(
    broken: str, shared_data: Path, warehouse: Warehouse
) -> None:
    load = run("meld", broken, warehouse)
    assert load["unmapped"] == {"emotion": {"-1": 2, "7": 2}}
    read_wrong = {"dia922_utt3.flac", "dia988_utt7.flac", "dia468_utt9.flac", "dia688_utt0.flac"}
    rows = staged(warehouse, "meld")
    assert {row["sample_id"].partition("/")[2] for row in rows.values() if row["emotion"] is None} == read_wrong
    with warehouse.connection() as connection:
        connection.execute("truncate staging.samples, staging.loads")
    run("meld", str(shared_data / "hub"), warehouse)
    sound = staged(warehouse, "meld")
    both = [name for name in rows if name in sound and rows[name]["emotion"]]
    assert both and all(rows[name]["emotion"] == sound[name]["emotion"] for name in both)


def test_clips_that_are_no_audio_are_staged_and_left_out_of_a_release(
    broken: str, warehouse: Warehouse, tmp_path: Path
) -> None:
    assert run("tess", broken, warehouse)["staged"] == 24
    order = ("audio_file", "audio_row_group", "audio_row")
    rows = sorted(staged(warehouse, "tess").values(), key=lambda row: [row[name] for name in order])
    answered = [{**row, "held_out": False, "task": "sift", "mode": "sift_s", "response": "All right."} for row in rows]
    table = pa.Table.from_pylist(answered, schema=PUBLISHED_ROWS_SCHEMA)
    reader = audio_reader(resolve_corpus(RECIPES["tess"], broken))
    written = write_source(tmp_path / "tess", "tess", iter([table]), reader)
    assert written.left_out == {"audio empty": 1, "audio missing": 1, "not audio": 2, "audio cut off": 1}
    assert written.splits["train"].rows_by_mode == {"sift_s": 19}
