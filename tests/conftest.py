"""What all tests share: a real PostgreSQL, no network, settings of their own."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

# Before anything of ours is imported: no Hub, and no state of the developer's own.
os.environ["HF_HUB_OFFLINE"] = "1"
for _name in [name for name in os.environ if name.startswith(("SIFT_", "AIRFLOW"))]:
    if not _name.startswith("SIFT_TEST_"):  # these are for the tests themselves
        del os.environ[_name]

from include.local.postgres import PostgresServer, running_postgres
from include.settings import PROJECT_ROOT, Settings
from include.sources import RECIPES
from include.storage.warehouse import Warehouse

Settings.model_config["env_file"] = None  # nor the developer's .env

# pytest's usual place is shared by all runs of a user, and each run closes it to other users when it starts. PostgreSQL
# is another user when we are root: a second run would take the first one's database away.
# Processes that share a run's tests (pytest-xdist) share its place.
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not WORKER:
    TEMP_ROOT = tempfile.mkdtemp(prefix="sift-test-")
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", TEMP_ROOT)

SAMPLES = PROJECT_ROOT / "samples"
SAMPLED = [name for name, recipe in RECIPES.items() if (SAMPLES / recipe.repository).is_dir()]
"""Sources that the bundled samples hold."""
SHARED = PROJECT_ROOT.parent / "shared"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove what the tests have written, unless somebody will want to look at it; folders alone are nothing to see."""
    if WORKER:
        return
    # pytest's own lock is removed later.
    written = (path for path in Path(TEMP_ROOT).rglob("*") if path.is_file() and path.name != ".lock")
    if exitstatus == pytest.ExitCode.OK or not any(written):
        shutil.rmtree(TEMP_ROOT, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections that leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The embedded server, with a migrated template database."""
    folder = tmp_path_factory.mktemp("postgres")
    with running_postgres(folder / "data", folder / "postgres.log") as server:
        Warehouse(server.conninfo("sift")).migrate()
        yield server


@pytest.fixture
def warehouse(postgres: PostgresServer) -> Iterator[Warehouse]:
    """A migrated, empty warehouse of the test's own."""
    name = sql.Identifier(f"test_{uuid4().hex}")
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template sift").format(name))
        yield Warehouse(postgres.conninfo(name.as_string().strip('"')))
        connection.execute(sql.SQL("drop database {} with (force)").format(name))


@pytest.fixture(scope="session")
def filled_template(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a database that holds the bundled samples, written and reported."""
    from tests.filled import FAULTS, fill

    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute("create database filled template sift")
    fill(
        Warehouse(postgres.conninfo("filled")),
        Settings(home=tmp_path_factory.mktemp("filled"), hub=str(SAMPLES), engine="fake", **FAULTS),
    )
    return "filled"


@pytest.fixture
def filled(postgres: PostgresServer, filled_template: str) -> Iterator[Warehouse]:
    """A copy, of the test's own, of a warehouse with the bundled samples in it."""
    name = sql.Identifier(f"test_{uuid4().hex}")
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template {}").format(name, sql.Identifier(filled_template)))
        yield Warehouse(postgres.conninfo(name.as_string().strip('"')))
        connection.execute(sql.SQL("drop database {} with (force)").format(name))


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings with a home of the test's own, the bundled samples and the fake engine."""

    def make(**values: Any) -> Settings:
        return Settings(**{"home": tmp_path / "home", "hub": str(SAMPLES), "engine": "fake", **values})

    return make


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show what tests counted, also when they passed: a line each, tables under their header; and what is kept."""
    said: dict[str, list[object]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if report.when == "call":
                said.setdefault(name, []).append(value)
    for name, values in said.items():
        terminalreporter.section(name)
        for value in values:
            terminalreporter.write_line(str(value))
    if not WORKER and Path(TEMP_ROOT).exists():
        terminalreporter.write_line(f"What the tests wrote is kept in {TEMP_ROOT}")


@pytest.fixture
def shared_data() -> Path:
    """The folder of real corpora; tests that want it skip where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not there")
    return folder
