"""The plugin as Airflow loads it: into every process, so it must be light; links and notes for our DAGs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from include.local.airflow import airflow_environment
from include.local.postgres import PostgresServer
from include.orchestration.defaults import NOTE_KEY
from include.settings import PROJECT_ROOT, Settings
from tests.conftest import SAMPLED

MakeSettings = Callable[..., Settings]

CODE = """
import sys, json
import airflow.plugins_manager, airflow.listeners, airflow.sdk
before = set(sys.modules)
from airflow.plugins_manager import _get_plugins
plugins, errors = _get_plugins()
print(json.dumps([
    [plugin.name for plugin in plugins if 'PLUGINS_FOLDER' in str(plugin.source)], errors,
    sorted({name.split('.')[0] for name in set(sys.modules) - before}),
]))
"""


ASK = """
import json
from airflow.api_fastapi.app import init_plugins
from fastapi import FastAPI
from fastapi.testclient import TestClient
app = FastAPI()
app.get("/auth/token")(lambda: "a token of the admin")
init_plugins(app)
hosts = {hosts}
print(json.dumps({{h: TestClient(app).get("/auth/token", headers={{"Host": h}}).status_code for h in hosts}}))
"""
OURS = ("127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080")
OTHERS = ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0:8080", "")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(PROJECT_ROOT / "plugins"))
    import sift_console

    return sift_console


def test_airflow_finds_one_plugin_and_loads_little_for_it() -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(PROJECT_ROOT),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT_ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names, errors, loaded = json.loads(done.stdout.strip().splitlines()[-1])
    assert (names, errors) == (["sift_console"], {})
    assert not set(loaded) & {"include", "pyarrow", "psycopg", "fastapi", "jinja2", "pandas", "torch", "datasets"}


def answers(**variables: str) -> dict[str, int]:
    """The status with which Airflow's application and this plugin answer, by the name that they are called by."""
    env = {
        **os.environ,
        "PYTHONPATH": str(PROJECT_ROOT),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT_ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        **variables,
    }
    code = ASK.format(hosts=[*OURS, *OTHERS])
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_without_a_login_no_other_name_leads_here(postgres: PostgresServer, make_settings: MakeSettings) -> None:
    """A web page whose name points to 127.0.0.1 would be given a token of the admin."""
    embedded = airflow_environment(make_settings(), postgres, 8080)
    told = {name: value for name, value in embedded.items() if name.startswith("AIRFLOW__CORE__SIMPLE_AUTH")}
    assert answers(**told) == {**dict.fromkeys(OURS, 200), **dict.fromkeys(OTHERS, 400)}


def test_with_a_login_the_name_is_the_proxys_affair() -> None:
    assert set(answers().values()) == {200}


@pytest.mark.parametrize(
    ("dag_id", "task_id", "page"),
    [
        ("ingest_meld", "merge", "/labels?source=meld"),
        ("generate_and_publish", "plan", "/coverage"),
        ("generate_and_publish", "sift_ssp.generate", "/samples?mode=sift_ssp"),
        ("generate_and_publish", "quality_report", "/quality"),
        ("generate_and_publish", "merge_and_publish", "/releases"),
        ("generate_and_publish", "merge_and_publish.publish", "/releases"),
    ],
)
def test_tasks_link_to_the_page_with_their_data(plugin, dag_id: str, task_id: str, page: str) -> None:
    link = plugin.DataLink().get_link(None, ti_key=SimpleNamespace(dag_id=dag_id, task_id=task_id))
    assert link == f"/plugin/sift-data/sift{page}"


def test_dags_of_others_have_no_link(plugin) -> None:
    assert plugin.DataLink().get_link(None, ti_key=SimpleNamespace(dag_id="billing", task_id="x")) == ""


def test_addresses_keep_airflow_s_path(plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://data.example.org/airflow/")
    key = SimpleNamespace(dag_id=f"ingest_{SAMPLED[0]}", task_id="load")
    assert plugin.DataLink().get_link(None, ti_key=key) == (
        f"/airflow/plugin/sift-data/airflow/sift/labels?source={SAMPLED[0]}"
    )


def test_what_a_person_wrote_stays_and_an_earlier_outcome_goes(plugin) -> None:
    assert plugin.with_outcome(None, "Wrote 1.") == "**Outcome:** Wrote 1."
    once = plugin.with_outcome("Watch this one.", "Wrote 1.")
    assert once == "Watch this one.\n\n**Outcome:** Wrote 1."
    assert plugin.with_outcome(once, "Wrote 2.") == "Watch this one.\n\n**Outcome:** Wrote 2."


def test_tasks_and_plugin_agree_on_the_note_s_key(plugin) -> None:
    assert plugin.NOTE_KEY == NOTE_KEY
