"""The recipes' rules on the labels that the real corpora hold (label files; skipped where they are not at hand)."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from include.normalize.columns import NormalisedColumn
from include.sources import RECIPES


@pytest.fixture
def real(shared_data: Path) -> Path:
    return shared_data / "real"


def normalised(source: str, column: str, values: Iterable[str | None]) -> NormalisedColumn:
    return RECIPES[source].fields[column].normalise(pa.array(list(values), pa.string()))


def counted(column: NormalisedColumn) -> dict[str | None, int]:
    return dict(Counter(column.values.to_pylist()))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def test_all_sixteen_classes_of_podcast(real: Path) -> None:
    report = [row for row in rows(real / "podcast" / "label_mapping_report.csv") if row["dataset"] == "podcast"]
    labels = [row["raw_label"] for row in report for _ in range(int(row["raw_count"]))]
    assert len(labels) == 149_307
    emotions = normalised("podcast", "emotion", labels)
    assert emotions.unmapped == {}
    assert emotions.left_out == {"concerned": 21_813, "contempt": 3_747, "confused": 2_165}
    assert counted(emotions) == {
        "neutral": 39_727,
        "happy": 21_370 + 6_845 + 4_478,
        "angry": 9_596 + 6_576 + 7_560,
        "sad": 11_819 + 6_215 + 505,
        "surprise": 4_050,
        "disgust": 2_144,
        "fear": 697,
        None: 27_725,
    }


def test_the_acted_labels_of_crema_d(real: Path) -> None:
    published = rows(real / "cremad" / "abstracttts_crema_d_metadata.csv")
    emotions = normalised("crema_d", "emotion", (row["emotion_raw"] for row in published))
    assert emotions.unmapped == emotions.left_out == {}
    assert set(counted(emotions)) == {"angry", "happy", "neutral", "sad"}
    texts = normalised("crema_d", "text", (row["text"] for row in published))
    assert texts.values.null_count == 0 and len(set(texts.values.to_pylist())) == 12


@pytest.mark.parametrize("part", ["train", "dev"])
def test_the_classes_of_meld_and_its_curly_quotes(real: Path, part: str) -> None:
    published = rows(real / "meld" / f"{part}_sent_emo.csv")
    emotions = normalised("meld", "emotion", (row["Emotion"] for row in published))
    assert emotions.unmapped == emotions.left_out == {}
    ranked = Counter(emotions.values.to_pylist()).most_common(2)
    assert [label for label, _ in ranked] == ["neutral", "happy"]
    texts = normalised("meld", "text", (row["Utterance"] for row in published)).values
    # Only what holds no letter or digit at all says nothing.
    silent = [row["Utterance"] for row, text in zip(published, texts.to_pylist(), strict=True) if text is None]
    assert not any(character.isalnum() for text in silent for character in text)
    assert len(silent) < 0.01 * len(published)


def test_the_file_names_of_the_acted_corpora_name_their_speakers(real: Path) -> None:
    names = {
        source: [Path(json.loads(line)["wav"]).name for line in (real / folder / file).read_text().splitlines()]
        for source, folder, file in (
            ("crema_d", "cremad", "emobox_cremad.jsonl"),
            ("ravdess", "ravdess", "emobox_ravdess.jsonl"),
            ("tess", "tess", "emobox_tess.jsonl"),
            ("savee", "savee", "emobox_savee.jsonl"),
        )
    }
    speakers = {source: counted(normalised(source, "speaker", files)) for source, files in names.items()}
    assert {source: len(found) for source, found in speakers.items()} == {
        "crema_d": 45,
        "ravdess": 12,
        "tess": 2,
        "savee": 2,
    }
    assert all(None not in found for found in speakers.values())
    codes = [name.rsplit("_", 1)[1].removesuffix(".wav") for name in names["tess"]]
    assert counted(normalised("tess", "emotion", codes))["surprise"] == 196


def test_the_emotions_of_esd(real: Path) -> None:
    lines = (real / "esd" / "emobox_esd_english.stm").read_text().splitlines()
    emotions = normalised("esd", "emotion", (line.split()[-1] for line in lines))
    assert emotions.unmapped == {}
    assert counted(emotions) == dict.fromkeys(("neutral", "angry", "happy", "sad", "surprise"), 1750)


def test_the_ages_and_genders_of_common_voice(real: Path) -> None:
    statistics = json.loads((real / "common_voice" / "cv-corpus-17.0-2024-03-15.en.json").read_text())
    vocabulary = statistics["locales"]["en"]["splits"]
    ages = normalised("commonvoice", "age", vocabulary["age"])
    assert ages.unmapped == ages.left_out == {}
    assert dict(zip(vocabulary["age"], ages.values.to_pylist(), strict=True))["fourties"] == "middle-age adult"
    genders = normalised("commonvoice", "gender", vocabulary["gender"])
    assert genders.unmapped == {}
    assert set(genders.left_out) == {"transgender", "non-binary", "do_not_wish_to_say"}


@pytest.mark.parametrize("name", ["cv-valid-dev.csv", "cv-other-dev.csv", "cv-invalid_head.csv"])
def test_the_older_spellings_of_common_voice(real: Path, name: str) -> None:
    published = rows(real / "common_voice" / "cv1" / name)
    for column in ("age", "gender"):
        assert normalised("commonvoice", column, (row[column] for row in published)).unmapped == {}
    accents = normalised("commonvoice", "accent", (row["accent"] for row in published)).values
    assert [accent or "" for accent in accents.to_pylist()] == [row["accent"].strip().lower() for row in published]


def test_the_speakers_of_ami_say_their_gender(real: Path) -> None:
    lines = [json.loads(line) for line in (real / "ami" / "ES2011a_sups_even.jsonl").read_text().splitlines()]
    genders = normalised("ami", "gender", (line["speaker"] for line in lines)).values.to_pylist()
    assert genders == [{"F": "female", "M": "male"}[line["gender"]] for line in lines]
