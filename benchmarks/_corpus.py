"""Corpora for the benchmarks, in the Hub's layout: Common-Voice-shaped rows, and a few rows of every source."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._report import ROOT
from include.sources import RECIPES

REPOSITORY = "fixie-ai/common_voice_17_0"
AGES = ("", "", "", "teens", "twenties", "thirties", "fourties", "fifties", "sixties", "seventies")
GENDERS = ("", "", "male_masculine", "male_masculine", "female_feminine", "non-binary", "do_not_wish_to_say")
ACCENTS = ("", "", "United States English", "England English", "India and South Asia (India, Pakistan, Sri Lanka)")
SYLLABLES = ("ba", "ten", "lo", "mir", "sa", "win", "der", "ko", "ral", "une")
SENTENCES = 50_000
CARD = """---
configs:
- config_name: {config}
  data_files:
  - split: train
    path: {folder}/train-*
---
"""
FIXTURES = ROOT / "tests" / "include" / "sources" / "fixtures"


def write_commonvoice(
    hub: Path, rows: int, *, audio_bytes: int, files: int = 8, row_group_size: int = 100, seed: int = 0
) -> Path:
    """Write `rows` rows into `files` files; a clip is a WAV file of noise (16 kHz, 16 bit, mono) of `audio_bytes`.

    Returns:
        The repository's folder.
    """
    folder = hub / REPOSITORY
    (folder / "en").mkdir(parents=True)
    (folder / "README.md").write_text(CARD.format(config="en", folder="en"))
    generator = np.random.default_rng(seed)
    speakers = [generator.bytes(64).hex() for _ in range(max(rows // 60, 1))]
    accents = [*ACCENTS, *(f"Accent number {number}, spoken somewhere" for number in range(200))]
    words = ["".join(generator.choice(SYLLABLES, generator.integers(1, 4))) for _ in range(2000)]
    sentences = [
        " ".join(generator.choice(words, generator.integers(4, 16))).capitalize() + "."
        for _ in range(min(rows, SENTENCES))
    ]
    edges = np.linspace(0, rows, files + 1).astype(int)
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        path = folder / "en" / f"train-{number:05}-of-{files:05}.parquet"
        writer = None
        for first in range(start, end, 10 * row_group_size):
            count = min(10 * row_group_size, end - first)
            table = _rows(generator, first, count, audio_bytes, sentences, speakers, accents)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
            writer.write_table(table, row_group_size=row_group_size)
        if writer:
            writer.close()
    return folder


def write_every_source(hub: Path) -> None:
    """Write the usable rows of each recipe's fixture, with a second of noise as their audio."""
    clip = wav_header(32_044) + np.random.default_rng(0).bytes(32_000)
    for recipe in RECIPES.values():
        fixture = json.loads((FIXTURES / f"{recipe.name}.json").read_text(encoding="utf-8"))
        rows = []
        for number, (row, sample) in enumerate(zip(fixture["rows"], fixture["samples"], strict=True)):
            if "reject_reason" in sample:
                continue
            path = (row.get(recipe.audio_column) or {}).get("path", f"{number}.wav")
            rows.append({**row, recipe.audio_column: {"bytes": clip, "path": path}})
        folder = hub / recipe.repository
        name = "ihm/train/0000.parquet" if recipe.data_files else "data/train-00000-of-00001.parquet"
        (folder / name).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
        if not recipe.data_files:
            (folder / "README.md").write_text(CARD.format(config=recipe.config, folder="data"))


def _rows(
    generator: np.random.Generator,
    first: int,
    count: int,
    audio_bytes: int,
    sentences: list[str],
    speakers: list[str],
    accents: list[str],
) -> pa.Table:
    def draw(values: list[str] | tuple[str, ...]) -> pa.Array:
        return pa.array(values).take(pa.array(generator.integers(0, len(values), count)))

    paths = pa.array([f"common_voice_en_{number}.wav" for number in range(first, first + count)])
    size = audio_bytes - 44
    header = wav_header(audio_bytes)
    noise = generator.bytes(count * size)
    clips = [header + noise[at : at + size] for at in range(0, count * size, size)]
    return pa.table(
        {
            "client_id": draw(speakers),
            "path": paths,
            "audio": pa.StructArray.from_arrays([pa.array(clips, pa.binary()), paths], ["bytes", "path"]),
            "sentence": draw(sentences),
            "up_votes": pa.array(generator.integers(0, 20, count)),
            "down_votes": pa.array(generator.integers(0, 5, count)),
            "age": draw(AGES),
            "gender": draw(GENDERS),
            "accent": draw(accents),
            "locale": pa.repeat(pa.scalar("en"), count),
            "segment": pa.repeat(pa.scalar(""), count),
            "variant": pa.repeat(pa.scalar(""), count),
        }
    )


def wav_header(audio_bytes: int) -> bytes:
    """The 44 bytes before the samples of a WAV file of so many bytes: 16 kHz, 16 bit, mono."""
    size = audio_bytes - 44
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", size
    )
