"""What the console shows: counts that loads and runs keep, and samples found by an index, a page at a time.

The first functions are called by loads and runs, and write; all others only read, whatever the size of the warehouse in
well under a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from include.storage.generation import coverage
from include.storage.warehouse import Warehouse, statement

# Samples that one search by state looks at, at most; a longer one goes on where the reader asks it to.
WINDOW = 10_000
# The same for the samples before and after one: its page makes two such searches.
NEAR = 2_000

Row = dict[str, Any]
State = Literal["accepted", "pending", "given_up"]


@dataclass(frozen=True)
class LabelColumn:
    """A canonical column, and the published one that it comes from.

    Attributes:
        field: Canonical column, e.g. "pace".
        raw_column: The corpus's column, as `samples.raw` names it, e.g. "speaking_rate".
        bar_width: Width of a histogram's bar, for a measurement; None for a label.
        least: The histogram's lowest edge; what lies below is in its first bar.
        most: Its highest edge.
    """

    field: str
    raw_column: str
    bar_width: float | None = None
    least: float = 0.0
    most: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SampleFilter:
    """Which samples are looked for; None: any.

    Attributes:
        source: Corpus.
        modes: Modes whose prompts `state` and `rule` are about; at least one.
        emotion: Canonical emotion.
        gender: Canonical gender.
        age: Canonical age group.
        words: Words of the transcript, as people type them into a search: "two words" in quotes, -without.
        state: State of a prompt.
        rule: Rule that an attempt broke, under a current prompt.
        max_attempts: Tries after which a prompt is given up.
        prompted: Sources that have prompts at all; those of other tasks are in no state.
    """

    modes: tuple[str, ...]
    max_attempts: int
    prompted: tuple[str, ...]
    source: str | None = None
    emotion: str | None = None
    gender: str | None = None
    age: str | None = None
    words: str | None = None
    state: State | None = None
    rule: str | None = None


@dataclass(frozen=True)
class Found:
    """A page of samples.

    Attributes:
        rows: Samples in key order.
        more: Key of the sample after which there may be more, in the direction asked for; None: there are none.
        searched: Samples that were looked at, if the search stopped before the page was full.
    """

    rows: list[Row]
    more: tuple[str, str] | None = None
    searched: int | None = None


def index_samples(warehouse: Warehouse, source: str) -> None:
    """Index a source's samples by words and labels; what is indexed already stays as it is.

    After the first load and not before it: a million rows are indexed at once in a tenth of the time that it takes row
    by row, and later loads change few rows.
    """
    with warehouse.connection() as connection:
        connection.execute(statement("index_samples"), {"source": source})


def count_labels(warehouse: Warehouse, source: str, columns: Sequence[LabelColumn]) -> None:
    """Count a source's labels, published and canonical, and its measurements; replaces what was counted before."""
    labels = {
        "source": source,
        "fields": [column.field for column in columns],
        "raw_columns": [column.raw_column for column in columns],
        "measured": [column.bar_width is not None for column in columns],
    }
    with warehouse.transaction() as connection:
        connection.execute("set local work_mem = '64MB'; set local jit = off")
        for name in ("delete_label_counts", "delete_histograms"):
            connection.execute(statement(name), {"source": source})
        connection.execute(statement("count_labels"), labels)
        for column in columns:
            if column.bar_width:
                bars = {
                    "source": source,
                    "field": column.field,
                    "raw_column": column.raw_column,
                    "width": column.bar_width,
                    "first": round(column.least / column.bar_width),
                    "last": round(column.most / column.bar_width) - 1,
                }
                connection.execute(statement("count_histogram"), bars)


def count_coverage(warehouse: Warehouse, sources: Sequence[str], modes: Sequence[str], max_attempts: int) -> list[Row]:
    """Count the prompts of these sources by state, keep the counts, and return them as `coverage` does."""
    with warehouse.connection() as connection:
        # The server's clock, which also dates responses: what comes later is added by the reader.
        now = connection.execute("select now() as counted_at").fetchone()
    rows = coverage(warehouse, sources, modes, max_attempts)
    with warehouse.transaction() as connection, connection.cursor() as cursor:
        cursor.executemany(statement("upsert_coverage"), [{**row, **(now or {})} for row in rows])
    return rows


def keep_verdicts(warehouse: Warehouse, run_id: str, verdicts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """Keep a run's verdict counts: mode -> verdict -> source -> texts."""
    rows = [
        {"run_id": run_id, "mode": mode, "verdict": verdict, "source": source, "texts": texts}
        for mode, by_verdict in verdicts.items()
        for verdict, by_source in by_verdict.items()
        for source, texts in by_source.items()
    ]
    with warehouse.transaction() as connection, connection.cursor() as cursor:
        cursor.executemany(statement("insert_verdict_count"), rows)


def read_only(warehouse: Warehouse, timeout_s: float = 10) -> Warehouse:
    """Return the same warehouse, on connections that cannot write and whose statements end after the timeout."""
    options = f"-c default_transaction_read_only=on -c statement_timeout={int(timeout_s * 1000)} -c jit=off"
    given = conninfo_to_dict(warehouse.conninfo).get("options")
    return Warehouse(make_conninfo(warehouse.conninfo, options=f"{given} {options}" if given else options))


def kept_coverage(warehouse: Warehouse, max_attempts: int) -> list[Row]:
    """Return the counts of each source and mode with all that was written since, and when they were counted."""
    return _rows(warehouse, "kept_coverage", {"max_attempts": max_attempts})


def running_shards(warehouse: Warehouse) -> list[Row]:
    """Return progress of the newest run that generates; `silent` where a shard was not heard of for minutes."""
    return _rows(warehouse, "running_shards", {})


def shards_of_run(warehouse: Warehouse, run_id: str) -> list[Row]:
    """Return progress of the shards of one run."""
    return _rows(warehouse, "shards_of_run", {"run_id": run_id})


def verdicts_of_run(warehouse: Warehouse, run_id: str) -> list[Row]:
    """Return the verdict counts that one run's report found, accepted texts first."""
    return _rows(warehouse, "verdicts_of_run", {"run_id": run_id})


def loads_of_run(warehouse: Warehouse, source: str, run_id: str) -> list[Row]:
    """Return what an ingest run has merged: one load, or several if it was cleared and run again."""
    return _rows(warehouse, "loads_of_run", {"source": source, "run_id": run_id})


def find_samples(
    warehouse: Warehouse,
    wanted: SampleFilter,
    *,
    key: tuple[str, str] | None = None,
    backwards: bool = False,
    most: int = 25,
    window: int | None = None,
) -> Found:
    """Find one page of samples, in order of source and sample_id.

    Args:
        warehouse: Read only.
        wanted: What is looked for.
        key: Start after this sample; None: at the first (backwards: at the last).
        backwards: Go towards the first sample instead. The page itself is in key order either way.
        most: Samples of a page.
        window: Samples that a search by state looks at, at most; None: WINDOW.
    """
    window = window or WINDOW
    name = "find_samples"
    if wanted.rule or wanted.state == "given_up":
        name = "find_samples_by_rule"
    elif wanted.state:
        name = "find_samples_by_state"
    # Both are ours and closed sets: nothing of what a reader sends gets into the text of a statement.
    after, direction = (sql.SQL("<"), sql.SQL("desc")) if backwards else (sql.SQL(">"), sql.SQL("asc"))
    query = sql.SQL(statement(name).as_string()).format(after=after, direction=direction)
    params = {
        **asdict(wanted),
        "modes": list(wanted.modes),
        "sources": list(wanted.prompted),
        "key_source": key[0] if key else None,
        "key_id": key[1] if key else None,
        "window": window,
        "most": most + 1,
    }
    with warehouse.connection() as connection:
        rows: list[Row] = connection.execute(query, params).fetchall()
    more, searched = None, None
    if len(rows) > most:
        rows = rows[:most]
        more = (rows[-1]["source"], rows[-1]["sample_id"])
    elif rows and not rows[-1].get("matches", True):
        more, searched = (rows[-1]["source"], rows[-1]["sample_id"]), window
    elif rows and rows[-1].get("place") == window:
        more = (rows[-1]["source"], rows[-1]["sample_id"])
    rows = [row for row in rows if row.get("matches", True)]
    return Found(rows[::-1] if backwards else rows, more, searched)


def neighbours(
    warehouse: Warehouse, wanted: SampleFilter, key: tuple[str, str]
) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
    """Return the keys of the samples before and after one, among those looked for; None: there is none near."""
    pages = [
        find_samples(warehouse, wanted, key=key, backwards=backwards, most=1, window=NEAR)
        for backwards in (True, False)
    ]
    previous, following = ((page.rows[0]["source"], page.rows[0]["sample_id"]) if page.rows else None for page in pages)
    return previous, following


def states_of_samples(warehouse: Warehouse, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Row]]:
    """Return the state of N samples' prompts: key -> mode -> `accepted` and `tries`; modes not planned are absent."""
    params = {"sources": [source for source, _ in keys], "sample_ids": [sample_id for _, sample_id in keys]}
    states: dict[tuple[str, str], dict[str, Row]] = {}
    for row in _rows(warehouse, "states_of_samples", params) if keys else []:
        states.setdefault((row["source"], row["sample_id"]), {})[row["mode"]] = row
    return states


def find_sample(warehouse: Warehouse, source: str, sample_id: str) -> Row | None:
    """Return one sample, retired or not; None if there is none."""
    rows = _rows(warehouse, "find_sample", {"source": source, "sample_id": sample_id})
    return rows[0] if rows else None


def texts_of_sample(warehouse: Warehouse, source: str, sample_id: str) -> list[Row]:
    """Return what was written for a sample, at most 200 texts, the newest of each mode first."""
    return _rows(warehouse, "texts_of_sample", {"source": source, "sample_id": sample_id})


def list_label_counts(warehouse: Warehouse, source: str) -> dict[str, list[Row]]:
    """Return a source's labels by column: published and canonical label, and rows."""
    counts: dict[str, list[Row]] = {}
    for row in _rows(warehouse, "list_label_counts", {"source": source}):
        counts.setdefault(row["field"], []).append(row)
    return counts


def list_histograms(warehouse: Warehouse, source: str) -> dict[str, list[Row]]:
    """Return a source's measurements by column: bars with their edges and rows."""
    bars: dict[str, list[Row]] = {}
    for row in _rows(warehouse, "list_histograms", {"source": source}):
        bars.setdefault(row["field"], []).append(row)
    return bars


def verdict_history(warehouse: Warehouse, most: int = 20) -> list[Row]:
    """Return verdict counts of the newest reports, oldest first."""
    return _rows(warehouse, "verdict_history", {"most": most})


def quality_history(warehouse: Warehouse, most: int = 20) -> list[Row]:
    """Return the measures of the newest reports, oldest first."""
    return _rows(warehouse, "quality_history", {"most": most})


def released_manifests(warehouse: Warehouse, most: int = 20) -> list[Row]:
    """Return the newest releases with their manifests, newest first."""
    return _rows(warehouse, "released_manifests", {"most": most})


def _rows(warehouse: Warehouse, name: str, params: Mapping[str, object]) -> list[Row]:
    with warehouse.connection() as connection:
        return connection.execute(statement(name), params).fetchall()
