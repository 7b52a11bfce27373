"""Corpora made by tests: a folder in the Hub's layout from a table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from include.sources.recipe import SourceRecipe, emotion, gender, relative_db, speaking_rate, text

TOY = SourceRecipe(
    name="toy",
    title="Toy",
    repository="org/toy",
    key="file",
    fields={
        "text": text("transcription"),
        "emotion": emotion("emotion"),
        "gender": gender("gender"),
        "pace": speaking_rate("speaking_rate"),
        "volume": relative_db("relative_db"),
    },
    licence="CC0-1.0",
    redistributable=True,
    url="https://example.org",
    max_reject_share=0.5,
)
TOY_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("transcription", pa.string()),
        ("emotion", pa.string()),
        ("gender", pa.string()),
        ("speaking_rate", pa.float32()),
        ("relative_db", pa.float32()),
    ]
)


def toy_row(number: int, **changes: object) -> dict[str, object]:
    return {
        "file": f"{number:03}.wav",
        "audio": {"bytes": b"RIFF\x3a\0\0\0WAVE" + bytes([number % 256]) * 54, "path": f"{number:03}.wav"},
        "transcription": f"Sentence number {number}.",
        "emotion": "happy",
        "gender": "Female",
        "speaking_rate": 7.0,
        "relative_db": -12.0,
        **changes,
    }


def write_corpus(
    hub: Path,
    *shards: list[dict[str, object]],
    repository: str = "org/toy",
    schema: pa.Schema = TOY_SCHEMA,
    row_group_size: int = 3,
    class_names: dict[str, list[str]] | None = None,
) -> Path:
    """Write one Parquet file per shard and a card without metadata; replaces what was there."""
    folder = hub / repository / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    if class_names:
        features = {
            field.name: {"names": class_names[field.name], "_type": "ClassLabel"}
            if field.name in class_names
            else {"dtype": str(field.type), "_type": "Value"}
            for field in schema
        }
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for number, rows in enumerate(shards):
        table = pa.Table.from_pylist(rows, schema=schema)
        name = f"train-{number:05}-of-{len(shards):05}.parquet"
        pq.write_table(table, folder / name, row_group_size=row_group_size)
    return folder.parent
