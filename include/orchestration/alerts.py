"""Announces failures to the webhook of the Airflow connection `alerts`; without that connection nothing happens.

A task that fails for good is announced by its own process. One that was killed cannot do that any more, so each run
that fails is announced too, by the DAG processor. What is sent holds no secrets and no rows: an error speaks for itself
only where its words are ours, and up to where it repeats another's; of any other the class is named, since libraries
quote the data that they choke on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowNotFoundException

log = logging.getLogger(__name__)

ALERTS_CONN_ID = "alerts"
TIMEOUT_S = 5.0
"""Seconds to wait for the webhook to listen, and again for its answer: the failed task ends only after that."""
_MOST_CHARACTERS = 300


def announce_task(context: Mapping[str, Any]) -> None:
    """Announce a task that failed for good (`on_failure_callback` of tasks)."""
    ti = context["ti"]
    map_index = ti.map_index if ti.map_index is not None and ti.map_index >= 0 else None
    error = _first_line(context.get("exception"))
    name = ti.task_id if map_index is None else f"{ti.task_id} [{map_index}]"
    url = f"{_run_url(ti.dag_id, ti.run_id)}/tasks/{ti.task_id}" + ("" if map_index is None else f"/mapped/{map_index}")
    _post(
        {
            "text": f"{ti.dag_id}: task {name} failed for good at try {ti.try_number}: {error}\n{url}",
            "event": "task_failed",
            "dag": ti.dag_id,
            "run": ti.run_id,
            "task": ti.task_id,
            "map_index": map_index,
            "try": ti.try_number,
            "error": error,
            "url": url,
        }
    )


def announce_run(context: Mapping[str, Any]) -> None:
    """Announce a run that failed (`on_failure_callback` of DAGs); names the task that failed last, if Airflow does."""
    dag_id, run_id = context["dag"].dag_id, context["run_id"]
    ti = context.get("ti")
    url = _run_url(dag_id, run_id)
    last = f"; the last task to fail was {ti.task_id}" if ti else ""
    _post(
        {
            "text": f"{dag_id}: run {run_id} failed{last}\n{url}",
            "event": "run_failed",
            "dag": dag_id,
            "run": run_id,
            "task": ti.task_id if ti else None,
            "reason": context.get("reason"),
            "url": url,
        }
    )


def _run_url(dag_id: str, run_id: str) -> str:
    base = str(conf.get("api", "base_url", fallback="http://localhost:8080")).rstrip("/")
    return f"{base}/dags/{dag_id}/runs/{quote(run_id)}"


def _first_line(error: object) -> str:
    """What may be told of an error: our own words, as far as they go, or its class alone."""
    if not isinstance(error, BaseException):
        return "it ended without an error of its own"
    ours = str(error) if _is_ours(error) else ""
    whole = bool(ours)
    for cause in _causes(error):
        if not _is_ours(cause):
            # What is not repeated word for word may be repeated otherwise.
            ours = ours.partition(str(cause))[0] if str(cause) in ours and str(cause) else ""
            whole = False
    first = (ours.splitlines() or [""])[0]
    told = f"{type(error).__name__}: {first}".rstrip(" :(")[:_MOST_CHARACTERS]
    return told if whole else f"{told}; the log says more"


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.startswith("include.")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What led to an error, but for what it was raised in spite of (`from None`): there it has words of its own."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield cause
        yield from _causes(cause)


def _post(body: dict[str, Any]) -> None:
    """Send it; whatever goes wrong is logged without the address, which with most webhooks is the secret itself."""
    from airflow.providers.http.hooks.http import HttpHook

    hook = HttpHook(method="POST", http_conn_id=ALERTS_CONN_ID)
    try:
        # Not `hook.run`: it logs the address with every error.
        answer = hook.get_conn().post(hook.url_from_endpoint(None), json=body, timeout=TIMEOUT_S)
    except AirflowNotFoundException:
        return
    except Exception as error:
        log.warning("the webhook of the connection %s was not reached: %s", ALERTS_CONN_ID, type(error).__name__)
        return
    if not answer.ok:
        log.warning("the webhook of the connection %s answered %s", ALERTS_CONN_ID, answer.status_code)
