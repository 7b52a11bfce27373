"""Secrets come from Airflow connections, and are never shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from include.local.airflow import airflow_environment
from include.local.postgres import PostgresServer
from include.settings import PROJECT_ROOT, Settings


def in_airflow(code: str, home: Path, **connections: dict[str, Any]) -> str:
    """Run code with these connections, in a process of its own: Airflow reads its environment when it is imported."""
    given = {f"AIRFLOW_CONN_{name.upper()}": json.dumps(value) for name, value in connections.items()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AWS_"))}
    environment = {**kept, "PYTHONPATH": str(PROJECT_ROOT), "AIRFLOW_HOME": str(home), **given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_aws_connection_makes_an_s3_client(tmp_path: Path) -> None:
    code = (
        "from include.orchestration.connections import s3_client; client = s3_client(); config = client.meta.config; "
        "print(client.meta.endpoint_url, client.meta.region_name, config.retries, config.s3)"
    )
    connection = {
        "conn_type": "aws",
        "login": "key",
        "password": "secret",
        "extra": {
            "region_name": "eu-central-1",
            "endpoint_url": "http://127.0.0.1:9",
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        },
    }
    said = in_airflow(code, tmp_path, aws_default=connection)
    assert said.startswith("http://127.0.0.1:9 eu-central-1 ")
    assert "'mode': 'standard'" in said and "'total_max_attempts': 8" in said
    assert "'addressing_style': 'path'" in said


def test_the_hub_connection_is_an_account_that_does_not_show_its_token(tmp_path: Path) -> None:
    code = (
        "from include.orchestration.connections import hub_account; account = hub_account(); "
        "print(account, account.token == 'hf_secret')"
    )
    said = in_airflow(code, tmp_path, hub={"conn_type": "http", "password": "hf_secret"})
    assert said == "HubAccount(endpoint=None) True"
    said = in_airflow(code, tmp_path, hub={"conn_type": "http", "password": "hf_secret", "host": "http://127.0.0.1:9"})
    assert said == "HubAccount(endpoint='http://127.0.0.1:9') True"


def test_a_hub_connection_without_a_token_says_what_to_set(tmp_path: Path) -> None:
    code = """
from include.orchestration.connections import hub_account
from include.schema import BadInputError
try:
    hub_account()
except BadInputError as error:
    print(error)
"""
    said = in_airflow(code, tmp_path, hub={"conn_type": "http"})
    assert "a target on the Hub needs the Airflow connection hub" in said and "AIRFLOW_CONN_HUB=" in said


def test_the_embedded_airflow_gets_the_connections_that_are_for_it(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = ("AIRFLOW_CONN_LLM_SERVER", "AIRFLOW_CONN_AWS_DEFAULT", "AIRFLOW_CONN_HUB")
    for name in (*ours, "AIRFLOW_CONN_OTHER"):
        monkeypatch.setenv(name, "{}")
    settings = Settings(home=tmp_path, profile="embedded", hub=str(tmp_path))
    passed_on = airflow_environment(settings, postgres, 8080)
    assert set(ours) <= set(passed_on)
    assert "AIRFLOW_CONN_OTHER" not in passed_on


@pytest.mark.parametrize(
    ("target", "offline"), [("local", True), ("s3://bucket/prefix", True), ("hf://datasets/org/name", False)]
)
def test_the_embedded_airflow_is_offline_unless_it_publishes_to_the_hub(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, offline: bool
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    settings = Settings(home=tmp_path, profile="embedded", hub=str(tmp_path), target=target)
    assert (airflow_environment(settings, postgres, 8080).get("HF_HUB_OFFLINE") == "1") == offline
