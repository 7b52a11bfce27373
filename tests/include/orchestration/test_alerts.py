"""Failures are told to a real webhook: what it gets, and what happens when it is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from include.settings import PROJECT_ROOT
from tests.webhook import SECRET, webhook

BASE_URL = "https://airflow.example.org"
# A task's failure as Airflow hands it over, and then the seconds that telling it took.
TELL = """
import sys, time
from types import SimpleNamespace
from include.orchestration.alerts import announce_run, announce_task
from include.schema import BadInputError
ti = SimpleNamespace(dag_id="generate_and_publish", run_id="manual__2026-01-01T00:00:00+00:00", map_index=3,
    task_id="sift_s.generate", try_number=6)
class SourceError(BadInputError): ...
SourceError.__module__ = "include.sources.corpus"
class UnsafePagesError(ValueError): ...
UnsafePagesError.__module__ = "include.sources.pages"
def raised(error, cause):
    try:
        raise error from cause
    except Exception as caught:
        return caught
said = "the transcript of a person\\nof two lines"
foreign = ValueError(said)
unsafe = UnsafePagesError("column 'text' is too large")
unsafe.__context__, unsafe.__suppress_context__ = foreign, True
errors = {"ours": SourceError("no column 'text'\\nmore"), "foreign": foreign, "none": None,
    "wrapped": raised(SourceError(f"toy: cannot read a.parquet at 123: {said}"), foreign),
    "wrapped twice": raised(SourceError(f"toy: {said}"), raised(SourceError(said), foreign)),
    "wrapped otherwise": raised(SourceError("toy: the transcript"), foreign),
    "wrapped silent": raised(SourceError("toy: the transcript"), TimeoutError()),
    "ours from ours": raised(SourceError(f"toy: {unsafe}"), unsafe)}
run = {"dag": SimpleNamespace(dag_id=ti.dag_id), "run_id": ti.run_id}
started = time.monotonic()
for what in sys.argv[1:]:
    if what == "run":
        announce_run({**run, "reason": "task_failure", "ti": ti})
    elif what == "run alone":
        announce_run({**run, "reason": "all_tasks_deadlocked"})
    else:
        announce_task({"ti": ti, "exception": errors[what]})
print(time.monotonic() - started)
"""


def tell(home: Path, url: str | None, *what: str) -> tuple[float, str]:
    """Announce in a process of its own, as Airflow does; the seconds it took and all that it logged."""
    connection = {"AIRFLOW_CONN_ALERTS": json.dumps({"conn_type": "http", "host": url})} if url else {}
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {
        "PYTHONPATH": str(PROJECT_ROOT),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__BASE_URL": BASE_URL,
        **connection,
    }
    done = subprocess.run([sys.executable, "-c", TELL, *what], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert SECRET not in said
    return float(done.stdout.strip().splitlines()[-1]), said


def test_a_task_that_failed_for_good_is_told_with_the_first_line_of_its_error(tmp_path: Path) -> None:
    with webhook() as (url, bodies):
        tell(tmp_path, url, "ours")
    run_url = f"{BASE_URL}/dags/generate_and_publish/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00"
    task_url = f"{run_url}/tasks/sift_s.generate/mapped/3"
    assert bodies == [
        {
            "text": "generate_and_publish: task sift_s.generate [3] failed for good at try 6: "
            f"SourceError: no column 'text'\n{task_url}",
            "event": "task_failed",
            "dag": "generate_and_publish",
            "run": "manual__2026-01-01T00:00:00+00:00",
            "task": "sift_s.generate",
            "map_index": 3,
            "try": 6,
            "error": "SourceError: no column 'text'",
            "url": task_url,
        }
    ]


def test_words_that_are_not_ours_are_not_sent(tmp_path: Path) -> None:
    with webhook() as (url, bodies):
        tell(tmp_path, url, "foreign", "none")
    assert [body["error"] for body in bodies] == [
        "ValueError; the log says more",
        "it ended without an error of its own",
    ]
    assert "transcript" not in json.dumps(bodies)


def test_words_that_are_not_ours_are_not_sent_by_errors_that_repeat_them(tmp_path: Path) -> None:
    with webhook() as (url, bodies):
        tell(tmp_path, url, "wrapped", "wrapped twice", "wrapped otherwise", "wrapped silent", "ours from ours")
    assert [body["error"] for body in bodies] == [
        "SourceError: toy: cannot read a.parquet at 123; the log says more",
        "SourceError: toy; the log says more",
        "SourceError; the log says more",
        "SourceError; the log says more",
        "SourceError: toy: column 'text' is too large",
    ]
    assert "transcript" not in json.dumps(bodies)


def test_a_run_that_failed_is_told(tmp_path: Path) -> None:
    with webhook() as (url, bodies):
        tell(tmp_path, url, "run", "run alone")
    assert [(body["event"], body["task"]) for body in bodies] == [
        ("run_failed", "sift_s.generate"),
        ("run_failed", None),
    ]
    for body in bodies:
        assert body["text"].startswith("generate_and_publish: run manual__2026-01-01T00:00:00+00:00 failed")


def test_without_the_connection_nothing_happens_and_nothing_is_said(tmp_path: Path) -> None:
    seconds, logged = tell(tmp_path, None, "ours")
    assert seconds < 3
    assert "alerts" not in logged


def test_a_webhook_that_refuses_is_logged(tmp_path: Path) -> None:
    with webhook(status=500) as (url, _):
        _, logged = tell(tmp_path, url, "ours")
    assert "the webhook of the connection alerts answered 500" in logged


def test_a_webhook_that_is_down_is_logged_without_its_address(tmp_path: Path) -> None:
    with webhook() as (url, _):
        pass
    seconds, logged = tell(tmp_path, url, "ours")
    assert seconds < 5
    assert "the webhook of the connection alerts was not reached: ConnectionError" in logged


@pytest.mark.slow
def test_a_slow_webhook_does_not_hold_up_the_task(tmp_path: Path) -> None:
    with webhook(wait_s=20) as (url, _):
        seconds, logged = tell(tmp_path, url, "ours")
    assert 4 < seconds < 12
    assert "was not reached: ReadTimeout" in logged
