"""The embedded Airflow: its environment, its processes, and its REST API as a client sees it."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg

from include.local.postgres import PostgresServer
from include.settings import PROJECT_ROOT, Settings

COMPONENTS = {
    "api-server": ("api-server", "--host", "127.0.0.1", "--workers", "1"),
    # Logs are read from the disk that all processes share; nothing needs to serve them on a port.
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
}
"""Airflow's processes; no triggerer, because nothing here defers."""
WORKER_TITLE = "airflow worker -- LocalExecutor"
"""What LocalExecutor's workers, children of the scheduler, call themselves; each is the supervisor of its task too."""

PASSED_ON = (
    "AIRFLOW_CONN_LLM_SERVER",
    "AIRFLOW_CONN_AWS_DEFAULT",
    "AIRFLOW_CONN_HUB",
    "AIRFLOW_CONN_ALERTS",
)
"""Connections of the user's environment that the embedded Airflow gets."""


def airflow_command(*arguments: str) -> list[str]:
    """Return the command line of Airflow's CLI in this virtual environment."""
    return [str(Path(sys.executable).with_name("airflow")), *arguments]


def airflow_environment(settings: Settings, postgres: PostgresServer, port: int) -> dict[str, str]:
    """Return the whole environment of the embedded Airflow's processes.

    Args:
        settings: For the places.
        postgres: Holds Airflow's metadata (database airflow) and the warehouse (database sift).
        port: Of the API server, on loopback.
    """
    home = settings.home / "airflow"
    url = f"http://127.0.0.1:{port}"
    metadata = f"postgresql+psycopg2://postgres@/airflow?host={quote(str(postgres.socket_dir), safe='/')}"
    keys = _secret_keys(home / "secrets.json")
    # The user's own Airflow, if there is one, is not ours to configure ourselves from; these connections are for us.
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW") or name in PASSED_ON
    }
    return {
        **inherited,
        "PYTHONPATH": str(PROJECT_ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT_ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT_ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        # One user, one machine, loopback only, and called by that name only (plugins/sift_console.py).
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__FERNET_KEY": keys["fernet_key"],
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__SECRET_KEY": keys["secret_key"],
        "AIRFLOW__API__INSTANCE_NAME": "SIFT audio platform",
        "AIRFLOW__API_AUTH__JWT_SECRET": keys["jwt_secret"],
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "15",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "15",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(settings.home / "logs" / "tasks"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_WAREHOUSE": json.dumps(
            {"conn_type": "postgres", "host": str(postgres.socket_dir), "login": "postgres", "schema": "sift"}
        ),
        "HF_HOME": os.environ.get("HF_HOME", str(settings.home / "cache" / "huggingface")),
        **_offline(settings),
    }


def end_scheduler_jobs(postgres: PostgresServer) -> None:
    """Record that the schedulers of this stack are dead, before another one starts.

    Airflow believes a scheduler that was killed to be alive for 30 s more. One that starts within that time leaves the
    tasks of the dead one as they are, "running" in no process, until it looks again after five minutes. We know
    better, for we started it; and what ran under it was killed with it.

    Source:
        `SchedulerJobRunner.adopt_or_reset_orphaned_tasks` of Airflow 3.3 does the same once the 30 s have passed.
    """
    with psycopg.connect(postgres.conninfo("airflow"), autocommit=True) as connection:
        connection.execute("update job set state = 'failed' where job_type = 'SchedulerJob' and state = 'running'")


class AirflowApi:
    """Airflow's REST API, as far as the front door needs it.

    Args:
        url: Base URL of the API server.
        login: Name and password, where Airflow asks for them; None: the embedded Airflow, which does not.
    """

    def __init__(self, url: str, login: tuple[str, str] | None = None) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)
        self._login = login

    def healthy(self) -> bool:
        """Whether the API server, the scheduler and the dag processor all work."""
        try:
            response = self._client.get("/api/v2/monitor/health")
        except httpx.TransportError:
            return False
        states = response.json() if response.status_code == httpx.codes.OK else {}
        parts = ("metadatabase", "scheduler", "dag_processor")
        return all(states.get(part, {}).get("status") == "healthy" for part in parts)

    def set_pool(self, name: str, slots: int, description: str) -> None:
        """Make a pool, or change its size."""
        size = {"slots": slots, "description": description, "include_deferred": False}
        response = self._request("POST", "/api/v2/pools", json={"name": name, **size}, accept=(httpx.codes.CONFLICT,))
        if response.status_code == httpx.codes.CONFLICT:
            self._request("PATCH", f"/api/v2/pools/{name}", json={"pool": name, **size})

    def list_dags(self) -> list[dict[str, Any]]:
        """Return all DAGs."""
        return list(self._request("GET", "/api/v2/dags", params={"limit": 200}).json()["dags"])

    def dag_details(self, dag_id: str) -> dict[str, Any]:
        """Return a DAG's details, its schedule among them."""
        return dict(self._request("GET", f"/api/v2/dags/{dag_id}/details").json())

    def import_errors(self) -> list[dict[str, Any]]:
        """Return DAG files that cannot be imported."""
        return list(self._request("GET", "/api/v2/importErrors").json()["import_errors"])

    def unpause(self, dag_id: str) -> None:
        """Let a DAG run."""
        self._request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Let a DAG start no more runs; what wakes it meanwhile is not kept."""
        self._request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": True})

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run and return its id.

        Raises:
            ValueError: If there is no such DAG, or Airflow refuses the conf; with its message.
        """
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self._request("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body).json()["dag_run_id"])

    def backfill(
        self, dag_id: str, since: datetime, until: datetime, *, conf: Mapping[str, Any], reprocess: str
    ) -> int:
        """Start runs for the past intervals between two dates, the oldest first, and return the backfill's id.

        Raises:
            ValueError: If Airflow refuses it; with its message.
        """
        body = {
            "dag_id": dag_id,
            "from_date": since.isoformat(),
            "to_date": until.isoformat(),
            "dag_run_conf": dict(conf),
            "reprocess_behavior": reprocess,
            "max_active_runs": 1,
        }
        return int(self._request("POST", "/api/v2/backfills", json=body).json()["id"])

    def backfill_is_done(self, backfill_id: int) -> bool:
        """Whether all runs of a backfill have ended."""
        return self._request("GET", f"/api/v2/backfills/{backfill_id}").json()["completed_at"] is not None

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return one run."""
        return dict(self._request("GET", f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}").json())

    def runs(self, dag_id: str, run_type: str | None = None) -> list[dict[str, Any]]:
        """Return the newest runs of a DAG (of one type: manual, scheduled, backfill, ...), newest first."""
        params: dict[str, Any] = {"order_by": "-run_after", "limit": 100}
        if run_type:
            params["run_type"] = run_type
        return list(self._request("GET", f"/api/v2/dags/{dag_id}/dagRuns", params=params).json()["dag_runs"])

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return a run's task instances."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances"
        return list(self._request("GET", path, params={"limit": 200}).json()["task_instances"])

    def returned(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """Return what a task returned; None if it was skipped."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}"
        path += "/xcomEntries/return_value"
        response = self._request("GET", path, params={"deserialize": True}, accept=(httpx.codes.NOT_FOUND,))
        return None if response.status_code == httpx.codes.NOT_FOUND else response.json()["value"]

    def task_error(self, dag_id: str, run_id: str, task: Mapping[str, Any]) -> str:
        """Return the error with which a task instance ended, else the last line of its log; "" without a log.

        Args:
            dag_id: Of the run.
            run_id: Of the run.
            task: One of those that `tasks` returns.
        """
        of = (dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
        entries = self._log_entries(*of)
        errors = [lines[1:] for lines in map(_log_lines, entries) if lines[1:]]
        lines = errors[-1][:1] if errors else [line for entry in entries[-1:] for line in _log_lines(entry)]
        return lines[0].strip() if lines else ""

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> list[str]:
        """Return the messages of a task instance's log."""
        entries = self._log_entries(dag_id, run_id, task_id, try_number, map_index)
        return [line for entry in entries for line in _log_lines(entry)]

    def _log_entries(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int) -> list[Any]:
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/logs/{try_number}"
        params: dict[str, Any] = {"map_index": map_index, "full_content": True}
        return list(self._request("GET", path, params=params).json()["content"])

    def queued_events(self, dag_id: str) -> int:
        """Return how many asset events wait for a run of the DAG."""
        response = self._request("GET", f"/api/v2/dags/{dag_id}/assets/queuedEvents", accept=(httpx.codes.NOT_FOUND,))
        return int(response.json().get("total_entries", 0)) if response.status_code == httpx.codes.OK else 0

    def _request(self, method: str, path: str, *, accept: tuple[int, ...] = (), **kwargs: Any) -> httpx.Response:
        if "Authorization" not in self._client.headers:
            self._client.headers["Authorization"] = f"Bearer {self._token()}"
        response = self._client.request(method, path, **kwargs)
        if response.is_error and response.status_code not in accept:
            try:
                detail = response.json()["detail"]
            except (ValueError, KeyError):
                detail = response.text[:500]
            raise ValueError(f"Airflow refused {method} {path}: {detail}")
        return response

    def _token(self) -> str:
        if self._login is None:
            answer = self._client.get("/auth/token")
        else:
            name, password = self._login
            answer = self._client.post("/auth/token", json={"username": name, "password": password})
        return str(answer.raise_for_status().json()["access_token"])


def _log_lines(entry: Any) -> list[str]:
    """A log entry as text: its message, and the exceptions that it carries."""
    if not isinstance(entry, dict):
        return [str(entry)]
    errors = [f"{error['exc_type']}: {error['exc_value']}" for error in entry.get("error_detail") or []]
    return [str(entry.get("event", "")), *errors]


def _secret_keys(path: Path) -> dict[str, str]:
    """Keys that Airflow's processes share, made once and readable by the owner only."""
    if not path.exists():
        from cryptography.fernet import Fernet

        path.parent.mkdir(parents=True, exist_ok=True)
        keys = {
            "fernet_key": Fernet.generate_key().decode(),
            "secret_key": secrets.token_urlsafe(32),
            "jwt_secret": secrets.token_urlsafe(48),
        }
        aside = path.with_suffix(".new")
        aside.touch(mode=0o600)
        aside.write_text(json.dumps(keys))
        aside.rename(path)
    loaded: dict[str, str] = json.loads(path.read_text())
    return loaded


def _offline(settings: Settings) -> dict[str, str]:
    """Keep Hub libraries from looking outside when corpora, model and target all lie here."""
    places = (settings.hub, settings.target)
    inside = settings.profile == "embedded" and not any(place.startswith("hf://") for place in places)
    return {"HF_HUB_OFFLINE": "1"} if inside else {}
