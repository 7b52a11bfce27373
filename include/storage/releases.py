"""What a release is made of, and the list of releases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from psycopg.types.json import Jsonb

from include.storage.warehouse import Warehouse, statement

PUBLISHED_ROWS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("sample_id", pa.string()),
        ("text", pa.string()),
        ("emotion", pa.string()),
        ("gender", pa.string()),
        ("age", pa.string()),
        ("pace", pa.string()),
        ("accent", pa.string()),
        ("volume", pa.string()),
        ("audio_file", pa.string()),
        ("audio_row_group", pa.int32()),
        ("audio_row", pa.int32()),
        ("mode", pa.string()),
        ("response", pa.string()),
    ]
)


def published_rows(
    warehouse: Warehouse, source: str, modes: Sequence[str], max_samples: int | None = None
) -> Iterator[pa.Table]:
    """Yield a source's accepted rows (PUBLISHED_ROWS_SCHEMA), clip by clip, a clip's modes together."""
    params = {"source": source, "modes": list(modes), "max_samples": max_samples}
    for batch in warehouse.stream(statement("published_rows"), params, PUBLISHED_ROWS_SCHEMA):
        yield pa.Table.from_batches([batch])


def source_fingerprints(
    warehouse: Warehouse, sources: Sequence[str], modes: Sequence[str], max_samples: int | None = None
) -> dict[str, str]:
    """Return, for each source with accepted rows, one value that changes with any of them."""
    params = {"sources": list(sources), "modes": list(modes), "max_samples": max_samples}
    with warehouse.connection() as connection:
        rows = connection.execute(statement("source_fingerprints"), params).fetchall()
    return {row["source"]: row["fingerprint"] for row in rows}


def staged_files(warehouse: Warehouse, source: str) -> dict[str, str]:
    """Return the files that a source's samples lie in: path -> blob id, as staged."""
    with warehouse.connection() as connection:
        rows = connection.execute(statement("staged_files"), {"source": source}).fetchall()
    return {row["audio_file"]: row["blob_id"] for row in rows}


def released_modes(
    warehouse: Warehouse, sources: Sequence[str], modes: Sequence[str]
) -> dict[str, dict[str, tuple[str, dict[str, Any]]]]:
    """Return what the current responses were made with: source -> mode -> (mode_hash, all that it covers)."""
    params = {"sources": list(sources), "modes": list(modes)}
    with warehouse.connection() as connection:
        rows = connection.execute(statement("released_modes"), params).fetchall()
    found: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {}
    for row in rows:
        found.setdefault(row["source"], {})[row["mode"]] = (row["mode_hash"], row["inputs"])
    return found


def is_recorded(warehouse: Warehouse, target: str, release_id: str) -> bool:
    """Whether `publish.releases` knows the release of this target."""
    params = {"target": target, "release_id": release_id}
    with warehouse.connection() as connection:
        return bool(connection.execute(statement("find_release"), params).fetchone())


def record_release(warehouse: Warehouse, release: Mapping[str, Any]) -> None:
    """Add a promoted release to `publish.releases`; adding it again changes nothing."""
    row = {**release, "rows": Jsonb(release["rows"]), "manifest": Jsonb(release["manifest"])}
    with warehouse.connection() as connection:
        connection.execute(statement("insert_release"), row)


def list_releases(warehouse: Warehouse, most: int = 50) -> list[dict[str, Any]]:
    """Return the newest releases of all targets, newest first, each with its `total_rows` and `bytes`."""
    with warehouse.connection() as connection:
        return connection.execute(statement("list_releases"), {"most": most}).fetchall()
