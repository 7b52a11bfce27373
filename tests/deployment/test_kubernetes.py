"""The values of the Helm chart and the pods that come of them, made by the executor's own code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from kubernetes.client import ApiClient, models

from include.deployment.secrets import write_secrets
from include.settings import PROJECT_ROOT, Settings

FOLDER = PROJECT_ROOT / "kubernetes"
VALUES: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
PRINT_ARGS = """
import json, sys
from airflow.serialization.serialized_objects import BaseSerialization
from include.orchestration.defaults import GENERATE_ARGS
config = BaseSerialization.serialize(GENERATE_ARGS.get("executor_config"))
print(json.dumps([config, "kubernetes" in sys.modules]))
"""


def rendered_template() -> dict[str, Any]:
    """The pod template as Helm would render it: the loop over `env`, and the names that it fills in."""
    lines = [
        f"        - {{name: {item['name']}, value: {json.dumps(item['value'])}}}"
        for item in VALUES["env"]
        if item["name"] != "HOME"
    ]
    loop = r'\{\{- range \.Values\.env \}\}\n\{\{- if ne \.name "HOME" \}\}\n.*\n\{\{- end \}\}\n\{\{- end \}\}'
    text = re.sub(loop, "\n".join(lines), VALUES["podTemplate"])
    text = text.replace('{{ include "airflow.fullname" . }}', "sift").replace("{{ .Release.Name }}", "sift")
    text = text.replace("{{ .Values.airflowHome }}", VALUES["airflowHome"])
    # The chart's helper ends in `| quote`.
    text = text.replace('{{ include "worker.serviceAccountName" . }}', '"sift-airflow-worker"')
    assert "{{" not in text
    return yaml.safe_load(text)


def executor_config(tmp_path: Path, executor: str) -> tuple[Any, bool]:
    """What a generating task gives the executor, as the scheduler reads it; and whether Kubernetes was imported."""
    environment = {
        "PYTHONPATH": str(PROJECT_ROOT),
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__EXECUTOR": executor,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "SIFT_GPU_IMAGE": "registry.example.org/sift-gpu-worker:1",
    }
    command = [sys.executable, "-c", PRINT_ARGS]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    from airflow.serialization.serialized_objects import BaseSerialization

    config, imported = json.loads(output.splitlines()[-1])
    return BaseSerialization.deserialize(config), imported


def known_fields_only(written: Any, read: Any, path: str = "pod") -> None:
    """Everything that was written is still there after the client's models have read it."""
    if isinstance(written, dict):
        assert isinstance(read, dict), path
        for name, value in written.items():
            assert name in read, f"{path}.{name} is no field that Kubernetes knows"
            known_fields_only(value, read[name], f"{path}.{name}")
    elif isinstance(written, list):
        assert len(written) == len(read), path
        for index, (one, other) in enumerate(zip(written, read, strict=True)):
            known_fields_only(one, other, f"{path}[{index}]")
    else:
        assert written == read, path


def construct(override: models.V1Pod | None) -> dict[str, Any]:
    """The pod that KubernetesExecutor starts, as it is sent."""
    pod = PodGenerator.construct_pod(
        dag_id="generate_and_publish",
        task_id="sift_s.generate",
        pod_id="generate-1",
        try_number=1,
        kube_image="sift-airflow:0.2.0",
        date=None,
        args=["python", "-m", "airflow.sdk.execution_time.execute_workload", "--json-string", "{}"],
        pod_override_object=override,
        base_worker_pod=PodGenerator.deserialize_model_dict(rendered_template()),
        namespace="sift",
        scheduler_job_id="1",
        run_id="run",
        map_index=0,
    )
    sent = ApiClient().sanitize_for_serialization(pod)
    assert isinstance(sent, dict)
    return sent


def test_the_template_has_only_fields_that_kubernetes_knows() -> None:
    template = rendered_template()
    read = ApiClient().sanitize_for_serialization(PodGenerator.deserialize_model_dict(template))
    known_fields_only(template, read)
    template["spec"]["containers"][0]["securityContexts"] = {}
    read = ApiClient().sanitize_for_serialization(PodGenerator.deserialize_model_dict(template))
    with pytest.raises(AssertionError, match="securityContexts is no field"):
        known_fields_only(template, read)


def test_what_the_chart_passes_on_has_only_fields_that_kubernetes_knows() -> None:
    """The chart copies these parts of the values into its pods as they are."""
    names = ("migrateDatabaseJob", "apiServer", "scheduler", "dagProcessor", "triggerer")
    for part in (VALUES[name] for name in names):
        container = {
            "name": "any",
            "env": part.get("env", []),
            "resources": part["resources"],
            "securityContext": part["securityContexts"]["container"],
            "volumeMounts": part.get("extraVolumeMounts", []),
        }
        security = part["securityContexts"]["pod"]
        pod = {
            "spec": {"containers": [container], "securityContext": security, "volumes": part.get("extraVolumes", [])}
        }
        known_fields_only(pod, ApiClient().sanitize_for_serialization(as_model(pod, models.V1Pod)))
    assert VALUES["securityContexts"] == {
        "pod": VALUES["scheduler"]["securityContexts"]["pod"],
        "containers": VALUES["scheduler"]["securityContexts"]["container"],
    }


def test_a_generating_pod_has_one_gpu_and_the_image_with_torch(tmp_path: Path) -> None:
    config, imported = executor_config(tmp_path, "KubernetesExecutor")
    assert imported
    pod = construct(PodGenerator.from_obj(config))
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "registry.example.org/sift-gpu-worker:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["resources"]["limits"]["memory"] == "32Gi"
    assert pod["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    # What the template says is still there.
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["spec"]["securityContext"]["runAsNonRoot"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {"home", "logs", "airflow", "tmp"}
    environment = {item["name"]: item for item in container["env"]}
    assert environment["SIFT_HOME"]["value"] == "/opt/sift/home"
    assert environment["AIRFLOW_CONN_WAREHOUSE_GENERATE"]["valueFrom"]["secretKeyRef"]["name"] == "sift-generate"
    assert container["args"][0] == "python"


def test_other_pods_have_no_gpu(tmp_path: Path) -> None:
    (container,) = construct(None)["spec"]["containers"]
    assert container["image"] == "sift-airflow:0.2.0"
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_other_executors_are_told_nothing_and_load_nothing(tmp_path: Path) -> None:
    assert executor_config(tmp_path, "CeleryExecutor") == (None, False)


def test_no_pod_of_a_task_knows_metadata_or_keys() -> None:
    text = VALUES["podTemplate"]
    for name in (
        "SQL_ALCHEMY_CONN",
        "FERNET_KEY",
        "JWT_SECRET",
        "SECRET_KEY",
        "sift-airflow\n",
        "sift-init",
        "CONSOLE",
    ):
        assert name not in text
    assert not any(re.search("PASSWORD|SECRET|KEY|TOKEN", item["name"]) for item in VALUES["env"])


def test_a_pod_writes_to_its_own_airflow_home() -> None:
    spec = rendered_template()["spec"]
    environment = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
    assert environment["AIRFLOW_HOME"] == VALUES["airflowHome"]
    assert environment["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] == f"{VALUES['airflowHome']}/logs"
    (mount,) = (item for item in spec["containers"][0]["volumeMounts"] if item["mountPath"] == VALUES["airflowHome"])
    assert {"name": mount["name"], "emptyDir": {}} in spec["volumes"]
    assert spec["serviceAccountName"] == "sift-airflow-worker"


def test_what_tasks_write_runs_nowhere_else() -> None:
    """The volume is the tasks' alone, but for the console, which reads it; as in the compose file."""
    assert "volumes" not in VALUES and "volumeMounts" not in VALUES  # the chart gives these to every pod
    parts = ("scheduler", "dagProcessor", "triggerer", "migrateDatabaseJob")
    assert not any(key in VALUES[part] for part in parts for key in ("extraVolumes", "extraVolumeMounts"))
    (volume,), (mount,) = VALUES["apiServer"]["extraVolumes"], VALUES["apiServer"]["extraVolumeMounts"]
    assert mount["readOnly"] is True and volume["persistentVolumeClaim"]["readOnly"] is True
    assert {"name": "HOME", "value": "/tmp"} in VALUES["env"]
    environment = rendered_template()["spec"]["containers"][0]["env"]
    assert [item["value"] for item in environment if item["name"] == "HOME"] == ["/opt/sift/home"]
    names = [item["name"] for item in environment]
    assert len(set(names)) == len(names)


def test_no_process_calls_a_script_that_our_image_has_not() -> None:
    """The chart's own probes call /entrypoint, and its log groomers /clean-logs, both of the image apache/airflow."""
    jobs = {"scheduler": "SchedulerJob", "dagProcessor": "DagProcessorJob", "triggerer": "TriggererJob"}
    for name, job in jobs.items():
        assert VALUES[name]["logGroomerSidecar"] == {"enabled": False}
        command = VALUES[name]["livenessProbe"]["command"]
        assert command == ["airflow", "jobs", "check", "--local", "--job-type", job]
    assert VALUES["scheduler"]["startupProbe"] == VALUES["scheduler"]["livenessProbe"]


def test_the_images_are_those_of_the_compose_file() -> None:
    compose = (PROJECT_ROOT / "docker-compose.yaml").read_text()
    version = re.search(r"sift-airflow:\$\{SIFT_VERSION:-(.+?)\}", compose)
    assert version and VALUES["images"]["airflow"] == {"repository": "sift-airflow", "tag": version[1]}
    assert Settings.model_fields["gpu_image"].default == f"sift-gpu-worker:{version[1]}"
    assert f'version = "{version[1]}"' in (PROJECT_ROOT / "pyproject.toml").read_text()


def test_a_pod_is_as_patient_as_a_worker() -> None:
    patience = yaml.safe_load((PROJECT_ROOT / "docker-compose.yaml").read_text())["x-patience"]
    environment = rendered_template()["spec"]["containers"][0]["env"]
    assert {item["name"]: item["value"] for item in environment if "__WORKERS__" in item["name"]} == patience


def test_the_scheduler_is_as_patient_as_in_the_compose_file() -> None:
    services = yaml.safe_load((PROJECT_ROOT / "docker-compose.yaml").read_text())["services"]
    told = services["scheduler"]["environment"]
    assert {item["name"]: item["value"] for item in VALUES["scheduler"]["env"]} == {
        name: value for name, value in told.items() if name.startswith("AIRFLOW__SCHEDULER__")
    }


def commands(part: str) -> str:
    """The commands of the README below a mark."""
    found = re.search(rf"<!-- {part} -->\n```bash\n(.+?)```", (FOLDER / "README.md").read_text(), flags=re.S)
    assert found
    return found[1]


def applied(part: str, tmp_path: Path) -> list[dict[str, Any]]:
    """What the commands of the README send to kubectl, which is not there: what stands for it keeps its input."""
    write_secrets(tmp_path / ".env", 2)
    run(commands(part), tmp_path)
    return list(yaml.safe_load_all((tmp_path / "sent.yaml").read_text()))


def run(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run commands beside a `.env`; raises if they fail."""
    for name, text in (("kubectl", f"cat >{tmp_path}/sent.yaml"), ("sift", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={"PATH": path}, check=True, capture_output=True, text=True
    )


def test_the_commands_make_every_secret_that_the_values_name(tmp_path: Path) -> None:
    made = {}
    for manifest in applied("secrets", tmp_path):
        known_fields_only(manifest, ApiClient().sanitize_for_serialization(as_model(manifest, models.V1Secret)))
        made[manifest["metadata"]["name"]] = manifest["stringData"]
        assert all(value and "$" not in value for value in manifest["stringData"].values())
    assert set(made["sift-airflow"]) == {"connection", "fernet-key", "api-secret-key", "jwt-secret"}
    text = (FOLDER / "values.yaml").read_text()
    wanted = set(re.findall(r"secretKeyRef: \{name: ([\w-]+), key: (\w+)\}", text))
    assert wanted == {(name, key) for name, keys in made.items() if name != "sift-airflow" for key in keys}
    names = [VALUES["data"]["metadataSecretName"], *(VALUES[f"{key}Name"] for key in ("fernetKeySecret", "jwtSecret"))]
    assert {*names, VALUES["apiSecretKeySecretName"]} == {"sift-airflow"}
    assert made["sift-ingest"]["connection"].startswith("postgresql://sift_ingest:")


@pytest.mark.parametrize("line", ["POSTGRES_PASSWORD='two words'", "POSTGRES_PASSWORD=p@ss", "POSTGRES_PASSWORD="])
def test_the_commands_send_nothing_when_a_secret_is_missing(tmp_path: Path, line: str) -> None:
    """Nor when its value has characters that they leave out: it became an empty password."""
    write_secrets(tmp_path / ".env", 2)
    text = (tmp_path / ".env").read_text()
    (tmp_path / ".env").write_text(re.sub("^POSTGRES_PASSWORD=.*$", line, text, flags=re.M))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(commands("secrets"), tmp_path)
    assert "POSTGRES_PASSWORD" in caught.value.stderr
    assert not (tmp_path / "sent.yaml").exists()


def test_the_commands_make_the_volumes_that_the_values_name(tmp_path: Path) -> None:
    claims = applied("volumes", tmp_path)
    for claim in claims:
        known_fields_only(
            claim, ApiClient().sanitize_for_serialization(as_model(claim, models.V1PersistentVolumeClaim))
        )
    text = (FOLDER / "values.yaml").read_text()
    assert {claim["metadata"]["name"] for claim in claims} == set(re.findall(r"[cC]laim(?:Name)?: (sift-\w+)", text))


def as_model(manifest: dict[str, Any], model: type) -> Any:
    return ApiClient()._ApiClient__deserialize_model(manifest, model)


def test_prepare_is_told_all_that_it_asks_for() -> None:
    from include.deployment.secrets import InitSecrets

    given = {item["name"] for item in VALUES["migrateDatabaseJob"]["env"]}
    assert given == {"PGHOST", "PGUSER", "PGPASSWORD", *(name.upper() for name in InitSecrets.model_fields)}
    assert {"SIFT_GPUS", "AIRFLOW__CORE__AUTH_MANAGER"} <= {item["name"] for item in VALUES["env"]}


def test_every_process_knows_the_address_that_people_open() -> None:
    """As with docker-compose.yaml: logins and the links of alerts lead there. A cluster's is its own, hence EDIT."""
    (line,) = re.findall("^.*AIRFLOW__API__BASE_URL.*$", (FOLDER / "values.yaml").read_text(), flags=re.M)
    assert "# EDIT" in line
    address = {item["name"]: item["value"] for item in VALUES["env"]}["AIRFLOW__API__BASE_URL"]
    assert address in (FOLDER / "README.md").read_text()
    compose = yaml.safe_load((PROJECT_ROOT / "docker-compose.yaml").read_text())
    assert compose["x-common-env"]["AIRFLOW__API__BASE_URL"] == f"${{SIFT_URL:-{address}}}"


def test_the_values_fit_the_charts_schema() -> None:
    schema = os.environ.get("SIFT_TEST_CHART_SCHEMA")
    if not schema:
        pytest.skip("SIFT_TEST_CHART_SCHEMA names no copy of the chart's values.schema.json")
    import jsonschema

    jsonschema.validate(VALUES, json.loads(Path(schema).read_text()))
