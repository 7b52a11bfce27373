"""What breaks on a running deployment, one thing at a time, each while a full run is under way.

`./sift test -m faults` runs these by hand; they take some half an hour on two cores. Three limits are lowered, so that
what Airflow finds out by waiting is found out sooner: TIME_LIMITS. The scheduler's own health and orphan checks are
the deployment's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from tests.cluster.cluster import running
from tests.cluster.drill import GENERATE, INGEST, Drill, Outcome

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

ROWS = 80
BATCH = 4
RED = ("up_for_retry", "failed")
TIME_LIMITS = {
    # 300 s: how long a task that sends no heartbeat is believed to live.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    # 600 s: how long a task may be queued, and how often that is looked at (120 s).
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "15",
}


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
        "S3_ACCESS_KEY": "key",
        "S3_SECRET_KEY": "a-secret-of-a-test",
        "AIRFLOW_CONN_AWS_DEFAULT": (
            '{"conn_type": "aws", "login": "key", "password": "a-secret-of-a-test", '
            '"extra": {"region_name": "us-east-1", "endpoint_url": "http://s3:9000"}}'
        ),
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
        drill.wait_for_task(None, task, ("running",), dag)
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
        drill.wait_for_task(None, "merge_and_publish.merge", RED)
        assert drill.published_rows() < 3 * drill.rows  # the release before is still the latest
        filler.unlink()
    report(outcome)


def test_source_file_truncated_half_way(drill: Drill, report: Callable[[Outcome], None]) -> None:
    with drill.running("source file truncated, generating", ROWS) as outcome:
        drill.wait_for_batches(10)
        whole = drill.corpus_file.read_bytes()
        drill.corpus_file.write_bytes(whole[: len(whole) // 2])
        drill.wait_for_task(None, "merge_and_publish.merge", RED)
        drill.corpus_file.write_bytes(whole)
    report(outcome)


def test_s3_server_away(drill: Drill, report: Callable[[Outcome], None]) -> None:
    key = {"aws_access_key_id": drill.cluster.variables["S3_ACCESS_KEY"]}
    key["aws_secret_access_key"] = drill.cluster.variables["S3_SECRET_KEY"]
    url = f"http://127.0.0.1:{drill.cluster.ports['s3']}"
    bucket = boto3.resource("s3", endpoint_url=url, region_name="us-east-1", **key).Bucket("faults")
    target = {"target": "s3://faults/releases"}
    drill.wait_for_run(drill.trigger(GENERATE, target))  # a first release there
    first = json.load(bucket.Object("releases/latest.json").get()["Body"])["release_id"]
    with drill.running("S3 server away while publishing there", ROWS) as outcome:
        drill.wait_for_batches(10)
        drill.wait_for_run()
        run_id = drill.trigger(GENERATE, target)
        drill.wait_for_task(run_id, "merge_and_publish.merge", ("running", "success"))
        drill.cluster.stop("s3", signal.SIGKILL)
        drill.wait_for_task(run_id, "merge_and_publish", RED)
        drill.cluster.start("s3")
        drill.wait_for_run(run_id)
    second = json.load(bucket.Object("releases/latest.json").get()["Body"])["release_id"]
    folders = {entry.key.split("/")[1] for entry in bucket.objects.filter(Prefix="releases/2")}
    assert first != second and folders == {first, second}
    report(outcome)
