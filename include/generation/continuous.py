"""Continuous batching on a GPU: a row that has ended makes room for the next one at the very next step.

Token ids in, token ids out, by transformers' own continuous batching: paged attention, the prompts' common beginning
kept once, CUDA graphs. Imports neither settings nor the warehouse, so that it can be measured on a bare machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from include.generation.sampling import GumbelSampler

if TYPE_CHECKING:
    from include.settings import Sampling

log = logging.getLogger(__name__)

# Rows at once, unless memory ends it earlier; the logits of so many rows take half a GiB.
MAX_ROWS = 1024
# Of the memory that is free beside the weights; the rest is for logits and activations.
CACHE_SHARE = 0.8
# Small enough that the system prompt, some 80 tokens, fills whole pages: only those are shared.
PAGE_TOKENS = 32
# FlashAttention 2 reads no smaller pages.
FLASH_2_PAGE_TOKENS = 256
# Rows are handed on together, so that storing them is not a transaction a row.
HAND_ON_ROWS = 64
HAND_ON_AFTER_S = 2.0
# How long the loop in the background may take to stop: some steps.
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class FinishedRow:
    """One row's answer.

    Attributes:
        row: Its place among the prompts.
        tokens: What the model wrote, its end token included.
    """

    row: int
    tokens: list[int]


def attention_kernel() -> str:
    """Return the fastest attention that is installed, as `from_pretrained` takes it; nothing is fetched for it."""
    from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


class ContinuousBatcher:
    """Answers rows of token ids, as many at once as fit.

    Attributes:
        model: A causal language model of transformers, on its device, in the type it computes in.
        max_rows: Rows at once; halved when memory runs out.
        config: transformers' `ContinuousBatchingConfig` with all that it decided itself, after the first call.
    """

    def __init__(
        self,
        model: Any,
        sampling: Sampling,
        end_tokens: Collection[int],
        max_rows: int = MAX_ROWS,
        cache_tokens: int | None = None,
    ) -> None:
        """Remember all that; nothing is allocated.

        Args:
            model: See above.
            sampling: `temperature`, `top_p` and `top_k` count; it must ask for nothing else (`can_sample`).
            end_tokens: Tokens that end a row; none: every row is as long as its limit.
            max_rows: Most rows at once.
            cache_tokens: Tokens whose keys and values are kept, over all rows; None: what fits into CACHE_SHARE of the
                memory that is free.
        """
        self.model = model
        self.max_rows = max_rows
        self.config: Any = None
        self._sampling = sampling
        self._end_tokens = sorted(end_tokens) or [-1]
        self._cache_tokens = cache_tokens
        self._cache_share = CACHE_SHARE

    @staticmethod
    def can_sample(sampling: Sampling) -> bool:
        """Whether rows can be sampled so: what looks at a whole answer at every step cannot be done here."""
        return sampling.repetition_penalty == 1 and not sampling.stop_after_sentences

    def generate(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> Iterator[list[FinishedRow]]:
        """Answer N rows; those that have ended are handed on while others are written.

        Out of memory halves the rows at once, for this call and those to come, and goes on with what has not ended.

        Args:
            prompts: N rows of token ids.
            limits: For each, the tokens after which it is cut.

        Yields:
            Lists of finished rows as they end, N rows in all.

        Raises:
            RuntimeError: If the model fails, or memory does not suffice for one row.
        """
        todo = dict(enumerate(prompts))
        while todo:
            try:
                for finished in self._run(todo, limits):
                    for row in finished:
                        del todo[row.row]
                    yield finished
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.max_rows == 1:
                    raise
                self._shrink()
                log.warning("out of memory; going on with %d rows at once, %d left", self.max_rows, len(todo))

    def _run(self, todo: dict[int, Sequence[int]], limits: Sequence[int]) -> Iterator[list[FinishedRow]]:
        """Answer rows, until all have ended or one has failed."""
        # Neighbours share most of their beginning, and the longest come first: no long row is left over at the end.
        order = sorted(todo, key=lambda row: tuple(todo[row]), reverse=True)
        longest = max(len(todo[row]) + limits[row] for row in order)
        with self._manager(longest, len(order)) as manager:
            for row in order:
                manager.add_request(
                    list(todo[row]),
                    request_id=str(row),
                    max_new_tokens=limits[row],
                    eos_token_id=self._end_tokens,
                )
            yield from self._collected(manager, len(order))

    def _collected(self, manager: Any, count: int) -> Iterator[list[FinishedRow]]:
        """Collect finished rows into lists worth storing."""
        batch: list[FinishedRow] = []
        deadline = time.monotonic() + HAND_ON_AFTER_S
        while count:
            output = manager.get_result(timeout=0.5)
            if output is not None:
                if output.error is not None:
                    raise RuntimeError(output.error)
                batch.append(FinishedRow(int(output.request_id), list(output.generated_tokens)))
                count -= 1
            elif not manager.is_running():
                raise RuntimeError("continuous batching ended before its rows did; see the log above")
            if batch and (len(batch) >= HAND_ON_ROWS or not count or time.monotonic() > deadline):
                yield batch
                batch, deadline = [], time.monotonic() + HAND_ON_AFTER_S

    @contextmanager
    def _manager(self, longest: int, count: int) -> Iterator[Any]:
        """Run transformers' manager; its cache and CUDA graphs are kept for the next call unless something failed."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList
        from transformers.generation.continuous_batching.cb_logits_processors import (
            ContinuousBatchingLogitsProcessorList,
        )
        from transformers.generation.continuous_batching.utils import WorkloadHints

        with torch.no_grad():
            manager = self.model.init_continuous_batching(
                # The sampler makes the greedy choice a sample.
                generation_config=GenerationConfig(do_sample=False, eos_token_id=self._end_tokens),
                continuous_batching_config=self._config(),
                workload_hints=WorkloadHints(
                    max_prompt_length=longest, max_generated_length=0, num_requests=max(count, self.max_rows)
                ),
            )
            # Its own top-p sorts the whole vocabulary, and its draw runs over all of it: at many rows most of the time.
            sampler = LogitsProcessorList([GumbelSampler(self._sampling)])
            manager.logit_processor = ContinuousBatchingLogitsProcessorList(sampler)
            if not manager.warmed_up:
                self._warm_up(manager)
            manager.start()
            whole = False
            try:
                yield manager
                whole = True
            finally:
                manager.stop(timeout=STOP_TIMEOUT_S, hard_stop=not whole, keep_for_next_session=whole)
                if not whole:
                    self.model.destroy_cached_continuous_batching_manager()

    def _warm_up(self, manager: Any) -> None:
        """Allocate the cache and capture the CUDA graphs."""
        try:
            manager.warmup()
        except (MemoryError, ValueError) as error:  # transformers' words for a cache that would have no page
            raise RuntimeError(
                f"the memory that is free beside the weights holds no keys and values: {error}. Is another process on "
                "this device?"
            ) from error
        self.config = manager.continuous_batching_config
        log.info("continuous batching: %s", self.config)

    def _config(self) -> Any:
        from transformers import ContinuousBatchingConfig

        flash_2 = self.model.config._attn_implementation == "flash_attention_2"
        page_tokens = FLASH_2_PAGE_TOKENS if flash_2 else PAGE_TOKENS
        known = {field.name for field in fields(ContinuousBatchingConfig)}  # the names have changed between versions
        wanted: dict[str, Any] = {
            "page_size" if "page_size" in known else "block_size": page_tokens,
            "max_requests_per_batch": self.max_rows,
            "max_memory_percent": self._cache_share,
            "auto_switch_to_flash": False,  # chosen when the model was loaded, and never fetched
        }
        if self._cache_tokens:
            wanted |= {"num_blocks": self._cache_tokens // page_tokens, "max_batch_tokens": self._cache_tokens}
        return ContinuousBatchingConfig(**{name: value for name, value in wanted.items() if name in known})

    def _shrink(self) -> None:
        import gc

        import torch

        self.max_rows = max(1, self.max_rows // 2)
        self._cache_share *= 0.8
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: `torch.OutOfMemoryError` is one of these, the CPU's allocator has no class of its own."""
    return "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower()
