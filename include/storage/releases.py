"""What a release is made of, and the list of releases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from include.schema import Task
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
        ("held_out", pa.bool_()),
        ("task", pa.string()),
        ("mode", pa.string()),
        ("response", pa.string()),
    ]
)

MIN_SPEAKERS = 200
"""Known speakers from which on a corpus has some held out; with fewer, one in a hundred may be none or too much."""
HELD_OUT_ONE_IN = 100
"""One speaker in so many is held out, or one text where speakers are unknown."""


@dataclass(frozen=True, kw_only=True)
class SourceQuery:
    """Which rows of a source belong to a release.

    Attributes:
        source: Name of the source.
        task: "sift" (accepted responses), "transcribe" (the transcript) or "answer" (the staged answer).
        modes: Modes of the task "sift".
        held_out_speakers: Speakers whose rows are held out; none: by hash (docs/decisions/0010-held-out.md).
        max_samples: Most samples, the same ones every time; None: all.
    """

    source: str
    task: Task
    modes: Sequence[str]
    held_out_speakers: Sequence[str] = ()
    max_samples: int | None = None

    def params(self) -> dict[str, Any]:
        """Return what source_rows.sql is to be given."""
        return {
            "source": self.source,
            "task": self.task,
            "modes": list(self.modes),
            "held_out_speakers": list(self.held_out_speakers),
            "min_speakers": MIN_SPEAKERS,
            "held_out_one_in": HELD_OUT_ONE_IN,
            "max_samples": self.max_samples,
        }


@dataclass(frozen=True)
class SourceContents:
    """What a source's part of a release would hold now.

    Attributes:
        fingerprint: One value that changes with any row, or with the side that a row is on.
        rows: Split ("train", "heldout") -> mode, or the task of rows without one -> accepted rows.
        mode_hashes: Mode -> every mode_hash that its accepted responses were written under.
        prompts: Mode -> digest over the prompt hashes of its accepted responses, in any order.
    """

    fingerprint: str
    rows: dict[str, dict[str, int]]
    mode_hashes: dict[str, tuple[str, ...]]
    prompts: dict[str, str]


class SourceChangedError(RuntimeError):
    """A source is not what it was a moment ago: somebody ingests or writes responses. Trying again helps."""


def published_rows(warehouse: Warehouse, query: SourceQuery, fingerprint: str | None = None) -> Iterator[pa.Table]:
    """Yield a source's accepted rows (PUBLISHED_ROWS_SCHEMA), clip by clip, a clip's modes together.

    The fingerprint is taken from the snapshot that the rows are read from. One snapshot over planning and reading would
    do the same, but it would be held for as long as all sources are written: for hours nothing could be vacuumed, and
    the lock on the parent table would stand in the way of a new source's partition.

    Args:
        warehouse: Where they are.
        query: Which.
        fingerprint: Of the contents that they must be; None: whatever is there.

    Raises:
        SourceChangedError: If they are others by now, before any row is given out.
    """
    with warehouse.snapshot() as connection:
        if fingerprint is not None:
            contents = _contents(connection, query)
            if contents is None or contents.fingerprint != fingerprint:
                raise SourceChangedError(
                    f"{query.source} was changed after its release was planned; nothing of that release is kept, and "
                    "the next try plans it anew"
                )
        rows = _over_rows("published_rows")
        for batch in warehouse.stream(rows, query.params(), PUBLISHED_ROWS_SCHEMA, connection=connection):
            yield pa.Table.from_batches([batch])


def source_contents(warehouse: Warehouse, query: SourceQuery) -> SourceContents | None:
    """Return what a source's part of a release would hold; None if it has no accepted row."""
    with warehouse.connection() as connection:
        return _contents(connection, query)


def _contents(connection: psycopg.Connection[dict[str, Any]], query: SourceQuery) -> SourceContents | None:
    groups = connection.execute(_over_rows("source_contents"), query.params()).fetchall()
    # Here and not there: with an order, the database would sort all rows to group them.
    groups.sort(key=lambda group: (group["held_out"], group["mode"], group["mode_hash"] or ""))
    if not groups:
        return None
    rows: dict[str, dict[str, int]] = {}
    mode_hashes: dict[str, tuple[str, ...]] = {}
    prompts: dict[str, int] = {}
    for group in groups:
        by_mode = rows.setdefault("heldout" if group["held_out"] else "train", {})
        key = group["mode"] or group["task"]
        by_mode[key] = by_mode.get(key, 0) + group["rows"]
        if group["mode_hash"]:
            known = mode_hashes.get(key, ())
            mode_hashes[key] = known if group["mode_hash"] in known else (*known, group["mode_hash"])
            prompts[key] = prompts.get(key, 0) + int(group["prompts"])
    return SourceContents(
        _digest([list(group.values()) for group in groups]),
        rows,
        mode_hashes,
        {mode: _digest(total) for mode, total in prompts.items()},
    )


def _over_rows(name: str) -> sql.Composed:
    """The statement `name` over the rows of source_rows.sql."""
    return sql.SQL(statement(name).as_string()).format(rows=statement("source_rows"))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def staged_files(warehouse: Warehouse, source: str) -> dict[str, str]:
    """Return the files that a source's samples lie in: path -> blob id, as staged."""
    with warehouse.connection() as connection:
        rows = connection.execute(statement("staged_files"), {"source": source}).fetchall()
    return {row["audio_file"]: row["blob_id"] for row in rows}


def mode_inputs(warehouse: Warehouse, hashes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return all that these mode hashes cover: mode_hash -> inputs."""
    with warehouse.connection() as connection:
        rows = connection.execute(statement("mode_inputs"), {"hashes": list(hashes)}).fetchall()
    return {row["mode_hash"]: row["inputs"] for row in rows}


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
