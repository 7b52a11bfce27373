"""Generation tables: prompts, the pending rule, responses as they come, live progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from include.schema import LABEL_COLUMNS, Response
from include.storage.warehouse import Warehouse, copy_in, statement

_LABELS = [(name, pa.string()) for name in LABEL_COLUMNS]
STALE_SCHEMA = pa.schema([("sample_id", pa.string()), ("row_hash", pa.string()), ("text", pa.string()), *_LABELS])
PENDING_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("sample_id", pa.string()),
        ("prompt_hash", pa.string()),
        ("attempt", pa.int32()),
        ("draw", pa.int32()),  # of all texts for this prompt: demoted ones were no tries, but have used a seed
        ("text", pa.string()),
        *_LABELS,
    ]
)
VERDICTS_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "sample_id", "mode", "prompt_hash", "verdict")])
ANSWERED_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("source", "sample_id", "mode", "prompt_hash", "response", "finish_reason")),
        ("text", pa.string()),
        *_LABELS,
    ]
)
NEW_PROMPTS_SCHEMA = pa.schema([("sample_id", pa.string()), ("row_hash", pa.string()), ("prompt_hash", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which pending work is meant.

    Attributes:
        sources: Sources by name.
        max_attempts: Tries after which a prompt is given up.
        max_samples: At most so many samples of each source, the same ones every time; None: all.
        shard: This shard of `shards`, by hash of sample_id.
        shards: Number of shards per mode.
    """

    sources: list[str]
    max_attempts: int
    max_samples: int | None = None
    shard: int = 0
    shards: int = 1


@dataclass(kw_only=True)
class Progress:
    """A row of `generation.runs`: how far one shard of one mode has come in a run, over all attempts of its task.

    Attributes:
        run_id: The run.
        mode: By name.
        shard: This shard of `shards`.
        shards: Number of shards of the mode.
        status: What the task is at, or how it ended.
        device: What the engine runs on; None until its model is loaded.
        total: Prompts that the run has to deal with: `done`, and what was pending when this attempt began.
        accepted: Prompts with an accepted response.
        rejected: Texts that were rejected.
        given_up: Prompts whose last try was rejected.
        response_tokens: Tokens of all texts.
        tokens_per_s: Response tokens a second over the last minute.
        eta_s: Seconds left at the pace of the last minute.
    """

    run_id: str
    mode: str
    shard: int
    shards: int
    status: str
    device: str | None
    total: int
    accepted: int
    rejected: int
    given_up: int
    response_tokens: int
    tokens_per_s: float | None
    eta_s: float | None

    @property
    def done(self) -> int:
        """Prompts that were dealt with."""
        return self.accepted + self.given_up


@dataclass(frozen=True)
class JudgedResponse:
    """A response with its verdict: 'accepted', or the name of the rule that it broke."""

    response: Response
    text: str
    verdict: str
    engine: str
    rules_version: str


def register_mode(warehouse: Warehouse, mode: str, mode_hash: str, inputs: Mapping[str, object]) -> None:
    """Record what a mode_hash covers."""
    with warehouse.connection() as connection:
        connection.execute(
            statement("insert_mode"), {"mode": mode, "mode_hash": mode_hash, "inputs": Jsonb(dict(inputs))}
        )


def stale_prompts(warehouse: Warehouse, source: str, mode: str, mode_hash: str) -> Iterator[pa.RecordBatch]:
    """Yield samples (STALE_SCHEMA) whose prompt under this mode is unknown or out of date."""
    params = {"source": source, "mode": mode, "mode_hash": mode_hash}
    return warehouse.stream(statement("stale_prompts"), params, STALE_SCHEMA)


def upsert_prompts(warehouse: Warehouse, source: str, mode: str, mode_hash: str, prompts: pa.Table) -> None:
    """Store N current prompts (NEW_PROMPTS_SCHEMA) of one source and mode."""
    with warehouse.transaction() as connection:
        connection.execute(statement("create_new_prompts"))
        copy_in(connection, sql.Identifier("new_prompts"), NEW_PROMPTS_SCHEMA.names, prompts)
        connection.execute(statement("upsert_prompts"), {"source": source, "mode": mode, "mode_hash": mode_hash})


def count_pending(warehouse: Warehouse, scope: Scope, modes: Sequence[str]) -> dict[str, dict[int, int]]:
    """Count pending prompts: mode -> shard -> rows; shards without work are left out."""
    with warehouse.connection() as connection:
        rows = connection.execute(statement("count_pending"), {**asdict(scope), "modes": list(modes)}).fetchall()
    counts: dict[str, dict[int, int]] = {}
    for row in rows:
        shards = counts.setdefault(row["mode"], {})
        shards[row["shard"]] = shards.get(row["shard"], 0) + row["rows"]
    return counts


def pending_window(warehouse: Warehouse, scope: Scope, mode: str, mode_hash: str, window: int) -> pa.Table:
    """Return the next pending prompts of a shard, at most `window`, with their samples (PENDING_SCHEMA)."""
    params = {**asdict(scope), "mode": mode, "mode_hash": mode_hash, "window": window}
    batches = warehouse.stream(statement("pending_window"), params, PENDING_SCHEMA)
    return pa.Table.from_batches(batches, schema=PENDING_SCHEMA)


def store_responses(warehouse: Warehouse, judged: Sequence[JudgedResponse], progress: Progress) -> None:
    """Store a finished batch in one transaction: accepted ones as responses, the others as attempts.

    What is there already stays: two overlapping attempts of one shard cannot overwrite anything.

    Args:
        warehouse: Where to.
        judged: The batch.
        progress: How far the shard is with it; in the same transaction, so that a kill cannot part the two.
    """
    with warehouse.transaction() as connection, connection.cursor() as cursor:
        for name, rows in (
            ("insert_response", [row for row in judged if row.verdict == "accepted"]),
            ("insert_attempt", [row for row in judged if row.verdict != "accepted"]),
        ):
            cursor.executemany(statement(name), [_response_row(row) for row in rows])
        cursor.execute(statement("update_run"), asdict(progress))


def start_run(
    warehouse: Warehouse, *, run_id: str, mode: str, shard: int, shards: int, status: str, pending: int
) -> Progress:
    """Begin the shard's row of `generation.runs`, or go on with the one of an earlier attempt.

    Args:
        warehouse: Where it is.
        run_id: The run.
        mode: By name.
        shard: This shard of `shards`.
        shards: Number of shards of the mode.
        status: What the task is at.
        pending: Prompts that are left to do.
    """
    params = {"run_id": run_id, "mode": mode, "shard": shard, "shards": shards, "status": status, "pending": pending}
    with warehouse.connection() as connection:
        row = connection.execute(statement("start_run"), params).fetchone()
    assert row
    return Progress(**row)


def end_run(warehouse: Warehouse, progress: Progress, status: str) -> None:
    """Write into the shard's row of `generation.runs` how it ended."""
    params = {"run_id": progress.run_id, "mode": progress.mode, "shard": progress.shard, "status": status}
    with warehouse.connection() as connection:
        connection.execute(statement("end_run"), params)


def list_progress(warehouse: Warehouse, since: datetime) -> list[dict[str, Any]]:
    """Return the rows of `generation.runs` touched since then."""
    with warehouse.connection() as connection:
        return connection.execute(statement("list_runs"), {"since": since}).fetchall()


@contextmanager
def shard_lock(warehouse: Warehouse, mode: str, shard: int) -> Iterator[None]:
    """Hold a shard of a mode; a second holder waits until the first one ends, however it ends."""
    with warehouse.connection() as connection:
        connection.execute("select pg_advisory_lock(hashtextextended(%s, 0))", [f"generate {mode} {shard}"])
        yield


def coverage(
    warehouse: Warehouse,
    sources: Sequence[str],
    modes: Sequence[str],
    max_attempts: int,
    max_samples: int | None = None,
) -> list[dict[str, Any]]:
    """Count staged, accepted, pending and given-up prompts by source and mode, of at most so many samples a source."""
    params = {
        "sources": list(sources),
        "modes": list(modes),
        "max_attempts": max_attempts,
        "max_samples": max_samples,
    }
    with warehouse.connection() as connection:
        return connection.execute(statement("coverage"), params).fetchall()


def count_verdicts(
    warehouse: Warehouse, sources: Sequence[str], max_samples: int | None = None
) -> dict[str, dict[str, int]]:
    """Count verdicts on all texts written under the current prompts: mode -> verdict -> texts."""
    return {
        mode: {verdict: sum(by_source.values()) for verdict, by_source in verdicts.items()}
        for mode, verdicts in verdicts_by_source(warehouse, sources, max_samples).items()
    }


def verdicts_by_source(
    warehouse: Warehouse, sources: Sequence[str], max_samples: int | None = None
) -> dict[str, dict[str, dict[str, int]]]:
    """Count verdicts on all texts written under the current prompts: mode -> verdict -> source -> texts.

    With `max_samples` only those on the samples that a run of so many takes.
    """
    params = {"sources": list(sources), "max_samples": max_samples}
    with warehouse.connection() as connection:
        rows = connection.execute(statement("verdicts"), params).fetchall()
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        counts.setdefault(row["mode"], {}).setdefault(row["verdict"], {})[row["source"]] = row["texts"]
    return counts


def judged_otherwise(warehouse: Warehouse, sources: Sequence[str], rules_version: str) -> Iterator[pa.RecordBatch]:
    """Yield current responses (ANSWERED_SCHEMA) that other rules have judged than these."""
    params = {"sources": list(sources), "rules_version": rules_version}
    return warehouse.stream(statement("judged_otherwise"), params, ANSWERED_SCHEMA)


def sampled_responses(warehouse: Warehouse, sources: Sequence[str], mode: str, most: int) -> pa.Table:
    """Return current accepted responses of a mode (ANSWERED_SCHEMA), the same clips every time."""
    params = {"sources": list(sources), "mode": mode, "most": most}
    batches = warehouse.stream(statement("sampled_responses"), params, ANSWERED_SCHEMA)
    return pa.Table.from_batches(batches, schema=ANSWERED_SCHEMA)


def store_verdicts(warehouse: Warehouse, verdicts: pa.Table, rules_version: str) -> int:
    """Store N new verdicts (VERDICTS_SCHEMA) on responses; those that are rejected now are pending again.

    Returns:
        Responses that were demoted.
    """
    with warehouse.transaction() as connection:
        connection.execute(statement("create_verdicts"))
        copy_in(connection, sql.Identifier("new_verdicts"), VERDICTS_SCHEMA.names, verdicts)
        params = {"rules_version": rules_version}
        connection.execute(statement("confirm_responses"), params)
        return connection.execute(statement("demote_responses"), params).rowcount


def save_quality(warehouse: Warehouse, run_id: str, mode: str, measures: Mapping[str, float]) -> None:
    """Keep the measures of a mode that a run's report has found."""
    rows = [{"run_id": run_id, "mode": mode, "measure": name, "value": value} for name, value in measures.items()]
    with warehouse.transaction() as connection, connection.cursor() as cursor:
        cursor.executemany(statement("insert_quality"), rows)


def previous_quality(warehouse: Warehouse, run_id: str) -> dict[str, dict[str, float]]:
    """Return the measures of the newest report before this run's: mode -> measure -> value."""
    with warehouse.connection() as connection:
        rows = connection.execute(statement("previous_quality"), {"run_id": run_id}).fetchall()
    measures: dict[str, dict[str, float]] = {}
    for row in rows:
        measures.setdefault(row["mode"], {})[row["measure"]] = row["value"]
    return measures


def _response_row(judged: JudgedResponse) -> dict[str, object]:
    response, prompt = judged.response, judged.response.prompt
    return {
        "source": prompt.source,
        "sample_id": prompt.sample_id,
        "mode": prompt.mode,
        "prompt_hash": prompt.prompt_hash,
        "response": judged.text.replace("\x00", "\ufffd"),  # PostgreSQL cannot store NUL; the rules reject both
        "finish_reason": response.finish_reason,
        "prompt_tokens": response.prompt_tokens,
        "response_tokens": response.response_tokens,
        "seed": prompt.seed,
        "attempt": prompt.attempt,
        "engine": judged.engine,
        "rules_version": judged.rules_version,
        "verdict": judged.verdict,
    }
