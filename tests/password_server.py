"""A PostgreSQL as a deployment has it: reached over TCP on loopback, with a password for everybody."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg

from include.local.postgres import running_postgres
from include.local.processes import start_process


def make_cluster(data: Path, superuser_password: str) -> None:
    """Make the data of a server with nothing in it but its superuser, as the image postgres does."""
    with running_postgres(data, data.with_suffix(".made.log")) as server:
        with psycopg.connect(server.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"alter role postgres password '{superuser_password}'")
            for name in ("sift", "airflow"):
                connection.execute(f"drop database {name}")
        programs = server.bin_dir
    (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
    data.with_suffix(".programs").symlink_to(programs)


def start_server(data: Path, port: int, log_file: Path, options: Mapping[str, object]) -> subprocess.Popen[bytes]:
    """Start the server of what `make_cluster` made; it needs a moment before it answers.

    Args:
        data: The cluster.
        port: To listen on.
        log_file: The server's output.
        options: Of its configuration.
    """
    settings = {"listen_addresses": "127.0.0.1", "port": port, **options}
    command = [str(data.with_suffix(".programs") / "postgres"), "-D", str(data), "-k", ""]
    return start_process(
        [*command, *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))],
        log_file,
        user=data.owner() if os.geteuid() == 0 else None,
        death_signal=signal.SIGINT,
    )
