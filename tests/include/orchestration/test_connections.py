"""The LLM server's connection: every way to write it, nothing of it shown that is secret, and clear refusals."""

import json
from pathlib import Path

import pytest

from include.schema import BadInputError, LlmServer

KEY = "sk-very-secret"


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
