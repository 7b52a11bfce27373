"""Remove old logs of tasks.

Once a day, logs that are older than the setting `SIFT_KEEP_LOGS_DAYS` go, those of the DAG processor too. Airflow's own
history of runs is in its database, which no task may touch: docs/operations.md says how that is kept small.
"""

from __future__ import annotations

from airflow.sdk import CronTriggerTimetable, dag, task

from include.orchestration.defaults import DAG_ARGS, check_conf, owner_links, skip
from include.orchestration.task_logs import log_folder, remove_old_logs
from include.settings import get_settings


@dag(
    dag_display_name="Clean up",
    description="Remove old logs of tasks",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("40 4 * * *", timezone="UTC") if get_settings().schedules else None,
    # The only DAG that costs nothing and that everybody needs.
    is_paused_upon_creation=False,
    **DAG_ARGS,
    owner_links=owner_links(),
    tags=["maintenance"],
)
def clean_up() -> None:
    """Wire the task."""

    @task
    def remove_logs(dag_run=None) -> dict[str, int]:
        check_conf(dag_run.conf, ())
        keep_days = get_settings().keep_logs_days
        if not keep_days:
            skip("SIFT_KEEP_LOGS_DAYS is 0: all logs are kept")
        return remove_old_logs(log_folder(), keep_days)

    remove_logs()


clean_up()
