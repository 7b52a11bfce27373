"""Seeded sampling: rows are independent of their batch, and the warped distribution is the one asked for."""

import numpy as np
import pytest

from include.generation.sampling import GumbelSampler, SeededSampler, SentenceLimit, gumbel_noise
from include.settings import Sampling

torch = pytest.importorskip("torch")

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def sample(sampling: Sampling, seeds: list[int], answers: list[list[int]] | None = None) -> list[int]:
    """Sample one token per seed from LOGITS, behind a prompt of two tokens."""
    prompt = torch.tensor([[0, 1]] * len(seeds))
    tokens = prompt if answers is None else torch.cat([prompt, torch.tensor(answers)], dim=1)
    scores = LOGITS.repeat(len(seeds), 1)
    return list(SeededSampler(sampling, seeds, 2)(tokens, scores).argmax(dim=-1).tolist())


def shares(sampling: Sampling, rows: int = 20_000) -> np.ndarray:
    return np.bincount(sample(sampling, list(range(rows))), minlength=len(LOGITS)) / rows


def test_a_rows_noise_depends_on_its_seed_and_step_alone() -> None:
    together = gumbel_noise([3, 5, 2**63 - 1], step=4, size=50)
    assert together.shape == (3, 50)
    np.testing.assert_array_equal(gumbel_noise([5], step=4, size=50)[0], together[1])
    assert not np.array_equal(gumbel_noise([5], step=5, size=50)[0], together[1])
    assert not np.array_equal(together[0], together[2])


def test_a_row_is_sampled_alike_in_any_batch() -> None:
    sampling = Sampling(temperature=1.5)
    seeds = list(range(200))
    assert sample(sampling, seeds)[::-1] == sample(sampling, seeds[::-1])
    assert [sample(sampling, [seed])[0] for seed in seeds[:20]] == sample(sampling, seeds)[:20]
    assert len(set(sample(sampling, seeds))) > 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_distribution_is_the_softmax_at_the_temperature(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(dim=-1).numpy()
    np.testing.assert_allclose(shares(Sampling(temperature=temperature, top_p=1, top_k=0)), expected, atol=0.015)


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    assert set(np.flatnonzero(shares(Sampling(temperature=1, top_p=1, top_k=2)))) == {0, 1}
    probabilities = LOGITS.softmax(dim=-1)  # 0.55, 0.20, 0.12, 0.07, ...
    kept = set(np.flatnonzero(shares(Sampling(temperature=1, top_p=0.7, top_k=0))))
    assert float(probabilities[:1].sum()) < 0.7 < float(probabilities[:2].sum())
    assert kept == {0, 1}  # the one that crosses the limit stays
    assert set(np.flatnonzero(shares(Sampling(temperature=1, top_p=0.01)))) == {0}


def test_the_devices_own_noise_gives_the_same_distribution() -> None:
    torch.manual_seed(0)
    tokens, scores = torch.zeros(20_000, 1, dtype=torch.int64), LOGITS.repeat(20_000, 1)
    for sampling in (Sampling(temperature=0.8, top_p=0.92, top_k=50), Sampling(temperature=1, top_p=0.7, top_k=3)):
        drawn = GumbelSampler(sampling)(tokens, scores).argmax(dim=-1).numpy()
        np.testing.assert_allclose(np.bincount(drawn, minlength=6) / 20_000, shares(sampling), atol=0.015)
    assert set(GumbelSampler(Sampling(temperature=0))(tokens[:9], scores[:9]).argmax(dim=-1).tolist()) == {0}


def test_temperature_zero_is_greedy() -> None:
    assert set(sample(Sampling(temperature=0), list(range(50)))) == {0}


def test_the_penalty_looks_at_the_answer_alone() -> None:
    greedy = Sampling(temperature=0, repetition_penalty=2)
    assert sample(greedy, [1]) == [0]  # token 0 stands in the prompt
    assert sample(greedy, [1, 1, 1], [[0, 0], [1, 1], [0, 1]]) == [0, 0, 0]  # 2.0 / 2, once, is as much as token 1's
    assert sample(Sampling(temperature=0, repetition_penalty=1.9), [1], [[5]]) == [0]
    stronger = SeededSampler(greedy, [1], 1)(torch.tensor([[9, 0, 5]]), LOGITS.repeat(1, 1).clone())
    assert stronger[0].tolist() == [1.0, 1.0, 0.5, 0.0, -1.0, -6.0]


WORDS = {1: "Well", 2: " done", 3: ".", 4: " Bye", 5: "!", 6: " e.g", 9: "<end>"}


def test_rows_end_for_themselves_behind_their_sentences() -> None:
    decoded: list[list[int]] = []

    def decode(tokens: list[int]) -> str:
        decoded.append(tokens)
        return "".join(WORDS[token] for token in tokens)

    limit = SentenceLimit(1, 2, {9}, decode)
    rows = [[1, 2, 3, 4, 5], [1, 2, 2, 2, 2], [1, 6, 3, 2, 3], [1, 3, 9, 9, 9]]
    history = []
    for step in range(1, 6):
        input_ids = torch.tensor([[7, 7, *row[:step]] for row in rows])
        history.append(limit(input_ids, None).tolist())
    assert [row[0] for row in history] == [False, False, False, True, True]
    assert not any(any(row[1:]) for row in history)  # no end mark; an abbreviation; ended by the model
    assert limit.ended == {0: 4}
    assert [1, 2, 2, 2, 2] not in decoded  # a row without end marks is not decoded
