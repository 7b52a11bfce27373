"""Write what is missing, then publish.

`plan` finds all pending work, whichever source woke the run; `generate` writes it mode by mode on the GPUs, one task
per shard; `quality_report` shows the verdicts. Then `merge` builds a release aside and reads it back, `approve` asks
somebody when the run is to be reviewed, and `publish` makes it what the target's readers get. A run with nothing
pending and nothing to publish skips its tasks at once. One with *Estimate only* ends with `estimate`, which says what
the work would cost.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import (
    AssetAny,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    Param,
    TriggerRule,
    chain,
    dag,
    get_current_context,
    task,
    task_group,
)

from include.modes import MODES
from include.orchestration.assets import RELEASE, STAGED
from include.orchestration.connections import hub_account, llm_server, s3_client, warehouse
from include.orchestration.defaults import (
    APPROVE_ARGS,
    DAG_ARGS,
    GENERATE_ARGS,
    check_conf,
    leave_note,
    owner_links,
    skip,
    skip_unless_reviewed,
)
from include.settings import get_settings
from include.sources import RECIPES

log = logging.getLogger(__name__)

SOURCES = [name for name, recipe in RECIPES.items() if recipe.task == "sift"]
PARAMS = {
    "sources": Param(
        SOURCES,
        type="array",
        items={"type": "string", "enum": SOURCES},
        examples=SOURCES,
        values_display={name: RECIPES[name].title for name in SOURCES},
        title="Sources",
        description="Generate for these sources only",
        section="Narrow the work",
    ),
    "modes": Param(
        list(MODES),
        type="array",
        items={"type": "string", "enum": list(MODES)},
        examples=list(MODES),
        values_display={mode.name: f"{mode.name}: {mode.title}" for mode in MODES.values()},
        title="Modes",
        description="Generate these modes only; a release without all of them needs a target of its own",
        section="Narrow the work",
    ),
    "max_samples": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Samples per source",
        description="At most so many samples of each source, the same ones every time; needs a target of its own",
        section="Narrow the work",
    ),
    "estimate": Param(
        False,
        type="boolean",
        title="Estimate only",
        description="Answer 200 of the pending prompts, say what all of them would cost, and store nothing of it",
        section="Narrow the work",
    ),
    "publish": Param(
        True,
        type="boolean",
        title="Publish",
        description="Publish a release when there is news",
        section="Publish",
    ),
    "target": Param(
        get_settings().target,
        type="string",
        minLength=1,
        title="Target",
        description="local, a folder's absolute path, s3://bucket/prefix or hf://datasets/org/name",
        section="Publish",
    ),
    "private": Param(
        get_settings().target_private,
        type="boolean",
        title="Private",
        description="A remote target is for members only; a repository that has to be made is made private",
        section="Publish",
    ),
    "leave_out": Param(
        get_settings().leave_out,
        type="array",
        # No enum: a release may hold a source that has no recipe any more.
        items={"type": "string"},
        examples=list(RECIPES),
        title="Leave out",
        description="Sources that are not published, also such that only the target's latest release knows",
        section="Publish",
    ),
    "review": Param(
        get_settings().review,
        type="boolean",
        title="Review",
        description="Ask for approval before the release is published; no answer in time, no release",
        section="Publish",
    ),
    "force": Param(
        False,
        type="boolean",
        title="Force",
        description="Let a release of some samples, some modes, another model or fewer sources replace the target's, "
        "or one that it was not built on; publish without review what was not approved",
        section="Publish",
    ),
}
ANY_STAGED = AssetAny(*STAGED.values())


def _target(params: dict):
    """The run's target; None if it does not publish: then it may be down, or not set up."""
    if not params["publish"]:
        return None
    from include.publish.targets import open_target

    return open_target(
        params["target"],
        get_settings(),
        private=params["private"],
        s3_client=s3_client,
        hub_account=hub_account,
    )


def _schedule():
    settings = get_settings()
    if not settings.schedules:
        return ANY_STAGED
    return AssetOrTimeSchedule(assets=ANY_STAGED, timetable=CronTriggerTimetable(settings.daily_at, timezone="UTC"))


def _server():
    """Where the engine asks, if it is one that asks."""
    return llm_server() if get_settings().engine == "openai" else None


@dag(
    dag_display_name="Generate and publish",
    description="Write all pending responses with the language model, then publish a release",
    doc_md=__doc__,
    schedule=_schedule(),
    # Pending work has no date: there is nothing that a backfill could mean here.
    allowed_run_types=["manual", "scheduled", "asset_triggered"],
    **DAG_ARGS,
    params=PARAMS,
    owner_links=owner_links(),
    tags=["generate", "publish"],
)
def generate_and_publish() -> None:
    """Wire the tasks; the module's docstring is the DAG's."""

    @task
    def plan(params: dict | None = None, dag_run=None, triggering_asset_events=None) -> dict[str, list[dict]]:
        from include.generate import plan_run

        check_conf(dag_run.conf, PARAMS)
        woken_by = ", ".join(asset.name for asset in triggering_asset_events or {}) or dag_run.run_type.value
        log.info("woken by %s", woken_by)
        leave_note(f"Woken by {woken_by}.")
        wanted = {**params, "publish": params["publish"] and not params["estimate"]}
        work = plan_run(warehouse("generate"), get_settings(), wanted, _target(wanted))
        if work is None:
            skip("nothing is pending and nothing is new: no work")
        return work

    @task.branch
    def generate_or_estimate(params: dict | None = None) -> list[str]:
        return ["estimate"] if params["estimate"] else [*(f"{mode}.shards" for mode in MODES), "quality_report"]

    @task(**GENERATE_ARGS)
    def estimate(work: dict) -> dict:
        from include.generate import estimate_run

        found = estimate_run(warehouse("generate"), get_settings(), work, server=_server())
        log.info("%s", found["text"])
        return found

    def generate_mode(mode: str, work) -> None:
        @task_group(group_id=mode, tooltip=MODES[mode].purpose)
        def group(work) -> None:
            @task
            def shards(work: dict) -> list[dict]:
                return work[mode]

            @task(map_index_template="{{ map_label }}", **GENERATE_ARGS)
            def generate(shard: dict, dag_run=None) -> dict:
                from include.generate import generate_shard

                get_current_context()["map_label"] = f"{mode}, shard {shard['shard'] + 1} of {shard['shards']}"
                return generate_shard(warehouse("generate"), get_settings(), shard, dag_run.run_id, server=_server())

            generate.expand(shard=shards(work))

        return group(work)

    @task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    def quality_report(dag_run=None) -> None:
        from include.generate import describe_quality, summarise_written

        log.info("%s", describe_quality(warehouse("generate"), get_settings(), SOURCES, list(MODES), dag_run.run_id))
        leave_note(summarise_written(warehouse("generate"), dag_run.run_id))

    @task_group(tooltip="Build a release aside, have it approved if that is asked for, publish it")
    def merge_and_publish() -> None:
        @task
        def merge(params: dict | None = None) -> dict:
            from include.publish.merge import merge_release

            release = merge_release(warehouse("publish"), get_settings(), params, _target(params))
            if release is None:
                skip("no new release")
            return release

        approve = ApprovalOperator(
            task_id="approve",
            subject="Publish release {{ ti.xcom_pull('merge_and_publish.merge')['release_id'] }}?",
            body="{{ ti.xcom_pull('merge_and_publish.merge')['summary'] }}",
            response_timeout=timedelta(hours=get_settings().review_timeout_h),
            pre_execute=skip_unless_reviewed("merge_and_publish.merge"),
            **APPROVE_ARGS,
        )

        @task(outlets=[RELEASE], trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
        def publish(release: dict, params: dict | None = None) -> dict:
            from include.publish.promotion import publish_release

            release_id = release["release_id"]
            published = publish_release(
                warehouse("publish"),
                get_settings(),
                params,
                _target(params),
                release_id,
                approved=release["review"],  # then `approve` asked, and a no would have skipped this task
            )
            leave_note(f"Published {release_id} on {params['target']}.")
            return published

        merged = merge()
        chain(merged, approve, publish(merged))

    planned = plan()
    groups = [generate_mode(mode, planned) for mode in MODES]
    # Nothing pending, but something to publish: the report then follows no generation, only the decision.
    chain(planned, chosen := generate_or_estimate(), [estimate(planned), *groups])
    chain([chosen, *groups], quality_report(), merge_and_publish())


generate_and_publish()
