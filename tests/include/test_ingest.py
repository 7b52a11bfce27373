"""Ingest runs on a real warehouse: counts add up, merges are whole, nothing moves without a reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from psycopg import sql

from include import ingest
from include.schema import BadInputError
from include.sources import RECIPES
from include.sources.corpus import SourceError
from include.sources.recipe import emotion
from include.storage.staging import MergeRefusedError, latest_loads, list_rejects
from include.storage.warehouse import Warehouse
from tests.include.sources.corpus_files import TOY, TOY_SCHEMA, toy_row, write_corpus


@pytest.fixture(autouse=True)
def toy_recipe_has_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "normalising_code_hash", lambda recipe, max_rows: f"code {max_rows}")


def run(hub: Path, warehouse: Warehouse, run_id: str, **options: Any) -> dict[str, Any]:
    groups = ingest.resolve_revision(TOY, str(hub), warehouse, run_id=run_id, **options)
    loads = [ingest.load_group(TOY, group, warehouse) for group in groups]
    return ingest.merge_groups(TOY, loads, warehouse)


def counts(load: dict[str, Any]) -> dict[str, Any]:
    return {name: load[name] for name in ("read", "staged", "unchanged", "changed", "moved", "retired", "rejected")}


def query(warehouse: Warehouse, text: str) -> list[dict[str, Any]]:
    with warehouse.connection() as connection:
        return connection.execute(text).fetchall()


def incoming_tables(warehouse: Warehouse) -> list[str]:
    named = {row["incoming"] for row in query(warehouse, "select incoming from staging.incoming_loads")}
    there = query(warehouse, "select tablename from pg_tables where tablename like 'incoming\\_%'")
    assert {row["tablename"] for row in there} - {"incoming_loads"} == named
    return sorted(named)


def test_a_first_load_stages_every_usable_row(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(1), toy_row(2, transcription="")], [toy_row(3), toy_row(1, emotion="sad")])
    load = run(tmp_path, warehouse, "1")
    assert counts(load) == {
        "read": 4, "staged": 2, "unchanged": 0, "changed": 0, "moved": 0, "retired": 0,
        "rejected": {"empty text": 1, "duplicate key": 1},
    }  # fmt: skip
    staged = query(warehouse, "select sample_id, emotion from staging.samples order by 1")
    assert staged == [
        {"sample_id": "toy/001.wav", "emotion": "happy"},  # the first of the two copies
        {"sample_id": "toy/003.wav", "emotion": "happy"},
    ]
    assert {row["reason"] for row in list_rejects(warehouse, "toy")} == {"empty text", "duplicate key"}
    assert incoming_tables(warehouse) == []
    assert ingest.has_changes(load)


def test_what_changed_is_changed_and_nothing_else(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(1), toy_row(2), toy_row(3)])
    run(tmp_path, warehouse, "1")
    before = query(warehouse, "select sample_id, last_changed from staging.samples where sample_id = 'toy/001.wav'")
    write_corpus(tmp_path, [toy_row(1), toy_row(2, emotion="sad"), toy_row(4)])
    load = run(tmp_path, warehouse, "2")
    assert (load["unchanged"], load["changed"], load["staged"], load["retired"]) == (1, 1, 1, 1)
    after = query(warehouse, "select sample_id, last_changed from staging.samples where sample_id = 'toy/001.wav'")
    assert after == before
    write_corpus(tmp_path, [toy_row(1), toy_row(2, emotion="sad"), toy_row(3), toy_row(4)])
    load = run(tmp_path, warehouse, "3")
    assert (load["unchanged"], load["changed"], load["retired"]) == (3, 1, 0)  # row 3 came back


def test_rows_that_only_moved_are_not_changed_but_found(tmp_path: Path, warehouse: Warehouse) -> None:
    rows = [toy_row(n) for n in range(6)]
    write_corpus(tmp_path, rows)
    run(tmp_path, warehouse, "1")
    write_corpus(tmp_path, rows[::-1][:2], rows[::-1][2:], row_group_size=2)
    load = run(tmp_path, warehouse, "2")
    assert (load["unchanged"], load["moved"], load["changed"]) == (6, 6, 0)
    places = query(
        warehouse, "select audio_file, audio_row_group, audio_row from staging.samples where sample_id = 'toy/000.wav'"
    )
    assert places == [{"audio_file": "data/train-00001-of-00002.parquet", "audio_row_group": 1, "audio_row": 1}]


def test_an_unchanged_revision_is_not_read_again(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(1)])
    run(tmp_path, warehouse, "1")
    with pytest.raises(ingest.NothingToLoadError, match="staged already"):
        run(tmp_path, warehouse, "2")
    load = run(tmp_path, warehouse, "3", force=True)
    assert not ingest.has_changes(load)


def test_changed_normalising_code_stages_the_same_revision_again(
    tmp_path: Path, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, [toy_row(1)])
    run(tmp_path, warehouse, "1")
    monkeypatch.setattr(ingest, "normalising_code_hash", lambda recipe, max_rows: "other code")
    assert run(tmp_path, warehouse, "2")["unchanged"] == 1


def test_too_many_rejects_merge_nothing(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(1), toy_row(2)])
    run(tmp_path, warehouse, "1")
    write_corpus(tmp_path, [toy_row(1, transcription=""), toy_row(2, transcription="[noise]"), toy_row(3)])
    with pytest.raises(MergeRefusedError, match=r"2 of 3 rows are unusable .*limit of 50%"):
        run(tmp_path, warehouse, "2")
    assert query(warehouse, "select count(*) as n from staging.samples where retired_at is null") == [{"n": 2}]
    assert latest_loads(warehouse)["toy"]["load_id"].startswith("toy/1/")


@pytest.mark.parametrize("rows, may_go", [(40, 20), (300, 30)], ids=["few", "tenth"])
def test_half_a_corpus_retires_nothing(tmp_path: Path, warehouse: Warehouse, rows: int, may_go: int) -> None:
    write_corpus(tmp_path, [toy_row(n) for n in range(rows)], row_group_size=50)
    run(tmp_path, warehouse, "1")
    everything = "select s.*, xmin::text from staging.samples s order by sample_id"
    staged, loads = query(warehouse, everything), query(warehouse, "select * from staging.loads")
    left = [toy_row(n, emotion="sad" if n == 0 else "happy") for n in range(rows - may_go - 1)]
    write_corpus(tmp_path, [*left, toy_row(rows)], row_group_size=50)
    said = rf"toy: {may_go + 1} of {rows} staged rows are not in revision [0-9a-f]{{12}} and would be .*Param `force`"
    with pytest.raises(MergeRefusedError, match=said):
        run(tmp_path, warehouse, "2")
    assert (query(warehouse, everything), query(warehouse, "select * from staging.loads")) == (staged, loads)
    forced = run(tmp_path, warehouse, "3", force=True)
    assert (forced["staged"], forced["changed"], forced["retired"]) == (1, 1, may_go + 1)
    assert f"WARNING {may_go + 1} rows that were staged are not" in ingest.describe_load(TOY, forced, warehouse)


@pytest.mark.parametrize("rows, may_go", [(40, 20), (300, 30)], ids=["few", "tenth"])
def test_a_refresh_may_retire_some_rows(tmp_path: Path, warehouse: Warehouse, rows: int, may_go: int) -> None:
    everything = [toy_row(n) for n in range(rows)]
    write_corpus(tmp_path, everything, row_group_size=50)
    run(tmp_path, warehouse, "1")
    write_corpus(tmp_path, everything[may_go:], row_group_size=50)
    load = run(tmp_path, warehouse, "2")
    assert load["retired"] == may_go
    assert "rows that were staged" not in ingest.describe_load(TOY, load, warehouse)
    # What came back was not there to be retired, and what is retired already counts no more.
    write_corpus(tmp_path, everything[: rows - 1], row_group_size=50)
    load = run(tmp_path, warehouse, "3")
    assert (load["retired"], load["changed"]) == (1, may_go)


def test_other_normalising_code_may_retire_more_and_the_report_says_it(
    tmp_path: Path, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, [toy_row(n) for n in range(50)])
    run(tmp_path, warehouse, "1")
    write_corpus(tmp_path, [toy_row(n) for n in range(10)])
    monkeypatch.setattr(ingest, "normalising_code_hash", lambda recipe, max_rows: "other code")
    load = run(tmp_path, warehouse, "2")
    assert load["retired"] == 40
    warning = "WARNING 40 rows that were staged are not in this load and are retired; 10 are still there"
    assert warning in ingest.describe_load(TOY, load, warehouse)


def test_a_lost_group_is_noticed_before_anything_is_retired(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(1)], [toy_row(2)])
    groups = ingest.resolve_revision(TOY, str(tmp_path), warehouse, run_id="1")
    loads = [ingest.load_group(TOY, group, warehouse) for group in groups]
    with warehouse.connection() as connection:
        (table,) = incoming_tables(warehouse)
        connection.execute(sql.SQL("delete from {} where file_group = 1").format(sql.Identifier("staging", table)))
    with pytest.raises(MergeRefusedError, match="lost rows between load and merge"):
        ingest.merge_groups(TOY, loads, warehouse)
    ingest.load_group(TOY, groups[1], warehouse)  # the task that is cleared and run again
    assert ingest.merge_groups(TOY, loads, warehouse)["staged"] == 2


def test_every_step_may_run_twice(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(n) for n in range(5)], [toy_row(n) for n in range(5, 9)])
    groups = ingest.resolve_revision(TOY, str(tmp_path), warehouse, run_id="1")
    for group in groups:
        ingest.load_group(TOY, group, warehouse)
    loads = [ingest.load_group(TOY, group, warehouse) for group in groups]
    with ThreadPoolExecutor(4) as pool:
        merged = list(pool.map(lambda _: ingest.merge_groups(TOY, loads, warehouse), range(4)))
    assert all(counts(load) == counts(merged[0]) for load in merged)
    assert counts(merged[0])["staged"] == 9
    assert query(warehouse, "select count(*) as n from staging.loads") == [{"n": 1}]


def test_a_group_that_is_loaded_twice_at_once_comes_in_once(
    tmp_path: Path, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, [toy_row(n) for n in range(5)])
    (group,) = ingest.resolve_revision(TOY, str(tmp_path), warehouse, run_id="1")
    read, cleared = ingest.read_metadata, Event()

    def slowly(*arguments: Any) -> Iterator[pa.Table]:  # the rows are cleared, and none has come in
        cleared.set()
        time.sleep(1)
        yield from read(*arguments)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(ingest, "read_metadata", slowly)
        first = pool.submit(ingest.load_group, TOY, group, warehouse)
        assert cleared.wait(30)
        monkeypatch.setattr(ingest, "read_metadata", read)
        second = ingest.load_group(TOY, group, warehouse)
        assert first.result()["report"] == second["report"]
    assert ingest.merge_groups(TOY, [second], warehouse)["staged"] == 5


def test_a_failing_file_leaves_nothing_of_its_group(tmp_path: Path, warehouse: Warehouse) -> None:
    folder = write_corpus(tmp_path, [toy_row(n) for n in range(500)], row_group_size=500)
    groups = ingest.resolve_revision(TOY, str(tmp_path), warehouse, run_id="1")
    file = folder / "data" / "train-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    file.write_bytes(content)
    with pytest.raises(SourceError):
        ingest.load_group(TOY, groups[0], warehouse)
    (table,) = incoming_tables(warehouse)
    assert query(warehouse, f"select count(*) as n from staging.{table}") == [{"n": 0}]


def test_the_report_shows_what_no_table_knows(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(1, emotion="hangry"), toy_row(2), toy_row(3, transcription="")])
    text = ingest.describe_load(TOY, run(tmp_path, warehouse, "1"), warehouse)
    assert "3 rows read = 2 new + 0 changed + 0 unchanged (0 of them moved) + 1 rejected; 0 retired" in text
    assert "WARNING emotion: no rule knows 'hangry' 1" in text
    assert "rejected: 1 x empty text" in text
    assert query(warehouse, "select field, raw_value, count from staging.unmapped_labels") == [
        {"field": "emotion", "raw_value": "hangry", "count": 1}
    ]


def test_labels_that_begin_alike_are_counted_each(tmp_path: Path, warehouse: Warehouse) -> None:
    alike = "surprised and delighted, " * 6
    labels = [alike + "a"] * 3 + [alike + "b"] * 2 + [alike[:99]]
    rows = [toy_row(n, emotion=label) for n, label in enumerate(labels)]
    write_corpus(tmp_path, rows[:4], rows[4:])  # they are added up by batch, by file, and by group
    load = run(tmp_path, warehouse, "1")
    counted = load["unmapped"]["emotion"]
    assert sorted(counted.values()) == [1, 2, 3]
    assert {len(label) for label in counted} == {99, 100} and all(label[:80] == alike[:80] for label in counted)
    kept = query(warehouse, "select sum(count)::integer as rows, count(*) as labels from staging.unmapped_labels")
    assert kept == [{"rows": 6, "labels": 3}]


def test_numbers_as_wide_as_they_come_are_staged(tmp_path: Path, warehouse: Warehouse) -> None:
    schema = TOY_SCHEMA
    for column, kind in (("speaking_rate", pa.uint64()), ("relative_db", pa.float16())):
        schema = schema.set(schema.get_field_index(column), pa.field(column, kind))
    loud = {"relative_db": np.float16(-3.5)}
    rows = [toy_row(1, speaking_rate=7, **loud), toy_row(2, speaking_rate=2**64 - 1, **loud)]
    write_corpus(tmp_path, rows, schema=schema)
    assert run(tmp_path, warehouse, "1")["staged"] == 2
    ingest.count_samples(TOY, ["sift_s"], 3, warehouse)
    staged = query(
        warehouse, "select pace, volume, raw ->> 'speaking_rate' as raw from staging.samples order by 1 desc"
    )
    assert staged == [
        {"pace": "normal", "volume": "loud", "raw": "7"},
        {"pace": "fast", "volume": "loud", "raw": str(2**64 - 1)},
    ]


def test_the_report_warns_of_counts_shares_and_left_out_labels(tmp_path: Path, warehouse: Warehouse) -> None:
    recipe = replace(TOY, expected_rows=31, fields={**TOY.fields, "emotion": emotion("emotion", also={"calm": None})})
    rows = [
        toy_row(n, relative_db=-20.0, emotion="calm" if n < 3 else "sad", speaking_rate=5.0 + n / 10) for n in range(30)
    ]
    write_corpus(tmp_path, rows)
    groups = ingest.resolve_revision(recipe, str(tmp_path), warehouse, run_id="1")
    load = ingest.merge_groups(recipe, [ingest.load_group(recipe, group, warehouse) for group in groups], warehouse)
    text = ingest.describe_load(recipe, load, warehouse)
    assert "emotion: sad 27, none 3" in text
    assert "emotion: outside the vocabulary, kept in `raw` only: 'calm' 3" in text
    assert "WARNING the corpus holds 30 rows; its card says 31" in text
    assert "WARNING volume: 30 of 30 rows are 'quiet'" in text
    assert "WARNING pace" not in text


def test_a_cap_stages_some_rows_and_a_larger_one_adds_to_them(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(n) for n in range(30)], row_group_size=3)
    assert run(tmp_path, warehouse, "1", max_rows=10)["staged"] == 9
    load = run(tmp_path, warehouse, "2", max_rows=20)
    assert (load["unchanged"], load["staged"], load["retired"], load["corpus_rows"]) == (9, 9, 0, 30)


def test_the_cap_of_the_settings_wins() -> None:
    capped = RECIPES["commonvoice"]
    assert ingest.row_limit(capped, {}) == 100_000
    assert ingest.row_limit(capped, {"commonvoice": 7, "meld": 3}) == 7
    assert ingest.row_limit(capped, {"commonvoice": 0}) is None
    for wrong in ({"nosuch": 1}, {"meld": -1}):
        with pytest.raises(BadInputError, match="SIFT_MAX_ROWS"):
            ingest.row_limit(capped, wrong)


def test_integer_labels_in_a_wrong_order_are_not_merged(tmp_path: Path, warehouse: Warehouse) -> None:
    recipe = replace(TOY, largest_class={"emotion": "neutral"})
    write_corpus(tmp_path, [toy_row(1, emotion="neutral"), toy_row(2, emotion="neutral"), toy_row(3)])
    groups = ingest.resolve_revision(recipe, str(tmp_path), warehouse, run_id="1")
    loads = [ingest.load_group(recipe, group, warehouse) for group in groups]
    assert ingest.merge_groups(recipe, loads, warehouse)["staged"] == 3
    write_corpus(tmp_path, [toy_row(1, emotion="anger"), toy_row(2, emotion="anger"), toy_row(3, emotion="neutral")])
    groups = ingest.resolve_revision(recipe, str(tmp_path), warehouse, run_id="2")
    loads = [ingest.load_group(recipe, group, warehouse) for group in groups]
    with pytest.raises(MergeRefusedError, match=r"'neutral' should be the most frequent emotion.*angry 2, neutral 1"):
        ingest.merge_groups(recipe, loads, warehouse)
    assert query(warehouse, "select count(*) as n from staging.samples where emotion = 'neutral'") == [{"n": 2}]


def test_a_revision_that_was_overtaken_is_not_merged(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(1), toy_row(2)])
    groups = ingest.resolve_revision(TOY, str(tmp_path), warehouse, run_id="1")

    def loaded(run_id: str, published_at: str, force: bool = False) -> list[dict[str, Any]]:
        return [
            ingest.load_group(
                TOY,
                {
                    **group,
                    "load_id": run_id,
                    "force": force,
                    "corpus": {**group["corpus"], "published_at": published_at},
                },
                warehouse,
            )
            for group in groups
        ]

    older, newer = loaded("older", "2024-01-01T00:00:00+00:00"), loaded("newer", "2024-02-01T00:00:00+00:00")
    ingest.merge_groups(TOY, newer, warehouse)
    with pytest.raises(ingest.NothingToLoadError, match="was staged meanwhile, and is newer"):
        ingest.merge_groups(TOY, older, warehouse)
    forced = loaded("forced", "2024-01-01T00:00:00+00:00", force=True)
    assert ingest.merge_groups(TOY, forced, warehouse)["unchanged"] == 2


def test_tables_of_abandoned_loads_are_dropped(tmp_path: Path, warehouse: Warehouse) -> None:
    write_corpus(tmp_path, [toy_row(1)])
    for group in ingest.resolve_revision(TOY, str(tmp_path), warehouse, run_id="died"):
        ingest.load_group(TOY, group, warehouse)
    assert len(incoming_tables(warehouse)) == 1
    with warehouse.connection() as connection:
        connection.execute("update staging.incoming_loads set started_at = now() - interval '3 days'")
    run(tmp_path, warehouse, "next")
    assert incoming_tables(warehouse) == []
