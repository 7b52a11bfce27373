"""The console in the Airflow UI: a navigation entry, a tab on runs, links from tasks, the notes of runs; and a guard.

Every Airflow process loads this file, so it imports little; the web application itself is made by the API server when
the first page is asked for. What it shows is guarded by Airflow's own login and permissions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache, partial
from typing import Any
from urllib.parse import urlencode, urlsplit

from airflow.configuration import conf
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseOperatorLink

GENERATE = "generate_and_publish"
PREFIX = "/sift"
ROUTE = "sift-data"
"""Of the shell: its address is <Airflow>/plugin/sift-data, and the page in it follows."""

NOTE_KEY = "note"  # as in include.orchestration.defaults, which is too much to import into every process
OUTCOME = "**Outcome:** "
MOST_NOTE_CHARACTERS = 1000  # what Airflow's column holds


def base_path() -> str:
    """Path under which Airflow is served, without the slash at its end."""
    return urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")


@cache
def console() -> Any:
    """Make the web application, guarded by the right to read the DAG whose data it shows."""
    from airflow.api_fastapi.core_api.security import requires_access_dag

    from include.orchestration.connections import warehouse
    from include.settings import get_settings
    from plugins.console.app import create_console

    may_read = requires_access_dag(method="GET", param_dag_id=GENERATE)
    return create_console(partial(warehouse, "console"), get_settings, may_read)


class LazyConsole:
    """Stands for the application until somebody asks for a page."""

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Serve one request (ASGI)."""
        await console()(scope, receive, send)


def has_no_login() -> bool:
    """Whether whoever reaches this Airflow is its admin, as in the embedded stack, and in no other."""
    return bool(conf.getboolean("core", "simple_auth_manager_all_admins"))


def own_hosts_only(app: Any) -> Any:
    """Refuse requests that call this machine by another name than its own (ASGI middleware).

    A page on the web may let its own name point to 127.0.0.1 (DNS rebinding). For the browser the two are then one
    site, and the page may read what it asks for, a token of the admin above all.
    """
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return TrustedHostMiddleware(app, allowed_hosts=["127.0.0.1", "localhost", "[::1]"], www_redirect=False)


def is_ours(dag_id: str) -> bool:
    """Whether a DAG is one of this repository's: Airflow may have others."""
    return dag_id == GENERATE or dag_id.startswith("ingest_")


def page_for(dag_id: str, task_id: str) -> str:
    """Return the page that shows what a task has to do with, with its filters."""
    if dag_id.startswith("ingest_"):
        return f"/labels?{urlencode({'source': dag_id.removeprefix('ingest_')})}"
    mode, _, task = task_id.rpartition(".")
    if task == "generate":
        return f"/samples?{urlencode({'mode': mode})}"
    if task_id == "quality_report":
        return "/quality"
    return "/releases" if "publish" in task_id else "/coverage"


class DataLink(BaseOperatorLink):
    """A button in the details of every task of our DAGs: the console, where the data of the task is."""

    name = "See the data"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address of the page within Airflow's shell; "" for DAGs of others, whose button stays grey."""
        if not is_ours(ti_key.dag_id):
            return ""
        base = base_path()
        return f"{base}/plugin/{ROUTE}{base}{PREFIX}{page_for(ti_key.dag_id, ti_key.task_id)}"


def with_outcome(note: str | None, outcome: str) -> str:
    """Put an outcome below what a person has written into a run's note; one that stands there already is replaced.

    A run that is cleared and ends again has another outcome.
    """
    written = (note or "").partition(OUTCOME)[0].rstrip()
    return (f"{written}\n\n" if written else "") + f"{OUTCOME}{outcome}"


def keep_note(dag_run: Any) -> None:
    """Put what the tasks of a run said of its outcome into the run's note.

    The scheduler calls this when a run of any DAG ends, within its own transaction: one look-up by key.
    """
    from airflow.models.xcom import XComModel
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None or not is_ours(dag_run.dag_id):
        return
    said = session.scalars(
        select(XComModel)
        .where(XComModel.dag_id == dag_run.dag_id, XComModel.run_id == dag_run.run_id, XComModel.key == NOTE_KEY)
        .order_by(XComModel.timestamp)
    )
    outcome = " ".join(str(XComModel.deserialize_value(entry)) for entry in said)
    if outcome:
        dag_run.note = with_outcome(dag_run.note, outcome)[:MOST_NOTE_CHARACTERS]


class RunNotes:
    """Listens for runs that end."""

    @hookimpl
    def on_dag_run_success(self, dag_run: Any, msg: str) -> None:
        """A run succeeded, or had nothing to do."""
        keep_note(dag_run)

    @hookimpl
    def on_dag_run_failed(self, dag_run: Any, msg: str) -> None:
        """A run failed; what it did before stands in the note all the same."""
        keep_note(dag_run)


class SiftConsole(AirflowPlugin):
    """What Airflow reads."""

    name = "sift_console"
    fastapi_apps = [{"app": LazyConsole(), "url_prefix": PREFIX, "name": "SIFT console"}]
    fastapi_root_middlewares = [{"middleware": own_hosts_only, "name": "own hosts only"}] if has_no_login() else []
    external_views = [
        {
            "name": "SIFT data",
            "href": f"{base_path()}{PREFIX}/coverage",
            "destination": "nav",
            "url_route": ROUTE,
        },
        {
            "name": "What this run did",
            "href": f"{base_path()}{PREFIX}/run?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "sift-run",
        },
    ]
    global_operator_extra_links = [DataLink()]
    listeners = [RunNotes()]
