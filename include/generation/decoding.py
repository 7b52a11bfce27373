"""The decoding loop of static batches: rows that have ended leave the batch, so that nobody waits for the longest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from include.generation.sampling import SeededSampler, SentenceLimit

Tensor = Any

# The batch is made smaller when this share of its rows has ended: doing so copies what attention remembers of the rest.
ENDED_SHARE = 1 / 8


@dataclass(frozen=True)
class DecodedRow:
    """What one row's model wrote.

    Attributes:
        tokens: Its tokens, without the end token.
        ended_by: "model" (an end token), "sentences" (the sentence limit) or "length".
    """

    tokens: list[int]
    ended_by: str


def decode_batch(
    model: Any,
    inputs: Any,
    sampler: SeededSampler,
    limit: SentenceLimit | None,
    end_tokens: Collection[int],
    max_new_tokens: int,
) -> list[DecodedRow]:
    """Write the answers of one batch.

    Each step is the model's forward pass on the rows that have not ended, then the sampler, then the greedy choice:
    what `model.generate` does, without keeping rows that are done.

    Args:
        model: A causal language model of transformers.
        inputs: `input_ids` and `attention_mask` of B prompts, padded on the left to T tokens.
        sampler: Warps logits, with one seed for each of the B rows.
        limit: Ends rows after whole sentences; None: it does not.
        end_tokens: Tokens that end a row.
        max_new_tokens: Tokens after which a row is cut.

    Returns:
        B rows, in the order of the prompts.
    """
    import torch
    from transformers import DynamicCache

    sequences, mask = inputs["input_ids"], inputs["attention_mask"]
    width = sequences.shape[1]
    ends = torch.tensor(sorted(end_tokens), device=sequences.device)
    cache = DynamicCache(config=model.config)
    done: dict[int, DecodedRow] = {}
    alive = list(range(len(sequences)))  # prompt number of each row that is still in the batch
    step_tokens = sequences
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    with torch.inference_mode():
        for step in range(max_new_tokens):
            output = model(
                input_ids=step_tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = sampler(sequences, output.logits[:, -1]).argmax(dim=-1)
            sequences = torch.cat([sequences, chosen[:, None]], dim=1)
            by_model = torch.isin(chosen, ends)
            by_limit = limit(sequences, output.logits) & ~by_model if limit else torch.zeros_like(by_model)
            last = step + 1 == max_new_tokens
            for row, (model_ended, limited) in enumerate(zip(by_model.tolist(), by_limit.tolist(), strict=True)):
                if alive[row] in done or not (model_ended or limited or last):
                    continue
                tokens = sequences[row, width:].tolist()
                reason = "model" if model_ended else "sentences" if limited else "length"
                done[alive[row]] = DecodedRow(tokens[:-1] if model_ended else tokens, reason)
            kept = [row for row, number in enumerate(alive) if number not in done]
            if not kept:
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
            if len(kept) <= (1 - ENDED_SHARE) * len(alive):
                index = torch.tensor(kept, device=sequences.device)
                cache.batch_select_indices(index)
                sequences, mask, positions = sequences[index], mask[index], positions[index]
                sampler.keep(kept)
                if limit:
                    limit.keep(kept)
                alive = [alive[row] for row in kept]
            step_tokens = sequences[:, -1:]
    return [done[number] for number in range(len(done))]
