"""DAG files: they import, wire one DAG per recipe, and touch nothing while being parsed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import RetryAction

from include.modes import MODES
from include.orchestration.alerts import announce_run, announce_task
from include.settings import PROJECT_ROOT
from include.sources import RECIPES
from include.sources.corpus import SourceError

GENERATE = "generate_and_publish"
CLEAN_UP = "clean_up"


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All DAGs, by id; Airflow gets a home of its own and no database."""
    home = tmp_path_factory.mktemp("airflow")
    os.environ["AIRFLOW_HOME"] = str(home)
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(PROJECT_ROOT / "dags"))
    assert bag.import_errors == {}
    return dict(bag.dags)


def test_one_dag_per_recipe_one_that_generates_and_one_that_cleans_up(dags: dict[str, Any]) -> None:
    assert set(dags) == {GENERATE, CLEAN_UP, *(f"ingest_{name}" for name in RECIPES)}


def test_only_cleaning_up_needs_nobody_to_unpause_it(dags: dict[str, Any]) -> None:
    assert [name for name, dag in dags.items() if dag.is_paused_upon_creation is False] == [CLEAN_UP]


def test_every_failure_is_announced(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert dag.on_failure_callback is announce_run
        assert all(task.on_failure_callback in (announce_task, [announce_task]) for task in dag.tasks)


def test_every_dag_is_documented_tagged_and_owned(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert dag.doc_md and dag.description and dag.tags and dag.dag_display_name != dag.dag_id
        assert not dag.catchup and dag.max_active_runs == 1
        assert all(task.owner == "data-platform" and task.retries >= 2 for task in dag.tasks)


def test_only_generation_takes_the_gpu_pool(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        for task in dag.tasks:
            wanted = "gpu" if task.task_id.split(".")[-1] in ("generate", "estimate") else "default_pool"
            assert task.pool == wanted
            assert (task.queue == "gpu") == (wanted == "gpu")


def test_ingest_runs_weekly_and_can_be_backfilled(dags: dict[str, Any]) -> None:
    for name, recipe in RECIPES.items():
        dag = dags[f"ingest_{name}"]
        assert dag.timetable.expression == recipe.schedule
        assert set(dag.task_dict) == {"resolve_revision", "load", "merge", "report"}
        assert [asset.name for asset in dag.get_task("merge").outlets] == [f"staged/{name}"]


def test_generation_wakes_on_any_staged_source(dags: dict[str, Any]) -> None:
    dag = dags[GENERATE]
    named = {asset.name for asset in dag.timetable.asset_condition.objects}
    assert named == {f"staged/{name}" for name in RECIPES}
    groups = {f"{mode}.{task}" for mode in MODES for task in ("shards", "generate")}
    publishing = {f"merge_and_publish.{task}" for task in ("merge", "approve", "publish")}
    assert set(dag.task_dict) == {
        *("plan", "generate_or_estimate", "estimate", "quality_report"),
        *publishing,
        *groups,
    }
    generated = {f"{mode}.generate" for mode in MODES}
    assert dag.get_task("quality_report").upstream_task_ids == {"generate_or_estimate", *generated}


def test_a_run_that_does_not_publish_opens_no_target(dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def open_target(*_: object, **__: object) -> None:
        raise ConnectionError("the target is down")

    monkeypatch.setattr("include.publish.targets.open_target", open_target)
    plan = dags[GENERATE].get_task("plan").python_callable
    merge = dags[GENERATE].get_task("merge_and_publish.merge").python_callable
    monkeypatch.setitem(plan.__globals__, "warehouse", lambda role: None)
    monkeypatch.setitem(plan.__globals__, "leave_note", lambda note: None)  # needs a running task
    seen = []
    monkeypatch.setattr("include.generate.plan_run", lambda *arguments: seen.append(arguments[2:]) or {"sift_s": []})
    monkeypatch.setattr(
        "include.publish.merge.merge_release", lambda *arguments: seen.append(arguments[2:]) or {"a": 1}
    )
    params = {"estimate": False, "target": "s3://bucket/sift", "private": True}
    dag_run = SimpleNamespace(conf={}, run_type=SimpleNamespace(value="manual"))
    for asked in ({"publish": False}, {"publish": True, "estimate": True}):
        plan(params={**params, **asked}, dag_run=dag_run)
    merge(params={**params, "publish": False})
    assert [(arguments["publish"], target) for arguments, target in seen] == [(False, None)] * 3
    with pytest.raises(ConnectionError):
        merge(params={**params, "publish": True})


@pytest.mark.parametrize("review", [False, True])
def test_publish_says_whether_its_own_run_was_approved(
    dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, review: bool
) -> None:
    publish = dags[GENERATE].get_task("merge_and_publish.publish").python_callable
    for name in ("warehouse", "_target", "leave_note"):
        monkeypatch.setitem(publish.__globals__, name, lambda argument: argument)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("include.publish.promotion.publish_release", lambda *_, **said: seen.append(said))
    publish(release={"release_id": "r1", "review": review}, params={"target": "local"})
    assert seen == [{"approved": review}]


def test_schedules_can_be_switched_off() -> None:
    code = (
        "from airflow.dag_processing.dagbag import DagBag; "
        f"bag = DagBag(dag_folder={str(PROJECT_ROOT / 'dags')!r}); "
        "print(sorted({type(dag.timetable).__name__ for dag in bag.dags.values()}))"
    )
    out = _python(code, SIFT_SCHEDULES="false")
    assert out.strip().splitlines()[-1] == "['AssetTriggeredTimetable', 'NullTimetable']"


@pytest.mark.parametrize("link", ["", "https://example.org/data", "mailto:data@example.org"])
def test_the_owner_s_name_leads_where_the_settings_say(link: str) -> None:
    code = (
        "from airflow.dag_processing.dagbag import DagBag; "
        f"bag = DagBag(dag_folder={str(PROJECT_ROOT / 'dags')!r}); "
        "print([dag.owner_links for dag in bag.dags.values()])"
    )
    links = eval(_python(code, SIFT_OWNER_LINK=link).strip().splitlines()[-1])  # our own output
    assert links == [{"data-platform": link} if link else {}] * (2 + len(RECIPES))


@pytest.mark.parametrize("file", sorted((PROJECT_ROOT / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_parsing_loads_no_model_no_dataset_and_no_database(file: Path) -> None:
    code = (
        "import runpy, sys; import airflow.sdk; before = set(sys.modules); "
        f"runpy.run_path({str(file)!r}); "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = set(eval(_python(code).strip().splitlines()[-1]))  # our own output
    assert not loaded & {"torch", "transformers", "datasets", "pandas", "huggingface_hub"}


@pytest.mark.parametrize(
    ("conf", "message"),
    [({"modez": ["sift_s"]}, "unknown parameters modez; this DAG knows force, revision"), ({}, None)],
)
def test_unknown_conf_is_refused_by_name(conf: dict[str, Any], message: str | None) -> None:
    from include.orchestration.defaults import UnknownConfError, check_conf

    if message is None:
        check_conf(conf, ["revision", "force"])
        return
    with pytest.raises(UnknownConfError, match=message):
        check_conf(conf, ["revision", "force"])


@pytest.mark.parametrize(
    ("error", "action"),
    [(SourceError("no such corpus"), RetryAction.FAIL), (ConnectionError("server away"), RetryAction.DEFAULT)],
)
def test_bad_input_is_not_tried_again(error: Exception, action: RetryAction) -> None:
    from include.orchestration.defaults import DEFAULT_ARGS

    decision = DEFAULT_ARGS["retry_policy"].evaluate(error, 1, 3)
    assert decision.action == action


def _python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
