"""A warehouse with the bundled samples in it: staged, written with faults by the fake engine, and reported."""

from __future__ import annotations

from include.generate import describe_quality, generate_shard, plan_run
from include.ingest import count_samples, load_group, merge_groups, resolve_revision
from include.modes import MODES
from include.settings import Settings
from include.sources import RECIPES
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLED, SAMPLES
from tests.include.publish.steps import EVERYTHING, default_target

FAULTS = {"max_attempts": 2, "fake_faults": "empty:0.2,refusal:0.2"}
"""Settings under which some texts are rejected and some prompts given up."""


def stage(warehouse: Warehouse, source: str, settings: Settings) -> None:
    """Ingest one of the bundled samples, as its DAG does."""
    recipe = RECIPES[source]
    groups = resolve_revision(recipe, str(SAMPLES), warehouse, run_id="ingest-1")
    merge_groups(recipe, [load_group(recipe, group, warehouse) for group in groups], warehouse)
    count_samples(recipe, list(MODES), settings.max_attempts, warehouse)


def generate(warehouse: Warehouse, settings: Settings, run_id: str = "run-1") -> None:
    """Write what is pending."""
    for shards in (plan_run(warehouse, settings, EVERYTHING, default_target(settings)) or {}).values():
        for shard in shards:
            generate_shard(warehouse, settings, shard, run_id)


def fill(warehouse: Warehouse, settings: Settings) -> None:
    """Do all of it."""
    for source in SAMPLED:
        stage(warehouse, source, settings)
    generate(warehouse, settings)
    describe_quality(warehouse, settings, SAMPLED, list(MODES), "run-1")
