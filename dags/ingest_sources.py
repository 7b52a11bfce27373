"""One DAG per corpus: stage the newest revision of its metadata.

`resolve_revision` chooses a revision and skips the run when there is nothing new, `load` normalises groups of files in
parallel, `merge` makes the staging table equal to them in one transaction and tells `generate_and_publish` if anything
changed, `report` shows what came in. Backfill: a run stages the newest revision not after the end of its interval.
"""

from __future__ import annotations

import logging

from airflow.sdk import CronTriggerTimetable, Param, dag, get_current_context, task

from include import ingest
from include.modes import MODES
from include.orchestration.assets import STAGED
from include.orchestration.connections import warehouse
from include.orchestration.defaults import DAG_ARGS, check_conf, leave_note, owner_links, skip
from include.settings import get_settings
from include.sources import RECIPES
from include.sources.recipe import SourceRecipe

log = logging.getLogger(__name__)

PARAMS = {
    "revision": Param(
        None, type=["null", "string"], title="Revision", description="Commit or tag of the corpus; empty: the newest"
    ),
    "force": Param(
        False,
        type="boolean",
        title="Force",
        description="Stage again what is staged already, an older revision, or one that lacks many of the staged rows",
    ),
}


def ingest_dag(recipe: SourceRecipe) -> None:
    """Make `ingest_<source>`."""

    @dag(
        dag_id=f"ingest_{recipe.name}",
        dag_display_name=f"Ingest {recipe.title}",
        description=f"Stage {recipe.title} ({recipe.repository})",
        doc_md=f"{__doc__}\n---\n{recipe.card}",
        schedule=CronTriggerTimetable(recipe.schedule, timezone="UTC") if get_settings().schedules else None,
        **DAG_ARGS,
        params=PARAMS,
        owner_links=owner_links(),
        tags=["ingest", recipe.task],
    )
    def ingest_source() -> None:
        @task
        def resolve_revision(params: dict | None = None, dag_run=None) -> list[dict]:
            check_conf(dag_run.conf, PARAMS)
            try:
                return ingest.resolve_revision(
                    recipe,
                    get_settings().hub,
                    warehouse("ingest"),
                    run_id=dag_run.run_id,
                    revision=params["revision"],
                    not_after=_not_after(dag_run, params),
                    max_rows=ingest.row_limit(recipe, get_settings().max_rows),
                    force=params["force"],
                )
            except ingest.NothingToLoadError as nothing:
                skip(str(nothing))

        @task(map_index_template="{{ map_label }}")
        def load(group: dict) -> dict:
            get_current_context()["map_label"] = f"{len(group['corpus']['files'])} files, group {group['file_group']}"
            return ingest.load_group(recipe, group, warehouse("ingest"))

        @task(outlets=[STAGED[recipe.name]])
        def merge(loads: list[dict], outlet_events=None) -> dict:
            try:
                merged = ingest.merge_groups(recipe, list(loads), warehouse("ingest"))
            except ingest.NothingToLoadError as overtaken:
                skip(str(overtaken))
            ingest.count_samples(recipe, list(MODES), get_settings().max_attempts, warehouse("ingest"))
            if not ingest.has_changes(merged):
                log.info("%s", ingest.describe_load(recipe, merged, warehouse("ingest")))
                skip(f"{recipe.name}: nothing changed, so nobody is told")
            outlet_events[STAGED[recipe.name]].extra = {
                name: merged[name] for name in ("revision", "staged", "changed", "retired")
            }
            return merged

        @task
        def report(merged: dict) -> None:
            log.info("%s", ingest.describe_load(recipe, merged, warehouse("ingest")))
            leave_note(ingest.summarise_load(merged))

        report(merge(load.expand(group=resolve_revision())))

    ingest_source()


def _not_after(dag_run, params: dict):
    """The newest moment a run may see: its interval's end, unless it was started by hand or for one revision."""
    return None if dag_run.run_type == "manual" or params["revision"] else dag_run.data_interval_end


for _recipe in RECIPES.values():
    ingest_dag(_recipe)
