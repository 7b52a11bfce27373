"""The committed `samples/`: their layout and types are the Hub's, and their labels are varied enough for a demo."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from datasets import Audio, load_dataset

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"
MAX_BYTES = 4_000_000

RAVDESS, COMMON_VOICE, MELD = "AbstractTTS/RAVDESS", "fixie-ai/common_voice_17_0", "garam-icecream/MELD"
CONFIGS = {RAVDESS: "default", COMMON_VOICE: "en", MELD: "default"}
TRANSCRIPTS = {RAVDESS: "transcription", COMMON_VOICE: "sentence", MELD: "text"}
# What a corpus publishes, in its order; the reference for names and types is the Hub's dataset cards.
COLUMNS = {
    RAVDESS: "file:string audio:audio gender:string transcription:string emotion:string intensity:string "
    "speaking_rate:float pitch_mean:float pitch_std:float rms:float relative_db:float",
    COMMON_VOICE: "client_id:string path:string audio:audio sentence:string up_votes:int64 down_votes:int64 age:string "
    "gender:string accent:string locale:string segment:string variant:string",
    MELD: "audio:audio text:string emotion:int64 sentiment:int64",
}
ENCODINGS = {RAVDESS: ("WAV", 16_000), COMMON_VOICE: ("MP3", 48_000), MELD: ("FLAC", 16_000)}
AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

every_corpus = pytest.mark.parametrize("repository", CONFIGS)


def list_shards(repository: str) -> list[Path]:
    """A corpus' shards in order."""
    return sorted((SAMPLES / repository).rglob("*.parquet"))


def read_samples(repository: str) -> pa.Table:
    """All rows of a corpus."""
    return pa.concat_tables([pq.read_table(path) for path in list_shards(repository)])


def count_labels(repository: str, column: str) -> Counter[str]:
    """How often each label of a column occurs."""
    return Counter(read_samples(repository)[column].to_pylist())


@every_corpus
def test_every_shard_has_the_columns_and_types_of_the_hub(repository: str) -> None:
    expected = [field.split(":") for field in COLUMNS[repository].split()]
    for path in list_shards(repository):
        schema = pq.read_schema(path)
        assert schema.names == [name for name, _ in expected]
        assert schema.types == [AUDIO if kind == "audio" else pa.type_for_alias(kind) for _, kind in expected]
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert list(features) == schema.names
        assert features["audio"]["_type"] == "Audio"


@every_corpus
def test_datasets_opens_it_offline(repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    loaded = load_dataset(str(SAMPLES / repository), CONFIGS[repository], cache_dir=str(tmp_path))
    assert list(loaded) == ["train"]
    rows = loaded["train"].cast_column("audio", Audio(decode=False))
    assert len(rows) == read_samples(repository).num_rows
    assert rows[0]["audio"]["bytes"]


@every_corpus
def test_transcripts_are_distinct_and_enough(repository: str) -> None:
    texts = read_samples(repository)[TRANSCRIPTS[repository]].to_pylist()
    assert len(texts) >= 14
    assert len(set(texts)) == len(texts)
    blank = [text for text in texts if not text.strip()]
    assert len(blank) == (1 if repository == COMMON_VOICE else 0)
    assert all(4 <= len(text.split()) <= 12 for text in texts if text.strip())


@every_corpus
def test_clips_decode_and_their_paths_are_unique(repository: str) -> None:
    clips = read_samples(repository)["audio"].to_pylist()
    assert len({clip["path"] for clip in clips}) == len(clips)
    for clip in clips:
        info = sf.info(io.BytesIO(clip["bytes"]))
        wave, sampling_rate = sf.read(io.BytesIO(clip["bytes"]))
        assert (info.format, sampling_rate) == ENCODINGS[repository]
        assert clip["path"].endswith(f".{info.format.lower()}")
        assert wave.ndim == 1
        assert 0.5 < len(wave) / sampling_rate < 8
        assert 0.05 < abs(wave).max() <= 1


@pytest.mark.parametrize(("repository", "column"), [(RAVDESS, "file"), (COMMON_VOICE, "path")])
def test_keys_are_unique_and_name_the_clip(repository: str, column: str) -> None:
    table = read_samples(repository)
    assert table[column].to_pylist() == pc.struct_field(table["audio"], "path").to_pylist()


def test_ravdess_labels_are_spelt_as_upstream_and_varied() -> None:
    emotions = {"neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"}
    assert set(count_labels(RAVDESS, "emotion")) == emotions
    assert set(count_labels(RAVDESS, "gender")) == {"male", "female"}
    assert set(count_labels(RAVDESS, "intensity")) == {"normal", "strong"}


@pytest.mark.parametrize(
    ("column", "low", "high"),
    [("speaking_rate", 6.0, 9.0), ("relative_db", -16.4, -10.0)],  # the edges of pace and volume
)
def test_ravdess_measures_fall_on_both_sides_of_the_edges(column: str, low: float, high: float) -> None:
    values = read_samples(RAVDESS)[column].to_pylist()
    sides = Counter("low" if value < low else "high" if value > high else "between" for value in values)
    assert min(sides[side] for side in ("low", "between", "high")) >= 3


def test_common_voice_labels_are_spelt_as_upstream_and_varied() -> None:
    assert {"", "teens", "twenties", "fourties", "sixties"} <= set(count_labels(COMMON_VOICE, "age"))
    assert set(count_labels(COMMON_VOICE, "gender")) == {"", "male_masculine", "female_feminine"}
    accents = set(count_labels(COMMON_VOICE, "accent"))
    assert {"", "England English", "India and South Asia (India, Pakistan, Sri Lanka)"} <= accents


def test_common_voice_clients_keep_their_demographics() -> None:
    rows = read_samples(COMMON_VOICE).select(["client_id", "age", "gender", "accent"]).to_pylist()
    people = {tuple(row.values()) for row in rows}
    assert len(people) == len({row["client_id"] for row in rows}) < len(rows)


def test_common_voice_has_two_shards_of_several_row_groups() -> None:
    groups = [pq.ParquetFile(path).num_row_groups for path in list_shards(COMMON_VOICE)]
    assert len(groups) == 2
    assert min(groups) >= 3


def test_meld_labels_are_named_in_the_file_and_mostly_neutral() -> None:
    schema = pq.read_schema(list_shards(MELD)[0])
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    names = features["emotion"]["names"]
    assert names == ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
    assert features["sentiment"]["names"] == ["negative", "neutral", "positive"]
    counts = Counter(names[code] for code in count_labels(MELD, "emotion").elements())
    assert set(counts) == set(names)
    assert counts.most_common(1)[0][0] == "neutral"
    assert set(count_labels(MELD, "sentiment")) == {0, 1, 2}


def test_meld_text_keeps_typographic_marks() -> None:
    text = "".join(read_samples(MELD)["text"].to_pylist())
    assert set("’“”…") <= set(text)


def test_the_samples_stay_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < MAX_BYTES


@every_corpus
def test_the_card_says_that_the_clips_are_ours(repository: str) -> None:
    card = (SAMPLES / repository / "README.md").read_text(encoding="utf-8")
    assert "license: cc0-1.0" in card
    assert "clips of our own" in card


def test_a_missing_espeak_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "make_samples.py"), "--out", str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "espeak-ng is not installed" in done.stderr
    assert not list(tmp_path.iterdir())
