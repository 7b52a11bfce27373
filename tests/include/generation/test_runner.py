"""The resumable run on a real warehouse with the fake engine: nothing lost, nothing doubled, nothing done twice."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from include.generate import describe_quality
from include.generation.estimate import describe_estimate, estimate_shards
from include.generation.fake import FakeEngine
from include.generation.runner import (
    current_mode_hashes,
    judge_again,
    measure_quality,
    plan_shards,
    row_seed,
    run_shard,
    sync_prompts,
)
from include.modes import MODES
from include.modes.mode import Mode
from include.quality.rules import RULES, Rule, rules_identity
from include.schema import Prompt, Response
from include.settings import Settings
from include.storage.generation import Scope, coverage, list_progress
from include.storage.warehouse import Warehouse
from tests.include.sources.corpus_files import toy_row

ROWS = 40
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def staged(stage_toy: Callable[..., None]) -> Callable[..., None]:
    """The toy corpus of ROWS rows, staged; stages other rows."""
    stage_toy([toy_row(n) for n in range(ROWS)])
    return stage_toy


def plan(warehouse: Warehouse, settings: Settings, **scope: Any) -> dict[str, list[dict[str, Any]]]:
    hashes = current_mode_hashes(settings, list(MODES))
    sync_prompts(warehouse, ["toy"], hashes)
    return plan_shards(warehouse, Scope(sources=["toy"], max_attempts=settings.max_attempts, **scope), hashes)


def generate(warehouse: Warehouse, settings: Settings, **scope: Any) -> int:
    """Run all that is pending; returns the accepted responses."""
    accepted = 0
    for shards in plan(warehouse, settings, **scope).values():
        for shard in shards:
            accepted += run_shard(warehouse, FakeEngine(settings), settings, shard, "run").written
    return accepted


def responses(warehouse: Warehouse) -> list[dict[str, Any]]:
    with warehouse.connection() as connection:
        return connection.execute("select * from generation.responses order by mode, sample_id, prompt_hash").fetchall()


def test_everything_is_written_once(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    assert generate(warehouse, settings) == 3 * ROWS
    assert generate(warehouse, settings) == 0
    rows = coverage(warehouse, ["toy"], list(MODES), settings.max_attempts)
    assert [(row["accepted"], row["pending"], row["given_up"]) for row in rows] == [(ROWS, 0, 0)] * 3
    done = [(row["status"], row["total"]) for row in list_progress(warehouse, EPOCH)]
    assert done == [("done", ROWS)] * 3


def test_a_changed_row_costs_its_three_responses(
    warehouse: Warehouse, staged: Callable[..., None], make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    generate(warehouse, settings)
    staged([toy_row(0, emotion="sad"), *(toy_row(n) for n in range(1, ROWS)), toy_row(99)])
    # The emotion is no part of what sift_s asks, so its response stays.
    assert {mode: sum(s["pending"] for s in shards) for mode, shards in plan(warehouse, settings).items()} == {
        "sift_s": 1,
        "sift_ssp": 2,
        "sit_ssp": 2,
    }


def test_a_changed_prompt_costs_its_own_mode(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    generate(warehouse, settings)
    mode = MODES["sit_ssp"]
    changed = AnotherPrompt(name=mode.name, title=mode.title, purpose=mode.purpose, user_message=mode.user_message)
    monkeypatch.setitem(MODES, "sit_ssp", changed)
    assert {mode: len(shards) for mode, shards in plan(warehouse, settings).items() if shards} == {"sit_ssp": 1}


class AnotherPrompt(Mode):
    """A mode whose prompt file was edited."""

    @property
    def system_prompt(self) -> str:
        return "Describe it."


def test_going_back_to_an_earlier_setting_costs_nothing(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    first, second = make_settings(), make_settings(frozen_date="2026-02-02")
    assert generate(warehouse, first) == 3 * ROWS
    assert generate(warehouse, second) == 3 * ROWS
    assert generate(warehouse, first) == 0


def test_shards_part_the_work(warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    shards = plan(warehouse, settings, shards=3)["sift_s"]
    assert [shard["shard"] for shard in shards] == [0, 1, 2]
    assert sum(shard["pending"] for shard in shards) == ROWS
    assert generate(warehouse, settings, shards=3) == 3 * ROWS


def test_max_samples_takes_the_same_rows_every_time(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    assert generate(warehouse, settings, max_samples=4) == 12
    assert generate(warehouse, settings, max_samples=4) == 0
    assert generate(warehouse, settings, max_samples=6) == 6


def test_rejected_texts_are_kept_and_tried_again_with_another_seed(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(fake_faults="empty:0.2,tag:0.2,length:0.2", max_attempts=3)
    accepted = generate(warehouse, settings)
    with warehouse.connection() as connection:
        attempts = connection.execute("select * from generation.attempts").fetchall()
    assert {row["verdict"] for row in attempts} == {"empty", "leaked_tag", "truncated"}
    rows = coverage(warehouse, ["toy"], list(MODES), settings.max_attempts)
    assert sum(row["accepted"] for row in rows) == accepted
    assert sum(row["accepted"] + row["given_up"] for row in rows) == 3 * ROWS
    assert sum(row["given_up"] for row in rows) > 0
    tries = [(row["sample_id"], row["mode"], row["attempt"]) for row in attempts]
    assert len(set(tries)) == len(tries)
    assert len({row["seed"] for row in attempts}) == len(attempts)
    assert all(row["verdict"] == "accepted" and row["response"] for row in responses(warehouse))
    # Given up means given up, until more tries are allowed.
    assert generate(warehouse, settings) == 0
    assert generate(warehouse, make_settings(fake_faults="empty:0.2,tag:0.2,length:0.2", max_attempts=6)) > 0


def test_seeds_are_stable_and_fit_a_bigint() -> None:
    assert row_seed(0, "toy/001.wav", "sift_s", 1) == row_seed(0, "toy/001.wav", "sift_s", 1)
    seeds = {row_seed(run, f"toy/{n}", mode, t) for run in (0, 1) for n in range(50) for mode in MODES for t in (1, 2)}
    assert len(seeds) == 2 * 50 * 3 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)


class CrashesAfter(FakeEngine):
    """Ends with an error after some batches."""

    batches = 2

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Response]]:
        for number, batch in enumerate(super().generate(prompts)):
            if number == self.batches:
                raise RuntimeError("the device fell off the bus")
            yield batch


def test_finished_batches_survive_an_engine_that_dies(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(batch_size=8)
    shard = plan(warehouse, settings)["sift_s"][0]
    with pytest.raises(RuntimeError, match="fell off"):
        run_shard(warehouse, CrashesAfter(settings), settings, shard, "run")
    kept = responses(warehouse)
    assert len(kept) == 16
    assert [row["status"] for row in list_progress(warehouse, EPOCH)] == ["failed"]
    assert generate(warehouse, settings) == 3 * ROWS - 16
    assert [row for row in responses(warehouse) if row["created_at"] in {k["created_at"] for k in kept}] == kept


def test_progress_adds_up_over_the_attempts_of_a_task(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(batch_size=8, fake_faults="empty:0.3", max_attempts=2)
    shard = plan(warehouse, settings)["sift_s"][0]
    with pytest.raises(RuntimeError, match="fell off"):
        run_shard(warehouse, CrashesAfter(settings), settings, shard, "run")
    (first,) = list_progress(warehouse, EPOCH)
    assert first["total"] == ROWS and 0 < first["done"] <= 16 and first["accepted"] + first["rejected"] == 16
    report = run_shard(warehouse, FakeEngine(settings), settings, shard, "run")
    (both,) = list_progress(warehouse, EPOCH)
    assert (both["status"], both["done"], both["total"], both["eta_s"]) == ("done", ROWS, ROWS, None)
    assert both["accepted"] == len(responses(warehouse)) == first["accepted"] + report.written
    with warehouse.connection() as connection:
        rejected = connection.execute("select count(*) as n from generation.attempts").fetchone()
    assert rejected and both["rejected"] == rejected["n"] == first["rejected"] + report.details["rejected_texts"]


class Observed(FakeEngine):
    """Looks at `generation.runs` whenever it is asked for another batch, and knows how long it has slept till then."""

    def __init__(self, settings: Settings, warehouse: Warehouse) -> None:
        super().__init__(settings, seconds_per_batch=0.1)
        self.warehouse = warehouse
        self.seen: list[tuple[float, dict[str, Any]]] = []

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Response]]:
        for number, batch in enumerate(super().generate(prompts), start=1):
            yield batch
            (row,) = list_progress(self.warehouse, EPOCH)
            self.seen.append((number * self.seconds_per_batch, row))


def test_pace_and_time_left_are_of_this_attempt(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(batch_size=8)
    shard = plan(warehouse, settings)["sift_s"][0]
    with pytest.raises(RuntimeError, match="fell off"):
        run_shard(warehouse, CrashesAfter(settings), settings, shard, "run")
    (before,) = list_progress(warehouse, EPOCH)
    engine = Observed(settings, warehouse)
    run_shard(warehouse, engine, settings, shard, "run")
    assert [row["done"] for _, row in engine.seen] == [24, 32, 40]
    for slept, row in engine.seen:
        rows, tokens = row["done"] - before["done"], row["response_tokens"] - before["response_tokens"]
        assert row["tokens_per_s"] <= 1.01 * tokens / slept
        assert row["eta_s"] >= 0.99 * (row["total"] - row["done"]) * slept / rows


def test_the_log_shows_progress_now_and_then(
    warehouse: Warehouse,
    staged: object,
    make_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    settings = make_settings(batch_size=1)
    shards = plan(warehouse, settings)
    run_shard(warehouse, FakeEngine(settings), settings, shards["sift_s"][0], "run")
    lines = [message for message in caplog.messages if " done, " in message]
    assert 1 <= len(lines) < 10  # not one per batch: 40
    assert "generate sift_s, shard 1 of 1: 40 of 40 done, 40 accepted, 0 rejected texts, " in lines[-1]
    caplog.clear()
    monkeypatch.setattr("include.generation.runner.LOG_EVERY_S", 0)
    run_shard(warehouse, FakeEngine(settings), settings, shards["sift_ssp"][0], "run")
    assert sum(" done, " in message for message in caplog.messages) == 41


def _generate_slowly(conninfo: str, settings: Settings, shard: dict[str, Any]) -> None:
    engine = FakeEngine(settings, seconds_per_batch=0.02)
    run_shard(Warehouse(conninfo), engine, settings, shard, f"run {os.getpid()}")


def test_two_attempts_of_one_shard_do_not_overlap(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(batch_size=4)
    shard = plan(warehouse, settings)["sit_ssp"][0]
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_generate_slowly, args=(warehouse.conninfo, settings, shard)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len(responses(warehouse)) == ROWS
    written = [row["accepted"] for row in list_progress(warehouse, EPOCH)]
    assert sorted(written) == [0, ROWS]  # the second one found nothing left


def test_a_prompt_that_changed_since_planning_is_refused(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    shard = plan(warehouse, settings)["sift_s"][0]
    with warehouse.connection() as connection:
        connection.execute("update generation.prompts set prompt_hash = 'other' where mode = 'sift_s'")
    with pytest.raises(ValueError, match="Trigger generate_and_publish again"):
        run_shard(warehouse, FakeEngine(settings), settings, shard, "run")


def test_changed_rules_judge_again_without_an_engine(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    generate(warehouse, settings)
    assert judge_again(warehouse, settings, ["toy"]) == {"judged": 0, "demoted": 0}
    before = responses(warehouse)
    stricter = make_settings(rule_severities={"too_long": "reject"})
    assert judge_again(warehouse, stricter, ["toy"]) == {"judged": 3 * ROWS, "demoted": 0}
    assert [row["response"] for row in responses(warehouse)] == [row["response"] for row in before]
    assert {row["rules_version"] for row in responses(warehouse)} == {rules_identity({"too_long": "reject"})}


def test_a_response_that_a_rule_rejects_now_is_pending_again_and_its_text_is_kept(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    generate(warehouse, settings)
    doomed = {row["sample_id"] for row in responses(warehouse) if row["mode"] == "sift_s" and "hear" in row["response"]}
    assert 0 < len(doomed) < ROWS
    rule = Rule("says_hear", lambda answer: "hear" in answer.text, ("sift_s",), "reject", False)
    monkeypatch.setitem(RULES, "says_hear", rule)
    assert judge_again(warehouse, settings, ["toy"]) == {"judged": 3 * ROWS, "demoted": len(doomed)}
    work = plan(warehouse, settings)
    assert {mode: sum(shard["pending"] for shard in shards) for mode, shards in work.items()} == {
        "sift_s": len(doomed),
        "sift_ssp": 0,
        "sit_ssp": 0,
    }
    with warehouse.connection() as connection:
        kept = connection.execute("select sample_id, attempt, verdict from generation.attempts").fetchall()
    assert {(row["sample_id"], row["attempt"], row["verdict"]) for row in kept} == {(s, -1, "says_hear") for s in doomed}
    generate(warehouse, settings)
    again = [row for row in responses(warehouse) if row["mode"] == "sift_s" and row["sample_id"] in doomed]
    # With another seed, and so another text.
    assert again and all("hear" not in row["response"] for row in again)


def test_a_rejection_by_a_later_rule_is_no_try(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(max_attempts=1)
    generate(warehouse, settings)
    written = {(row["sample_id"], row["mode"]): row for row in responses(warehouse)}
    for number in (1, 2):  # rules may become stricter more than once
        rule = Rule("stricter", lambda answer: True, None, "reject", False)
        with monkeypatch.context() as patch:
            patch.setitem(RULES, f"stricter{number}", rule)
            assert judge_again(warehouse, settings, ["toy"])["demoted"] == len(written)
        rows = coverage(warehouse, ["toy"], list(MODES), 1)
        assert sum(row["pending"] for row in rows) == len(written), "pending, not given up"
        generate(warehouse, settings)
        again = {(row["sample_id"], row["mode"]): row for row in responses(warehouse)}
        assert again and all(row["seed"] != written[key]["seed"] for key, row in again.items())
        written = again
    with warehouse.connection() as connection:
        numbers = connection.execute("select distinct attempt from generation.attempts where attempt < 0").fetchall()
    assert {row["attempt"] for row in numbers} == {-1, -2}, "no text is lost"


def test_measures_are_kept_and_shown_beside_the_ones_before(
    warehouse: Warehouse, staged: object, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    generate(warehouse, settings)
    first = describe_quality(warehouse, settings, ["toy"], list(MODES), "first")
    assert "sit_ssp: 40 texts" in first and "accepted" in first and "toy 40" in first
    assert "(before" not in first
    measures = measure_quality(warehouse, settings, ["toy"], "sit_ssp")
    assert measures["answers"] == ROWS
    assert measures["emotion_named"] == measures["emotion_agrees"] == 1  # the fake engine repeats the label
    assert 0 < measures["distinct_1"] < measures["distinct_3"] <= 1
    assert measures["same_opening"] > 0.5
    second = describe_quality(warehouse, settings, ["toy"], list(MODES), "second")
    assert f"(before {measures['words_mean']:.3f})" in second


def test_an_estimate_answers_a_probe_and_stores_nothing(
    warehouse: Warehouse,
    staged: Callable[..., None],
    make_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staged([toy_row(n) for n in range(400)])
    settings = make_settings(fake_faults="empty:0.25", batch_size=8)
    work = plan(warehouse, settings)
    monkeypatch.setattr("include.generation.estimate.PROBE_ROWS", 120)
    found = estimate_shards(warehouse, FakeEngine(settings, seconds_per_batch=0.02), settings, work)
    assert responses(warehouse) == [] and list_progress(warehouse, EPOCH) == []
    assert list(found["modes"]) == list(MODES)
    for mode, row in found["modes"].items():
        assert row["pending"] == 400 and 20 <= row["probed"] <= 40
        assert 0.4 < row["accepted_share"] < 0.98
        rejected = 1 - row["accepted_share"]
        assert row["texts"] == pytest.approx(400 * (1 + rejected + rejected**2))  # three tries
        # At least 20 ms a batch of 8.
        assert row["device_s"] >= row["texts"] / 8 * 0.02
        assert row["prompt_tokens"] > 10 and row["response_tokens"] > 2
        assert mode in describe_estimate(found)
    assert found["eta_minutes"] == found["device_minutes"]  # one shard
