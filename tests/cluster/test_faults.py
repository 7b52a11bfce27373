"""What breaks on a running deployment, one thing at a time, each while a full run is under way.

`./sift test -m faults` runs these by hand; they take some half an hour on two cores. Three limits are lowered, so that
what Airflow finds out by waiting is found out sooner: TIME_LIMITS. The scheduler's own health and orphan checks are
the deployment's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, running
from tests.cluster.drill import GENERATE, INGEST, Drill, Outcome, poll

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

ROWS = 80
BATCH = 4
TIME_LIMITS = {
    # 300 s: how long a task that sends no heartbeat is believed to live.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    # 600 s: how long a task may be queued, and how often that is looked at (120 s).
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "15",
}
S3_TARGET = "s3://faults/releases"


@pytest.fixture(scope="module")
def releases_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk for the release directory, which can be filled."""
    home = tmp_path_factory.mktemp("faults") / "home"
    folder = home / "releases"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=False)
    yield folder
    if mounted.returncode == 0:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def drill(releases_disk: Path) -> Iterator[Drill]:
    """A deployment with two devices, in which a first release is published."""
    root = releases_disk.parent.parent
    settings = {
        "SIFT_HUB": str(root / "hub"),
        "SIFT_ENGINE": "fake",
        "SIFT_SCHEDULES": "false",
        "SIFT_BATCH_SIZE": str(BATCH),
        "SIFT_FAKE_BATCH_S": "0.6",
        "SIFT_FAKE_LOG": str(root / "batches"),
        "SIFT_FAKE_FAULTS": "empty:0.05",
        "AIRFLOW_CONN_AWS_DEFAULT": (
            '{"conn_type": "aws", "login": "key", "password": "a-secret-of-a-test", '
            '"extra": {"region_name": "us-east-1", "endpoint_url": "http://s3:9000"}}'
        ),
        "S3_ACCESS_KEY": "key",
        "S3_SECRET_KEY": "a-secret-of-a-test",
    }
    with running(root, profiles={"gpu-2", "s3"}, gpus=2, settings=settings, environment=TIME_LIMITS) as cluster:
        (root / "data" / "faults").mkdir(parents=True)  # the bucket
        found = Drill(cluster, root / "hub", root / "batches")
        found.cluster.api.unpause(GENERATE)
        with found.running("nothing", ROWS):
            pass
        yield found


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Outcome], None]:
    """Adds a line to the table at the end of the test run."""

    def add(outcome: Outcome) -> None:
        record_property("fault", str(outcome))

    return add


@pytest.mark.parametrize("service", ["gpu-worker-0", "scheduler", "api-server", "dag-processor"])
def test_killed_while_generating(drill: Drill, report: Callable[[Outcome], None], service: str) -> None:
    with drill.running(f"kill -9 {service}, generating", ROWS) as outcome:
        drill.wait_for_batches(10)
        drill.cluster.kill(service)
    assert service in outcome.restarted
    report(outcome)


@pytest.mark.parametrize(("dag", "task"), [(INGEST, "load"), (GENERATE, "merge_and_publish.merge")])
def test_killed_cpu_worker(drill: Drill, report: Callable[[Outcome], None], dag: str, task: str) -> None:
    with drill.running(f"kill -9 cpu-worker, in {task}", ROWS) as outcome:
        drill.wait_for_task(task, dag=dag)
        drill.cluster.kill("cpu-worker")
    assert "cpu-worker" in outcome.restarted
    report(outcome)


def test_postgres_restarted(drill: Drill, report: Callable[[Outcome], None]) -> None:
    with drill.running("PostgreSQL restarted (killed), generating", ROWS) as outcome:
        drill.wait_for_batches(10)
        drill.cluster.kill("postgres")
    assert "postgres" in outcome.restarted
    report(outcome)


def test_postgres_away_for_a_minute(drill: Drill, report: Callable[[Outcome], None]) -> None:
    with drill.running("PostgreSQL away for 60 s, generating", ROWS) as outcome:
        drill.wait_for_batches(10)
        drill.cluster.stop("postgres", signal.SIGINT)
        time.sleep(60)
        drill.cluster.start("postgres")
    report(outcome)


def test_redis_restarted_and_its_data_lost(drill: Drill, report: Callable[[Outcome], None]) -> None:
    with drill.running("Redis restarted, its data lost, generating", ROWS) as outcome:
        drill.wait_for_batches(10)
        drill.cluster.stop("redis", signal.SIGKILL)
        for file in (drill.cluster.root / "data").rglob("*.aof*"):
            file.unlink()
        for file in (drill.cluster.root / "data").rglob("*.rdb"):
            file.unlink()
        drill.cluster.start("redis")
    report(outcome)


def test_disk_full_in_the_release_directory(
    drill: Drill, releases_disk: Path, report: Callable[[Outcome], None]
) -> None:
    if not os.path.ismount(releases_disk):
        pytest.skip("only root may mount a small disk to fill")
    filler = releases_disk.parent / "releases" / ".filler"
    with drill.running("disk full in the release directory", ROWS) as outcome:
        drill.wait_for_batches(10)
        free = os.statvfs(releases_disk)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (free.f_bavail - 2) * free.f_bsize)
        drill.wait_for_task("merge_and_publish.merge", ("up_for_retry", "failed"))
        assert drill.published_rows() < 3 * drill.rows  # the release before is still the latest
        filler.unlink()
    report(outcome)


def test_source_file_truncated_half_way(drill: Drill, report: Callable[[Outcome], None]) -> None:
    with drill.running("source file truncated, generating", ROWS) as outcome:
        drill.wait_for_batches(10)
        whole = drill.corpus_file.read_bytes()
        drill.corpus_file.write_bytes(whole[: len(whole) // 2])
        drill.wait_for_task("merge_and_publish.merge", ("up_for_retry", "failed"))
        drill.corpus_file.write_bytes(whole)
    report(outcome)


def test_s3_server_away(drill: Drill, report: Callable[[Outcome], None]) -> None:
    from tests.s3_server import CREDENTIALS

    with drill.running("S3 server away while publishing", ROWS) as outcome:
        pass  # the rows first, on the target that is read meanwhile
    with s3_away(drill.cluster):
        run_id = drill.trigger(GENERATE, {"target": S3_TARGET})
        drill.wait_for_task("plan", ("up_for_retry", "failed"))
    state = ""

    def ended() -> bool:
        nonlocal state
        state = next(run["state"] for run in drill.runs(GENERATE) if run["dag_run_id"] == run_id)
        return state not in ("queued", "running")

    assert poll(ended, 300) and state == "success"
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{drill.cluster.ports['s3']}", **CREDENTIALS)
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="faults")["Contents"]]
    assert "releases/latest.json" in keys
    report(outcome)


@contextmanager
def s3_away(cluster: Cluster) -> Iterator[None]:
    cluster.stop("s3", signal.SIGKILL)
    yield
    cluster.start("s3")
