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
from include.schema import BadInputError, LlmServer
from include.settings import PROJECT_ROOT, Settings

KEY = "sk-very-secret"


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


@pytest.fixture(autouse=True)
def airflow_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Airflow makes its home when it is imported: not in the developer's own."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))


def server_of(monkeypatch: pytest.MonkeyPatch, connection: str | dict[str, object]) -> LlmServer:
    """Read the connection as a task does, from Airflow's environment backend."""
    from include.orchestration.connections import llm_server

    value = connection if isinstance(connection, str) else json.dumps(connection)
    monkeypatch.setenv("AIRFLOW_CONN_LLM_SERVER", value)
    return llm_server()


@pytest.mark.parametrize(
    ("connection", "url"),
    [
        ({"conn_type": "http", "host": "http://gpu-box:8000/v1"}, "http://gpu-box:8000/v1"),
        ({"conn_type": "http", "host": "https://llm.example.org/openai/v1/"}, "https://llm.example.org/openai/v1"),
        ({"conn_type": "http", "host": "http://gpu-box:8000"}, "http://gpu-box:8000/v1"),
        ({"conn_type": "http", "host": "gpu-box", "port": 8000}, "http://gpu-box:8000/v1"),
        ({"conn_type": "http", "host": "gpu-box", "port": 8000, "schema": "https"}, "https://gpu-box:8000/v1"),
        ({"conn_type": "https", "host": "gpu-box"}, "https://gpu-box/v1"),
        ({"conn_type": "openai", "host": "gpu-box:8000", "schema": "api/v2"}, "http://gpu-box:8000/api/v2"),
        ({"conn_type": "http", "host": "http://gpu-box:8000/v1", "port": 9000}, "http://gpu-box:8000/v1"),
        ({"conn_type": "http", "host": "http://[::1]:8000"}, "http://[::1]:8000/v1"),
        ("http://gpu-box:8000", "http://gpu-box:8000/v1"),
        ("http://gpu-box:8000/https", "https://gpu-box:8000/v1"),
    ],
)
def test_every_form_of_an_address(monkeypatch: pytest.MonkeyPatch, connection: str, url: str) -> None:
    assert server_of(monkeypatch, connection) == LlmServer(url, None)


@pytest.mark.parametrize(
    "connection",
    [
        {"conn_type": "http", "host": "http://gpu-box:8000/v1", "password": KEY},
        {"conn_type": "http", "host": f"http://user:{KEY}@gpu-box:8000/v1"},
        {"conn_type": "http", "host": f"user:{KEY}@gpu-box:8000"},
        f"http://user:{KEY}@gpu-box:8000",
    ],
)
def test_the_key_is_used_and_never_shown(monkeypatch: pytest.MonkeyPatch, connection: str) -> None:
    server = server_of(monkeypatch, connection)
    assert (server.url, server.api_key) == ("http://gpu-box:8000/v1", KEY)
    assert KEY not in repr(server)


def test_an_encoded_key_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "http", "host": "http://user:a%2Fb%40c-secret@gpu-box:8000/v1"}
    assert server_of(monkeypatch, connection) == LlmServer("http://gpu-box:8000/v1", "a/b@c-secret")


@pytest.mark.parametrize(
    "connection", ["", {"conn_type": "http"}, {"conn_type": "http", "password": KEY}, f"{{not JSON {KEY}"]
)
def test_a_missing_server_is_said_with_what_to_set(monkeypatch: pytest.MonkeyPatch, connection: str) -> None:
    with pytest.raises(BadInputError, match="needs the Airflow connection llm_server with a host") as error:
        server_of(monkeypatch, connection)
    assert "AIRFLOW_CONN_LLM_SERVER" in str(error.value)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    "host",
    [
        f"http://user:a/{KEY}@gpu-box:8000/v1",  # neither of these passwords is encoded
        f"http://user:1/{KEY}@gpu-box:8000/v1",
        "ftp://gpu-box/v1",
        "http:///v1",
        "http://gpu-box:port/v1",
    ],
)
def test_what_is_no_address_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with pytest.raises(BadInputError, match="host of the Airflow connection llm_server is not an address") as error:
        server_of(monkeypatch, {"conn_type": "http", "host": host})
    assert KEY not in str(error.value)
    assert error.value.__suppress_context__


def test_each_role_has_a_connection_of_its_own_or_the_common_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from include.orchestration.connections import warehouse

    common = {"conn_type": "postgres", "host": "db", "login": "sift", "password": KEY, "schema": "sift"}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(common))
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE_PUBLISH", json.dumps({**common, "login": "sift_publish", "port": 5433}))
    assert "user=sift_publish" in warehouse("publish").conninfo and "port=5433" in warehouse("publish").conninfo
    for role in ("ingest", "generate", "console"):
        assert "user=sift " in warehouse(role).conninfo


def test_a_task_without_any_connection_to_the_warehouse_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.exceptions import AirflowNotFoundException

    from include.orchestration.connections import warehouse

    with pytest.raises(AirflowNotFoundException, match="`warehouse` isn't defined"):
        warehouse("ingest")
