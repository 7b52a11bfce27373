"""Recipes: every one against the bundled samples, and the rules of staging on rows made for them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from include.schema import AGE_GROUPS, EMOTIONS, GENDERS, PACES, STAGED_SCHEMA, VOLUMES
from include.sources import RECIPES
from include.sources.corpus import Corpus, CorpusFile, resolve_corpus
from include.sources.reader import read_metadata
from include.sources.recipe import CANONICAL_COLUMNS, SourceRecipe, StagedBatch, text
from tests.conftest import SAMPLED, SAMPLES
from tests.include.sources.corpus_files import TOY, toy_row, write_corpus

FIXTURES = Path(__file__).parent / "fixtures"
VOCABULARIES = {"emotion": EMOTIONS, "gender": GENDERS, "age": AGE_GROUPS, "pace": PACES, "volume": VOLUMES}


def stage_corpus(recipe: SourceRecipe, corpus: Corpus) -> StagedBatch:
    staged = [recipe.stage(table) for file in corpus.files for table in read_metadata(corpus, file, recipe)]

    def added_up(batches: list[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
        counts: dict[str, Counter[str]] = {}
        for batch in batches:
            for name, labels in batch.items():
                counts.setdefault(name, Counter()).update(labels)
        return {name: dict(count) for name, count in counts.items()}

    return StagedBatch(
        pa.concat_tables(batch.table for batch in staged),
        added_up([batch.unmapped for batch in staged]),
        added_up([batch.left_out for batch in staged]),
    )


def stage_all(recipe: SourceRecipe, hub: Path) -> StagedBatch:
    return stage_corpus(recipe, resolve_corpus(recipe, str(hub)))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_raw_rows_become_the_samples_of_the_fixture(recipe: SourceRecipe, tmp_path: Path) -> None:
    fixture = json.loads((FIXTURES / f"{recipe.name}.json").read_text(encoding="utf-8"))
    clip = {"bytes": b"RIFF", "path": "a.wav"}  # fixtures are to be read, and name a clip at most
    rows = [{**row, recipe.audio_column: {**clip, **row.get(recipe.audio_column, {})}} for row in fixture["rows"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    size = (tmp_path / "rows.parquet").stat().st_size
    corpus = Corpus(recipe.name, str(tmp_path), "0" * 40, None, (CorpusFile("rows.parquet", "train", size, "blob"),))
    staged = stage_corpus(recipe, corpus)
    for row, expected in zip(staged.table.to_pylist(), fixture["samples"], strict=True):
        assert row["sample_id"] == expected["sample_id"]
        assert row["reject_reason"] == expected.get("reject_reason")
        if not row["reject_reason"]:
            # What the fixture does not name must be NULL.
            said = {column: row[column] for column in CANONICAL_COLUMNS if row[column] is not None}
            if "duration" in said:
                said["duration"] = round(said["duration"], 3)
            assert said == {name: value for name, value in expected.items() if name != "sample_id"}
    assert (staged.unmapped, staged.left_out) == (fixture["unmapped"], fixture["left_out"])


def test_every_fixture_has_its_recipe() -> None:
    assert {file.stem for file in FIXTURES.glob("*.json")} == set(RECIPES)


@pytest.mark.parametrize("source", SAMPLED)
def test_samples_are_staged_within_the_vocabularies(source: str) -> None:
    recipe = RECIPES[source]
    staged = stage_all(recipe, SAMPLES)
    assert staged.unmapped == {}
    assert staged.table.schema.names == [*STAGED_SCHEMA.names, "reject_reason"]
    usable = [row for row in staged.table.to_pylist() if row["reject_reason"] is None]
    assert len(usable) >= 12
    assert len({row["sample_id"] for row in usable}) == len(usable)
    for row in usable:
        assert row["sample_id"].startswith(f"{recipe.name}/")
        assert row["text"] == row["text"].strip().lower()
        assert isinstance(json.loads(row["raw"]), dict)
        for column, vocabulary in VOCABULARIES.items():
            assert row[column] is None or row[column] in vocabulary
    for column in recipe.fields:
        assert any(row[column] is not None for row in usable), f"{column} is never filled"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_says_what_people_must_know(recipe: SourceRecipe) -> None:
    assert recipe.licence and recipe.title and recipe.url.startswith("https://")
    assert recipe.repository.count("/") == 1
    assert not {"audio", "audio.bytes", "wav", "wav.bytes"} & set(recipe.kinds)


def test_unusable_rows_are_kept_with_a_reason(tmp_path: Path) -> None:
    rows = [toy_row(1), toy_row(2, transcription=" "), toy_row(3, file=None), toy_row(4, file=" ")]
    write_corpus(tmp_path, rows)
    table = stage_all(TOY, tmp_path).table
    assert table["reject_reason"].to_pylist() == [None, "empty text", "missing key", "missing key"]
    assert table["sample_id"].to_pylist() == ["toy/001.wav", "toy/002.wav", None, None]


def test_unknown_labels_are_null_counted_and_kept_raw(tmp_path: Path) -> None:
    write_corpus(tmp_path, [toy_row(1, emotion="Hangry"), toy_row(2, emotion="hangry"), toy_row(3)])
    staged = stage_all(TOY, tmp_path)
    assert staged.unmapped == {"emotion": {"hangry": 2}}
    assert staged.table["emotion"].to_pylist() == [None, None, "happy"]
    assert json.loads(staged.table["raw"][0].as_py())["emotion"] == "Hangry"


def test_nul_and_quotes_survive_in_raw_as_valid_json(tmp_path: Path) -> None:
    write_corpus(tmp_path, [toy_row(1, gender='say "x"\\\x00\n')])
    raw = stage_all(TOY, tmp_path).table["raw"][0].as_py()
    assert json.loads(raw)["gender"] == 'say "x"\\\n'


def test_the_broken_mirror_is_read_as_its_readme_says(shared_data: Path) -> None:
    staged = stage_all(RECIPES["meld"], shared_data / "hub_broken")
    assert staged.unmapped == {"emotion": {"-1": 2, "7": 2}}
    # The numbers follow the order that this file declares, not the one that is usual.
    sound = stage_all(RECIPES["meld"], shared_data / "hub").table.to_pylist()
    known = {row["sample_id"]: row["emotion"] for row in sound}
    same = [row for row in staged.table.to_pylist() if row["sample_id"] in known and row["emotion"]]
    assert same
    assert all(row["emotion"] == known[row["sample_id"]] for row in same)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({}, "must hold 'text'"), ({"text": text("t"), "mood": text("m")}, r"fields \['mood'\]")],
)
def test_a_bad_recipe_is_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceRecipe(
            name="bad", title="", repository="a/b", key="k", fields=fields, licence="", redistributable=False, url=""
        )


def test_speakers_that_nobody_can_find_are_not_held_out() -> None:
    with pytest.raises(ValueError, match="recipe toy: held_out_speakers needs a field 'speaker'"):
        replace(TOY, held_out_speakers=("KL",))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_corpus_says_how_it_is_cited(recipe: SourceRecipe) -> None:
    assert recipe.citation, f"include/sources/{recipe.name}.py: citation"
