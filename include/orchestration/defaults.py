"""What all DAGs share: retries, alerts, pool and queue, owner, start date, skipping, and the check of a run's conf."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule, get_current_context
from airflow.sdk.configuration import conf as airflow_config
from airflow.sdk.exceptions import AirflowSkipException

from include.orchestration.alerts import announce_run, announce_task
from include.schema import BadInputError
from include.settings import get_settings

log = logging.getLogger(__name__)

OWNER = "data-platform"
GPU_POOL = "gpu"
GPU_QUEUE = "gpu"
NOTE_KEY = "note"
"""XCom under which a task says its part of the run's outcome; see `leave_note`."""

# Cron DAGs never catch up; the date only has to lie before any backfill a user may want.
START_DATE = datetime(2024, 1, 1, tzinfo=UTC)


class UnknownConfError(BadInputError):
    """A run was given parameters that its DAG does not know."""


# Bad input does not get better by trying again; everything else may.
_NO_RETRY = RetryRule(
    exception="include.schema.BadInputError", action=RetryAction.FAIL, reason="the input must change first"
)

DEFAULT_ARGS: dict[str, Any] = {
    "owner": OWNER,
    "retries": 2,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": ExceptionRetryPolicy(rules=[_NO_RETRY]),
    "on_failure_callback": announce_task,
}

# What every DAG is given besides. Runs are announced too, because a task that was killed cannot announce itself.
DAG_ARGS: dict[str, Any] = {
    "start_date": START_DATE,
    "catchup": False,
    "max_active_runs": 1,
    "default_args": DEFAULT_ARGS,
    "on_failure_callback": announce_run,
}


def gpu_pod() -> dict[str, Any]:
    """Return what a generating task asks of KubernetesExecutor: a pod with one GPU and the image that has torch.

    Nothing where that executor is not configured: importing Kubernetes' models takes longer than a DAG file may.
    """
    if "KubernetesExecutor" not in airflow_config.get_mandatory_value("core", "executor"):
        return {}
    from kubernetes.client import models

    limits = {"nvidia.com/gpu": "1", "memory": "32Gi"}
    container = models.V1Container(
        name="base",  # what KubernetesExecutor calls the container of the task
        image=get_settings().gpu_image,
        # These take the place of the template's; what is asked of a GPU is its limit.
        resources=models.V1ResourceRequirements(requests={"cpu": "2", "memory": "16Gi"}, limits=limits),
    )
    toleration = models.V1Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    pod = models.V1Pod(spec=models.V1PodSpec(containers=[container], tolerations=[toleration]))
    return {"executor_config": {"pod_override": pod}}


# A generating task may die with its GPU; what it had stored is not lost, so it may try often.
GENERATE_ARGS: dict[str, Any] = {"pool": GPU_POOL, "queue": GPU_QUEUE, "retries": 5, **gpu_pod()}

# A question that nobody answered in time is not asked again by the same run.
APPROVE_ARGS: dict[str, Any] = {
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception="airflow.providers.standard.exceptions.HITLTimeoutError",
                action=RetryAction.FAIL,
                reason="nobody approved in time; the release is kept aside for a later run",
            )
        ]
    )
}


def skip_unless_reviewed(merge_task_id: str) -> Callable[[Mapping[str, Any]], None]:
    """Return what an approving task does first: skip itself, unless the release that was merged needs approval."""

    def check(context: Mapping[str, Any]) -> None:
        if not context["ti"].xcom_pull(task_ids=merge_task_id)["review"]:
            skip("this run is not reviewed")

    return check


def owner_links() -> dict[str, str]:
    """Return where the owner's name in the UI leads; nothing if the settings do not say."""
    link = get_settings().owner_link
    return {OWNER: link} if link else {}


def leave_note(text: str) -> None:
    """Say one sentence of the run's outcome: the plugin `sift_console` puts all of them into the run's note.

    A task cannot write the note itself: the task SDK does not offer it, and the REST API would need a user's token.
    """
    get_current_context()["ti"].xcom_push(key=NOTE_KEY, value=text)


def skip(reason: str) -> NoReturn:
    """Skip this task, and with it what comes after; Airflow itself would not show the reason in the log."""
    log.warning("skipped: %s", reason)
    named = reason.split(" ", 1)[0].endswith(":")  # a source's name, "meld: ...", stays as it is
    leave_note(f"{reason if named else reason[:1].upper() + reason[1:]}.")
    raise AirflowSkipException(reason)


def check_conf(conf: Mapping[str, Any] | None, known: Iterable[str]) -> None:
    """Refuse parameters that the DAG does not know; Airflow itself would ignore them.

    Raises:
        UnknownConfError: Naming them and the known ones.
    """
    unknown = sorted(set(conf or {}) - set(known))
    if unknown:
        raise UnknownConfError(f"unknown parameters {', '.join(unknown)}; this DAG knows {', '.join(sorted(known))}")
