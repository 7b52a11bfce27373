"""The steps of a generating run: what is pending, one shard of it on one device, the quality of what was written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

from include.generation import make_engine
from include.generation.device import device_candidates, lease_device, lease_dir
from include.generation.engine import Engine
from include.generation.estimate import describe_estimate, estimate_shards
from include.generation.identity import pinned
from include.generation.lifetime import bound_to_task
from include.generation.runner import (
    current_mode_hashes,
    judge_again,
    measure_quality,
    plan_shards,
    run_shard,
    sync_prompts,
)
from include.modes import MODES
from include.publish.merge import check_publishing, has_news
from include.publish.targets import Target
from include.schema import LlmServer
from include.settings import Settings
from include.sources import RECIPES
from include.storage.console import count_coverage, keep_verdicts, shards_of_run
from include.storage.generation import Scope, previous_quality, save_quality, verdicts_by_source
from include.storage.staging import latest_loads
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)


def plan_run(
    warehouse: Warehouse, settings: Settings, params: Mapping[str, Any], target: Target | None
) -> dict[str, list[dict[str, Any]]] | None:
    """Find all pending work within a run's Params; `target` is None if the run does not publish.

    Returns:
        Mode -> its shards with work; None when nothing is pending and nothing waits to be published.

    Raises:
        BadInputError: If the release that the run would end in must not be published on that target.
    """
    loads = latest_loads(warehouse)
    staged = [name for name, recipe in RECIPES.items() if recipe.task == "sift" and name in loads]
    # A branch may move while the run goes on: what is planned is what is generated.
    settings = pinned(settings)
    # Prompts are kept in step for all sources and modes: which of them are pending must be known for publishing too.
    hashes = current_mode_hashes(settings, list(MODES))
    check_publishing(warehouse, settings, params, target)
    updated = sync_prompts(warehouse, staged, hashes)
    log.info("%d sources staged, %d prompts new or changed", len(staged), updated)
    # Before work is counted: what a stricter rule rejects now is written again by this very run.
    again = judge_again(warehouse, settings, staged)
    if again["judged"]:
        log.info("%(judged)d responses judged again by changed rules, %(demoted)d of them rejected now", again)
    count_coverage(warehouse, staged, list(MODES), settings.max_attempts)
    scope = Scope(
        sources=[source for source in staged if source in params["sources"]],
        max_attempts=settings.max_attempts,
        max_samples=params["max_samples"],
        shards=settings.shards or (1 if settings.engine == "openai" else max(1, len(device_candidates()))),
    )
    work = plan_shards(warehouse, scope, {mode: hashes[mode] for mode in MODES if mode in params["modes"]})
    for mode, shards in work.items():
        log.info("%s: %d pending in %d shards", mode, sum(shard["pending"] for shard in shards), len(shards))
    if not any(work.values()) and not has_news(warehouse, settings, params, target):
        return None
    return {
        mode: [{**shard, "model_revision": settings.model_revision} for shard in work.get(mode, [])] for mode in MODES
    }


def generate_shard(
    warehouse: Warehouse, settings: Settings, shard: dict[str, Any], run_id: str, *, server: LlmServer | None = None
) -> dict[str, Any]:
    """Generate one shard of one mode, on a device of its own or on the server; returns the StepReport as JSON."""
    settings = _as_planned(settings, shard)
    with _engine_of_task(settings, server) as engine:
        return asdict(run_shard(warehouse, engine, settings, shard, run_id))


def estimate_run(
    warehouse: Warehouse,
    settings: Settings,
    work: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    server: LlmServer | None = None,
) -> dict[str, Any]:
    """Say what a run's work would cost, from a probe of it that is not stored.

    Args:
        warehouse: Read only.
        settings: Of the run.
        work: What `plan_run` returned.
        server: As for `generate_shard`.

    Returns:
        What `estimate_shards` returns, and `text`, the same as a table.
    """
    settings = _as_planned(settings, next(shard for shards in work.values() for shard in shards))
    with _engine_of_task(settings, server) as engine:
        estimate = estimate_shards(warehouse, engine, settings, work)
    return {**estimate, "text": describe_estimate(estimate)}


def _as_planned(settings: Settings, shard: Mapping[str, Any]) -> Settings:
    """Settings with the model's revision that was planned: a branch may have moved since."""
    return settings.model_copy(update={"model_revision": shard["model_revision"]})


@contextmanager
def _engine_of_task(settings: Settings, server: LlmServer | None) -> Iterator[Engine]:
    """The engine, on a device of its own unless it needs none here.

    Meanwhile this process dies with its parent and stops on SIGTERM: no engine outlives its task.
    """
    lease = nullcontext() if settings.engine == "openai" else lease_device(lease_dir())
    with bound_to_task(), lease:
        yield make_engine(settings, server)


def summarise_written(warehouse: Warehouse, run_id: str) -> str:
    """Say in one sentence what a run has written, for its note."""
    written: dict[str, int] = {}
    rejected = given_up = 0
    for shard in shards_of_run(warehouse, run_id):
        written[shard["mode"]] = written.get(shard["mode"], 0) + shard["accepted"]
        rejected += shard["rejected"]
        given_up += shard["given_up"]
    if not written:
        return "Wrote nothing: nothing was pending."
    by_mode = ", ".join(f"{mode} {rows:,}" for mode, rows in written.items())
    return f"Wrote {sum(written.values()):,} responses ({by_mode}); {rejected:,} rejected, {given_up:,} given up."


def describe_quality(
    warehouse: Warehouse, settings: Settings, sources: Sequence[str], modes: Sequence[str], run_id: str
) -> str:
    """Judge again where rules have changed, measure, keep the measures, and show all of it.

    Returns:
        Coverage by source and mode, verdicts by mode, rule and source, and each mode's measures beside those of the
        report before.
    """
    again = judge_again(warehouse, settings, sources)
    lines = [f"{'source':<16}{'mode':<12}{'staged':>9}{'accepted':>9}{'pending':>9}{'given up':>9}"]
    lines += [
        f"{row['source']:<16}{row['mode']:<12}{row['staged']:>9}{row['accepted']:>9}{row['pending']:>9}"
        f"{row['given_up']:>9}"
        for row in count_coverage(warehouse, sources, modes, settings.max_attempts)
    ]
    if again["demoted"]:
        lines.append(
            f"rules changed: {again['demoted']} of {again['judged']} responses are rejected now, so pending again"
        )
    previous = previous_quality(warehouse, run_id)
    verdicts = verdicts_by_source(warehouse, sources)
    keep_verdicts(warehouse, run_id, verdicts)
    for mode in modes:
        by_verdict = verdicts.get(mode, {})
        texts = sum(sum(by_source.values()) for by_source in by_verdict.values())
        lines += ["", f"{mode}: {texts} texts"]
        for verdict, by_source in by_verdict.items():
            count = sum(by_source.values())
            where = ", ".join(f"{source} {rows}" for source, rows in by_source.items())
            lines.append(f"  {verdict:<24}{count:>7} ({count / texts:.1%})  {where}")
        measures = measure_quality(warehouse, settings, sources, mode)
        save_quality(warehouse, run_id, mode, measures)
        before = previous.get(mode, {})
        for name, value in measures.items():
            was = f"  (before {before[name]:.3f})" if name in before else ""
            lines.append(f"  {name:<32}{value:>10.3f}{was}")
    return "\n".join(lines)
