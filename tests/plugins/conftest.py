"""A real Airflow API server for the tests of the console: users of its own, no all-admins, below a path prefix."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from include.local.airflow import airflow_command, airflow_environment
from include.local.postgres import PostgresServer
from include.local.processes import start_process, stop_process
from include.settings import Settings
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLES
from tests.ports import free_port

PREFIX = "/airflow"
USERS = {"ada": "admin", "vic": "viewer", "una": "user", "nobody": ""}
"""Name -> role; the password is the name and "-password"."""


@pytest.fixture(scope="session")
def shown(postgres: PostgresServer, filled_template: str) -> Warehouse:
    """The warehouse that the server shows."""
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"create database shown template {filled_template}")
    return Warehouse(postgres.conninfo("shown"))


@pytest.fixture(scope="session")
def server(postgres: PostgresServer, shown: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the API server."""
    home = tmp_path_factory.mktemp("access")
    port = free_port()
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({name: f"{name}-password" for name in USERS}))
    url = f"http://127.0.0.1:{port}{PREFIX}"
    warehouse = {"conn_type": "postgres", "host": str(postgres.socket_dir), "login": "postgres", "schema": "shown"}
    env = {
        **airflow_environment(Settings(home=home), postgres, port),
        "SIFT_HOME": str(home),
        "SIFT_HUB": str(SAMPLES),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW_CONN_WAREHOUSE": json.dumps(warehouse),
    }
    subprocess.run(airflow_command("db", "migrate"), env=env, check=True, capture_output=True, timeout=120)
    log = home / "api-server.log"
    process = start_process(airflow_command("api-server", "--host", "127.0.0.1", "--workers", "1"), log, env=env)
    try:
        _wait_until_up(url, process, log)
        yield url
    finally:
        stop_process(process, signal.SIGTERM)


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/api/v2/version").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    pytest.fail(log.read_text(errors="replace")[-3000:])


@pytest.fixture(scope="session")
def tokens(server: str) -> dict[str, str]:
    """A token of each user, as the login gives it."""
    return {
        name: httpx.post(f"{server}/auth/token", json={"username": name, "password": f"{name}-password"})
        .raise_for_status()
        .json()["access_token"]
        for name in USERS
    }
