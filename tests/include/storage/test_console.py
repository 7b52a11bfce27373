"""What the console reads: kept counts that stay true, and samples found in key order by every filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from include.generate import describe_quality, plan_run
from include.ingest import count_samples
from include.modes import MODES
from include.settings import Settings
from include.sources import RECIPES
from include.storage import console
from include.storage.console import SampleFilter
from include.storage.generation import coverage
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLED
from tests.filled import FAULTS, generate, stage
from tests.include.publish.steps import EVERYTHING, default_target

WANTED = SampleFilter(modes=tuple(MODES), max_attempts=2, prompted=tuple(SAMPLED))


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(**FAULTS)


def counted(warehouse: Warehouse) -> list[tuple]:
    names = ("source", "mode", "staged", "accepted", "pending", "given_up")
    return [tuple(row[name] for name in names) for row in console.kept_coverage(warehouse, 2)]


def true_coverage(warehouse: Warehouse) -> list[tuple]:
    names = ("source", "mode", "staged", "accepted", "pending", "given_up")
    return [tuple(row[name] for name in names) for row in coverage(warehouse, sorted(SAMPLED), list(MODES), 2)]


def test_coverage_is_true_after_a_load_while_a_run_writes_and_after_its_report(
    warehouse: Warehouse, settings: Settings
) -> None:
    for source in SAMPLED:
        stage(warehouse, source, settings)
    assert counted(warehouse) == true_coverage(warehouse)
    assert all(pending == staged for _, _, staged, _, pending, _ in counted(warehouse))
    generate(warehouse, settings)  # counts at its start; what it writes comes on top
    assert counted(warehouse) == true_coverage(warehouse)
    assert sum(row[3] for row in counted(warehouse)) > 100
    assert sum(row[5] for row in counted(warehouse)) > 0
    describe_quality(warehouse, settings, SAMPLED, list(MODES), "run-1")
    assert counted(warehouse) == true_coverage(warehouse)


def test_labels_add_up_and_measurements_are_drawn_around_their_thresholds(filled: Warehouse) -> None:
    labels = console.list_label_counts(filled, "ravdess")
    assert {field: sum(row["rows"] for row in rows) for field, rows in labels.items()} == dict.fromkeys(
        ("emotion", "gender", "pace", "volume"), 16
    )
    assert ("fearful", "fear") in {(row["raw_value"], row["value"]) for row in labels["emotion"]}
    bars = console.list_histograms(filled, "ravdess")
    assert {field: sum(row["rows"] for row in rows) for field, rows in bars.items()} == {"pace": 16, "volume": 16}
    assert all(bar["high"] - bar["low"] == pytest.approx(0.5) for bar in bars["pace"])


def test_counting_labels_again_replaces_them(filled: Warehouse, settings: Settings) -> None:
    before = console.list_label_counts(filled, "ravdess")
    count_samples(RECIPES["ravdess"], list(MODES), settings.max_attempts, filled)
    assert console.list_label_counts(filled, "ravdess") == before


def test_rare_labels_are_counted_together(filled: Warehouse, settings: Settings) -> None:
    with filled.connection() as connection:
        connection.execute(
            "insert into staging.samples select source, sample_id || '-' || n, split, text, language, emotion, gender, "
            "age, pace, volume, accent, speaker, duration, raw || jsonb_build_object('emotion', 'feeling ' || n), "
            "answer, audio_file, audio_row_group, audio_row, blob_id, revision, row_hash "
            "from (select * from staging.samples where source = 'ravdess' limit 1) s, generate_series(1, 50) as n"
        )
    count_samples(RECIPES["ravdess"], list(MODES), settings.max_attempts, filled)
    rows = console.list_label_counts(filled, "ravdess")["emotion"]
    assert len(rows) == 41 and rows[-1]["value"] == "(others)"
    assert sum(row["rows"] for row in rows) == 66


def all_found(warehouse: Warehouse, wanted: SampleFilter, most: int = 7) -> list[str]:
    """Every page after the other, forwards, and held against the pages backwards."""
    forwards, key = [], None
    while True:
        page = console.find_samples(warehouse, wanted, key=key, most=most)
        forwards += [row["sample_id"] for row in page.rows]
        if page.more is None:
            break
        key = page.more
    backwards, key = [], None
    while True:
        page = console.find_samples(warehouse, wanted, key=key, most=most, backwards=True)
        backwards = [row["sample_id"] for row in page.rows] + backwards
        if page.more is None:
            break
        key = page.more
    assert forwards == backwards
    assert len(set(forwards)) == len(forwards)
    return forwards


FILTERS = {
    "all": ({}, "true"),
    "source": ({"source": "meld"}, "s.source = 'meld'"),
    "emotion": ({"emotion": "happy"}, "s.emotion = 'happy'"),
    "gender and age": ({"gender": "male", "age": "young adult"}, "s.gender = 'male' and s.age = 'young adult'"),
    "words": ({"words": "the"}, "s.text ~ '\\mthe\\M'"),
    "phrase and not": ({"words": '"in the" -sister'}, "s.text ~ '\\min the\\M' and s.text !~ '\\msister\\M'"),
    "nothing": ({"words": "zyzzyva"}, "false"),
    "rule": (
        {"rule": "empty", "modes": ("sift_s",)},
        "exists (select from generation.attempts a where a.sample_id = s.sample_id and a.mode = 'sift_s' "
        "and a.verdict = 'empty')",
    ),
    "accepted": (
        {"state": "accepted", "modes": ("sift_s",)},
        "exists (select from generation.work w where w.sample_id = s.sample_id and w.mode = 'sift_s' and w.accepted)",
    ),
    "given up": (
        {"state": "given_up"},
        "exists (select from generation.work w where w.sample_id = s.sample_id and not w.accepted and w.tries >= 2)",
    ),
    "pending": ({"state": "pending"}, "false"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_finds_just_its_samples_page_by_page(filled: Warehouse, name: str) -> None:
    changes, condition = FILTERS[name]
    found = all_found(filled, replace(WANTED, **changes))
    with filled.connection() as connection:
        query = f"select s.sample_id from staging.samples s where {condition} order by s.source, s.sample_id"
        assert found == [row["sample_id"] for row in connection.execute(query).fetchall()]
    assert bool(found) == (condition != "false")


def test_pending_samples_are_found_where_they_are_few(filled: Warehouse) -> None:
    with filled.connection() as connection:
        connection.execute(
            "delete from generation.responses where mode = 'sit_ssp' and (source, sample_id) in "
            "(select source, sample_id from generation.responses where mode = 'sit_ssp' order by 1, 2 limit 2)"
        )
        connection.execute("delete from generation.attempts")
    assert len(all_found(filled, replace(WANTED, state="pending", modes=("sit_ssp",)), most=1)) >= 2


def test_a_search_that_looks_at_much_stops_and_says_so(filled: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "WINDOW", 10)
    wanted = replace(WANTED, state="pending")
    page = console.find_samples(filled, wanted)
    assert page.rows == [] and page.searched == 10 and page.more is not None
    assert all_found(filled, wanted) == []
    everything = all_found(filled, replace(WANTED, state="accepted"))
    assert len(everything) == 50


def test_neighbours_are_the_samples_before_and_after_among_those_found(filled: Warehouse) -> None:
    wanted = replace(WANTED, source="meld", emotion="happy")
    ids = all_found(filled, wanted)
    assert len(ids) > 2
    for number, sample_id in enumerate(ids):
        previous, following = console.neighbours(filled, wanted, ("meld", sample_id))
        assert previous == (("meld", ids[number - 1]) if number else None)
        assert following == (("meld", ids[number + 1]) if number + 1 < len(ids) else None)


def test_what_a_reader_types_is_a_value_never_sql(filled: Warehouse) -> None:
    for words in ("'; drop table staging.samples; --", "{after}", "%s %(source)s", "\\", '"', "a & | ! b:*"):
        console.find_samples(filled, replace(WANTED, words=words))
    assert len(all_found(filled, WANTED)) == 50


def test_retired_samples_are_not_listed_but_can_be_looked_at(filled: Warehouse) -> None:
    with filled.connection() as connection:
        connection.execute(
            "update staging.samples set retired_at = now() where sample_id = 'meld/' || split_part(sample_id, '/', 2)"
        )
    assert not any(sample_id.startswith("meld/") for sample_id in all_found(filled, WANTED))
    with filled.connection() as connection:
        row = connection.execute("select sample_id from staging.samples where source = 'meld' limit 1").fetchone()
    assert console.find_sample(filled, "meld", row["sample_id"])["retired_at"]


def test_texts_tell_current_ones_from_those_of_earlier_prompts(filled: Warehouse, settings: Settings) -> None:
    sample_id = all_found(filled, replace(WANTED, rule="empty"))[0]
    source = sample_id.partition("/")[0]
    before = console.texts_of_sample(filled, source, sample_id)
    assert all(text["current"] for text in before) and {"accepted", "empty"} <= {text["verdict"] for text in before}
    plan_run(filled, settings.model_copy(update={"frozen_date": "2027-01-01"}), EVERYTHING, default_target(settings))
    after = console.texts_of_sample(filled, source, sample_id)
    assert len(after) == len(before) and not any(text["current"] for text in after)


def test_history_has_a_report_per_run(filled: Warehouse, settings: Settings) -> None:
    describe_quality(filled, settings, SAMPLED, list(MODES), "run-2")
    verdicts = console.verdict_history(filled)
    assert [*dict.fromkeys(row["run_id"] for row in verdicts)] == ["run-1", "run-2"]
    first, second = (
        {(row["mode"], row["verdict"], row["source"]): row["texts"] for row in verdicts if row["run_id"] == run_id}
        for run_id in ("run-1", "run-2")
    )
    assert first == second and sum(first.values()) > 150
    assert {row["run_id"] for row in console.quality_history(filled, most=1)} == {"run-2"}
    assert console.verdicts_of_run(filled, "run-2") and not console.verdicts_of_run(filled, "run-3")


def test_shards_and_loads_of_a_run(filled: Warehouse) -> None:
    assert {row["mode"] for row in console.shards_of_run(filled, "run-1")} == set(MODES)
    assert {row["run_id"] for row in console.running_shards(filled)} == {"run-1"}
    (load,) = console.loads_of_run(filled, "meld", "ingest-1")
    assert load["read"] == 18
    assert console.loads_of_run(filled, "meld", "ingest-") == []


def test_a_silent_shard_is_told_from_one_that_is_done(filled: Warehouse) -> None:
    with filled.connection() as connection:
        connection.execute("update generation.runs set updated_at = now() - interval '1 hour'")
        connection.execute("update generation.runs set status = 'running' where mode = 'sift_s'")
    assert {row["mode"]: row["silent"] for row in console.running_shards(filled)} == {
        "sift_s": True,
        "sift_ssp": False,
        "sit_ssp": False,
    }


def test_the_console_cannot_write_and_does_not_wait_for_ever(filled: Warehouse) -> None:
    reader = console.read_only(filled, timeout_s=0.2)
    assert len(console.kept_coverage(reader, 2)) == 9
    with reader.connection() as connection:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("delete from generation.coverage")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(5)")
