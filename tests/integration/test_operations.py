"""What an operator does with a running stack: look after it, be told of failures, save it and bring it back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from include.local.stack import read_state
from include.storage.warehouse import Warehouse
from tests.integration.front_door import FrontDoor, copy_project
from tests.webhook import SECRET, webhook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLED = '''
"""A task that is killed, as by the kernel when memory ends."""
import os
import signal

from airflow.sdk import dag, task

from include.orchestration.defaults import DAG_ARGS


@dag(schedule=None, **DAG_ARGS)
def killed():
    @task(retries=0)
    def dies():
        os.kill(os.getpid(), signal.SIGKILL)

    dies()


killed()
'''


@dataclass
class Operated:
    """A stack on a checkout of its own, which tells a webhook of failures.

    Attributes:
        sift: The front door.
        told: What the webhook got.
    """

    sift: FrontDoor
    told: list[dict[str, Any]]

    def doctor(self, status: int) -> dict[str, list[dict[str, str]]]:
        """What the doctor finds, by check."""
        by_check: dict[str, list[dict[str, str]]] = {}
        output = self.sift("doctor", "--json", "--free", "0.01", status=status)
        for finding in json.loads(output[output.index("[\n") :]):
            by_check.setdefault(finding["check"], []).append(finding)
        return by_check

    def told_of(self, dag: str, events: int) -> list[dict[str, Any]]:
        """What the webhook was told of a DAG, once it was told so much."""
        deadline = time.monotonic() + 60
        while len(found := [body for body in self.told if body["dag"] == dag]) < events:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    root = tmp_path_factory.mktemp("operated")
    copy_project(root / "project")
    (root / "project" / "dags" / "killed.py").write_text(KILLED)
    with webhook() as (url, told):
        alerts = json.dumps({"conn_type": "http", "host": url})
        settings = {"AIRFLOW_CONN_ALERTS": alerts, "SIFT_HUB": str(root / "project" / "samples")}
        door = FrontDoor(root / "sift", root / "project", settings)
        # Logs of a year ago, which the first run of clean_up finds.
        old = door.home / "logs" / "tasks" / "dag_id=gone" / "attempt=1.log"
        old.parent.mkdir(parents=True)
        old.write_text("a line\n")
        os.utime(old, (time.time() - 365 * 86_400,) * 2)
        try:
            door("up")
            yield Operated(door, told)
        finally:
            door.close()


def test_a_healthy_stack_has_nothing_wrong(operated: Operated) -> None:
    found = operated.doctor(status=0)
    wanted = "packages settings home disk leases metadata scheduler dag-processor api-server dags plugins pool queues"
    for check in (*wanted.split(), "warehouse", "migrations", "clock", "corpora", "target"):
        assert [finding["state"] for finding in found[check]] == ["ok"], found[check]
    assert found["model"][0]["state"] == "warn"  # the fake engine


def test_a_web_page_that_calls_this_machine_by_its_own_name_gets_no_token(operated: Operated) -> None:
    state = read_state(operated.sift.home)
    assert state
    url = f"{state.url}/auth/token"
    for host in ("127.0.0.1", "localhost:8080"):
        assert "access_token" in httpx.get(url, headers={"Host": host}).json()
    for path in ("/auth/token", "/api/v2/dags", "/sift/coverage"):
        answer = httpx.get(f"{state.url}{path}", headers={"Host": "evil.example:8080"})
        assert (answer.status_code, answer.text) == (400, "Invalid host header")


def test_old_logs_go_without_anybody_having_asked_for_it(operated: Operated) -> None:
    deadline = time.monotonic() + 60
    old = operated.sift.home / "logs" / "tasks" / "dag_id=gone" / "attempt=1.log"
    while old.exists():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert operated.sift.api.runs("clean_up")


def test_old_history_goes_once_a_day(operated: Operated) -> None:
    state = read_state(operated.sift.home)
    assert state
    with psycopg.connect(state.conninfo, dbname="airflow", autocommit=True) as connection:
        connection.execute("insert into log (dttm, event) values (now() - interval '31 days', 'long ago')")
        connection.execute("insert into log (dttm, event) values (now() - interval '29 days', 'long ago')")
        cleaned = operated.sift.home / "run" / "cleaned"
        os.utime(cleaned, (time.time() - 2 * 86_400,) * 2)
        deadline = time.monotonic() + 120  # the supervisor looks once a minute
        while (left := connection.execute("select count(*) from log where event = 'long ago'").fetchone()) != (1,):
            assert time.monotonic() < deadline, left
            time.sleep(1)
    assert time.time() - cleaned.stat().st_mtime < 300
    assert operated.sift.api.runs("clean_up")


def test_a_task_that_fails_for_good_and_its_run_are_told(operated: Operated) -> None:
    output = operated.sift("trigger", "ingest_ravdess", "--conf", '{"modez": 1}', "--wait", status=1)
    run_id = output.partition("run ")[2].partition(",")[0]
    task, run = sorted(operated.told_of("ingest_ravdess", 2), key=lambda body: body["event"], reverse=True)
    assert (task["event"], task["task"], task["map_index"], task["try"]) == (
        *("task_failed", "resolve_revision"),
        *(None, 1),
    )
    assert task["error"] == "UnknownConfError: unknown parameters modez; this DAG knows force, revision"
    assert task["url"].startswith(f"{operated.sift.api._client.base_url}/dags/ingest_ravdess/runs/")
    assert (run["event"], run["run"], run["task"]) == ("run_failed", run_id, "resolve_revision")
    log = operated.sift.api.task_log("ingest_ravdess", run_id, "resolve_revision", 1)
    assert not any(SECRET in line for line in log)


def test_a_task_that_was_killed_is_told_by_its_run(operated: Operated) -> None:
    operated.sift("trigger", "killed", "--wait", status=1)
    told = operated.told_of("killed", 1)
    assert [(body["event"], body["task"]) for body in told] == [("run_failed", "dies")]


def test_a_file_that_cannot_be_imported_is_found(operated: Operated) -> None:
    broken = operated.sift.project / "dags" / "broken.py"
    broken.write_text("from airflow.sdk import dag\nimport not_there_at_all\n")
    deadline = time.monotonic() + 90
    while not operated.sift.api.import_errors():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    (finding,) = operated.doctor(status=1)["dags"]
    broken.unlink()
    assert finding["state"] == "wrong"
    assert "broken.py: ModuleNotFoundError: No module named 'not_there_at_all'" in finding["said"]


def test_a_saved_stack_lives_on_in_another_home(operated: Operated, tmp_path: Path) -> None:
    sift = operated.sift
    sift("trigger", "ingest_meld", "--wait")
    # A secret that Airflow has encrypted with this home's key.
    variable = {"key": "kept", "value": "a secret"}
    sift.api._request("POST", "/api/v2/variables", json=variable)
    runs = [run["dag_run_id"] for run in sift.api.runs("ingest_meld")]
    sift("backup", str(tmp_path / "backup"))
    state = read_state(sift.home)
    assert state
    count = "select count(*) as rows from staging.samples"
    with Warehouse(state.conninfo).connection() as connection:
        before = connection.execute(count).fetchone()
    other = FrontDoor(tmp_path / "other", sift.project, sift.settings)
    other("restore", str(tmp_path / "backup"))
    try:
        other("up")
        restored = read_state(other.home)
        assert restored
        with Warehouse(restored.conninfo).connection() as connection:
            assert connection.execute(count).fetchone() == before
        assert other.api._request("GET", "/api/v2/variables/kept").json()["value"] == "a secret"
        assert [run["dag_run_id"] for run in other.api.runs("ingest_meld")] == runs
        other("trigger", "ingest_meld", "--wait")
        tasks = other.api.tasks("ingest_meld", other.api.runs("ingest_meld")[0]["dag_run_id"])
        assert {task["task_id"]: task["state"] for task in tasks}["load"] == "skipped"  # it is staged already
    finally:
        other("down")
    assert other.left_over() == []


def test_a_stack_that_is_down_is_no_error(tmp_path: Path) -> None:
    output = FrontDoor(tmp_path / "sift")("doctor", "--free", "0.01")
    assert "warn  airflow: not running" in output and ", 0 wrong" in output
