"""The environment of Airflow's processes: nothing of the user's own Airflow, but the server that we are to ask."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from include.local.airflow import airflow_environment
from include.local.postgres import PostgresServer
from include.settings import Settings


def test_of_the_users_airflow_only_the_servers_connection_is_passed_on(
    make_settings: Callable[..., Settings], postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = '{"conn_type": "http", "host": "http://gpu-box:8000/v1"}'
    monkeypatch.setenv("AIRFLOW_CONN_LLM_SERVER", connection)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "postgres://somewhere/else")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    environment = airflow_environment(make_settings(), postgres, 8080)
    assert environment["AIRFLOW_CONN_LLM_SERVER"] == connection
    assert "somewhere" not in environment["AIRFLOW_CONN_WAREHOUSE"]
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
