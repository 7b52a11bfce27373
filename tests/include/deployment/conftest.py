"""A PostgreSQL as a deployment has it: reached over TCP, with passwords."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from include.local.postgres import running_postgres
from include.local.processes import start_process, stop_process
from include.settings import PROJECT_ROOT

SUPERUSER_PASSWORD = "the-superusers"


@dataclass(frozen=True)
class PasswordServer:
    """A server on loopback that asks everybody for a password; `log_file` holds every statement."""

    port: int
    log_file: Path

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def password_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PasswordServer]:
    """A server with nothing in it but its superuser, as the image postgres makes it."""
    folder = tmp_path_factory.mktemp("password-server")
    data = folder / "data"
    with running_postgres(data, folder / "first.log") as first:
        with psycopg.connect(first.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"alter role postgres password '{SUPERUSER_PASSWORD}'")
            for name in ("sift", "airflow"):
                connection.execute(f"drop database {name}")
        programs = first.bin_dir
    (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
    server = PasswordServer(free_port(), folder / "postgres.log")
    options = {"listen_addresses": "127.0.0.1", "port": server.port, "log_statement": "all", "log_connections": "on"}
    command = [str(programs / "postgres"), "-D", str(data), "-k", ""]
    process = start_process(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        server.log_file,
        user=data.owner() if os.geteuid() == 0 else None,
        death_signal=signal.SIGINT,
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
