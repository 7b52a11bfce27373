"""What a run would cost: a probe of its pending prompts, answered, timed and judged, and nothing of it stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from include.generation.answer import clean_answer
from include.generation.engine import Engine
from include.generation.runner import as_answer, build_prompts, check_planned
from include.quality.rules import ACCEPTED, judge
from include.settings import Settings
from include.storage.generation import Scope, pending_window
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)

# Rows probed, over all modes.
PROBE_ROWS = 200


@dataclass(frozen=True)
class ModeEstimate:
    """What one mode's pending work would cost.

    Attributes:
        pending: Prompts.
        probed: Prompts that were answered to find out.
        prompt_tokens: Of a prompt, the mean.
        response_tokens: Of an answer, the mean.
        accepted_share: Of the probe's answers.
        texts: That would be written, rejected ones and their new tries among them.
        device_s: Seconds of one device for all of them.
    """

    pending: int
    probed: int
    prompt_tokens: float
    response_tokens: float
    accepted_share: float
    texts: float
    device_s: float


def estimate_shards(
    warehouse: Warehouse, engine: Engine, settings: Settings, work: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Answer a probe of each mode's pending prompts, chosen by hash over all sources; loads the engine.

    Args:
        warehouse: Where prompts come from; nothing is written to it.
        engine: What would generate.
        settings: For seeds and rules.
        work: Mode -> its shards with work, as `plan_shards` lists them.

    Returns:
        `modes` (mode -> ModeEstimate as a dict), `device` (its name), `devices` (tasks that would run at once),
        `device_minutes` and `eta_minutes` (JSON values). A probe fills a GPU less than a whole run does, so on GPUs the
        times are upper bounds.
    """
    busy = {mode: list(shards) for mode, shards in work.items() if shards}
    for shards in busy.values():
        check_planned(warehouse, settings, shards[0])
    engine.load()
    estimates: dict[str, ModeEstimate] = {}
    for mode, shards in busy.items():
        estimates[mode] = _probe(warehouse, engine, settings, mode, shards, PROBE_ROWS // len(busy))
        log.info("%s: %s", mode, estimates[mode])
    devices = max((shards[0]["shards"] for shards in busy.values()), default=1)
    device_s = sum(estimate.device_s for estimate in estimates.values())
    return {
        "modes": {mode: asdict(estimate) for mode, estimate in estimates.items()},
        "device": engine.device,
        "devices": devices,
        "device_minutes": device_s / 60,
        "eta_minutes": device_s / 60 / devices,
    }


def describe_estimate(estimate: Mapping[str, Any]) -> str:
    """Show an estimate as a table."""
    heads = ("pending", 9), ("probed", 8), ("prompt", 8), ("answer", 8), ("accepted", 10), ("texts", 10), ("minutes", 9)
    lines = [f"{'mode':<12}" + "".join(f"{name:>{width}}" for name, width in heads)]
    lines += [
        f"{mode:<12}{row['pending']:>9}{row['probed']:>8}{row['prompt_tokens']:>8.1f}{row['response_tokens']:>8.1f}"
        f"{row['accepted_share']:>10.1%}{row['texts']:>10.0f}{row['device_s'] / 60:>9.1f}"
        for mode, row in estimate["modes"].items()
    ]
    lines.append(
        f"{estimate['device_minutes']:.1f} minutes of {estimate['device']}; done in {estimate['eta_minutes']:.1f} "
        f"minutes with {estimate['devices']} at once. Tokens are means. Nothing was stored."
    )
    return "\n".join(lines)


def _probe(
    warehouse: Warehouse,
    engine: Engine,
    settings: Settings,
    mode: str,
    shards: Sequence[Mapping[str, Any]],
    rows: int,
) -> ModeEstimate:
    """Answer some of one mode's pending prompts."""
    pending, facts = sum(shard["pending"] for shard in shards), shards[0]
    # A part of the samples by hash, like a shard, is a sample of all sources; it may hold some more rows than asked.
    scope = Scope(
        sources=facts["sources"],
        max_attempts=facts["max_attempts"],
        max_samples=facts["max_samples"],
        shards=max(1, pending // rows),
    )
    window = pending_window(warehouse, scope, mode, facts["mode_hash"], rows)
    clips = {row["sample_id"]: row for row in window.to_pylist()}
    prompts = build_prompts(window, settings, mode, facts["mode_hash"])
    started = time.monotonic()
    responses = [response for batch in engine.generate(prompts) for response in batch]
    seconds = time.monotonic() - started
    probed = max(1, len(responses))
    verdicts = [
        judge(
            as_answer(mode, clean_answer(row.text), row.finish_reason, clips[row.prompt.sample_id]),
            settings.rule_severities,
        )
        for row in responses
    ]
    accepted = verdicts.count(ACCEPTED) / probed
    texts = pending * sum((1 - accepted) ** attempt for attempt in range(settings.max_attempts))
    return ModeEstimate(
        pending=pending,
        probed=len(responses),
        prompt_tokens=sum(row.prompt_tokens for row in responses) / probed,
        response_tokens=sum(row.response_tokens for row in responses) / probed,
        accepted_share=accepted,
        texts=texts,
        device_s=texts * seconds / probed,
    )
