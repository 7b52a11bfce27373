"""The resumable run: plan what is pending, generate a shard of it, store every batch as it ends.

Nothing is remembered between tasks but what the warehouse holds: first run, retry, refresh and changed prompt all
start from the pending rule.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from include.generation.answer import clean_answer
from include.generation.engine import Engine
from include.generation.identity import model_hash_inputs
from include.generation.lifetime import Watchdog, uninterrupted
from include.modes import MODES
from include.modes.mode import mode_hash, prompt_hashes
from include.quality.report import measure
from include.quality.rules import Answer, check_severities, judge, rules_identity
from include.schema import LABEL_COLUMNS, BadInputError, Prompt, StepReport
from include.settings import Settings
from include.storage.generation import (
    NEW_PROMPTS_SCHEMA,
    VERDICTS_SCHEMA,
    JudgedResponse,
    Progress,
    Scope,
    count_pending,
    end_run,
    judged_otherwise,
    pending_window,
    register_mode,
    sampled_responses,
    shard_lock,
    stale_prompts,
    start_run,
    store_responses,
    store_verdicts,
    upsert_prompts,
)
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)

# Prompts in memory at once, some 100 MB. Engines sort by length within them; a GPU runs half empty at the end of each.
WINDOW = 32_768
# The task's log has a line about progress as often as this.
LOG_EVERY_S = 15.0
# Tokens a second and the time left are of this last stretch.
RECENT_S = 60.0
# Accepted responses of a mode that its measures look at.
QUALITY_SAMPLE = 5000


def current_mode_hashes(settings: Settings, modes: Sequence[str]) -> dict[str, tuple[str, dict[str, object]]]:
    """Return, for each mode, its hash under these settings and all that the hash covers."""
    generator = model_hash_inputs(settings)
    hashed = {}
    for name in modes:
        inputs = MODES[name].hash_inputs(generator)
        hashed[name] = (mode_hash(inputs), inputs)
    return hashed


def sync_prompts(warehouse: Warehouse, sources: Sequence[str], hashes: dict[str, tuple[str, dict[str, object]]]) -> int:
    """Bring `generation.prompts` in step with the samples and the modes; only what changed is hashed anew.

    Returns:
        Prompts that were new or changed.
    """
    updated = 0
    for mode, (hash_of_mode, inputs) in hashes.items():
        register_mode(warehouse, mode, hash_of_mode, inputs)
        for source in sources:
            for batch in stale_prompts(warehouse, source, mode, hash_of_mode):
                samples = pa.Table.from_batches([batch])
                messages = MODES[mode].build_user_messages(samples)
                columns = [samples["sample_id"], samples["row_hash"], prompt_hashes(hash_of_mode, messages)]
                rows = pa.table(columns, schema=NEW_PROMPTS_SCHEMA)
                upsert_prompts(warehouse, source, mode, hash_of_mode, rows)
                updated += len(rows)
    return updated


def judge_again(warehouse: Warehouse, settings: Settings, sources: Sequence[str]) -> dict[str, int]:
    """Judge current responses that other rules have judged before; no GPU is needed.

    Returns:
        Responses looked at, "judged", and those that a rule rejects now, "demoted": they are pending again.

    Raises:
        BadInputError: If the settings name a rule that is not there, or loosen a hard one.
    """
    check_severities(settings.rule_severities)
    rules_version = rules_identity(settings.rule_severities)
    counts = {"judged": 0, "demoted": 0}
    for batch in judged_otherwise(warehouse, sources, rules_version):
        rows = batch.to_pylist()
        verdicts = [
            judge(as_answer(row["mode"], row["response"], row["finish_reason"], row), settings.rule_severities)
            for row in rows
        ]
        table = pa.Table.from_batches([batch.select(VERDICTS_SCHEMA.names[:-1])]).append_column("verdict", [verdicts])
        counts["demoted"] += store_verdicts(warehouse, table, rules_version)
        counts["judged"] += len(rows)
    return counts


def measure_quality(warehouse: Warehouse, settings: Settings, sources: Sequence[str], mode: str) -> dict[str, float]:
    """Measure a mode's accepted responses, on at most QUALITY_SAMPLE of them, the same clips every time."""
    rows = sampled_responses(warehouse, sources, mode, QUALITY_SAMPLE).to_pylist()
    answers = [as_answer(mode, row["response"], row["finish_reason"], row) for row in rows]
    return measure(answers, settings.rule_severities)


def plan_shards(
    warehouse: Warehouse, scope: Scope, hashes: dict[str, tuple[str, dict[str, object]]]
) -> dict[str, list[dict[str, Any]]]:
    """List the shards with pending work, by mode; each a JSON object that `run_shard` takes.

    Call `sync_prompts` first.
    """
    pending = count_pending(warehouse, scope, list(hashes))
    return {
        mode: [
            {
                "mode": mode,
                "mode_hash": hash_of_mode,
                "shard": shard,
                "shards": scope.shards,
                "pending": rows,
                "sources": scope.sources,
                "max_samples": scope.max_samples,
                "max_attempts": scope.max_attempts,
            }
            for shard, rows in sorted(pending.get(mode, {}).items())
        ]
        for mode, (hash_of_mode, _) in hashes.items()
    }


def run_shard(
    warehouse: Warehouse, engine: Engine, settings: Settings, shard: dict[str, Any], run_id: str
) -> StepReport:
    """Generate all that is pending in one shard of one mode; call it in the main thread, for it holds signals back.

    However it ends, batches that were stored stay, and `generation.runs` says how: "done", "failed" by an error,
    "stopped" by SIGTERM (as SystemExit) or Ctrl-C, "stalled" when nothing came for `stall_timeout_s`, which ends the
    process. Only a kill leaves the row as it was.

    Args:
        warehouse: Where prompts come from and responses go.
        engine: Loaded here, once there is work.
        settings: For the run seed, the number of attempts and the patience with the engine.
        shard: One entry of `plan_shards`.
        run_id: Identity of the run, for `generation.runs`.

    Returns:
        Prompts read = written (accepted) + skipped (given up, by the last rule broken).

    Raises:
        BadInputError: If the prompts that were planned are not the ones that would be asked now.
    """
    mode, hash_of_mode = shard["mode"], shard["mode_hash"]
    scope = Scope(
        sources=shard["sources"],
        max_attempts=shard["max_attempts"],
        max_samples=shard["max_samples"],
        shard=shard["shard"],
        shards=shard["shards"],
    )
    report = StepReport(f"generate {mode}, shard {shard['shard'] + 1} of {shard['shards']}")
    with shard_lock(warehouse, mode, shard["shard"]):
        pending = count_pending(warehouse, scope, [mode]).get(mode, {}).get(shard["shard"], 0)
        progress = start_run(
            warehouse,
            run_id=run_id,
            mode=mode,
            shard=shard["shard"],
            shards=shard["shards"],
            status="loading model",
            pending=pending,
        )
        log.info("%s: %d to do, %d done by earlier attempts", report.step, pending, progress.done)
        status = "failed"
        try:
            if pending:
                with Watchdog(lambda: end_run(warehouse, progress, "stalled")) as watchdog:
                    watchdog.expect("model loaded", settings.load_timeout_s)
                    engine.load()
                    progress = replace(progress, status="running", device=engine.device)
                    _generate(warehouse, engine, settings, scope, mode, hash_of_mode, progress, report, watchdog)
            status = "done"
        except (KeyboardInterrupt, SystemExit):
            status = "stopped"
            raise
        finally:
            with uninterrupted():
                end_run(warehouse, progress, status)
    return report.check()


def row_seed(run_seed: int, sample_id: str, mode: str, draw: int) -> int:
    """Derive the sampling seed of a row's first, second, ... text: 63 bits, the same on every machine."""
    digest = hashlib.sha256(f"{run_seed}\n{sample_id}\n{mode}\n{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _generate(
    warehouse: Warehouse,
    engine: Engine,
    settings: Settings,
    scope: Scope,
    mode: str,
    hash_of_mode: str,
    progress: Progress,
    report: StepReport,
    watchdog: Watchdog,
) -> None:
    pace, rejected_before = _Pace(), progress.rejected
    logged = time.monotonic()
    rules_version = rules_identity(settings.rule_severities)
    watchdog.expect("row finished", settings.stall_timeout_s)
    while len(window := pending_window(warehouse, scope, mode, hash_of_mode, WINDOW)):
        prompts = build_prompts(window, settings, mode, hash_of_mode)
        clips = {row["sample_id"]: row for row in window.to_pylist()}
        for responses in engine.generate(prompts):
            judged = []
            for response in responses:
                text = clean_answer(response.text)
                answer = as_answer(mode, text, response.finish_reason, clips[response.prompt.sample_id])
                verdict = judge(answer, settings.rule_severities)
                judged.append(JudgedResponse(response, text, verdict, engine.name, rules_version))
            with uninterrupted():
                _count(judged, scope, progress, report, pace)
                store_responses(warehouse, judged, progress)
            watchdog.expect("row finished", settings.stall_timeout_s)
            if time.monotonic() - logged > LOG_EVERY_S:
                logged = time.monotonic()
                _log_progress(report.step, progress)
    report.details = {"tokens_per_s": round(pace.average, 1), "rejected_texts": progress.rejected - rejected_before}
    _log_progress(report.step, progress)


class _Pace:
    """How fast a shard comes on: response tokens and rows dealt with, since `RECENT_S` and since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._marks = deque([(self._began, 0, 0)])  # moment, tokens, rows

    def add(self, tokens: int, rows: int) -> None:
        """Count what a batch brought."""
        now = time.monotonic()
        _, all_tokens, all_rows = self._marks[-1]
        self._marks.append((now, all_tokens + tokens, all_rows + rows))
        while len(self._marks) > 2 and self._marks[1][0] < now - RECENT_S:  # one mark before stays, to measure from
            self._marks.popleft()

    @property
    def recent(self) -> tuple[float, float]:
        """Tokens a second and rows a second, lately."""
        (since, tokens, rows), (now, all_tokens, all_rows) = self._marks[0], self._marks[-1]
        seconds = max(now - since, 1e-9)
        return (all_tokens - tokens) / seconds, (all_rows - rows) / seconds

    @property
    def average(self) -> float:
        """Tokens a second since the beginning."""
        now, tokens, _ = self._marks[-1]
        return tokens / max(now - self._began, 1e-9)


def _log_progress(step: str, progress: Progress) -> None:
    log.info(
        "%s: %d of %d done, %d accepted, %d rejected texts, %.0f tokens/s over the last minute, %s",
        step,
        progress.done,
        progress.total,
        progress.accepted,
        progress.rejected,
        progress.tokens_per_s or 0,
        "time left unknown" if progress.eta_s is None else f"{progress.eta_s:.0f} s left",
    )


def build_prompts(window: pa.Table, settings: Settings, mode: str, hash_of_mode: str) -> list[Prompt]:
    """Build the prompts of N pending rows (PENDING_SCHEMA), in their order, each with its seed.

    Raises:
        BadInputError: If they are not the ones that were planned.
    """
    messages = MODES[mode].build_user_messages(window)
    if prompt_hashes(hash_of_mode, messages).to_pylist() != window["prompt_hash"].to_pylist():
        raise BadInputError(
            f"{mode}: the prompts that were planned are not the ones this code would ask; the code or the prompt "
            "changed while the run was waiting. Trigger generate_and_publish again"
        )
    system_prompt = MODES[mode].system_prompt
    rows = zip(*(window[name].to_pylist() for name in ("source", "sample_id", "prompt_hash", "attempt", "draw")), strict=True)
    return [
        Prompt(
            source=source,
            sample_id=sample_id,
            mode=mode,
            prompt_hash=prompt_hash,
            system_prompt=system_prompt,
            user_message=message,
            attempt=attempt,
            seed=row_seed(settings.run_seed, sample_id, mode, draw),
        )
        for (source, sample_id, prompt_hash, attempt, draw), message in zip(rows, messages.to_pylist(), strict=True)
    ]


def as_answer(mode: str, text: str, finish_reason: str, clip: Mapping[str, Any]) -> Answer:
    """What is judged: a text, and the clip it was written for (a row with `text` and the label columns)."""
    labels = {name: clip[name] for name in LABEL_COLUMNS}
    return Answer(mode, text, finish_reason, clip["text"], labels, MODES[mode].system_prompt)


def _count(judged: Sequence[JudgedResponse], scope: Scope, progress: Progress, report: StepReport, pace: _Pace) -> None:
    """Add a batch to the progress and the report."""
    tokens, done = progress.response_tokens, progress.done
    for row in judged:
        progress.response_tokens += row.response.response_tokens
        if row.verdict == "accepted":
            progress.accepted += 1
            report.read += 1
            report.written += 1
            continue
        progress.rejected += 1
        if row.response.prompt.attempt >= scope.max_attempts:
            progress.given_up += 1
            report.read += 1
            reason = f"given up: {row.verdict}"
            report.skipped[reason] = report.skipped.get(reason, 0) + 1
    pace.add(progress.response_tokens - tokens, progress.done - done)
    progress.tokens_per_s, rows_per_s = pace.recent
    progress.eta_s = max(0, progress.total - progress.done) / rows_per_s if rows_per_s else None
