"""The whole system, as a user runs it: `./sift` with the bundled samples, a real Airflow and the fake engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import datasets
import httpx
import psutil
import pytest
from playwright.sync_api import expect

from include.local.stack import read_state
from include.publish.release import verify_release
from tests.integration.front_door import FrontDoor
from tests.plugins.browsers import chromium, watched_page
from tests.s3_server import CREDENTIALS, S3Server, moto_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="module")
def sift(tmp_path_factory: pytest.TempPathFactory, moto: S3Server) -> Iterator[FrontDoor]:
    """A home in which the demo has run with --keep."""
    connection = {
        "conn_type": "aws",
        "login": CREDENTIALS["aws_access_key_id"],
        "password": CREDENTIALS["aws_secret_access_key"],
        "extra": {"region_name": CREDENTIALS["region_name"], "endpoint_url": moto.endpoint},
    }
    door = FrontDoor(
        tmp_path_factory.mktemp("a home with blanks") / "sift",
        settings={"AIRFLOW_CONN_AWS_DEFAULT": json.dumps(connection)},
    )
    try:
        output = door("demo", "--keep")
        assert "150 texts were written in this run." in output
        assert "stays up at" in output and "open to everybody who can log in to this machine" in output
        assert "Every label was known to a rule." in output
        yield door
    finally:
        door.close()


def test_the_doctor_finds_nothing_wrong(sift: FrontDoor) -> None:
    output = sift("doctor", "--free", "0.1")
    assert "ok    scheduler: alive" in output and "ok    plugins: every plugin was imported" in output
    assert "ok    target: local: its latest release is" in output
    assert ", 0 wrong" in output
    assert "Traceback" not in (sift.home / "logs" / "api-server.log").read_text()


def test_the_release_opens_with_its_splits(sift: FrontDoor, tmp_path: Path) -> None:
    release = (sift.home / "releases" / "latest").resolve()
    manifest = verify_release(release)
    opened = datasets.load_dataset(str(release), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in opened.items()} == {"commonvoice": 48, "meld": 54, "ravdess": 48}
    assert manifest.generator["model"] == "fake"


def test_events_woke_generation_and_nothing_was_lost(sift: FrontDoor) -> None:
    runs = sift.api.runs("generate_and_publish")
    assert runs and {run["state"] for run in runs} == {"success"}
    assert {run["run_type"] for run in runs} == {"asset_triggered"}


def test_runs_say_their_outcome_in_their_note(sift: FrontDoor) -> None:
    notes = " ".join(run["note"] for run in sift.api.runs("generate_and_publish"))
    assert "Woken by staged/" in notes and "Published 20" in notes
    assert re.search(r"Wrote \d+ responses \(.*sift_ssp \d+", notes), notes
    (ingest,) = sift.api.runs("ingest_meld")
    assert re.match(r"\*\*Outcome:\*\* Staged meld at revision \w{12}: 18 rows read, 18 new\.", ingest["note"])


@pytest.mark.browser
def test_a_run_has_a_tab_with_what_it_did_and_its_tasks_link_to_the_data(sift: FrontDoor) -> None:
    state = read_state(sift.home)
    assert state
    run = next(run for run in sift.api.runs("generate_and_publish") if "responses" in run["note"])
    at = f"{state.url}/dags/generate_and_publish/runs/{quote(run['dag_run_id'], safe='')}"
    with chromium() as browser, watched_page(browser, state.url) as page:
        page.goto(at)
        page.get_by_role("link", name="What this run did").click()
        frame = page.frame_locator("iframe[title='What this run did']")
        expect(frame.get_by_role("heading", level=1)).to_have_text("What this run did")
        expect(frame.get_by_role("row", name=re.compile("accepted")).first).to_be_visible()
        page.goto(f"{at}/tasks/quality_report/details")
        link = page.get_by_role("link", name="See the data")
        expect(link).to_have_attribute("href", re.compile("/plugin/sift-data/sift/quality$"))


def test_a_run_without_work_skips_its_tasks(sift: FrontDoor) -> None:
    before = (sift.home / "releases" / "latest").resolve()
    output = sift("trigger", "generate_and_publish", "--wait")
    run_id = re.search(r"run (manual__\S+),", output)
    assert run_id
    states = {task["task_id"]: task["state"] for task in sift.api.tasks("generate_and_publish", run_id[1])}
    assert set(states.values()) == {"skipped"}, states
    assert (sift.home / "releases" / "latest").resolve() == before


def states_of(sift: FrontDoor, run_id: str) -> dict[str, str]:
    """States of the publishing tasks of a run, by their names within the group."""
    prefix = "merge_and_publish."
    tasks = sift.api.tasks("generate_and_publish", run_id)
    return {task["task_id"].removeprefix(prefix): task["state"] for task in tasks if task["task_id"].startswith(prefix)}


def start_reviewed(sift: FrontDoor, folder: Path, **params: object) -> str:
    """Start a run that publishes to a folder, and wait until it asks for approval."""
    conf = json.dumps({"target": str(folder), **params})
    run_id = re.search(r"run (manual__\S+),", sift("trigger", "generate_and_publish", "--conf", conf))
    assert run_id
    deadline = time.monotonic() + 120
    while states_of(sift, run_id[1]).get("approve") != "awaiting_input":
        assert time.monotonic() < deadline, states_of(sift, run_id[1])
        time.sleep(1)
    return run_id[1]


def end_of(sift: FrontDoor, run_id: str) -> tuple[str, dict[str, str]]:
    """Wait for the end of a run; its state, and those of its publishing tasks."""
    deadline = time.monotonic() + 120
    while (state := sift.api.run("generate_and_publish", run_id)["state"]) in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(1)
    return state, states_of(sift, run_id)


@pytest.mark.slow
def test_a_release_is_published_when_it_is_approved_and_not_before(sift: FrontDoor, tmp_path: Path) -> None:
    folder = tmp_path / "releases"
    rejected = start_reviewed(sift, folder, review=True)
    (aside,) = folder.glob(".built-*")
    release_id = aside.name.removeprefix(".built-")
    asked = sift.answer("generate_and_publish", rejected, "merge_and_publish.approve", "Reject")
    assert asked["subject"] == f"Publish release {release_id}?"
    assert "| ravdess | 16 | 16 | 16 | 48 | 0 |" in asked["body"]
    state, states = end_of(sift, rejected)
    assert state == "success"
    assert states == {"merge": "success", "approve": "success", "publish": "skipped"}
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == [aside.name]

    # The next run finds it whole, and asks although nobody told it to.
    approved = start_reviewed(sift, folder)
    assert [path.name for path in folder.glob(".built-*")] == [aside.name]
    sift.answer("generate_and_publish", approved, "merge_and_publish.approve", "Approve")
    state, states = end_of(sift, approved)
    assert (state, set(states.values())) == ("success", {"success"})
    assert (folder / "latest").resolve().name == release_id
    verify_release(folder / "latest")
    listed = sift("releases", COLUMNS="400")
    assert str(folder) in listed and release_id in listed


@pytest.mark.slow
def test_a_trial_is_published_to_s3_and_said_in_the_log(sift: FrontDoor, moto: S3Server, tmp_path: Path) -> None:
    moto.client().create_bucket(Bucket="trials")
    conf = json.dumps({"target": "s3://trials/demo", "max_samples": 2})
    sift("trigger", "generate_and_publish", "--conf", conf, "--wait")
    pointer = json.load(moto.client().get_object(Bucket="trials", Key="demo/latest.json")["Body"])
    files = {split: f"{pointer['uri']}/data/{split}/train-*.parquet" for split in ("commonvoice", "meld", "ravdess")}
    code = (
        "import json, sys; from datasets import load_dataset; files, options = map(json.loads, sys.argv[1:3]); "
        "opened = load_dataset('parquet', data_files=files, storage_options=options, cache_dir=sys.argv[3]); "
        "print(json.dumps({split: len(rows) for split, rows in opened.items()}))"
    )
    command = [sys.executable, "-c", code, json.dumps(files), json.dumps(moto.storage_options()), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    read = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(read.stdout.splitlines()[-1]) == {"commonvoice": 6, "meld": 6, "ravdess": 6}
    run = sift.api.runs("generate_and_publish", "manual")[0]
    log = "\n".join(sift.api.task_log("generate_and_publish", run["dag_run_id"], "merge_and_publish.publish", 1))
    assert f"release {pointer['release_id']} is at {pointer['uri']}: sent 3 files" in log
    assert CREDENTIALS["aws_secret_access_key"] not in log
    assert "s3://trials/demo" in sift("releases", COLUMNS="400")


def test_a_trial_in_the_place_of_the_dataset_is_a_red_task(sift: FrontDoor) -> None:
    sift("trigger", "generate_and_publish", "--conf", '{"max_samples": 2}', "--wait", status=1)
    run = sift.api.runs("generate_and_publish", "manual")[0]
    failed = [t for t in sift.api.tasks("generate_and_publish", run["dag_run_id"]) if t["state"] == "failed"]
    assert [(task["task_id"], task["try_number"]) for task in failed] == [("plan", 1)]
    log = "\n".join(sift.api.task_log("generate_and_publish", run["dag_run_id"], "plan", 1))
    assert "a release with max_samples=2 would take the place of release" in log


def test_an_unchanged_corpus_tells_nobody(sift: FrontDoor) -> None:
    before = len(sift.api.runs("generate_and_publish"))
    sift("trigger", "ingest_meld", "--wait")
    assert len(sift.api.runs("generate_and_publish")) == before


def test_unknown_parameters_are_a_red_task_that_names_them(sift: FrontDoor) -> None:
    output = sift("trigger", "ingest_meld", "--conf", '{"revisoin": "x"}', "--wait", status=1)
    assert "  failed: resolve_revision\n    " in output
    assert "unknown parameters revisoin; this DAG knows force, revision" in output.splitlines()[-1]
    run = sift.api.runs("ingest_meld")[0]
    (task,) = [task for task in sift.api.tasks("ingest_meld", run["dag_run_id"]) if task["state"] == "failed"]
    assert (task["task_id"], task["try_number"]) == ("resolve_revision", 1)  # not tried again
    log = "\n".join(sift.api.task_log("ingest_meld", run["dag_run_id"], "resolve_revision", 1))
    assert "unknown parameters revisoin; this DAG knows force, revision" in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trigger", "generate_and_publish", "--conf", '{"modes": ["sing"]}'), "sing"),
        (("trigger", "ingest_nothing"), "ingest_nothing"),
        (("trigger", "ingest_meld", "--conf", "{"), "--conf is not JSON"),
        (("demo", "--sources", "meld,nosuch"), "unknown sources nosuch"),
        (("demo",), "runs already at http://127.0.0.1:"),
        (("up",), "Stop it with ./sift down"),
        (("demo", "--hub", "/no/such/folder"), "there is no such folder"),
        (("logs", "nosuch"), "there is no log nosuch"),
        (("backfill", "ingest_meld", "--from", "2026-01-01", "--to", "2026-01-31"), "./sift down, then ./sift up"),
    ],
)
def test_bad_input_ends_in_one_message(sift: FrontDoor, arguments: tuple[str, ...], message: str) -> None:
    output = sift(*arguments, status=1)
    assert message in output
    assert "Traceback" not in output
    assert output.startswith(("sift: ", "Corpora: "))


def test_status_logs_and_psql(sift: FrontDoor) -> None:
    shown = sift("status")
    assert "ravdess" in shown and "Every label was known to a rule." in shown
    assert "scheduler.log" in sift("logs", "-n", "3") or sift("logs", "scheduler", "-n", "3")
    assert sift("psql", "-Atc", "select count(*) from generation.responses").strip() == "150"
    listed = sift("releases", COLUMNS="80")
    assert "latest" in listed and (sift.home / "releases" / "latest").resolve().name in listed


def test_an_estimate_says_what_is_pending_and_stores_nothing(sift: FrontDoor) -> None:
    before = (sift.home / "releases" / "latest").resolve()
    sift("psql", "-c", "delete from generation.responses where mode = 'sit_ssp'")
    output = sift("trigger", "generate_and_publish", "--conf", '{"estimate": true}', "--wait")
    assert re.search(r"^sit_ssp +50 +50 ", output, re.MULTILINE), output
    assert "Nothing was stored." in output
    assert sift("psql", "-Atc", "select count(*) from generation.responses").strip() == "100"
    run = sift.api.runs("generate_and_publish")[0]
    states = {task["task_id"]: task["state"] for task in sift.api.tasks("generate_and_publish", run["dag_run_id"])}
    assert {name for name, state in states.items() if state == "success"} == {
        "plan",
        "generate_or_estimate",
        "estimate",
    }
    # The same seeds write the same texts again, so there is nothing new to publish.
    sift("trigger", "generate_and_publish", "--wait")
    assert sift("psql", "-Atc", "select count(*) from generation.responses").strip() == "150"
    assert (sift.home / "releases" / "latest").resolve() == before


def test_everything_listens_on_loopback_only(sift: FrontDoor) -> None:
    listening = {
        connection.laddr.ip
        for process in sift.processes()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def schedulers(sift: FrontDoor) -> list[psutil.Process]:
    """The running schedulers; other processes of the stack may end while they are looked at."""
    found = []
    for process in sift.processes():
        with suppress(psutil.NoSuchProcess):
            if process.cmdline()[-2:] == ["scheduler", "--skip-serve-logs"]:
                found.append(process)
    return found


def test_a_killed_scheduler_is_started_again(sift: FrontDoor) -> None:
    scheduler = schedulers(sift)[0]
    scheduler.send_signal(signal.SIGKILL)
    scheduler.wait(10) if scheduler.is_running() else None
    deadline = time.monotonic() + 120
    while not any(process.create_time() > scheduler.create_time() for process in schedulers(sift)):
        assert time.monotonic() < deadline
        time.sleep(1)
    sift("trigger", "ingest_ravdess", "--wait")


def test_the_web_page_is_served(sift: FrontDoor) -> None:
    state = read_state(sift.home)
    assert state
    page = httpx.get(state.url, follow_redirects=True)
    assert page.status_code == httpx.codes.OK and "<html" in page.text.lower()


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    door = FrontDoor(tmp_path / "sift")
    process = door.start("demo", "--sources", "meld")
    deadline = time.monotonic() + 200
    while not (door.home / "run" / "state.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    running = door.processes()
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    _, alive = psutil.wait_procs(running, timeout=5)
    assert alive == []
    assert door.left_over() == []


def test_a_second_demo_generates_nothing_again(sift: FrontDoor) -> None:
    sift("down")
    assert sift("status", status=3).startswith("Not running")
    assert sift("psql", "-Atc", "select count(*) from generation.responses").strip() == "150"  # also when nothing runs
    assert sift.left_over() == []
    before = (sift.home / "releases" / "latest").resolve()
    output = sift("demo", "--keep")
    assert "Nothing was pending: no text was generated again." in output
    assert (sift.home / "releases" / "latest").resolve() == before
