"""Staging tables: rows of a load come in beside the samples, then one transaction merges them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from include.schema import STAGED_SCHEMA, BadInputError
from include.storage.warehouse import Warehouse, copy_in, statement

_INCOMING_COLUMNS = ("file_group", *STAGED_SCHEMA.names, "reject_reason")


MOST_RETIRED_SHARE = 0.1
"""Share of the staged rows that a refresh may retire unasked."""
MOST_RETIRED_ROWS = 20
"""Rows that it may retire whatever their share: of a small corpus, a few are many."""

# Nobody has to wait for the disk here: merge finds out what a crash has lost, and it is loaded again.
_LOST_IS_LOADED_AGAIN = "set local synchronous_commit = off"


class MergeRefusedError(BadInputError):
    """A load must not be merged; the message says why. Nothing was changed."""


class OlderRevisionError(ValueError):
    """A newer revision was staged while this load was under way. Nothing was changed."""


class IncomingLoad:
    """The table that holds the rows of one load until they are merged.

    Args:
        load_id: Identity of the load.
    """

    def __init__(self, load_id: str) -> None:
        self.load_id = load_id
        self._name = f"incoming_{hashlib.sha256(load_id.encode()).hexdigest()[:16]}"
        self._table = sql.Identifier("staging", self._name)

    def prepare(self, connection: Any, source: str) -> None:
        """Make the table if it is not there; several tasks may do so at once."""
        with connection.transaction():
            connection.execute(_LOST_IS_LOADED_AGAIN)
            connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", [self._name])
            values = {"load_id": self.load_id, "source": source, "incoming": self._name}
            connection.execute(statement("create_incoming"), values)
            connection.execute(statement("insert_incoming_load"), values)

    def exists(self, connection: Any) -> bool:
        """Whether the table is there."""
        row = connection.execute("select to_regclass(%s) is not null as there", [f"staging.{self._name}"]).fetchone()
        return bool(row["there"])

    def execute(self, connection: Any, name: str, params: Mapping[str, Any] | None = None, **names: str) -> Any:
        """Run a statement on the table, whose identifiers {incoming} and `names` are filled in."""
        identifiers = {key: sql.Identifier(*value.split(".")) for key, value in names.items()}
        query = sql.SQL(statement(name).as_string()).format(incoming=self._table, **identifiers)
        return connection.execute(query, params)

    def clear(self, connection: Any, file_group: int) -> None:
        """Drop the rows of a group that an earlier try of its task has left, within the transaction that loads it.

        Another try that is still under way is waited for: both would see nothing to drop, and the group come in twice.
        """
        connection.execute(_LOST_IS_LOADED_AGAIN)
        lock = f"{self._name} {file_group}"
        connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", [lock])
        self.execute(connection, "clear_incoming", {"file_group": file_group})

    def append(self, connection: Any, file_group: int, rows: pa.Table) -> None:
        """Copy N rows of STAGED_SCHEMA and `reject_reason`."""
        rows = rows.add_column(0, "file_group", pa.repeat(pa.scalar(file_group), len(rows)))
        copy_in(connection, self._table, _INCOMING_COLUMNS, rows)

    def drop(self, connection: Any) -> None:
        """Drop the table."""
        connection.execute(statement("drop_incoming"), {"incoming": self._name})
        connection.execute(statement("delete_incoming_load"), {"load_id": self.load_id})


def latest_loads(warehouse: Warehouse, source: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the newest load of each source (or of one), by source."""
    with warehouse.connection() as connection:
        rows = connection.execute(statement("latest_loads"), {"source": source}).fetchall()
    return {row["source"]: row for row in rows}


def forget_abandoned_loads(warehouse: Warehouse, source: str) -> None:
    """Drop tables of a source's loads that were never merged and are too old for that still to happen."""
    with warehouse.transaction() as connection:
        for row in connection.execute(statement("abandoned_loads"), {"source": source}).fetchall():
            IncomingLoad(row["load_id"]).drop(connection)


def merge_load(
    warehouse: Warehouse,
    *,
    load_id: str,
    source: str,
    revision: str,
    published_at: str | None,
    code_hash: str,
    rows_by_group: Mapping[int, int],
    unmapped: Mapping[str, Mapping[str, int]],
    max_reject_share: float,
    largest_class: Mapping[str, str],
    force: bool = False,
) -> dict[str, Any]:
    """Make the source's samples equal to a load, in one transaction; running it again returns the same load.

    Args:
        warehouse: Where.
        load_id: The load whose rows have come in.
        source: Name of the source.
        revision: Revision the rows were read from.
        published_at: When that revision was committed (ISO 8601), if known.
        code_hash: Identity of the code that normalised the rows.
        rows_by_group: Rows that each group of files reported; all must be there.
        unmapped: Canonical column -> published label -> rows.
        max_reject_share: Share of rejected rows above which nothing is merged.
        largest_class: Canonical column -> label that must be its most frequent one.
        force: Merge even an older revision than what is staged, or one without many of the staged rows.

    Returns:
        The row of `staging.loads`.

    Raises:
        MergeRefusedError: If rows are missing, none came, too many were rejected, another label is most frequent, or
            too many staged rows would be retired though the code is that of the latest load.
        OlderRevisionError: If a newer revision was merged since this one was chosen.
    """
    started = time.monotonic()
    partition = f"samples_{source}"
    incoming = IncomingLoad(load_id)
    with warehouse.transaction() as connection:
        # One merge per source at a time; a second attempt waits here and then finds the first one's work.
        connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"merge {source}"])
        # A million rows are joined and grouped in memory; compiling the plan would take longer than running it.
        connection.execute("set local work_mem = '256MB'; set local jit = off")
        done = connection.execute(statement("find_load"), {"load_id": load_id}).fetchone()
        if done:
            return done
        latest = connection.execute(statement("latest_loads"), {"source": source}).fetchone()
        if latest and not force and _is_older(published_at, latest["published_at"]):
            raise OlderRevisionError(f"{source}: revision {latest['revision'][:12]} was staged meanwhile, and is newer")
        rejected = _count_rejects(connection, incoming, source, rows_by_group)
        if duplicates := incoming.execute(connection, "reject_duplicates").rowcount:
            rejected["duplicate key"] = duplicates
        read, unusable = sum(rows_by_group.values()), sum(rejected.values())
        if unusable > max_reject_share * read:
            raise MergeRefusedError(
                f"{source}: {unusable} of {read} rows are unusable ({rejected}), more than the recipe's limit of "
                f"{max_reject_share:.0%}; nothing was merged. Look at the corpus, or raise max_reject_share in "
                f"include/sources/{source}.py"
            )
        _check_largest(connection, incoming, source, largest_class)
        connection.execute(statement("create_partition"), {"source": source})
        merged = incoming.execute(connection, "merge_samples", {"revision": revision}, partition=f"staging.{partition}")
        outcomes = {row["outcome"]: row["rows"] for row in merged}
        staged, retired = outcomes.get("staged", 0), outcomes.get("retired", 0)
        changed = outcomes.get("changed", 0) + outcomes.get("returned", 0)
        before = retired + read - unusable - staged - outcomes.get("returned", 0)
        # Other code, or another cap, may well make other rows of the same corpus; the same code has found others.
        same_code = latest and latest["code_hash"] == code_hash
        if same_code and not force and retires_too_many(retired, before):
            raise MergeRefusedError(
                f"{source}: {retired:,} of {before:,} staged rows are not in revision {revision[:12]} and would be "
                f"retired, more than {MOST_RETIRED_ROWS} and {MOST_RETIRED_SHARE:.0%}; nothing was merged. Is the "
                "corpus still being copied, or did an upload lose files? Fetch it again. If the rows are gone for "
                "good, trigger with the Param `force`"
            )
        connection.execute(statement("delete_rejects"), {"source": source})
        if rejected:
            incoming.execute(connection, "insert_rejects", {"load_id": load_id})
        connection.execute(statement("delete_unmapped_labels"), {"source": source})
        with connection.cursor() as cursor:
            cursor.executemany(
                statement("insert_unmapped_label"),
                [
                    {"source": source, "field": field, "raw_value": value, "count": count, "load_id": load_id}
                    for field, values in unmapped.items()
                    for value, count in values.items()
                ],
            )
        load = {
            "load_id": load_id,
            "source": source,
            "revision": revision,
            "published_at": published_at,
            "code_hash": code_hash,
            "read": read,
            "staged": staged,
            "unchanged": read - unusable - staged - changed,
            "changed": changed,
            "moved": outcomes.get("moved", 0),
            "retired": retired,
            "rejected": Jsonb(rejected),
            "seconds": time.monotonic() - started,
        }
        connection.execute(statement("insert_load"), load)
        incoming.drop(connection)
        return {**load, "rejected": rejected}


def retires_too_many(retired: int, before: int) -> bool:
    """Whether so many of the rows staged before look like half a corpus, and not like a refresh."""
    return retired > max(MOST_RETIRED_ROWS, MOST_RETIRED_SHARE * before)


def _count_rejects(
    connection: Any, incoming: IncomingLoad, source: str, rows_by_group: Mapping[int, int]
) -> dict[str, int]:
    """Rejected rows by reason, once every row that was loaded is there."""
    counted = incoming.execute(connection, "count_incoming").fetchall() if incoming.exists(connection) else []
    found: dict[int, int] = {}
    rejected: dict[str, int] = {}
    for row in counted:
        found[row["file_group"]] = found.get(row["file_group"], 0) + row["rows"]
        if row["reject_reason"]:
            rejected[row["reject_reason"]] = rejected.get(row["reject_reason"], 0) + row["rows"]
    lost = {group: (rows, found.get(group, 0)) for group, rows in rows_by_group.items() if rows != found.get(group, 0)}
    if lost:
        raise MergeRefusedError(
            f"{source}: groups of files lost rows between load and merge (group: reported, found): {lost}. Was the "
            "database restarted? Clear the load tasks and run them again"
        )
    if not sum(rows_by_group.values()):
        raise MergeRefusedError(f"{source}: the corpus holds no rows; nothing was merged")
    return rejected


def _check_largest(connection: Any, incoming: IncomingLoad, source: str, largest_class: Mapping[str, str]) -> None:
    for column, label in largest_class.items():
        counts = incoming.execute(connection, "count_incoming_labels", column=column).fetchall()
        if counts and label not in [row["label"] for row in counts if row["rows"] == counts[0]["rows"]]:
            shown = ", ".join(f"{row['label']} {row['rows']}" for row in counts)
            raise MergeRefusedError(
                f"{source}: {label!r} should be the most frequent {column}, but there are {shown}; nothing was merged. "
                "Integer labels read in the wrong order look like this: hold the names that the files declare, or the "
                f"class_names of include/sources/{source}.py, against the corpus"
            )


def _is_older(published_at: str | None, than: datetime | None) -> bool:
    return bool(published_at and than and datetime.fromisoformat(published_at) < than)


def list_rejects(warehouse: Warehouse, source: str, most: int = 20) -> list[dict[str, Any]]:
    """Return some rejected rows of a source's newest load."""
    with warehouse.connection() as connection:
        return connection.execute(statement("list_rejects"), {"source": source, "most": most}).fetchall()


def list_unmapped(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Return the published values of the newest loads that no rule knows, by source, the most frequent first."""
    with warehouse.connection() as connection:
        return connection.execute(statement("list_unmapped")).fetchall()


def label_distribution(
    warehouse: Warehouse, sources: list[str], max_samples: int | None = None
) -> dict[str, dict[str, dict[str, int]]]:
    """Count canonical labels of unretired samples: source -> column -> label -> rows, most frequent first."""
    params = {"sources": sources, "max_samples": max_samples}
    with warehouse.connection() as connection:
        rows = connection.execute(statement("label_distribution"), params).fetchall()
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        counts.setdefault(row["source"], {}).setdefault(row["field"], {})[row["value"]] = row["rows"]
    return counts
