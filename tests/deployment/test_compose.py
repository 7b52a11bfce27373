"""The compose file: who knows which secret, what holds for every service, and that docker-compose accepts it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from include.deployment.secrets import PROFILES, InitSecrets, Secrets, write_secrets
from include.settings import PROJECT_ROOT, Sampling, Settings

FILE = PROJECT_ROOT / "docker-compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
AIRFLOW = {name for name, service in SERVICES.items() if service["image"].startswith("sift-")}
GENERATING = {name for name in AIRFLOW if "gpu-worker" in name} | {"cpu-generate"}
WORKERS = GENERATING | {"cpu-worker"}
CORE = AIRFLOW - WORKERS
LONG_RUNNING = set(SERVICES) - {"init"}

KNOWS: dict[str, set[str]] = {
    "POSTGRES_PASSWORD": {"postgres", "init"},
    "AIRFLOW_DB_PASSWORD": CORE,
    "CELERY_DB_PASSWORD": AIRFLOW,
    "WAREHOUSE_INGEST_PASSWORD": {"init", "cpu-worker"},
    "WAREHOUSE_GENERATE_PASSWORD": {"init"} | WORKERS,
    "WAREHOUSE_PUBLISH_PASSWORD": {"init", "cpu-worker"},
    "WAREHOUSE_CONSOLE_PASSWORD": {"init", "api-server"},
    "ADMIN_PASSWORD": {"init"},
    "REDIS_PASSWORD": {"redis"} | AIRFLOW,
    "FERNET_KEY": CORE,
    "API_SECRET_KEY": {"api-server"},
    "JWT_SECRET": CORE,
    "S3_ACCESS_KEY": {"s3"},
    "S3_SECRET_KEY": {"s3"},
}
"""Secret -> the services that are told it, and nobody else."""

# What only ./sift and Kubernetes ask for.
NOT_PASSED_ON = {"most_restarts", "gpu_image"}


def environment(service: str) -> dict[str, str | None]:
    return dict(SERVICES[service].get("environment", {}))


def test_each_secret_is_known_where_it_is_needed_and_nowhere_else() -> None:
    assert set(KNOWS) == {name.upper() for name in Secrets.model_fields}
    for secret, wanted in KNOWS.items():
        told = {name for name, service in SERVICES.items() if re.search(rf"\$\{{{secret}\b", json.dumps(service))}
        assert told == wanted, secret


def test_workers_reach_no_metadata_and_no_key() -> None:
    for name in WORKERS:
        for variable, value in environment(name).items():
            assert variable not in (
                "AIRFLOW__CORE__FERNET_KEY",
                "AIRFLOW__API_AUTH__JWT_SECRET",
                "AIRFLOW__API__SECRET_KEY",
            )
            assert "SQL_ALCHEMY_CONN" not in variable and "/airflow:" not in str(value)
            assert not re.search(r"@postgres:5432/airflow\b", str(value))


def test_no_secret_is_written_into_the_file_and_none_is_optional() -> None:
    text = FILE.read_text()
    for secret in KNOWS:
        uses = re.findall(rf"(\$*)\{{?{secret}\b([^}}\s]*)", text)
        assert uses
        for dollars, rest in re.findall(rf"(\$+)\{{{secret}([^}}]*)\}}", text):
            assert dollars == "$" and rest == ":?run ./sift secrets"
    for name in SERVICES:
        for variable, value in environment(name).items():
            if re.search("PASSWORD|SECRET|_KEY$|SQL_ALCHEMY|BACKEND|BROKER_URL|_CONN_", variable) and value is not None:
                assert re.search(r"\$\{\w+:\?", value), f"{name}: {variable}"


def test_no_secret_is_an_argument() -> None:
    for name, service in SERVICES.items():
        words = json.dumps([service.get("command"), service.get("healthcheck", {}).get("test")])
        assert not any(re.search(rf"(?<!\$)\$\{{{secret}", words) for secret in KNOWS), name


def test_init_is_told_all_that_prepare_asks_for() -> None:
    assert {name.upper() for name in InitSecrets.model_fields} <= set(environment("init"))


def test_every_setting_is_passed_on() -> None:
    fields = {f"SIFT_{name.upper()}" for name in set(Settings.model_fields) - NOT_PASSED_ON - {"sampling"}}
    fields |= {f"SIFT_SAMPLING__{name.upper()}" for name in Sampling.model_fields}
    for name in AIRFLOW:
        assert {variable for variable in environment(name) if variable.startswith("SIFT_")} == fields
    for variable, value in environment("init").items():
        if variable.startswith("SIFT_") and value is not None:
            assert variable in ("SIFT_HOME", "SIFT_PROFILE", "SIFT_SHARDS", "SIFT_GPUS")


def test_every_service_is_held_in_bounds() -> None:
    for name, service in SERVICES.items():
        assert service["restart"] == ("unless-stopped" if name in LONG_RUNNING else "no"), name
        assert re.fullmatch(r"\d+[gm]", service["mem_limit"]) and service["pids_limit"] > 0, name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True and "/tmp" in service["tmpfs"], name
        assert service["logging"]["options"]["max-size"], name
        assert "privileged" not in service and "network_mode" not in service
        if name in LONG_RUNNING:
            assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"]), name
            assert service["stop_grace_period"], name


def test_every_image_is_pinned_and_the_users_are_not_root() -> None:
    for name, service in SERVICES.items():
        if name in AIRFLOW:
            assert service["image"].startswith("sift-gpu-worker:" if name in GENERATING else "sift-airflow:")
            assert service["pull_policy"] == "never"  # made here
            assert "user" not in service  # the image's
        else:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+(\.\d+)?[\w.-]*", service["image"])
            assert name == "s3" or service["user"] == name


def test_ports_are_of_this_machine_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api-server": ["${SIFT_BIND:-127.0.0.1}:8080:8080"]}


def test_nobody_is_believed_to_be_a_proxy_unless_named() -> None:
    assert SERVICES["api-server"]["command"].split()[2:] == ["--proxy-headers"]
    assert environment("api-server")["FORWARDED_ALLOW_IPS"] == "${FORWARDED_ALLOW_IPS:-127.0.0.1}"
    assert environment("api-server")["AIRFLOW__FAB__COOKIE_SECURE"] == "${SIFT_COOKIE_SECURE:-False}"


def test_each_image_is_built_by_one_of_the_services_that_a_profile_starts() -> None:
    building = {name: service["build"]["target"] for name, service in SERVICES.items() if "build" in service}
    assert building == {"init": "airflow", "gpu-worker-0": "gpu-worker", "cpu-generate": "gpu-worker"}


def test_what_workers_write_runs_nowhere_else() -> None:
    for name in AIRFLOW:
        mounted = [mount for mount in SERVICES[name]["volumes"] if mount.startswith("home:")]
        writes = name in WORKERS
        assert mounted == (["home:/opt/sift/home"] if writes else ["home:/opt/sift/home:ro"] if mounted else [])
        assert environment(name)["PYTHONNOUSERSITE"] == "1"
        assert environment(name)["HOME"] == ("/opt/sift/home" if writes else "/tmp")


def test_volumes_survive_and_are_where_the_services_write() -> None:
    named = set(yaml.safe_load(FILE.read_text())["volumes"])
    used = {mount.split(":")[0] for service in SERVICES.values() for mount in service["volumes"]}
    assert used == named
    for name in AIRFLOW:
        places = {mount.split(":")[1] for mount in SERVICES[name]["volumes"]} | set(SERVICES[name]["tmpfs"])
        told = environment(name)
        worker = ("SIFT_HOME", "HF_HOME") if name in WORKERS else ()
        for variable in ("AIRFLOW_HOME", "HOME", "AIRFLOW__LOGGING__BASE_LOG_FOLDER", *worker):
            assert any(str(told[variable]).startswith(place) for place in places), variable


def test_each_profile_starts_as_many_generating_workers_as_it_says() -> None:
    devices = set()
    for gpus, profile in PROFILES.items():
        started = {name for name in GENERATING if profile in SERVICES[name]["profiles"]}
        assert started == ({f"gpu-worker-{k}" for k in range(gpus)} if gpus else {"cpu-generate"})
    for name in GENERATING - {"cpu-generate"}:
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["device_ids"] == [name.rpartition("-")[2]] and device["capabilities"] == ["gpu"]
        devices.add(device["device_ids"][0])
    assert len(devices) == 8


def test_workers_are_named_and_serve_the_queues_of_the_dags() -> None:
    from include.orchestration.defaults import GPU_QUEUE

    for name in WORKERS:
        *words, last = SERVICES[name]["command"].split()
        assert last == "--skip-serve-logs"  # requests for them would be signed with the key of logins
        options = dict(zip(words[3::2], words[4::2], strict=True))
        assert options["--queues"] == (GPU_QUEUE if name in GENERATING else "default")
        # The health check asks the worker that has the container's name.
        assert options["--celery-hostname"] == SERVICES[name]["hostname"] == name
        assert name not in GENERATING or options["--concurrency"] == "1"


def test_what_a_task_reports_to_is_stopped_after_the_workers() -> None:
    """Compose stops in the opposite order of `depends_on`; a task that ends in the grace period says so to these."""
    for name in WORKERS:
        assert {"redis", "api-server", "init"} == set(SERVICES[name]["depends_on"])
    assert set(SERVICES["api-server"]["depends_on"]) == {"init"}
    assert set(SERVICES["init"]["depends_on"]) == {"postgres"}


def test_a_task_may_wait_a_day_for_its_worker() -> None:
    """By a setting that Airflow reads and does not document."""
    from airflow.jobs import scheduler_job_runner

    told = environment("scheduler")
    assert 'key="num_stuck_in_queued_retries"' in inspect.getsource(scheduler_job_runner.SchedulerJobRunner.__init__)
    times = int(str(told["AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES"])) + 1
    assert times * scheduler_job_runner.conf.getfloat("scheduler", "task_queued_timeout") == 24 * 3600


# Docker's own reading ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docker_compose() -> str:
    program = shutil.which("docker-compose")
    if not program:
        pytest.skip("there is no docker-compose; apt-get install docker-compose")
    return program


def configured(
    program: str, folder: Path, profiles: str, more: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    shutil.copy(FILE, folder)
    env = {"PATH": os.environ["PATH"], "COMPOSE_PROFILES": profiles, **more}
    return subprocess.run([program, "config"], cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("profile", [*PROFILES.values(), "gpu,s3"])
def test_docker_compose_accepts_every_profile(docker_compose: str, tmp_path: Path, profile: str) -> None:
    write_secrets(tmp_path / ".env", 1)
    read = configured(docker_compose, tmp_path, profile, {"SIFT_TARGET": "s3://bucket/releases"})
    assert read.returncode == 0, read.stderr
    services = yaml.safe_load(read.stdout)["services"]
    secrets = dotenv_values(tmp_path / ".env")
    told = services["cpu-worker"]["environment"]
    assert told["SIFT_TARGET"] == "s3://bucket/releases"
    password = secrets["WAREHOUSE_PUBLISH_PASSWORD"]
    assert told["AIRFLOW_CONN_WAREHOUSE_PUBLISH"] == f"postgresql://sift_publish:{password}@postgres:5432/sift"


def test_docker_compose_starts_nothing_without_secrets(docker_compose: str, tmp_path: Path) -> None:
    read = configured(docker_compose, tmp_path, "gpu")
    assert read.returncode != 0 and "run ./sift secrets" in read.stderr
    write_secrets(tmp_path / ".env", 1)
    lines = (tmp_path / ".env").read_text().splitlines()
    (tmp_path / ".env").write_text("\n".join(line for line in lines if not line.startswith("JWT_SECRET=")))
    read = configured(docker_compose, tmp_path, "gpu")
    assert read.returncode != 0 and "JWT_SECRET" in read.stderr and "run ./sift secrets" in read.stderr
