"""The deployment of `docker-compose.yaml`, run natively: each worker has its device, and two do twice the work."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from include.modes import MODES
from include.publish.release import verify_release
from tests.cluster.cluster import Cluster, running
from tests.cluster.drill import GENERATE
from tests.conftest import SAMPLED, SAMPLES
from tests.include.sources.corpus_files import toy_row, write_corpus
from tests.kills import batches_begun, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Enough that the two shards, chosen by hash, are about equal.
ROWS = 1600
BATCH = 16
BATCH_S = 0.75
WORKERS = {"gpu-worker-0": "GPU 0", "gpu-worker-1": "GPU 1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("cluster")
    hub = root / "hub"
    hub.mkdir()
    for organisation in SAMPLES.iterdir():
        if organisation.is_dir():
            (hub / organisation.name).mkdir()
            for corpus in organisation.iterdir():
                (hub / organisation.name / corpus.name).symlink_to(corpus)
    for repository in ("AbstractTTS/SAVEE", "AbstractTTS/TESS"):
        write_corpus(hub, [toy_row(number) for number in range(ROWS)], repository=repository)
    settings = {
        "SIFT_HUB": str(hub),
        "SIFT_ENGINE": "fake",
        "SIFT_SCHEDULES": "false",
        "SIFT_MAX_UNMAPPED": "0.5",
        "SIFT_BATCH_SIZE": str(BATCH),
        "SIFT_FAKE_BATCH_S": str(BATCH_S),
        "SIFT_FAKE_LOG": str(root / "batches"),
    }
    with running(root, profiles={"gpu-2"}, gpus=2, settings=settings) as found:
        yield found


def batch_log(cluster: Cluster) -> Path:
    return Path(cluster.variables["SIFT_FAKE_LOG"])


def run_to_its_end(cluster: Cluster, dag: str, conf: dict[str, Any], meanwhile: Callable[[], None]) -> str:
    """Trigger a run and wait until it has succeeded."""
    api = cluster.api
    api.unpause(dag)
    run_id = api.trigger(dag, conf)
    while (state := api.run(dag, run_id)["state"]) in ("queued", "running"):
        meanwhile()
        time.sleep(0.3)
    assert state == "success", [(task["task_id"], task["state"]) for task in api.tasks(dag, run_id)]
    return run_id


def test_samples_go_through_and_each_worker_uses_its_device(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    for source in SAMPLED:
        run_to_its_end(cluster, f"ingest_{source}", {}, lambda: None)
    workers: dict[int, str | None] = {}  # generating process -> the service in which it runs
    shown: set[str] = set()  # every command line that was seen
    logs: list[list[str]] = []  # of a task that ran, as the UI showed it
    api = cluster.api

    def look() -> None:
        if not logs and batches_begun(batch_log(cluster)):
            run = api.runs(GENERATE)[0]["dag_run_id"]
            for task in api.tasks(GENERATE, run):
                if task["state"] == "running" and task["queue"] == "gpu":
                    logs.append(api.task_log(GENERATE, run, task["task_id"], task["try_number"], task["map_index"]))
        for batch in batches_begun(batch_log(cluster)):
            if batch.pid not in workers and (service := cluster.service_of(batch.pid)):
                workers[batch.pid] = service
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                shown.add(" ".join(process.cmdline()))

    run_id = run_to_its_end(cluster, GENERATE, {}, look)
    seen = {(workers[batch.pid], batch.device) for batch in batches_begun(batch_log(cluster)) if batch.pid in workers}
    assert seen == set(WORKERS.items())
    assert logs and any(" to do, " in line for line in logs[0]), logs
    release = (cluster.home / "releases" / "latest").resolve()
    assert set(verify_release(release).sources) == set(SAMPLED)
    tasks = cluster.api.tasks(GENERATE, run_id)
    ran = {task["task_id"]: task["queue"] for task in tasks if task["state"] == "success"}
    assert {name: queue for name, queue in ran.items() if queue == "gpu"} == {
        f"{mode}.generate": "gpu" for mode in MODES
    }
    for task in tasks:
        name = f"{task['task_id']}[{task['map_index']}]" if task["map_index"] >= 0 else task["task_id"]
        record_property(
            "tasks of one run", f"{name:<28}{task['state']:<10}{task['queue']:<10}{task['duration'] or 0:.1f} s"
        )
    for service, device in sorted(seen):
        batches = [b for b in batches_begun(batch_log(cluster)) if workers.get(b.pid) == service]
        record_property("device by worker", f"{service:<16}{device:<8}{len(batches)} batches")
    secrets = secret_values(cluster)
    assert [name for name, value in secrets.items() if any(value in line for line in shown)] == []


def test_two_gpu_workers_do_the_work_of_two(cluster: Cluster, record_property: Callable[[str, object], None]) -> None:
    """One task a worker, so that nothing is measured but how they generate side by side."""
    speeds = {}
    for workers, source in ((1, "savee"), (2, "tess")):
        (cluster.stop if workers == 1 else cluster.start)("gpu-worker-1")
        cluster.api.pause(GENERATE)
        run_to_its_end(cluster, f"ingest_{source}", {}, lambda: None)
        conf = {"sources": [source], "modes": ["sift_s"], "publish": False}
        run_id = run_to_its_end(cluster, GENERATE, conf, lambda: None)
        tasks = [t for t in cluster.api.tasks(GENERATE, run_id) if t["task_id"] == "sift_s.generate"]
        assert len(tasks) == 2
        started, ended = ([datetime.fromisoformat(task[at]) for task in tasks] for at in ("start_date", "end_date"))
        seconds = (max(ended) - min(started)).total_seconds()
        speeds[workers] = ROWS / seconds
        record_property(
            f"throughput, fake engine, {BATCH_S:g} s a batch of {BATCH}",
            f"{workers} gpu worker(s): {ROWS} responses in {seconds:.1f} s = {speeds[workers]:.1f}/s",
        )
    assert speeds[2] / speeds[1] >= 1.8


def secret_values(cluster: Cluster) -> dict[str, str]:
    """The secrets of this deployment, by name."""
    known = ("PASSWORD", "KEY", "SECRET")
    return {name: value for name, value in cluster.variables.items() if name.endswith(known)}


def test_secrets_are_in_no_log_and_no_database(cluster: Cluster) -> None:
    secrets = {name: value.encode() for name, value in secret_values(cluster).items()}
    assert len(secrets) >= 12
    files = [file for folder in ("logs", "process-logs", "home") for file in (cluster.root / folder).rglob("*")]
    for file in files:
        if file.is_file():
            content = file.read_bytes()
            assert [name for name, value in secrets.items() if value in content] == [], file
    for database in ("airflow", "celery", "sift"):
        for table, text in dumped(cluster.conninfo(database)):
            assert [name for name, value in secrets.items() if value in text] == [], f"{database}: {table}"


def dumped(conninfo: str) -> Iterator[tuple[str, bytes]]:
    """Every table of a database as text; binary columns (pickled XCom, results) as they are."""
    tables = "select schemaname, tablename from pg_tables where schemaname not in ('pg_catalog', 'information_schema')"
    with psycopg.connect(conninfo) as connection:
        for schema, table in connection.execute(tables).fetchall():
            name = psycopg.sql.Identifier(schema, table)
            with connection.cursor().copy(
                psycopg.sql.SQL("copy (select * from {}) to stdout (format binary)").format(name)
            ) as copy:
                yield f"{schema}.{table}", b"".join(bytes(block) for block in copy)


def test_nothing_is_shown_without_login(cluster: Cluster) -> None:
    closed = (
        "/api/v2/dags",
        "/api/v2/pools",
        "/api/v2/connections",
        f"/api/v2/dags/{GENERATE}/dagRuns",
        "/ui/config",
        "/sift/coverage",
        "/sift/samples",
        "/sift/releases",
    )
    for path in closed:
        assert httpx.get(cluster.url + path).status_code in (401, 403), path
    wrong = {"username": "admin", "password": "guessed"}
    assert httpx.post(f"{cluster.url}/auth/token", json=wrong).status_code == 401
    assert httpx.get(f"{cluster.url}/auth/token").status_code in (401, 404, 405)
    assert httpx.post(f"{cluster.url}/api/v2/dags/{GENERATE}/dagRuns", json={"logical_date": None}).status_code == 401
    token = httpx.post(
        f"{cluster.url}/auth/token", json={"username": "admin", "password": cluster.variables["ADMIN_PASSWORD"]}
    ).raise_for_status()
    header = {"Authorization": f"Bearer {token.json()['access_token']}"}
    assert httpx.get(f"{cluster.url}/sift/coverage", headers=header).status_code == 200


def test_workers_know_no_secret_of_airflows_core(cluster: Cluster) -> None:
    core = (
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
        "AIRFLOW__CORE__FERNET_KEY",
        "AIRFLOW__API_AUTH__JWT_SECRET",
        "AIRFLOW__API__SECRET_KEY",
    )
    for worker in ("cpu-worker", *WORKERS):
        environment = cluster.environment(worker)
        assert not set(core) & set(environment)
        assert cluster.variables["POSTGRES_PASSWORD"] not in str(environment)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        generate = cluster.environment("gpu-worker-0")["AIRFLOW_CONN_WAREHOUSE_GENERATE"]
        with psycopg.connect(generate) as connection:
            connection.execute("delete from staging.samples")


def remembered(cluster: Cluster, key: str, sender: str = "127.0.0.1", **headers: str) -> list[str]:
    """The tokens, as cookies with their attributes, that are given to whoever shows a login that was signed with a key.

    It is the first user's, the admin's.
    """
    cookie = f"1|{hmac.new(key.encode(), b'1', hashlib.sha512).hexdigest()}"
    with httpx.Client(transport=httpx.HTTPTransport(local_address=sender)) as client:
        shown = {"Cookie": f"remember_token={cookie}", **headers}
        answer = client.get(f"{cluster.url}/auth/login/", headers=shown)
    assert not answer.is_error
    return [cookie for cookie in answer.headers.get_list("set-cookie") if cookie.startswith("_token=")]


def test_no_worker_can_sign_a_login(cluster: Cluster) -> None:
    assert remembered(cluster, cluster.environment("api-server")["AIRFLOW__API__SECRET_KEY"])
    for worker in ("cpu-worker", *WORKERS):
        for variable, value in cluster.environment(worker).items():
            assert not remembered(cluster, value), f"{worker}: {variable}"


def test_behind_a_trusted_proxy_with_tls_cookies_are_for_https_only(cluster: Cluster) -> None:
    """Here the test is the proxy: it comes from the address that is trusted by default, in a container nobody's."""
    key = cluster.environment("api-server")["AIRFLOW__API__SECRET_KEY"]
    https = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    for sender, headers, secure in (
        ("127.0.0.1", https, True),
        ("127.0.0.1", {}, False),
        ("127.0.0.2", https, False),
    ):
        (cookie,) = remembered(cluster, key, sender, **headers)
        assert ("secure" in cookie.lower().split("; ")) == secure, (sender, headers)


def test_a_killed_worker_comes_back(cluster: Cluster) -> None:
    before = len(cluster.restarts)
    cluster.kill("gpu-worker-0")
    wait_until(lambda: cluster.restarts[before:] == ["gpu-worker-0"], "gpu-worker-0 to be started again", 30)


def ask_doctor(cluster: Cluster, service: str) -> tuple[int, dict[str, list[str]]]:
    """`docker compose exec <service> sift doctor`: the exit status, and what was said of checks by their state."""
    command = [sys.executable, "-m", "include.cli", "doctor", "--json"]
    environment = cluster.environment(service)
    asked = subprocess.run(command, env=environment, cwd=cluster.root, capture_output=True, text=True, check=False)
    found: dict[str, list[str]] = {"ok": [], "warn": [], "wrong": []}
    for finding in json.loads(asked.stdout):
        found[finding["state"]].append(f"{finding['check']}: {finding['said']}")
    return asked.returncode, found


@pytest.mark.parametrize("service", ["scheduler", "api-server", "cpu-worker", "gpu-worker-0"])
def test_the_doctor_finds_nothing_wrong(
    cluster: Cluster, service: str, record_property: Callable[[str, object], None]
) -> None:
    found: dict[str, list[str]] = {}

    def well() -> bool:
        code, said = ask_doctor(cluster, service)
        found.update(said)
        return code == 0

    with suppress(AssertionError):
        wait_until(well, "a worker that was just started again to serve its queue", 60)
    assert found["wrong"] == []
    record_property(
        "doctor, healthy", f"{service}: {len(found['ok'])} ok, to know: {'; '.join(found['warn']) or 'none'}"
    )


@pytest.mark.parametrize(
    ("stopped", "check"),
    [
        (["gpu-worker-0", "gpu-worker-1"], "queues: no worker serves the queue gpu"),
        (["redis"], "broker: "),
        (["postgres"], "metadata: "),
        (["dag-processor"], "dag-processor: "),
    ],
)
def test_the_doctor_says_what_is_wrong(
    cluster: Cluster, stopped: list[str], check: str, record_property: Callable[[str, object], None]
) -> None:
    for name in stopped:
        cluster.stop(name, signal.SIGINT if name == "postgres" else signal.SIGTERM)
    try:
        found: dict[str, list[str]] = {}

        def noticed() -> bool:
            found.update(ask_doctor(cluster, "scheduler")[1])
            return any(said.startswith(check) for said in found["wrong"])

        wait_until(noticed, f"the doctor to say {check}", 120)  # a heartbeat that is missing is missed after 30 s
    finally:
        for name in stopped:
            cluster.start(name)
    for said in found["wrong"]:
        record_property(f"doctor, without {' and '.join(stopped)}", said)
    cluster.wait_until_healthy()
