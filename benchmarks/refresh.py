"""Refreshes with nothing new: eleven ingest runs in a real Airflow, their work in seconds, and no generation task.

The corpora are a few rows of each source on a stand-in for the Hub. After a first round has staged, written (with the
fake engine) and published everything, every source is refreshed again. Work is the time that tasks ran, as Airflow
recorded it; the wall time has the scheduler's pauses besides.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._corpus import write_every_source
from benchmarks._report import report
from include.local.airflow import AirflowApi
from include.local.stack import start_stack, stop_stack
from include.settings import get_settings
from include.sources import RECIPES
from tests.hub_server import HubServer

GENERATE = "generate_and_publish"
ACTIVE = ("queued", "running")
REACH = {"work_seconds_most": "<= 10", "generation_runs": "0", "generation_tasks": "0"}


@contextmanager
def stack(work: Path, hub: HubServer) -> Iterator[AirflowApi]:
    """The embedded stack in a home of its own."""
    os.environ |= {
        **{name: value for name, value in hub.environment(work / "hf").items() if name.startswith("HF_")},
        "SIFT_HOME": str(work / "sift"),
        "SIFT_PROFILE": "embedded",
        "SIFT_HUB": "hf://datasets",
        "SIFT_ENGINE": "fake",
        "SIFT_SCHEDULES": "false",
    }
    os.environ.pop("HF_HUB_OFFLINE", None)
    get_settings.cache_clear()
    settings = get_settings()
    try:
        state = start_stack(settings, port=None, attached=True, on_progress=print)
        yield AirflowApi(state.url)
    finally:
        stop_stack(settings.home)


def refresh(api: AirflowApi) -> tuple[list[dict[str, Any]], float]:
    """Trigger every source, wait until nothing runs and no event waits; the runs' tasks, and the seconds it took."""
    started = time.monotonic()
    runs = {f"ingest_{name}": api.trigger(f"ingest_{name}") for name in RECIPES}
    while any(api.run(dag, run)["state"] in ACTIVE for dag, run in runs.items()) or is_generating(api):
        time.sleep(0.5)
    seconds = time.monotonic() - started
    return [task for dag, run in runs.items() for task in api.tasks(dag, run)], seconds


def is_generating(api: AirflowApi) -> bool:
    """Whether the consumer runs or is about to."""
    return bool(api.queued_events(GENERATE)) or any(run["state"] in ACTIVE for run in api.runs(GENERATE))


def generation_tasks(api: AirflowApi) -> int:
    """Instances of `generate` that ever ran."""
    tasks = [task for run in api.runs(GENERATE) for task in api.tasks(GENERATE, run["dag_run_id"])]
    return sum(task["task_id"].endswith(".generate") and task["state"] == "success" for task in tasks)


def main() -> None:
    """Measure, print a table, write the JSON."""
    home = os.environ.get("SIFT_HOME")
    with tempfile.TemporaryDirectory() as name, HubServer() as hub:
        work = Path(name)
        write_every_source(work / "hub")
        for recipe in RECIPES.values():
            folder = work / "hub" / recipe.repository
            files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
            hub.commit(recipe.repository, files, branch=recipe.branch)
        with stack(work, hub) as api:
            wanted = {GENERATE, *(f"ingest_{name}" for name in RECIPES)}
            while not wanted <= {dag["dag_id"] for dag in api.list_dags()}:
                time.sleep(1)
            for dag in sorted(wanted):
                api.unpause(dag)
            first, first_seconds = refresh(api)
            runs, generated = len(api.runs(GENERATE)), generation_tasks(api)
            failed = [task["task_id"] for task in first if task["state"] == "failed"]
            if failed or not generated:
                raise RuntimeError(f"the first round did not stage and write everything: {failed}")
            hub.reset()
            tasks, seconds = refresh(api)
            figures = {
                "sources": len(RECIPES),
                "first_round_seconds": first_seconds,
                "refresh_seconds": seconds,
                "work_seconds_mean": statistics.mean(work_by_run(tasks)),
                "work_seconds_most": max(work_by_run(tasks)),
                "parquet_bytes_read": hub.bytes_sent(".parquet"),
                "generation_runs": len(api.runs(GENERATE)) - runs,
                "generation_tasks": generation_tasks(api) - generated,
            }
    if home:
        os.environ["SIFT_HOME"] = home
    else:
        del os.environ["SIFT_HOME"]
    report("refresh", figures, REACH)


def work_by_run(tasks: list[dict[str, Any]]) -> list[float]:
    """Seconds that the tasks of each run ran."""
    seconds: dict[str, float] = {}
    for task in tasks:
        seconds[task["dag_id"]] = seconds.get(task["dag_id"], 0.0) + (task["duration"] or 0.0)
    return list(seconds.values())


if __name__ == "__main__":
    main()
