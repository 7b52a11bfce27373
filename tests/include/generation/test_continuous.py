"""Continuous batching, on the CPU with the real small model: slow there, but the same code as on a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from include.generation.continuous import ContinuousBatcher
from include.generation.transformers_engine import TransformersEngine
from include.schema import Prompt
from include.settings import PROJECT_ROOT, Sampling

MakePrompt = Callable[..., Prompt]

TEXTS = ("hello there", "it is raining and i am late for work", "oh", "we won the game last night")
CACHE_TOKENS = 2048
GREEDY = Sampling(temperature=0, max_new_tokens=24)

pytestmark = pytest.mark.model


@pytest.fixture
def encoded(small_engine: TransformersEngine, make_prompt: MakePrompt) -> list[list[int]]:
    texts = [small_engine.render(make_prompt("sift_s", text, sample=text)) for text in TEXTS]
    return list(small_engine.tokenizer(texts, add_special_tokens=False)["input_ids"])


@pytest.fixture(autouse=True)
def no_manager_is_left(small_engine: TransformersEngine) -> Iterator[None]:
    """The library keeps a manager, with its cache and settings, on the model; the next test wants another one."""
    yield
    small_engine.model.destroy_cached_continuous_batching_manager()


def batcher(engine: TransformersEngine, sampling: Sampling = GREEDY, **values: Any) -> ContinuousBatcher:
    return ContinuousBatcher(engine.model, sampling, engine._end_tokens, cache_tokens=CACHE_TOKENS, **values)


def test_greedy_rows_are_those_of_generate(small_engine: TransformersEngine, encoded: list[list[int]]) -> None:
    finished = [row for rows in batcher(small_engine).generate(encoded, [24] * 4) for row in rows]
    assert sorted(row.row for row in finished) == [0, 1, 2, 3]
    for row in finished:
        import torch

        prompt = torch.tensor([encoded[row.row]])
        expected = small_engine.model.generate(prompt, max_new_tokens=24)[0, prompt.shape[1] :].tolist()
        assert row.tokens == expected


def test_rows_end_at_their_limits_or_at_the_end_token(
    small_engine: TransformersEngine, encoded: list[list[int]]
) -> None:
    limits = [3, 24, 1, 9]
    rows = {row.row: row.tokens for rows in batcher(small_engine).generate(encoded, limits) for row in rows}
    for row, tokens in rows.items():
        ended = tokens[-1] in small_engine._end_tokens
        assert ended or len(tokens) == limits[row]
        assert not small_engine._end_tokens & set(tokens[:-1])
    # Without end tokens all rows are as long as they are told.
    unending = ContinuousBatcher(small_engine.model, GREEDY, (), cache_tokens=CACHE_TOKENS)
    lengths = {row.row: len(row.tokens) for rows in unending.generate(encoded, [40, 30, 2, 5]) for row in rows}
    assert lengths == {0: 40, 1: 30, 2: 2, 3: 5}


def test_the_common_beginning_is_computed_once(
    small_engine: TransformersEngine, make_prompt: MakePrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, computed = small_engine.model.forward, []

    def counted(*args: object, **kwargs: Any) -> object:
        computed.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(small_engine.model, "forward", counted)
    texts = [small_engine.render(make_prompt("sit_ssp", f"{n} {TEXTS[n % 4]}")) for n in range(24)]
    rows = small_engine.tokenizer(texts, add_special_tokens=False)["input_ids"]
    ours = ContinuousBatcher(small_engine.model, GREEDY, small_engine._end_tokens, cache_tokens=512)
    assert len([row for finished in ours.generate(rows, [4] * 24) for row in finished]) == 24
    # A prompt has some 70 tokens; 64 lie in pages that later rows share once the first ones have filled them.
    assert sum(computed) < 0.7 * sum(map(len, rows)) + 4 * 24


def test_out_of_memory_halves_the_rows_and_loses_none(
    small_engine: TransformersEngine, encoded: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, sizes = small_engine.model.forward, []

    def short_of_memory(*args: object, **kwargs: Any) -> object:
        rows = kwargs["logits_indices"].shape[0] if "logits_indices" in kwargs else len(kwargs["logits_to_keep"])
        sizes.append(rows)
        if rows > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(*args, **kwargs)

    monkeypatch.setattr(small_engine.model, "forward", short_of_memory)
    ours = batcher(small_engine, max_rows=8)
    finished = [row.row for rows in ours.generate(encoded * 2, [4] * 8) for row in rows]
    assert sorted(finished) == list(range(8))
    assert ours.max_rows == 2
    assert max(sizes) > 2


def test_what_fails_for_good_is_an_error(
    small_engine: TransformersEngine, encoded: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: Any) -> object:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(small_engine.model, "forward", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        list(batcher(small_engine).generate(encoded, [4] * 4))


def test_a_caller_that_stops_early_leaves_no_thread_behind(
    small_engine: TransformersEngine, encoded: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr("include.generation.continuous.HAND_ON_ROWS", 1)
    before = threading.active_count()
    rows = batcher(small_engine).generate(encoded, [1, 200, 200, 200])
    assert [row.row for row in next(rows)] == [0]
    assert threading.active_count() > before
    rows.close()
    assert threading.active_count() == before


def test_the_engine_answers_with_it(small_engine: TransformersEngine, make_prompt: MakePrompt) -> None:
    settings = small_engine.settings.model_copy(update={"sampling": Sampling(max_new_tokens=48)})
    engine = TransformersEngine(settings)
    engine.model, engine.tokenizer, engine._end_tokens = (
        small_engine.model,
        small_engine.tokenizer,
        small_engine._end_tokens,
    )
    assert ContinuousBatcher.can_sample(settings.sampling)
    assert not ContinuousBatcher.can_sample(Sampling(repetition_penalty=1.1))
    assert not ContinuousBatcher.can_sample(Sampling(stop_after_sentences=1))
    engine._batcher = batcher(small_engine, settings.sampling)
    prompts = [make_prompt("sift_s", text, seed=n, sample=text) for n, text in enumerate(TEXTS)]
    responses = [response for batch in engine.generate(prompts) for response in batch]
    assert {response.prompt for response in responses} == set(prompts)
    for response in responses:
        assert response.finish_reason == "stop" or response.response_tokens == 48
        assert "<|im_end|>" not in response.text
        assert len(response.text) > 10
        assert response.prompt_tokens > 25


def test_it_imports_nothing_that_a_bare_machine_lacks() -> None:
    code = (
        "import sys, include.generation.continuous, include.generation.decoding\n"
        "print([name for name in ('pydantic', 'pyarrow', 'psycopg', 'datasets', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
