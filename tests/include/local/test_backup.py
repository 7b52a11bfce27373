"""A warehouse that was saved and restored on a fresh server is the same, and there is nothing to do again."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from include.generate import plan_run
from include.local.backup import KEYS, make_backup, restore_backup
from include.local.postgres import running_postgres
from include.settings import PROJECT_ROOT, Settings
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLES
from tests.filled import FAULTS, fill
from tests.include.publish.steps import EVERYTHING, default_target

SCHEMAS = ("staging", "generation", "publish")


def settings_of(home: Path) -> Settings:
    return Settings(home=home, hub=str(SAMPLES), engine="fake", **FAULTS)


def contents(warehouse: Warehouse) -> dict[str, Any]:
    """Rows and checksum of every table, and the definition of everything else that is ours."""
    with warehouse.connection() as connection:
        tables = connection.execute(
            "select c.oid::regclass::text as name, c.relname, n.nspname from pg_class c "
            "join pg_namespace n on n.oid = c.relnamespace "
            "where c.relkind in ('r', 'p', 'v') and (n.nspname = any(%s) or c.relname = 'warehouse_version')",
            [list(SCHEMAS)],
        ).fetchall()
        found: dict[str, Any] = {}
        for table in tables:
            query = sql.SQL(
                "select count(*) as rows, md5(string_agg(t::text, E'\\n' order by t::text collate \"C\")) as sum "
                "from {} t"
            )
            row = connection.execute(query.format(sql.Identifier(table["nspname"], table["relname"]))).fetchone()
            assert row
            found[table["name"]] = (row["rows"], row["sum"])
        for name, query in {
            "functions": "select pg_get_functiondef(oid) as text from pg_proc "
            "where pronamespace::regnamespace::text = any(%s)",
            "indexes": "select indexdef as text from pg_indexes where schemaname = any(%s)",
            "constraints": "select conrelid::regclass || pg_get_constraintdef(oid) as text from pg_constraint "
            "where connamespace::regnamespace::text = any(%s)",
            "comments": "select d.classoid::regclass || obj_description(d.objoid, d.classoid::regclass::text) as text "
            "from pg_description d join pg_class c on c.oid = d.objoid "
            "where d.objsubid = 0 and c.relnamespace::regnamespace::text = any(%s)",
        }.items():
            found[name] = sorted(row["text"] for row in connection.execute(query, [list(SCHEMAS)]))
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A backup of a home that is down, and what the warehouse held."""
    home = tmp_path_factory.mktemp("old")
    with running_postgres(home / "postgres", home / "logs" / "postgres.log") as server:
        warehouse = Warehouse(server.conninfo("sift"))
        warehouse.migrate()
        fill(warehouse, settings_of(home))
        before = contents(warehouse)
        with psycopg.connect(server.conninfo("airflow"), autocommit=True) as connection:
            connection.execute("create table connection as select 'encrypted' as password")
    (home / KEYS).parent.mkdir()
    (home / KEYS).write_text('{"fernet_key": "k"}')
    (home / KEYS).chmod(0o600)
    folder = home.parent / "backup"
    make_backup(settings_of(home), folder)
    yield folder, before


@pytest.mark.slow
def test_a_restored_warehouse_is_the_same_and_nothing_is_pending(
    saved: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, before = saved
    settings = settings_of(tmp_path / "new")
    restore_backup(settings, folder)
    with running_postgres(settings.home / "postgres", tmp_path / "postgres.log") as server:
        warehouse = Warehouse(server.conninfo("sift"))
        assert contents(warehouse) == before
        assert before["generation.responses"][0] > 100 and before["generation.attempts"][0] > 10
        assert before["functions"] and before["indexes"]
        warehouse.migrate()
        assert contents(warehouse) == before
        assert plan_run(warehouse, settings, {**EVERYTHING, "publish": False}, None) is None
        # The release was never made here, and that is all that is to do.
        assert plan_run(warehouse, settings, EVERYTHING, default_target(settings)) is not None
        with psycopg.connect(server.conninfo("airflow")) as connection:
            assert connection.execute("select password from connection").fetchone() == ("encrypted",)
    assert (settings.home / KEYS).read_text() == '{"fernet_key": "k"}'
    assert stat.S_IMODE((settings.home / KEYS).stat().st_mode) == 0o600


def test_a_backup_is_its_owners_alone(saved: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = saved
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(file.name for file in folder.iterdir()) == ["airflow.dump", "secrets.json", "sift.dump"]


def test_nothing_is_replaced(saved: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = saved
    (tmp_path / "postgres").mkdir()
    with pytest.raises(ValueError, match="holds a database, which a restore would replace"):
        restore_backup(settings_of(tmp_path), folder)
    with pytest.raises(ValueError, match="exists; give the name of a new folder"):
        make_backup(settings_of(tmp_path), folder)


@pytest.mark.slow
def test_a_backup_that_is_damaged_leaves_no_half_made_database(
    saved: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = saved
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "sift.dump").write_bytes((folder / "sift.dump").read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"is no backup: it has no airflow\.dump"):
        restore_backup(settings_of(tmp_path / "new"), damaged)
    (damaged / "airflow.dump").write_bytes((folder / "airflow.dump").read_bytes())
    with pytest.raises(RuntimeError, match="pg_restore failed"):
        restore_backup(settings_of(tmp_path / "new"), damaged)
    assert not (tmp_path / "new" / "postgres").exists()


def test_the_front_door_says_why_it_cannot(tmp_path: Path) -> None:
    env = {**os.environ, "SIFT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(PROJECT_ROOT)}
    for command, reason in (("backup", "there is no database in"), ("restore", "is no backup")):
        asked = [sys.executable, "-m", "include.cli", command, str(tmp_path / "folder")]
        done = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and reason in done.stderr
