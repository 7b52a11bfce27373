"""Checks of a running Airflow for `./sift doctor`: its metadata, its processes, its queues, its connections.

Each check yields what it found. They run in a process of Airflow's own environment, on either side: one that owns the
metadata (scheduler, DAG processor, API server, the embedded stack), or a worker, which has only the API server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from airflow.configuration import conf
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from include.orchestration.connections import AWS_CONN_ID, HUB_CONN_ID, WAREHOUSE_CONN_ID, llm_server, open_warehouse
from include.orchestration.defaults import GPU_POOL, GPU_QUEUE
from include.schema import BadInputError, Finding
from include.settings import Settings
from include.storage.warehouse import MIN_POSTGRES, Warehouse

TIMEOUT_S = 5.0
MOST_SKEW_S = 5.0
"""Clocks further apart break tokens and heartbeats."""
ROLES = ("ingest", "generate", "publish", "console")


def owns_metadata() -> bool:
    """Whether this process was told where Airflow's metadata are; workers need not know."""
    return not conf.get("database", "sql_alchemy_conn").startswith("sqlite")


def runs_tasks_here() -> bool:
    """Whether the executor runs tasks beside the scheduler, on this machine."""
    return "LocalExecutor" in conf.get("core", "executor")


def find_connection(conn_id: str) -> Connection | None:
    """Look a connection up as this process can: environment, secrets backend and, beside the metadata, those."""
    if owns_metadata():
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"  # Airflow's own commands say so too
    try:
        found: Connection = Connection.get(conn_id)
    except AirflowNotFoundException:
        return None
    return found


def warehouses() -> dict[str, Warehouse]:
    """The warehouse by each connection to it that this process knows: one for all, or one for a role."""
    known = {
        conn_id: find_connection(conn_id)
        for conn_id in (WAREHOUSE_CONN_ID, *(f"{WAREHOUSE_CONN_ID}_{role}" for role in ROLES))
    }
    return {conn_id: open_warehouse(connection) for conn_id, connection in known.items() if connection}


def serves(role: str) -> bool:
    """Whether this process may be asked to do a role's work, told by the connections that it was given."""
    found = warehouses()
    return WAREHOUSE_CONN_ID in found or f"{WAREHOUSE_CONN_ID}_{role}" in found or runs_tasks_here()


def check_warehouse() -> Iterator[Finding]:
    """Reachable, new enough, migrated, and in time with us; by each connection that is known here."""
    found = warehouses()
    if not found:
        yield _unknown_here("warehouse", WAREHOUSE_CONN_ID)
    for conn_id, warehouse in found.items():
        try:
            condition = warehouse.condition()
        except Exception as error:
            said = f"connection {conn_id}: {str(error).strip().splitlines()[0]}"
            yield Finding("warehouse", "wrong", said, "start PostgreSQL, or correct the connection's host and password")
            continue
        if condition.postgres < MIN_POSTGRES // 10000:
            said = f"connection {conn_id}: PostgreSQL {condition.postgres}, 18 is needed"
            yield Finding("warehouse", "wrong", said, "docs/operations.md, Upgrade")
        else:
            yield Finding("warehouse", "ok", f"connection {conn_id}: PostgreSQL {condition.postgres} answers")
        if not condition.may_read:
            said = f"connection {conn_id} may not read the table warehouse_version"
            yield Finding("migrations", "warn", said, "grant select on warehouse_version to its user")
        elif condition.revision != condition.head:
            said = f"at {condition.revision or 'no revision'}, this code needs {condition.head}"
            mend = "sift prepare (compose: restart the service init; embedded: ./sift down, ./sift up)"
            yield Finding("migrations", "wrong", said, mend)
        else:
            yield Finding("migrations", "ok", f"the warehouse is at {condition.revision}, the newest")
        skew = f"PostgreSQL's clock is {abs(condition.clock_skew_s):.1f} s off ours"
        if abs(condition.clock_skew_s) > MOST_SKEW_S:
            yield Finding("clock", "wrong", skew, "let both machines set their clocks by NTP")
        else:
            yield Finding("clock", "ok", skew)


def check_metadata() -> Iterator[Finding]:
    """Airflow's metadata database answers, and is migrated."""
    from airflow.utils import db
    from airflow.utils.session import create_session
    from sqlalchemy import text

    if not owns_metadata():
        yield Finding("metadata", "ok", "not known to this process, as it should be for a worker")
        return
    try:
        with create_session() as session:
            session.execute(text("select 1"))
    except Exception as error:
        said = str(getattr(error, "orig", error)).strip().splitlines()[0]
        yield Finding("metadata", "wrong", said, "start PostgreSQL, or correct AIRFLOW__DATABASE__SQL_ALCHEMY_CONN")
        return
    try:
        check_migrations: Callable[[int], None] = db.check_migrations
        check_migrations(0)
    except TimeoutError:
        yield Finding("metadata", "wrong", "Airflow's metadata are not migrated", "airflow db migrate, or sift prepare")
    else:
        yield Finding("metadata", "ok", "Airflow's metadata answer and are migrated")


def check_parts() -> Iterator[Finding]:
    """Scheduler and DAG processor send heartbeats, and a triggerer that was ever started does."""
    from airflow.jobs.job import most_recent_job

    if not owns_metadata():
        return
    for job_type, name in (
        ("SchedulerJob", "scheduler"),
        ("DagProcessorJob", "dag-processor"),
        ("TriggererJob", "triggerer"),
    ):
        job = most_recent_job(job_type)
        if job and job.is_alive():
            yield Finding(name, "ok", f"alive on {job.hostname}")
        elif name != "triggerer" or job:
            last = f"its last heartbeat was at {job.latest_heartbeat:%Y-%m-%d %H:%M:%S} UTC" if job else "never started"
            mend = f"look at its log, then start it: airflow {name}"
            # Nothing of ours defers, so a dead triggerer holds nothing up.
            yield Finding(name, "warn" if name == "triggerer" else "wrong", f"not alive: {last}", mend)


def check_api_server() -> Iterator[Finding]:
    """The API server that tasks speak to answers."""
    base = conf.get("api", "base_url", fallback="http://localhost:8080").rstrip("/")
    url = conf.get("core", "execution_api_server_url", fallback="") or f"{base}/execution/"
    # Where there is no login, Airflow adds a user's token to requests without a header of this name, and then logs a
    # traceback, because it is none of a task.
    headers = {"Authorization": "none"}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", headers=headers, timeout=TIMEOUT_S)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        said = f"{url}: {type(error).__name__}: {error}"
        yield Finding("api-server", "wrong", said, "start it, or correct AIRFLOW__CORE__EXECUTION_API_SERVER_URL")
    else:
        yield Finding("api-server", "ok", f"{url} answers")


def check_dags() -> Iterator[Finding]:
    """Every DAG file was imported."""
    from airflow.models.errors import ParseImportError
    from airflow.utils.session import create_session
    from sqlalchemy import select

    if not owns_metadata():
        return
    with create_session() as session:
        errors = list(session.execute(select(ParseImportError.filename, ParseImportError.stacktrace)))
    for filename, stacktrace in errors:
        last = (stacktrace or "").strip().splitlines()[-1:]
        yield Finding("dags", "wrong", f"{filename}: {' '.join(last)}", "correct the file; the UI shows the traceback")
    if not errors:
        yield Finding("dags", "ok", "every DAG file was imported")


def check_plugins() -> Iterator[Finding]:
    """Every plugin was imported."""
    from airflow.plugins_manager import get_import_errors

    errors = get_import_errors()
    for source, error in errors.items():
        said = f"{source}: {(error.strip().splitlines() or [''])[-1]}"
        yield Finding("plugins", "wrong", said, "airflow plugins; correct it, then restart the API server")
    if not errors:
        yield Finding("plugins", "ok", "every plugin was imported")


def check_gpu_pool(settings: Settings) -> Iterator[Finding]:
    """The pool of generating tasks exists, as large as the number of shards."""
    from airflow.models.pool import Pool

    if not owns_metadata():
        return
    pool = Pool.get_pool(GPU_POOL)
    mend = f"airflow pools set {GPU_POOL} SLOTS 'One slot per GPU', or sift prepare"
    if pool is None:
        yield Finding("pool", "wrong", f"there is no pool {GPU_POOL}, so no task generates", mend)
    elif settings.shards and pool.slots != settings.shards:
        said = f"pool {GPU_POOL} has {pool.slots} slots, SIFT_SHARDS is {settings.shards}: some would wait for others"
        yield Finding("pool", "warn", said, mend)
    else:
        yield Finding("pool", "ok", f"pool {GPU_POOL} has {pool.slots} slots")


def check_queues() -> Iterator[Finding]:
    """With Celery: the broker answers, and behind every queue of our tasks there are workers, for GPUs enough."""
    executor = conf.get("core", "executor")
    if "Celery" not in executor:
        yield Finding("queues", "ok", f"{executor} needs no Celery workers")
        return
    from airflow.providers.celery.executors.celery_executor_utils import app

    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=TIMEOUT_S)
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        yield Finding("broker", "wrong", said, "start redis, or correct AIRFLOW__CELERY__BROKER_URL")
        return
    yield Finding("broker", "ok", "the broker answers")
    workers: dict[str, list[dict[str, Any]]] = app.control.inspect(timeout=TIMEOUT_S / 2).active_queues() or {}
    for queue in (conf.get("operators", "default_queue"), GPU_QUEUE):
        behind = sorted(name for name, queues in workers.items() if queue in {served["name"] for served in queues})
        if not behind:
            said = f"no worker serves the queue {queue}: its tasks wait there, and fail in the end"
            yield Finding("queues", "wrong", said, f"airflow celery worker --queues {queue} (compose: a profile does)")
        elif queue == GPU_QUEUE and owns_metadata():
            yield from _check_gpu_workers(app, behind)
        else:
            yield Finding("queues", "ok", f"{queue}: {', '.join(behind)}")


def _check_gpu_workers(app: Any, workers: list[str]) -> Iterator[Finding]:
    """What the pool lets through can begin at once: the rest would wait in the queue, where its time is limited."""
    from airflow.models.pool import Pool

    stats: dict[str, dict[str, Any]] = app.control.inspect(workers, timeout=TIMEOUT_S, limit=len(workers)).stats() or {}
    at_once = sum(int(stats[name]["pool"]["max-concurrency"]) for name in workers if name in stats)
    said = f"{GPU_QUEUE}: {', '.join(workers)}"
    pool = Pool.get_pool(GPU_POOL)
    if silent := [name for name in workers if name not in stats]:
        said += f"; {', '.join(silent)} did not say how many tasks it takes at once"
        yield Finding("queues", "warn", said, "ask again; if it stays so, look at its log")
    elif pool and at_once < pool.slots:
        said += f" take {at_once} at once, and the pool {GPU_POOL} has {pool.slots} slots: the others wait in the queue"
        mend = "start a worker for each slot (compose: COMPOSE_PROFILES), or lower SIFT_GPUS, then sift prepare"
        yield Finding("queues", "wrong", said, mend)
    else:
        yield Finding("queues", "ok", said)


def check_server(settings: Settings) -> Iterator[Finding]:
    """With the engine `openai`: the server of the connection `llm_server` answers and lists the model."""
    if settings.engine != "openai":
        return
    find_connection("llm_server")  # says on which side of Airflow this process is
    try:
        server = llm_server()
    except BadInputError as error:
        if runs_tasks_here():
            yield Finding("llm_server", "wrong", "SIFT_ENGINE=openai, and there is no such connection", str(error))
        else:
            yield _unknown_here("llm_server", "llm_server")
        return
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    try:
        answer = httpx.get(f"{server.url}/models", headers=headers, timeout=TIMEOUT_S)
        answer.raise_for_status()
        served = [str(entry.get("id")) for entry in answer.json()["data"]]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        said = f"{server.url}/models: {type(error).__name__}: {str(error).splitlines()[0]}"
        yield Finding("llm_server", "wrong", said, "start the server, or correct the connection's host and password")
        return
    if served and not any(name.partition("@")[0] == settings.model_name for name in served):
        said = f"{server.url} serves {', '.join(served[:5])}, not {settings.model_name}"
        yield Finding("llm_server", "wrong", said, "set SIFT_MODEL_NAME, or start the server with the model")
    else:
        yield Finding("llm_server", "ok", f"{server.url} serves {settings.model_name}")


def check_credentials(settings: Settings) -> Iterator[Finding]:
    """The connection that the target needs is there; whether it works shows the target itself."""
    needed = {"s3": AWS_CONN_ID, "hf": HUB_CONN_ID}.get(settings.target.partition("://")[0])
    if needed is None or not serves("publish") or find_connection(needed):
        return
    if needed == AWS_CONN_ID:
        said = "there is no such connection; boto3 looks for credentials itself, as for a machine's role"
        yield Finding(needed, "warn", said, "set AIRFLOW_CONN_AWS_DEFAULT if the target asks for them")
    elif runs_tasks_here():
        yield Finding(needed, "wrong", f"target {settings.target}, and no such connection", "set AIRFLOW_CONN_HUB")
    else:
        yield _unknown_here(needed, needed)


def _unknown_here(check: str, conn_id: str) -> Finding:
    """A connection that this process does not know: an error where it runs tasks, else perhaps as it should be."""
    mend = f"set AIRFLOW_CONN_{conn_id.upper()}, or make the connection in the UI (Admin, Connections)"
    if runs_tasks_here():
        return Finding(check, "wrong", f"there is no connection {conn_id}, so no task works", mend)
    if owns_metadata():
        return Finding(check, "ok", f"connection {conn_id} is for workers: ask one of them (sift doctor there)")
    said = f"connection {conn_id} is not in this process's environment; its tasks will ask the API server for it"
    return Finding(check, "warn", said, mend)
