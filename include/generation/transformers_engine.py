"""The engine that runs a model in this process, with transformers: on the CPU, or on the GPU that was leased."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from include.generation.answer import sentence_end
from include.generation.continuous import ContinuousBatcher, attention_kernel, is_out_of_memory
from include.generation.decoding import DecodedRow, decode_batch
from include.generation.identity import unavailable
from include.generation.rendering import PromptRenderer, load_tokenizer, model_source
from include.generation.sampling import SeededSampler, SentenceLimit
from include.schema import FinishReason, Prompt, Response
from include.settings import Settings

log = logging.getLogger(__name__)

# Rows of a static batch on a GPU. SmolLM3-3B keeps 72 KiB a token: 256 rows of 400 tokens take 7 GiB beside weights.
GPU_BATCH_SIZE = 256


def cpu_threads(settings: Settings) -> int:
    """Return how many threads the CPU engine uses.

    The embedded profile leaves a core to Airflow: threads that wait for each other at every matrix product stand still
    whenever one of them has to share its core (measured on two cores: 58 GFLOP/s with one thread, 6 with two).
    """
    if settings.cpu_threads:
        return settings.cpu_threads
    # The cores we were given, not those the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1) if settings.profile == "embedded" else cores


class TransformersEngine:
    """Answers prompts with a model of its own.

    On the CPU in static batches of like length, each row sampled from its own seed. On a GPU by continuous batching, or
    as on the CPU where the sampling asks for what that cannot do (a repetition penalty, a limit of sentences).

    Attributes:
        name: "transformers".
        device: "cpu", or the GPU's name; known after `load()`.
        tokenizer: The model's tokenizer, after `load()`.
        model: The model, after `load()`.
    """

    name = "transformers"

    def __init__(self, settings: Settings) -> None:
        """Remember the settings; nothing is loaded.

        Args:
            settings: Model, revision, dtype, sampling, batch size and frozen date count.
        """
        self.settings = settings
        self.device = "cpu"
        self.batch_size = settings.batch_size
        self.tokenizer: Any = None
        self.model: Any = None
        self._end_tokens: frozenset[int] = frozenset()
        self._batcher: ContinuousBatcher | None = None

    def load(self) -> None:
        """Load model and tokenizer: from this machine, or from the Hub at one commit.

        Raises:
            ValueError: If the model cannot be had, naming it, its revision and what to do.
        """
        # Threads that wait must sleep, not spin: beside other busy processes, as Airflow's own on two cores, spinning
        # made generation up to five times slower; alone it gains a tenth. Read once, when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # hundreds of lines in a task's log
        torch.set_num_threads(cpu_threads(self.settings))
        on_gpu = torch.cuda.is_available()
        continuous = on_gpu and ContinuousBatcher.can_sample(self.settings.sampling)
        self.tokenizer = load_tokenizer(self.settings)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                **model_source(self.settings),
                dtype=self.settings.dtype,
                attn_implementation=attention_kernel() if continuous else "sdpa",
                use_safetensors=True,
                trust_remote_code=False,
            )
        except OSError as error:
            raise unavailable(self.settings, error) from error
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self._end_tokens = frozenset(end for end in (*ends, self.tokenizer.eos_token_id) if end is not None)
        # The model's own generation config would fill in what we leave out, e.g. its temperature.
        model.generation_config = GenerationConfig(
            do_sample=False,  # the sampler makes the greedy choice a sample
            eos_token_id=sorted(self._end_tokens),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.model = model.eval().to("cuda" if on_gpu else "cpu")
        if on_gpu:
            self.device, self.batch_size = torch.cuda.get_device_name(0), GPU_BATCH_SIZE
            if continuous:
                self._batcher = ContinuousBatcher(self.model, self.settings.sampling, self._end_tokens)
        else:
            # Weights column by column: between 4 and 48 rows MKL multiplies 1.3 to 2 times as fast, else as fast.
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.data = module.weight.data.t().contiguous().t()
        how = "continuous batching" if continuous else f"{self.batch_size} rows a batch"
        log.info(
            "loaded %s on %s: %s, attention %s",
            *(self.settings.model_name, self.device, how, self.model.config._attn_implementation),
        )

    def render(self, prompt: Prompt) -> str:
        """Render a prompt with the model's chat template, thinking off and the date frozen.

        Returns:
            The exact text that is tokenised, up to where the answer begins.
        """
        return self._renderer.render(prompt)

    @cached_property
    def _renderer(self) -> PromptRenderer:
        return PromptRenderer(self.tokenizer, self.settings.frozen_date)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Response]]:
        """Answer P prompts: on a GPU by continuous batching, else in batches of like length, shortest first.

        Out of memory halves the rows at once, for this call and those to come, and goes on.

        Yields:
            Responses as they end; P in all.
        """
        if not prompts:
            return
        # The template has written every special token already.
        encoded = self.tokenizer([self.render(prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
        if self._batcher:
            yield from self._answer_continuously(self._batcher, prompts, encoded)
            return
        rows = sorted(zip(prompts, encoded, strict=True), key=lambda row: (len(row[1]), row[0].sample_id))
        start = 0
        while start < len(rows):
            batch = rows[start : start + self.batch_size]
            try:
                responses = self._answer(batch)
            except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator has no class of its own
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                self.batch_size = len(batch) // 2
                log.warning("out of memory with %d rows; going on with %d", len(batch), self.batch_size)
                continue
            start += len(batch)
            yield responses

    def _answer_continuously(
        self, batcher: ContinuousBatcher, prompts: Sequence[Prompt], encoded: Sequence[list[int]]
    ) -> Iterator[list[Response]]:
        """Answer P prompts, whose tokens are `encoded`, as rows end."""
        for finished in batcher.generate(encoded, [self.settings.sampling.max_new_tokens] * len(prompts)):
            responses = []
            for row in finished:
                by_model = bool(row.tokens) and row.tokens[-1] in self._end_tokens
                answer = DecodedRow(row.tokens[:-1], "model") if by_model else DecodedRow(row.tokens, "length")
                responses.append(self._response(prompts[row.row], len(encoded[row.row]), answer))
            yield responses

    def _answer(self, rows: Sequence[tuple[Prompt, list[int]]]) -> list[Response]:
        """Answer one batch of (prompt, its tokens)."""
        sampling = self.settings.sampling
        inputs = self.tokenizer.pad({"input_ids": [tokens for _, tokens in rows]}, return_tensors="pt")
        width = inputs["input_ids"].shape[1]
        limit = None
        if sampling.stop_after_sentences:
            limit = SentenceLimit(sampling.stop_after_sentences, width, self._end_tokens, self._decode)
        sampler = SeededSampler(sampling, [prompt.seed for prompt, _ in rows], width)
        decoded = decode_batch(
            self.model, inputs.to(self.model.device), sampler, limit, self._end_tokens, sampling.max_new_tokens
        )
        return [
            self._response(prompt, len(tokens), answer) for (prompt, tokens), answer in zip(rows, decoded, strict=True)
        ]

    def _response(self, prompt: Prompt, prompt_tokens: int, answer: DecodedRow) -> Response:
        """Make a row's response."""
        text, sentences = self._decode(answer.tokens), self.settings.sampling.stop_after_sentences
        if answer.ended_by == "model":
            return Response(prompt, text, "stop", prompt_tokens, len(answer.tokens) + 1)
        # The limit of tokens may fall on a sentence's end as well.
        end = sentence_end(text, sentences, finished=True) if sentences else None
        reason: FinishReason = "length" if end is None else "sentences"
        return Response(prompt, text[:end], reason, prompt_tokens, len(answer.tokens))

    def _decode(self, tokens: list[int]) -> str:
        """Tokens -> text, special tokens left visible so that leaks can be judged."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
