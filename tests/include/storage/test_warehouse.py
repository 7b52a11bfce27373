"""Arrow in and out of PostgreSQL, statements, migrations."""

from __future__ import annotations

import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from include.local.postgres import PostgresServer
from include.local.processes import stop_process
from include.schema import STAGED_SCHEMA
from include.storage.warehouse import Warehouse, copy_in, statement
from tests.password_server import make_cluster, start_server
from tests.ports import free_port

NASTY = ["plain", "", None, 'quo"te', "com,ma", "line\nend", "\\N", "tab\t", "é\U0001f600", " ", "'; drop table x; --"]


def test_text_survives_the_way_in_and_out(warehouse: Warehouse) -> None:
    rows = pa.table({"number": pa.array(range(len(NASTY)), pa.int32()), "text": pa.array(NASTY, pa.string())})
    with warehouse.connection() as connection:
        connection.execute("create table nasty (number integer, text text)")
        copy_in(connection, sql.Identifier("nasty"), ["number", "text"], rows)
    query = sql.SQL("select number, text from nasty where number >= %(least)s order by number")
    assert pa.Table.from_batches(warehouse.stream(query, {"least": 0}, rows.schema)) == rows


def test_a_stream_comes_in_batches(warehouse: Warehouse) -> None:
    query = sql.SQL("select n as number, repeat('x', 100) as text from generate_series(1, 20000) as n")
    schema = pa.schema([("number", pa.int32()), ("text", pa.string())])
    batches = list(warehouse.stream(query, {}, schema, block_bytes=100_000))
    assert len(batches) > 5
    assert sum(len(batch) for batch in batches) == 20_000


def test_an_empty_stream_has_no_rows(warehouse: Warehouse) -> None:
    query = sql.SQL("select 1 as number where false")
    assert sum(len(b) for b in warehouse.stream(query, {}, pa.schema([("number", pa.int32())]))) == 0


def test_a_failed_transaction_leaves_nothing(warehouse: Warehouse) -> None:
    with warehouse.connection() as connection:
        connection.execute("create table kept (n integer)")
    with pytest.raises(RuntimeError), warehouse.transaction() as connection:
        connection.execute("insert into kept values (1)")
        raise RuntimeError
    with warehouse.connection() as connection:
        assert connection.execute("select count(*) as n from kept").fetchone() == {"n": 0}


def test_migrating_twice_at_once_is_safe(postgres: PostgresServer) -> None:
    with Warehouse(postgres.conninfo("postgres")).connection() as connection:
        connection.execute("create database migrated_twice")
    fresh = Warehouse(postgres.conninfo("migrated_twice"))
    with ThreadPoolExecutor(3) as pool:
        for outcome in [pool.submit(fresh.migrate) for _ in range(3)]:
            outcome.result()
    with fresh.connection() as connection:
        assert connection.execute("select count(*) as n from staging.samples").fetchone() == {"n": 0}


def test_the_record_and_the_tables_agree(warehouse: Warehouse) -> None:
    with warehouse.connection() as connection:
        rows = connection.execute(
            "select table_name, column_name from information_schema.columns where table_schema = 'staging'"
        ).fetchall()
    columns = {
        name: {row["column_name"] for row in rows if row["table_name"] == name} for name in ("samples", "incoming")
    }
    record = set(STAGED_SCHEMA.names)
    kept = {"revision", "row_hash", "first_seen", "last_changed", "retired_at"}
    assert columns["samples"] == record | kept
    assert columns["incoming"] == record | {"file_group", "reject_reason"}


def test_every_statement_is_used_and_binds_its_values() -> None:
    folder = resources.files("include.storage")
    names = ("staging", "generation", "releases", "console", "roles", "warehouse")
    code = "".join((folder / f"{name}.py").read_text() for name in names)
    for file in (folder / "sql").iterdir():
        name = file.name.removesuffix(".sql")
        assert f'"{name}"' in code, f"{file.name} is not used"
        assert statement(name)
        # Only these words of ours, and the subquery source_rows.sql, are filled in; everything else is bound.
        assert set(re.findall(r"{(\w+)}", file.read_text())) <= {
            "partition",
            "incoming",
            "column",
            "rows",
            "after",
            "direction",
            "database",
        }


def test_the_server_asks_after_a_machine_that_is_silent(tmp_path_factory: pytest.TempPathFactory) -> None:
    data, port = tmp_path_factory.mktemp("tcp") / "data", free_port()  # over a socket there is nothing to ask
    make_cluster(data, "secret")
    server = start_server(data, port, data.with_suffix(".log"), {})
    warehouse = Warehouse(f"host=127.0.0.1 port={port} user=postgres password=secret dbname=postgres")
    asked = sql.SQL("select name, setting from pg_settings where name like 'tcp_keepalives%' order by name")
    wanted = [("tcp_keepalives_count", "3"), ("tcp_keepalives_idle", "60"), ("tcp_keepalives_interval", "20")]
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                warehouse.condition()
                break
            except psycopg.OperationalError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        with warehouse.transaction() as connection:
            assert [tuple(row.values()) for row in connection.execute(asked)] == wanted
        schema = pa.schema([("name", pa.string()), ("setting", pa.string())])
        (rows,) = warehouse.stream(asked, {}, schema)
        assert [tuple(row.values()) for row in rows.to_pylist()] == wanted
    finally:
        stop_process(server, signal.SIGINT, patience_s=30)
