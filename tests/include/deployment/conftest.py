"""A PostgreSQL as a deployment has it: reached over TCP, with passwords."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from include.local.processes import stop_process
from include.settings import PROJECT_ROOT
from tests.password_server import make_cluster, start_server
from tests.ports import free_port

SUPERUSER_PASSWORD = "the-superusers"


@dataclass(frozen=True)
class PasswordServer:
    """A server on loopback that asks everybody for a password.

    Attributes:
        port: Of the server.
        log_file: Holds every statement.
        programs: Folder of PostgreSQL's programs.
    """

    port: int
    log_file: Path
    programs: Path

    def connect(self, user: str, password: str, database: str) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=user, password=password, dbname=database, autocommit=True
        )

    def superuser(self, database: str = "postgres") -> psycopg.Connection:
        return self.connect("postgres", SUPERUSER_PASSWORD, database)

    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT_ROOT),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGPASSWORD": SUPERUSER_PASSWORD,
        }


@pytest.fixture(scope="module")
def password_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PasswordServer]:
    """A server with nothing in it but its superuser, as the image postgres makes it."""
    folder = tmp_path_factory.mktemp("password-server")
    server = PasswordServer(free_port(), folder / "postgres.log", folder / "data.programs")
    make_cluster(folder / "data", SUPERUSER_PASSWORD)
    process = start_server(
        folder / "data", server.port, server.log_file, {"log_statement": "all", "log_connections": "on"}
    )
    try:
        while True:
            try:
                server.superuser().close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None, server.log_file.read_text()
                time.sleep(0.1)
        yield server
    finally:
        stop_process(process, signal.SIGINT, patience_s=30)
