"""Seeded sampling and the sentence limit, as transformers' `generate` calls them at every step.

Only methods of the tensors are used, so this module imports no torch; `Tensor` stands for `torch.Tensor`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from include.generation.answer import sentence_end

if TYPE_CHECKING:
    from include.settings import Sampling

Tensor = Any


class SeededSampler:
    """A logits processor that samples each row from its own random stream.

    It adds Gumbel noise to the warped logits, so that the greedy choice which follows is a sample from them
    (the Gumbel-max trick), and draws the noise of a row's step t from Philox keyed by (seed, t). What a row says
    then does not depend on its neighbours in the batch, on the batch size, or on other rows' ends.

    The order of warping is transformers': repetition penalty, temperature, top-k, top-p. The penalty looks at the
    answer's own tokens alone: a prompt's chat markers and padding would change the odds of ending, and a
    transcript's words are meant to be quoted.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], prompt_length: int) -> None:
        """Prepare one batch.

        Args:
            sampling: Temperature 0 means greedy (after the repetition penalty).
            seeds: B seeds, one per row, each in [0, 2**64).
            prompt_length: Tokens in front of the answers, padding included; the same in all rows.
        """
        self.sampling = sampling
        self.seeds = seeds
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Turn logits into scores whose largest entry is the token sampled.

        Args:
            input_ids: (B, T) tokens so far, prompts included.
            scores: (B, V) logits of the next token.

        Returns:
            (B, V) scores; everything but the sampled candidates is -inf.
        """
        scores = scores.float()
        answers = input_ids[:, self.prompt_length :]
        if self.sampling.repetition_penalty != 1 and answers.shape[1]:
            scores = _penalised(scores, answers, self.sampling.repetition_penalty)
        if self.sampling.temperature == 0:
            return scores
        candidates, tokens = _candidates(scores, self.sampling)
        noise = gumbel_noise(self.seeds, step=answers.shape[1], size=candidates.shape[1])
        return _only(scores, tokens, candidates + candidates.new_tensor(noise))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch only, in this order."""
        self.seeds = [self.seeds[row] for row in rows]


class GumbelSampler:
    """A logits processor that samples each row like `SeededSampler`, with noise of the device's own random stream.

    It looks at nothing but one step's logits, so rows of any age may stand beside each other, and all of it can be part
    of a CUDA graph. The penalty, which looks at the whole answer, is not applied.
    """

    supports_continuous_batching = True

    def __init__(self, sampling: Sampling) -> None:
        """Remember temperature (0: greedy), top-k and top-p."""
        self.sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Turn (B, V) logits into scores whose largest entry is the token sampled; `input_ids` is not used."""
        if self.sampling.temperature == 0:
            return scores
        candidates, tokens = _candidates(scores, self.sampling)
        uniform = candidates.new_empty(candidates.shape).uniform_()
        return _only(scores, tokens, candidates - (-uniform.log()).log())


def _candidates(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What top-k and top-p leave: (B, K) scores in falling order, those outside of top-p -inf, and their (B, K) ids."""
    size = min(sampling.top_k or scores.shape[1], scores.shape[1])
    candidates, tokens = (scores / sampling.temperature).topk(size, dim=-1)
    # A token is kept while those before it hold less than top_p; so the first one always is.
    probabilities = candidates.softmax(dim=-1)
    outside = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
    return candidates.masked_fill(outside, -np.inf), tokens


def _only(scores: Tensor, tokens: Tensor, candidates: Tensor) -> Tensor:
    """Scores of the whole vocabulary that are -inf but for the candidates."""
    return scores.new_full(scores.shape, -np.inf).scatter(1, tokens, candidates)


def gumbel_noise(seeds: Sequence[int], step: int, size: int) -> NDArray[np.float32]:
    """Draw the noise of one step.

    Args:
        seeds: B seeds.
        step: Tokens already written.
        size: K candidates.

    Returns:
        (B, K) standard Gumbel variates; row b depends on (seeds[b], step) alone.
    """
    noise = [np.random.Generator(np.random.Philox(key=[seed, step])).gumbel(size=size) for seed in seeds]
    return np.asarray(noise, dtype=np.float32)


def _penalised(scores: Tensor, answers: Tensor, penalty: float) -> Tensor:
    """Make tokens that an answer already has less likely (the rule of Keskar et al. 2019, as in transformers)."""
    repeated = scores.gather(1, answers)
    return scores.scatter(1, answers, (repeated * penalty).where(repeated < 0, repeated / penalty))


class SentenceLimit:
    """A stopping criterion that ends each row for itself once it holds n whole sentences.

    Attributes:
        ended: Rows that it ended: row -> tokens of its answer at that step.
    """

    def __init__(
        self, sentences: int, prompt_length: int, end_tokens: Collection[int], decode: Callable[[list[int]], str]
    ) -> None:
        """Prepare one batch.

        Args:
            sentences: n, at least 1.
            prompt_length: Tokens in front of the answers, padding included.
            end_tokens: Tokens that only finished rows end in: the model's own ends and the padding.
            decode: Tokens -> text.
        """
        self.sentences = sentences
        self.prompt_length = prompt_length
        self.end_tokens = end_tokens
        self.decode = decode
        self.ended: dict[int, int] = {}
        self._terminators: dict[int, int] = {}  # row -> tokens so far that hold a sentence's end mark
        self._has_terminator = cache(lambda token: any(mark in decode([token]) for mark in ".!?…"))

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Say which rows have ended.

        Args:
            input_ids: (B, T) tokens so far, prompts included.
            scores: Not used.
            **kwargs: Not used.

        Returns:
            (B,) booleans.
        """
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if row in self.ended or token in self.end_tokens:
                continue
            # Decoding is only worth it once there are enough end marks.
            self._terminators[row] = self._terminators.get(row, 0) + self._has_terminator(token)
            if self._terminators[row] >= self.sentences:
                answer = input_ids[row, self.prompt_length :].tolist()
                if sentence_end(self.decode(answer), self.sentences) is not None:
                    self.ended[row] = len(answer)
        return input_ids.new_tensor([row in self.ended for row in range(input_ids.shape[0])]).bool()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch only, in this order; none of them has ended."""
        self._terminators = {at: self._terminators.get(row, 0) for at, row in enumerate(rows)}
        self.ended = {}
