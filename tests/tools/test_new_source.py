"""A scaffolded source is a recipe that stages its corpus."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pyarrow as pa
import pytest

from include.sources.recipe import SourceRecipe
from tests.include.sources.corpus_files import TOY_SCHEMA, toy_row, write_corpus
from tools.new_source import scaffold


def test_a_scaffolded_recipe_stages_its_own_rows(tmp_path: Path) -> None:
    write_corpus(tmp_path, [toy_row(n, emotion="joy", transcription=f'Say "{n}" \\ now.') for n in range(6)])
    text, fixture = scaffold("mine", "org/toy", "default", str(tmp_path))
    module = types.ModuleType("mine")
    exec(compile(text, "mine.py", "exec"), module.__dict__)
    made: SourceRecipe = module.RECIPE
    assert (made.name, made.key, made.expected_rows, made.redistributable) == ("mine", "file", 6, False)
    assert set(made.fields) == {"text", "emotion", "gender", "pace", "volume"}
    assert len(fixture["rows"]) == 4 and "audio" not in fixture["rows"][0]
    assert fixture["samples"][0] == {
        "sample_id": "mine/000.wav",
        "text": 'say "0" \\ now.',
        "emotion": "happy",
        "gender": "female",
        "pace": "normal",
    }
    json.dumps(fixture)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mine", "cannot be a source's name"),
        ("meld", "sources/meld.py already"),
        ("reader", "reader.py already"),
        ("../x", "cannot be a source's name"),
    ],
)
def test_a_bad_name_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaffold(name, "org/toy", "default", str(tmp_path))


def test_a_corpus_without_transcripts_is_refused(tmp_path: Path) -> None:
    schema = pa.schema([field for field in TOY_SCHEMA if field.name != "transcription"])
    write_corpus(tmp_path, [toy_row(1)], schema=schema)
    with pytest.raises(ValueError, match="no column that looks like a transcript"):
        scaffold("mine", "org/toy", "default", str(tmp_path))
