"""The engine that runs a model in this process, with transformers: on the CPU, or on the GPU that was leased."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cached_property
from typing import Any

from include.generation.answer import sentence_end
from include.generation.chat_template import freeze_date
from include.generation.identity import local_model_dir, resolve_revision, unavailable
from include.generation.sampling import SeededSampler, SentenceLimit
from include.schema import FinishReason, Prompt, Response
from include.settings import Settings

log = logging.getLogger(__name__)

# Rows at once on a GPU. SmolLM3-3B keeps 72 KiB a token: 256 rows of 400 tokens need 7 GiB beside 6 GiB of weights.
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
    """Answers prompts in static batches of like length, each row sampled from its own seed.

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

    def load(self) -> None:
        """Load model and tokenizer: from this machine, or from the Hub at one commit.

        Raises:
            ValueError: If the model cannot be had, naming it, its revision and what to do.
        """
        # Threads that wait must sleep, not spin: beside other busy processes, as Airflow's own on two cores, spinning
        # made generation up to five times slower; alone it gains a tenth. Read once, when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # hundreds of lines in a task's log
        folder = local_model_dir(self.settings)
        source: dict[str, Any] = {"pretrained_model_name_or_path": folder or self.settings.model_name}
        if folder is None:
            source["revision"] = resolve_revision(self.settings)
        torch.set_num_threads(cpu_threads(self.settings))
        on_gpu = torch.cuda.is_available()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(**source, padding_side="left", trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                **source,
                dtype=self.settings.dtype,
                attn_implementation="sdpa",
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
        else:
            # Weights column by column: between 4 and 48 rows MKL multiplies 1.3 to 2 times as fast, else as fast.
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.data = module.weight.data.t().contiguous().t()
        log.info("loaded %s on %s, %d rows a batch", self.settings.model_name, self.device, self.batch_size)

    def render(self, prompt: Prompt) -> str:
        """Render a prompt with the model's chat template, thinking off and the date frozen.

        Returns:
            The exact text that is tokenised, up to where the answer begins.
        """
        messages = [{"role": "user", "content": prompt.user_message}]
        if prompt.system_prompt:
            messages.insert(0, {"role": "system", "content": prompt.system_prompt})
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        )

    @cached_property
    def _chat_template(self) -> str:
        return freeze_date(self.tokenizer.get_chat_template(), date.fromisoformat(self.settings.frozen_date))

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Response]]:
        """Answer P prompts in batches of like length, shortest first.

        Yields:
            The responses of each batch as it ends; P in all.
        """
        if not prompts:
            return
        # The template has written every special token already.
        encoded = self.tokenizer([self.render(prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
        rows = sorted(zip(prompts, encoded, strict=True), key=lambda row: (len(row[1]), row[0].sample_id))
        for start in range(0, len(rows), self.batch_size):
            yield self._answer(rows[start : start + self.batch_size])

    def _answer(self, rows: Sequence[tuple[Prompt, list[int]]]) -> list[Response]:
        """Answer one batch of (prompt, its tokens)."""
        sampling = self.settings.sampling
        inputs = self.tokenizer.pad({"input_ids": [tokens for _, tokens in rows]}, return_tensors="pt")
        width = inputs["input_ids"].shape[1]
        limit = SentenceLimit(
            sampling.stop_after_sentences, width, self._end_tokens | {self.tokenizer.pad_token_id}, self._decode
        )
        sequences = self.model.generate(
            **inputs.to(self.model.device),
            max_new_tokens=sampling.max_new_tokens,
            logits_processor=[SeededSampler(sampling, [prompt.seed for prompt, _ in rows], width)],
            stopping_criteria=[limit] if sampling.stop_after_sentences else [],
        )
        return [
            self._response(prompt, len(tokens), answer, limit.ended.get(row))
            for row, ((prompt, tokens), answer) in enumerate(zip(rows, sequences[:, width:].tolist(), strict=True))
        ]

    def _response(self, prompt: Prompt, prompt_tokens: int, answer: list[int], limited: int | None) -> Response:
        """Make a row's response.

        Args:
            prompt: What was asked.
            prompt_tokens: Tokens of the rendered prompt.
            answer: The row's tokens behind the prompt, padded behind its end.
            limited: Tokens at which the sentence limit ended it; None if it did not.
        """
        finish_reason: FinishReason = "length"
        written = next((at for at, token in enumerate(answer) if token in self._end_tokens), None)
        if written is not None and (limited is None or written < limited):
            finish_reason, response_tokens = "stop", written + 1
        else:
            written = response_tokens = limited or len(answer)
        text = self._decode(answer[:written])
        sentences = self.settings.sampling.stop_after_sentences
        if finish_reason != "stop" and sentences:
            end = sentence_end(text, sentences, finished=True)  # the limit may also fall on a sentence's end
            if end is not None:
                text, finish_reason = text[:end], "sentences"
        return Response(prompt, text, finish_reason, prompt_tokens, response_tokens)

    def _decode(self, tokens: list[int]) -> str:
        """Tokens -> text, special tokens left visible so that leaks can be judged."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
