"""Generation on a GPU, at SmolLM3-3B's shape with random weights: our engine against the reference's pipeline.

Needs torch, transformers and numpy alone, so it runs on a bare machine. Prompts are random ids of real lengths: a
common beginning for each mode, as its system prompt is, and a clip's own part. Answer lengths are drawn as on the CPU,
with the reference's limit of 256 tokens, and enforced on both sides.

The roofline is the least time that the schedule's steps can take on this device: each step costs the larger of its
arithmetic at the speed of a large bf16 matrix product, and its memory traffic (weights once, keys and values of all
rows) at the speed of a large copy. Both speeds are measured on the spot.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from include.generation.continuous import PAGE_TOKENS, ContinuousBatcher, attention_kernel, is_out_of_memory

# The published config of SmolLM3-3B; its class's defaults are another model.
SMOLLM3_3B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 65_536,
    "rope_theta": 5_000_000.0,
    "rms_norm_eps": 1e-6,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "bos_token_id": 128_000,
    "eos_token_id": 128_012,
    "pad_token_id": 128_004,
}
TINY: dict[str, Any] = {
    **SMOLLM3_3B,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "no_rope_layers": [1, 1, 1, 0],
    "bos_token_id": 500,
    "eos_token_id": 501,
    "pad_token_id": 502,
}
"""The same in small: shows that this file runs, and measures nothing."""

SAMPLING = SimpleNamespace(temperature=0.8, top_p=0.92, top_k=50, repetition_penalty=1.0, stop_after_sentences=0)
LONGEST = 256
# Tokens of the rendered system part of sift_s, sift_ssp and sit_ssp, counted with the template at hand.
SYSTEM_TOKENS = (62, 80, 104)
# The script's own batch; where it does not fit, half of it, and so on.
REFERENCE_BATCH = 2048
REACH = {"gpu_ratio": ">= 5", "roofline_share": ">= 0.5 with a flash kernel"}


@dataclass(frozen=True)
class Workload:
    """P prompts as token ids, and the length of each one's answer."""

    prompts: list[list[int]]
    lengths: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Ceilings:
    """What this device can do at best: FLOP/s of a bf16 matrix product, bytes/s of a copy, read and written."""

    flops: float
    bandwidth: float


def make_workload(count: int, vocabulary: int) -> Workload:
    """Prompts of all modes in mixed order, as they come from the warehouse."""
    generator = np.random.default_rng(0)
    highest = min(vocabulary, 128_000) - 20  # no special token
    systems = [generator.integers(highest, size=size).tolist() for size in SYSTEM_TOKENS]
    own = np.clip(generator.lognormal(np.log(25), 0.5, count).astype(int), 5, 150)
    lengths = np.clip(generator.lognormal(np.log(30), 0.6, count).astype(int), 4, LONGEST)
    prompts = [
        systems[row % len(systems)] + generator.integers(highest, size=int(size)).tolist()
        for row, size in enumerate(own)
    ]
    return Workload(prompts, lengths.tolist())


def measure_ceilings(device: str) -> Ceilings:
    """Time a large matrix product and a large copy."""
    import torch

    size, count = (8192, 2 << 30) if device == "cuda" else (512, 32 << 20)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * size**3 / _timed(lambda: left @ right, device)
    source = torch.empty(count, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Ceilings(flops, 2 * count / _timed(lambda: target.copy_(source), device))


def _timed(work: Callable[[], Any], device: str, rounds: int = 10) -> float:
    """Seconds of one call, the median of some."""
    import torch

    seconds = []
    for _ in range(rounds + 3):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[3:])


def make_model(shape: dict[str, Any], device: str, attention: str) -> Any:
    """A model with random weights."""
    import torch
    from transformers import AutoModelForCausalLM, SmolLM3Config

    config = SmolLM3Config(**shape)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return model.eval()


def by_us(batcher: ContinuousBatcher, work: Workload) -> float:
    """Seconds that our engine takes."""
    started = time.perf_counter()
    rows = [row for finished in batcher.generate(work.prompts, work.lengths) for row in finished]
    seconds = time.perf_counter() - started
    if sorted((row.row, len(row.tokens)) for row in rows) != list(enumerate(work.lengths)):
        raise RuntimeError("our engine did not write what it was told")
    return seconds


def by_reference(model: Any, work: Workload, batch_size: int) -> float:
    """Seconds that the reference's pipeline takes: unsorted, in static batches, sampling over the whole vocabulary."""
    from transformers import GenerationConfig, LogitsProcessorList, pipeline

    end, pad = model.config.eos_token_id, model.config.pad_token_id
    tokenizer = _tokenizer(model.config.vocab_size, end, pad)
    forced = _ForcedLengths(work.lengths, end)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    config = GenerationConfig(
        do_sample=True,
        temperature=SAMPLING.temperature,
        top_p=SAMPLING.top_p,
        top_k=SAMPLING.top_k,
        max_new_tokens=LONGEST,
        eos_token_id=end,
        pad_token_id=pad,
    )
    texts = [" ".join(map(str, prompt)) for prompt in work.prompts]
    started = time.perf_counter()
    answers = pipe(
        texts,
        batch_size=batch_size,
        return_full_text=False,
        generation_config=config,
        logits_processor=LogitsProcessorList([forced]),
        add_special_tokens=False,
    )
    seconds = time.perf_counter() - started
    if len(answers) != len(texts) or forced.taken != len(texts):
        raise RuntimeError("the reference did not answer every prompt once")
    return seconds


class _ForcedLengths:
    """A logits processor that forbids the end token before each row's length, and forces it there."""

    def __init__(self, lengths: Sequence[int], end: int) -> None:
        self.lengths, self.end, self.taken = lengths, end, 0
        self._width, self._last, self._targets = 0, -1, None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        if input_ids.shape[1] != self._last + 1 or self._targets is None:  # a new batch; they come in order
            self._width = input_ids.shape[1]
            rows = self.lengths[self.taken : self.taken + len(input_ids)]
            self._targets = torch.tensor(rows, device=scores.device)
            self.taken += len(input_ids)
        self._last = input_ids.shape[1]
        ends_now = self._targets <= input_ids.shape[1] - self._width + 1
        scores[:, self.end] = -np.inf
        scores[ends_now] = -np.inf
        scores[ends_now, self.end] = 0
        return scores


def _tokenizer(vocabulary: int, end: int, pad: int) -> Any:
    """A tokenizer whose words are token ids: no model's own can be had without a hub."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {str(number): number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, "0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=str(end), pad_token=str(pad), padding_side="left"
    )


def roofline_seconds(model: Any, work: Workload, ceilings: Ceilings, max_rows: int, max_step_tokens: int) -> float:
    """The least time for this work in steps of at most so many rows and tokens.

    Rows are admitted as others end; of a prompt, the pages that an earlier one of its mode has filled are not computed.
    """
    config = model.config
    embedding = config.vocab_size * config.hidden_size
    body = sum(weight.numel() for weight in model.parameters()) - embedding  # the head is tied to the embedding
    head_dim = config.hidden_size // config.num_attention_heads
    kv_bytes = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim  # of a token, in bf16
    attention = 4 * config.num_hidden_layers * config.hidden_size  # FLOPs of a token and a token that it looks at
    shared = [size // PAGE_TOKENS * PAGE_TOKENS for size in SYSTEM_TOKENS]
    waiting = deque(range(len(work.prompts)))
    seen: set[int] = set()
    active: dict[int, list[int]] = {}  # row -> [tokens in the cache, tokens still to write]
    seconds = 0.0
    while waiting or active:
        queries = written = len(active)
        looked_at = sum(context for context, _ in active.values())
        read = looked_at
        for row in list(active):
            active[row][0] += 1
            active[row][1] -= 1
        while waiting and len(active) < max_rows:
            row = waiting[0]
            mode, size = row % len(SYSTEM_TOKENS), len(work.prompts[row])
            new = size - (shared[mode] if mode in seen else 0)
            if queries + new > max_step_tokens:
                break
            waiting.popleft()
            seen.add(mode)
            queries += new
            looked_at += new * (2 * size - new) // 2
            read += size - new
            written += 1
            active[row] = [size, work.lengths[row] - 1]
        flops = 2 * body * queries + 2 * embedding * written + attention * looked_at
        traffic = 2 * (body + embedding) + kv_bytes * (read + queries)
        seconds += max(flops / ceilings.flops, traffic / ceilings.bandwidth)
        active = {row: state for row, state in active.items() if state[1] > 0}
    return seconds


def measure(count: int, rounds: int, shape: dict[str, Any], device: str, **options: Any) -> dict[str, float]:
    """Run both sides by turns and return the figures.

    Args:
        count: Prompts.
        rounds: Times each side runs, after a first one that is not counted.
        shape: Of the model.
        device: "cuda", or "cpu" to try this file.
        **options: For the ContinuousBatcher.
    """
    import torch

    kernel = attention_kernel() if device == "cuda" else "sdpa"
    ceilings = measure_ceilings(device)
    work = make_workload(count, shape["vocab_size"])
    model = make_model(shape, device, kernel)
    batcher = ContinuousBatcher(model, SAMPLING, (), **options)
    reference = make_model(shape, device, "sdpa")  # as the reference loads it
    batch_size = REFERENCE_BATCH
    ours, theirs = [], []
    for turn in range(rounds + 1):
        ours.append(by_us(batcher, work))
        # The reference has the device to itself.
        model.destroy_cached_continuous_batching_manager()
        if device == "cuda":
            torch.cuda.empty_cache()
        while True:
            try:
                theirs.append(by_reference(reference, work, batch_size))
                break
            except RuntimeError as error:
                if not is_out_of_memory(error) or batch_size == 1:
                    raise
                batch_size //= 2
        print(f"turn {turn}{'' if turn else ' (not counted)'}: {ours[-1]:.1f} s and {theirs[-1]:.1f} s", flush=True)
    seconds, reference_seconds = statistics.median(ours[1:]), statistics.median(theirs[1:])
    ideal = roofline_seconds(model, work, ceilings, batcher.max_rows, batcher.config.max_batch_tokens)
    batches = [work.lengths[at : at + batch_size] for at in range(0, count, batch_size)]
    steps = sum(max(lengths) * len(lengths) for lengths in batches)
    print(f"attention: {kernel}; at most {batcher.max_rows} rows at once, {batcher.config}")
    return {
        "prompts": count,
        "tokens": work.tokens,
        "gpu_seconds": seconds,
        "gpu_tokens_per_s": work.tokens / seconds,
        "gpu_responses_per_s": count / seconds,
        "reference_batch": batch_size,
        "reference_seconds": reference_seconds,
        "reference_tokens_per_s": work.tokens / reference_seconds,
        "reference_waste": 1 - work.tokens / steps,
        "copy_gb_per_s": ceilings.bandwidth / 1e9,
        "bf16_tflops": ceilings.flops / 1e12,
        "roofline_seconds": ideal,
        "gpu_ratio": statistics.median(t / o for o, t in zip(ours[1:], theirs[1:], strict=True)),
        "roofline_share": ideal / seconds,
    }
