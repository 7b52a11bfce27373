"""Backup and restore of a compose deployment by the very commands of docs/operations.md, on a real PostgreSQL.

There is no Docker engine: what stands for it runs PostgreSQL's programs and the service `init` on this machine.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from alembic import command
from psycopg import sql
from psycopg.conninfo import make_conninfo

from include.settings import PROJECT_ROOT
from include.storage.databases import ensure_database
from include.storage.roles import as_owner
from include.storage.warehouse import Warehouse
from tests.include.deployment.conftest import SUPERUSER_PASSWORD, PasswordServer
from tests.include.deployment.test_prepare import PASSWORDS, USERS, Deployment, can_connect, superusers_things
from tests.include.storage.test_migrations import REVISIONS, assert_kept, contents, fill, move

pytestmark = pytest.mark.slow

EARLIER = "0006"
"""A revision before the owner and the functions of today."""
DOCKER = """#!/bin/sh
echo "$*" >>{calls}
case "$*" in
    "compose up --detach postgres" | "compose exec cpu-worker sift doctor") ;;
    "compose run --rm init" | "compose up --detach") exec {python} -m include.cli prepare </dev/null ;;
    "compose exec -T postgres "*) shift 4; exec "$@" ;;
    *) echo "not understood: $*" >&2; exit 2 ;;
esac
"""


class Commands:
    """The commands of a section of the document, with `docker` that does it here.

    Args:
        deployment: Says how PostgreSQL is reached, and the passwords that `.env` holds.
        folder: For what stands for Docker, and for the backup.
    """

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.backups = folder / "backups"
        self.backups.mkdir()
        self._deployment = deployment
        self._folder = folder
        (folder / ".env").write_text("FERNET_KEY=k\n")
        program = folder / "docker"
        program.write_text(DOCKER.format(python=sys.executable, calls=folder / "calls"))
        program.chmod(0o755)

    def run(self, start: str) -> subprocess.CompletedProcess[str]:
        """Run the block that has this line."""
        blocks = re.findall(r"```bash\n(.+?)```", (PROJECT_ROOT / "docs" / "operations.md").read_text(), flags=re.S)
        (block,) = (block for block in blocks if start in block)
        environment = self._deployment.environment()
        programs = self._deployment.server.programs
        environment["PATH"] = os.pathsep.join(map(str, (self._folder, programs, environment["PATH"])))
        text = block.replace("/backups/", f"{self.backups}/")
        assert text != block
        return subprocess.run(
            ["bash", "-c", text], cwd=self._folder, env=environment, capture_output=True, text=True, check=False
        )

    def back_up(self) -> None:
        done = self.run("pg_dump")
        assert done.returncode == 0, done.stderr
        assert sorted(file.name for file in self.backups.iterdir()) == [".env", "airflow.dump", "sift.dump"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in self.backups.iterdir()} == {0o600}

    def calls(self) -> list[str]:
        return (self._folder / "calls").read_text().splitlines()


def warehouse(server: PasswordServer) -> Warehouse:
    return Warehouse(
        make_conninfo(host="127.0.0.1", port=server.port, user="postgres", password=SUPERUSER_PASSWORD, dbname="sift")
    )


def rights(server: PasswordServer) -> list[object]:
    """Who owns what and who may do what, in the warehouse and to the three databases."""
    with server.superuser("sift") as connection:
        return connection.execute(
            "select 'database' as kind, datname::text as name, datdba::regrole::text as owner, datacl::text as acl "
            "from pg_database where datname = any(%(databases)s) "
            "union all select 'schema', nspname, nspowner::regrole::text, nspacl::text from pg_namespace "
            "where nspname = any(%(schemas)s) "
            "union all select 'relation', oid::regclass::text, relowner::regrole::text, relacl::text from pg_class "
            "where relnamespace::regnamespace::text = any(%(schemas)s) and relkind in ('r', 'p', 'v', 'S') "
            "and not relispartition "
            "union all select 'function', oid::regprocedure::text, proowner::regrole::text, proacl::text from pg_proc "
            "where pronamespace::regnamespace::text = any(%(schemas)s) order by 1, 2",
            {"databases": ["airflow", "celery", "sift"], "schemas": ["staging", "generation", "publish"]},
        ).fetchall()


def lose_everything(server: PasswordServer) -> None:
    """An empty volume: no databases and no users."""
    with server.superuser() as connection:
        for name in ("airflow", "celery", "sift"):
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        for name in (*USERS, "sift"):
            connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))


@pytest.fixture
def deployment(password_server: PasswordServer, tmp_path: Path) -> Deployment:
    lose_everything(password_server)
    deployed = Deployment(password_server, tmp_path)
    code, output = deployed.prepare()
    assert code == 0, output
    return deployed


@pytest.mark.parametrize("revision", [EARLIER, REVISIONS[-1]])
def test_a_backup_comes_back_by_the_documented_commands(deployment: Deployment, tmp_path: Path, revision: str) -> None:
    server = deployment.server
    fresh = rights(server)
    if revision == EARLIER:
        assert revision in REVISIONS[:-1]
        with server.superuser() as connection:
            connection.execute("drop database sift")
            ensure_database(connection, "sift", owner="sift")
        move(Warehouse(as_owner(warehouse(server).conninfo)), command.upgrade, revision)
    fill(warehouse(server))
    before = contents(warehouse(server))
    with server.superuser("airflow") as connection:
        connection.execute("update slot_pool set description = 'kept' where pool = 'gpu'")
        connection.execute("update slot_pool set slots = 7 where pool = 'default_pool'")

    commands = Commands(deployment, tmp_path)
    commands.back_up()
    lose_everything(server)
    done = commands.run("pg_restore")

    assert done.returncode == 0, done.stderr
    assert commands.calls()[-1] == "compose exec cpu-worker sift doctor"
    assert warehouse(server).condition().revision == REVISIONS[-1]
    assert_kept(before, contents(warehouse(server)))
    assert rights(server) == fresh
    assert superusers_things(server) == []
    for user, (variable, own) in USERS.items():
        for database in ("airflow", "celery", "sift"):
            assert can_connect(server, user, PASSWORDS[variable], database) == (database == own), (user, database)
    with server.connect("airflow", PASSWORDS["AIRFLOW_DB_PASSWORD"], "airflow") as connection:
        assert connection.execute("select slots from slot_pool where pool = 'default_pool'").fetchone() == (7,)


def test_a_backup_that_is_damaged_ends_the_restore(deployment: Deployment, tmp_path: Path) -> None:
    commands = Commands(deployment, tmp_path)
    commands.back_up()
    whole = (commands.backups / "sift.dump").read_bytes()
    (commands.backups / "sift.dump").write_bytes(whole[: len(whole) // 2])
    done = commands.run("pg_restore")
    assert done.returncode != 0 and "pg_restore: error" in done.stderr
    assert not any(call == "compose up --detach" for call in commands.calls())
    with pytest.raises(psycopg.errors.UndefinedTable), deployment.server.superuser("sift") as connection:
        connection.execute("select count(*) from staging.samples")  # all of it or nothing
