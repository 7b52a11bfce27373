"""A run of `generate_and_publish` without Airflow: what its tasks call, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from include import ingest
from include.generate import generate_shard, plan_run
from include.modes import MODES
from include.publish.merge import merge_release
from include.publish.promotion import publish_release
from include.publish.targets import LOCAL, Target
from include.publish.targets.local import LocalTarget
from include.settings import Settings
from include.sources import RECIPES
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLED

EVERYTHING: dict[str, Any] = {
    "sources": SAMPLED,
    "modes": list(MODES),
    "max_samples": None,
    "publish": True,
    "leave_out": [],
    "review": False,
    "force": False,
}
"""The Params of a run that nobody narrowed."""


def default_target(settings: Settings) -> Target:
    """The local releases folder."""
    return LocalTarget(LOCAL, settings.releases_dir)


def folder_target(folder: Path) -> Target:
    """Another folder."""
    return LocalTarget(str(folder), folder)


def stage(warehouse: Warehouse, settings: Settings, *sources: str, run_id: str = "1") -> None:
    """Stage sources as they are now."""
    for name in sources:
        recipe = RECIPES[name]
        groups = ingest.resolve_revision(recipe, settings.hub, warehouse, run_id=run_id, force=True)
        ingest.merge_groups(recipe, [ingest.load_group(recipe, group, warehouse) for group in groups], warehouse)


def generate(warehouse: Warehouse, settings: Settings, target: Target | None = None, **params: Any) -> bool:
    """Plan and generate; False when the plan finds no work at all."""
    work = plan_run(warehouse, settings, {**EVERYTHING, **params}, target or default_target(settings))
    for shards in (work or {}).values():
        for shard in shards:
            generate_shard(warehouse, settings, shard, "run")
    return work is not None


def merge_and_publish(
    warehouse: Warehouse, settings: Settings, params: dict[str, Any], target: Target | None = None
) -> dict[str, Any] | None:
    """Merge, and publish what was merged; both tasks' results in one."""
    target = target or default_target(settings)
    merged = merge_release(warehouse, settings, params, target)
    if merged is None:
        return None
    approved = merged["review"]  # whoever is asked says yes
    return merged | publish_release(warehouse, settings, params, target, merged["release_id"], approved=approved)
