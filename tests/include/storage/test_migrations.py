"""Every migration on a warehouse with rows in it: what was there stays, on the way up and on the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy import create_engine

from include.generate import plan_run
from include.local.postgres import PostgresServer
from include.settings import Settings
from include.storage.warehouse import Warehouse, migrations
from tests.filled import FAULTS
from tests.include.publish.steps import EVERYTHING

REVISIONS = sorted(script.revision for script in ScriptDirectory.from_config(migrations()).walk_revisions())
ROWS = 3
# Rows of loads under way: they are unlogged, a load that is interrupted is run again.
UNDER_WAY = "staging.incoming"


def move(warehouse: Warehouse, direction: Callable[..., None], revision: str) -> None:
    """Let Alembic migrate, as `Warehouse.migrate` does."""
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(warehouse.conninfo))
    config = migrations()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        direction(config, revision)
    engine.dispose()


@pytest.fixture
def empty(postgres: PostgresServer) -> Iterator[Warehouse]:
    """A database without schemas."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield Warehouse(postgres.conninfo(name))
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def value(column: str, kind: str, row: int) -> object:
    """A value of a column, another one in every row."""
    if column == "source":
        return "meld"  # staging.samples has a partition for it
    if column == "rules_version" and kind == "text":
        return f"{row}-0a1b"
    return {
        "text": f"{column} é' {row}",
        "integer": row,
        "bigint": 2**40 + row,
        "real": row + 0.5,
        "double precision": row + 0.25,
        "jsonb": Jsonb({column: row, "list": [None, "x"]}),
        "timestamp with time zone": f"2026-01-0{row}T00:00:00.123456+00:00",
    }[kind]


def fill(warehouse: Warehouse) -> None:
    """Put some rows into every table that there is at this revision."""
    with warehouse.connection() as connection:
        connection.execute("create table staging.samples_meld partition of staging.samples for values in ('meld')")
        for table in tables(connection):
            columns = connection.execute(
                "select column_name as name, data_type as kind from information_schema.columns "
                "where table_schema || '.' || table_name = %s and is_generated = 'NEVER'",
                [table],
            ).fetchall()
            names = [column["name"] for column in columns]
            query = sql.SQL("insert into {} ({}) values ({})").format(
                sql.Identifier(*table.split(".")),
                sql.SQL(", ").join(map(sql.Identifier, names)),
                sql.SQL(", ").join(sql.Placeholder() * len(names)),
            )
            for row in range(1, ROWS + 1):
                connection.execute(query, [value(column["name"], column["kind"], row) for column in columns])


def tables(connection: psycopg.Connection[dict[str, Any]]) -> list[str]:
    found = connection.execute(
        "select n.nspname || '.' || relname as name from pg_class c join pg_namespace n on n.oid = relnamespace "
        "where relkind in ('r', 'p') and not relispartition and n.nspname in ('staging', 'generation', 'publish')"
    )
    return sorted(row["name"] for row in found if row["name"] != UNDER_WAY)


def contents(warehouse: Warehouse) -> dict[str, list[dict[str, Any]]]:
    with warehouse.connection() as connection:
        return {
            table: [
                row["row"]
                for row in connection.execute(
                    sql.SQL("select to_jsonb(t) as row from {} t order by t::text").format(
                        sql.Identifier(*table.split("."))
                    )
                )
            ]
            for table in tables(connection)
        }


def assert_kept(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]]) -> None:
    """Every table, row and value of before is there; a number may have become text, or text a number."""
    for table, rows in before.items():
        assert len(rows) == ROWS
        for was, now in zip(rows, after[table], strict=True):
            for column, content in was.items():
                kept = str(now[column]).partition("-")[0] if column == "rules_version" else now[column]
                wanted = str(content).partition("-")[0] if column == "rules_version" else content
                assert kept == wanted, f"{table}.{column}"


@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_survive_from_every_revision_to_the_newest_and_back(empty: Warehouse, revision: str) -> None:
    move(empty, command.upgrade, revision)
    fill(empty)
    before = contents(empty)
    assert len(before) > 8
    empty.migrate()
    assert_kept(before, contents(empty))
    move(empty, command.downgrade, revision)
    assert_kept(before, contents(empty))
    assert contents(empty).keys() == before.keys()
    empty.migrate()
    assert_kept(before, contents(empty))


def test_an_upgrade_of_a_full_warehouse_leaves_nothing_to_write_again(
    filled: Warehouse, make_settings: Callable[..., Settings]
) -> None:
    settings, params = make_settings(**FAULTS), {**EVERYTHING, "publish": False}
    assert plan_run(filled, settings, params, None) is None
    counted = "select count(*) as rows, min(response) as first, max(created_at) as last from generation.responses"
    with filled.connection() as connection:
        before = connection.execute(counted).fetchone()
    move(filled, command.downgrade, REVISIONS[0])  # as the first version would have left it
    filled.migrate()
    assert plan_run(filled, settings, params, None) is None
    with filled.connection() as connection:
        assert connection.execute(counted).fetchone() == before


def test_going_back_to_before_the_first_one_leaves_nothing(empty: Warehouse) -> None:
    empty.migrate()
    move(empty, command.downgrade, "base")
    with empty.connection() as connection:
        assert tables(connection) == []
