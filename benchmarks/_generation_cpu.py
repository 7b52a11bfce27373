"""Generation on a CPU: our engine against what the reference generator does, with the same prompts and answer lengths.

The reference is `transformers.pipeline("text-generation", batch_size=...)` over an unsorted dataset, with its sampling
(temperature 0.8, top-p 0.92, top-k 50). Answer lengths are drawn from a log-normal distribution (median 30 tokens, nine
of ten below 65, at most 160), and enforced on both sides: a row's end token is forbidden before its length and forced
there. No answer is cut earlier by either side. Both run with the same threads, by turns, on the small model.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import include.generation.transformers_engine as engine_module
from include.generation.sampling import SeededSampler
from include.generation.transformers_engine import TransformersEngine
from include.local.model import ensure_small_model
from include.modes import MODES
from include.schema import Prompt
from include.settings import EMBEDDED_MODEL, Settings

LONGEST = 160
REACH = {"cpu_ratio": ">= 2"}
SENTENCES = (
    "i lost my keys again.",
    "the train left at a quarter past seven, and nobody had told us that it would.",
    "we won!",
    "could you put the blue cup next to the kettle, please, before you leave the house?",
    "it has been raining all week and the cellar is wet.",
)
LABELS = ("gender: male, emotion: sad", "gender: female, pace: fast, emotion: happy", "emotion: neutral")


def make_prompts(count: int) -> tuple[list[Prompt], dict[int, int]]:
    """P prompts of all modes, and for the seed of each the tokens of its answer."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(30), 0.6, count).astype(int), 4, LONGEST)
    prompts, targets = [], {}
    for number in range(count):
        mode = list(MODES)[number % len(MODES)]
        text, labels = SENTENCES[number % len(SENTENCES)], LABELS[number % len(LABELS)]
        message = text if mode == "sift_s" else f"<audio><meta>{labels}</meta><text>{text}</text></audio>"
        prompts.append(Prompt("bench", f"bench/{number}", mode, "", MODES[mode].system_prompt, message, 1, number))
        targets[number] = int(lengths[number])
    return prompts, targets


def enforce(scores: Any, targets: Sequence[int], step: int, ends: Sequence[int]) -> Any:
    """Forbid the end tokens before each row's length, and force one there."""
    scores = scores.clone()
    for row, target in enumerate(targets):
        if step + 1 < target:
            scores[row, ends] = -np.inf
        else:
            scores[row] = -np.inf
            scores[row, ends[0]] = 0
    return scores


def ours(engine: TransformersEngine, prompts: Sequence[Prompt], targets: dict[int, int]) -> tuple[float, int, int]:
    """Seconds, tokens, and rows times steps that the model computed."""
    ends = sorted(engine._end_tokens)
    computed = 0

    class Enforced(SeededSampler):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            nonlocal computed
            computed += len(scores)
            step = input_ids.shape[1] - self.prompt_length
            return super().__call__(input_ids, enforce(scores, [targets[seed] for seed in self.seeds], step, ends))

    with patch.object(engine_module, "SeededSampler", Enforced):
        started = time.perf_counter()
        responses = [response for batch in engine.generate(prompts) for response in batch]
        seconds = time.perf_counter() - started
    tokens = sum(response.response_tokens for response in responses)
    if tokens != sum(targets.values()):
        raise RuntimeError(f"our engine wrote {tokens} tokens, not {sum(targets.values())}")
    return seconds, tokens, computed


def reference(
    engine: TransformersEngine, prompts: Sequence[Prompt], targets: dict[int, int], batch_size: int
) -> tuple[float, int, int]:
    """The same by the reference's pipeline."""
    from datasets import Dataset
    from transformers import GenerationConfig, LogitsProcessorList, pipeline
    from transformers.pipelines.pt_utils import KeyDataset

    ends, pad = sorted(engine._end_tokens), engine.tokenizer.pad_token_id
    texts = [engine.render(prompt) for prompt in prompts]
    encoded = engine.tokenizer(texts, add_special_tokens=False)["input_ids"]
    waiting: dict[tuple[int, ...], list[int]] = {}
    for tokens, prompt in zip(encoded, prompts, strict=True):
        waiting.setdefault(tuple(tokens), []).append(targets[prompt.seed])
    computed, written = 0, 0

    class Enforced:
        width, last = 0, -1
        rows: Sequence[int] = ()

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            nonlocal computed, written
            if input_ids.shape[1] != self.last + 1:  # a new batch
                self.width = input_ids.shape[1]
                self.rows = [waiting[_without_padding(row, pad)].pop(0) for row in input_ids.tolist()]
                written += sum(self.rows)
            self.last = input_ids.shape[1]
            computed += len(scores)
            return enforce(scores, self.rows, input_ids.shape[1] - self.width, ends)

    pipe = pipeline("text-generation", model=engine.model, tokenizer=engine.tokenizer)
    config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.92,
        top_k=50,
        max_new_tokens=LONGEST,
        eos_token_id=ends,
        pad_token_id=pad,
    )
    started = time.perf_counter()
    for _ in pipe(
        KeyDataset(Dataset.from_dict({"text": texts}), "text"),
        batch_size=batch_size,
        return_full_text=False,
        generation_config=config,
        logits_processor=LogitsProcessorList([Enforced()]),
        add_special_tokens=False,
    ):
        pass
    return time.perf_counter() - started, written, computed


def _without_padding(row: list[int], pad: int) -> tuple[int, ...]:
    start = next(at for at, token in enumerate(row) if token != pad)
    return tuple(row[start:])


def measure(count: int, rounds: int, batch_size: int) -> dict[str, float]:
    """Run both sides by turns and return the figures."""
    with tempfile.TemporaryDirectory() as name:
        model = ensure_small_model(Path(name))
        settings = Settings(
            profile="production",  # the reference's sampling, and all cores
            model_name=str(model),
            dtype="float32",
            batch_size=batch_size,
            sampling={"max_new_tokens": LONGEST},
        )
        engine = TransformersEngine(settings)
        engine.load()
        prompts, targets = make_prompts(count)
        by_us, by_reference = [], []
        for _ in range(rounds):
            by_us.append(ours(engine, prompts, targets))
            by_reference.append(reference(engine, prompts, targets, batch_size))
    tokens = by_us[0][1]
    seconds, reference_seconds = (statistics.median(run[0] for run in runs) for runs in (by_us, by_reference))
    print(f"model: {EMBEDDED_MODEL}, {batch_size} rows a batch; waste: rows computed after they had ended")
    return {
        "prompts": count,
        "tokens": tokens,
        "cpu_seconds": seconds,
        "cpu_tokens_per_s": tokens / seconds,
        "cpu_responses_per_s": count / seconds,
        "cpu_waste": 1 - tokens / by_us[0][2],
        "reference_seconds": reference_seconds,
        "reference_tokens_per_s": tokens / reference_seconds,
        "reference_waste": 1 - tokens / by_reference[0][2],
        "cpu_ratio": statistics.median(r[0] / u[0] for u, r in zip(by_us, by_reference, strict=True)),
    }
