"""The warehouse: connections, statements from `sql/`, and Arrow in and out by COPY.

The only package that speaks SQL is this one. A statement is one file of `sql/`, its values always bound.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import resources
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

if TYPE_CHECKING:
    from alembic.config import Config

# Rows written as CSV at once: memory holds one such piece of text.
_COPY_ROWS = 4_096
MIN_POSTGRES = 180000  # MERGE ... RETURNING old and new


@cache
def statement(name: str) -> sql.SQL:
    """Return the statement of `sql/<name>.sql`."""
    text = (resources.files("include.storage") / "sql" / f"{name}.sql").read_text(encoding="utf-8")
    return sql.SQL(text)  # the text is ours: no value is ever written into it


class Warehouse:
    """One PostgreSQL database, by its connection string.

    Args:
        conninfo: libpq connection string. Never shown: it may hold a password.

    Raises:
        ValueError: If it is none.
    """

    def __init__(self, conninfo: str) -> None:
        try:
            conninfo_to_dict(conninfo)
        except psycopg.Error:  # it says what it has read, and that may be the password
            raise ValueError(
                "the warehouse's connection string cannot be read; in a URL, special characters of the password are "
                "percent-encoded"
            ) from None
        self.conninfo = conninfo

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """Open a connection and a transaction: committed at the end of the block, rolled back on any error."""
        with self.connection() as connection, connection.transaction():
            yield connection

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """Open a connection in autocommit mode."""
        with self._connect() as connection:
            connection.row_factory = dict_row
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """Open a connection whose statements, in this block, all see the rows of one moment, and change none."""
        with self.connection() as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            with connection.transaction():
                yield connection

    def _connect(self, timeout_s: int = 30) -> psycopg.Connection[Any]:
        """Connect in autocommit mode; the locks of a machine that dies are freed, whatever it had under way."""
        connection = psycopg.connect(self.conninfo, autocommit=True, application_name="sift", connect_timeout=timeout_s)
        try:
            connection.execute(statement("set_keepalives"))
        except BaseException:
            connection.close()
            raise
        return connection

    def stream(
        self,
        query: sql.Composable,
        params: Mapping[str, object],
        schema: pa.Schema,
        block_bytes: int = 8 << 20,
        connection: psycopg.Connection[dict[str, Any]] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Read a query's rows as Arrow batches.

        Args:
            query: A select statement whose columns are named as in `schema`.
            params: Bound values.
            schema: Arrow types of the result; NULL and "" are told apart.
            block_bytes: Bytes of CSV a batch is made of; memory does not grow with the result.
            connection: Nothing else may use it meanwhile; None: the rows get one of their own.

        Yields:
            Batches in the query's order.
        """
        copy_out = sql.SQL("copy ({}) to stdout with (format csv, header true)").format(query)
        with (
            nullcontext(connection) if connection else self.connection() as used,
            used.cursor() as cursor,
            cursor.copy(copy_out, params) as copy,
        ):
            reader = pa_csv.open_csv(
                pa.PythonFile(_CopyStream(copy), mode="r"),
                read_options=pa_csv.ReadOptions(block_size=block_bytes, use_threads=False),
                parse_options=pa_csv.ParseOptions(newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    column_types=schema,
                    include_columns=schema.names,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    true_values=["t"],
                    false_values=["f"],
                ),
            )
            with reader:
                yield from reader

    def migrate(self) -> None:
        """Bring the schemas up to date; safe to call at every start, and twice at once.

        Raises:
            RuntimeError: If the server is older than PostgreSQL 18.
        """
        from alembic import command
        from sqlalchemy import create_engine

        def in_transactions() -> psycopg.Connection[Any]:
            connection = self._connect()
            connection.autocommit = False
            return connection

        config = migrations()
        engine = create_engine("postgresql+psycopg://", creator=in_transactions)
        try:
            with self.connection() as guard, engine.connect() as connection:
                if guard.info.server_version < MIN_POSTGRES:
                    raise RuntimeError(
                        f"the warehouse needs PostgreSQL 18; this is {guard.info.server_version // 10000}"
                    )
                guard.execute("select pg_advisory_lock(hashtext('warehouse migration'))")
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        finally:
            engine.dispose()

    def condition(self) -> Condition:
        """Look at the server and the schemas, without changing anything.

        Raises:
            psycopg.Error: If the server does not answer, or refuses.
        """
        from alembic.script import ScriptDirectory

        with self._connect(timeout_s=5) as connection:
            asked_at = time.time()
            row = connection.execute(statement("clock")).fetchone()
            assert row is not None
            skew_s = row[0].timestamp() - (asked_at + time.time()) / 2
            migrated, may_read = None, True
            try:
                migrated = connection.execute(statement("migrated_to")).fetchone()
            except psycopg.errors.UndefinedTable:
                pass
            except psycopg.errors.InsufficientPrivilege:
                may_read = False
            version = connection.info.server_version
        head = ScriptDirectory.from_config(migrations()).get_current_head()
        return Condition(version // 10000, skew_s, migrated[0] if migrated else None, head, may_read)


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of a warehouse.

    Attributes:
        postgres: The server's major version.
        clock_skew_s: Seconds that its clock is ahead of ours.
        revision: Migration that its schemas are at; None: there are none yet.
        head: Migration that this code needs.
        may_read: Whether this connection's user may see the revision.
    """

    postgres: int
    clock_skew_s: float
    revision: str | None
    head: str | None
    may_read: bool


def migrations() -> Config:
    """Return Alembic's configuration: where the migrations lie."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def copy_in(connection: psycopg.Connection[Any], table: sql.Identifier, columns: Sequence[str], rows: pa.Table) -> None:
    """Append Arrow rows to a table.

    Args:
        connection: Within a transaction, if it must be all or nothing.
        table: Where to.
        columns: The table's columns, in the order of the Arrow table's.
        rows: N rows.
    """
    query = sql.SQL("copy {} ({}) from stdin with (format csv)").format(
        table, sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    # Strings are quoted and NULL is not, so "" and NULL stay apart.
    options = pa_csv.WriteOptions(include_header=False, quoting_style="needed")
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for batch in rows.to_batches(max_chunksize=_COPY_ROWS):
            sink = pa.BufferOutputStream()
            pa_csv.write_csv(batch, sink, options)
            copy.write(memoryview(sink.getvalue()))


class _CopyStream(RawIOBase):
    """A COPY TO STDOUT as a file: what Arrow's CSV reader reads from."""

    def __init__(self, copy: psycopg.Copy) -> None:
        self._copy = copy
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, length = [self._rest], len(self._rest)
        while size < 0 or length < size:
            data = self._copy.read()
            if not data:
                break
            parts.append(bytes(data))
            length += len(data)
        joined = b"".join(parts)
        size = length if size < 0 else size
        self._rest = joined[size:]
        return joined[:size]
