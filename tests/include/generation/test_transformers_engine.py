"""The transformers engine: the exact prompt, and answers of the real small model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from include.generation.answer import clean_answer
from include.generation.transformers_engine import TransformersEngine
from include.quality.rules import Answer, judge
from include.schema import Prompt, Response
from include.settings import PROFILES, PROJECT_ROOT, Settings

MakePrompt = Callable[..., Prompt]

SMOLLM3_TEMPLATE = PROJECT_ROOT.parent / "shared" / "reference" / "smollm3_chat_template.jinja"
ANGRY = "<audio><meta>age: young adult, gender: male, emotion: angry</meta><text>leave me alone</text></audio>"
HAPPY = "<audio><meta>gender: female, pace: fast, emotion: happy</meta><text>we won the game</text></audio>"


def answer(engine: TransformersEngine, prompts: Sequence[Prompt], batch_size: int = 8) -> dict[str, Response]:
    engine.batch_size = batch_size
    responses = [response for batch in engine.generate(prompts) for response in batch]
    assert len(responses) == len(prompts)
    return {f"{response.prompt.mode}/{response.prompt.sample_id}": response for response in responses}


def engine_with_template(template: str, **settings: str) -> TransformersEngine:
    """An engine that can render, and nothing else."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    engine = TransformersEngine(Settings(**settings))
    engine.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    engine.tokenizer.chat_template = template
    return engine


def test_smollm3_prompts_are_the_reference_generators_with_a_frozen_date(make_prompt: MakePrompt) -> None:
    if not SMOLLM3_TEMPLATE.is_file():
        pytest.skip("../shared/reference/smollm3_chat_template.jinja is not there")
    engine = engine_with_template(SMOLLM3_TEMPLATE.read_text(encoding="utf-8"), frozen_date="2026-08-29")
    prompt = make_prompt("sift_ssp", ANGRY)
    assert engine.render(prompt) == (
        "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 29 August 2026\n"
        "Reasoning Mode: /no_think\n\n## Custom Instructions\n\n" + prompt.system_prompt + "\n\n"
        "<|im_start|>user\n" + ANGRY + "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n"
    )


def test_an_empty_system_prompt_is_not_sent(make_prompt: MakePrompt) -> None:
    engine = engine_with_template(
        "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}{{ enable_thinking }}"
    )
    prompt = make_prompt()
    assert engine.render(prompt) == f"[system:{prompt.system_prompt}][user:i got the job]False"
    silent = Prompt("ravdess", "ravdess/1", "sift_s", "0", "", "i got the job", 1, 1)
    assert engine.render(silent) == "[user:i got the job]False"


def test_a_model_that_cannot_be_had_is_named_with_what_to_do() -> None:
    engine = TransformersEngine(Settings(model_name="nobody/nothing", model_revision="0" * 40))
    with pytest.raises(ValueError, match="'nobody/nothing' at revision '0000") as error:
        engine.load()
    assert "HF_TOKEN" in str(error.value)


@pytest.mark.model
def test_every_mode_gets_sensible_answers(small_engine: TransformersEngine, make_prompt: MakePrompt) -> None:
    prompts = [
        make_prompt("sift_s", "i got the job and i start on monday", seed=1, sample="a"),
        make_prompt("sift_s", "my grandmother passed away", seed=2, sample="b"),
        *(make_prompt(mode, ANGRY, seed=3, sample="a") for mode in ("sift_ssp", "sit_ssp")),
        *(make_prompt(mode, HAPPY, seed=4, sample="b") for mode in ("sift_ssp", "sit_ssp")),
    ]
    responses = answer(small_engine, prompts)
    assert list(responses) != [f"{prompt.mode}/{prompt.sample_id}" for prompt in prompts]  # sorted by length
    for response in responses.values():
        assert len(clean_answer(response.text)) > 10
        assert "<|" not in response.text  # neither the end token nor padding
        assert response.finish_reason in ("stop", "sentences")
        assert 3 <= response.response_tokens <= 96
        assert response.prompt_tokens > 25
    severities = PROFILES["embedded"]["rule_severities"]
    verdicts = [
        judge(Answer(response.prompt.mode, response.text, response.finish_reason), severities)
        for response in responses.values()
    ]
    assert verdicts.count("accepted") >= 5


@pytest.mark.model
def test_a_row_is_answered_alike_in_any_batch(small_engine: TransformersEngine, make_prompt: MakePrompt) -> None:
    rows = [make_prompt("sit_ssp", ANGRY, seed=seed, sample=str(seed)) for seed in (0, 1, 1, 2)]
    rows[2] = make_prompt("sit_ssp", ANGRY, seed=1, sample="twin of 1")
    together, alone = answer(small_engine, rows, batch_size=4), answer(small_engine, rows[1:2], batch_size=1)
    assert len({response.text for response in together.values()}) > 1
    assert together["sit_ssp/ravdess/1"].text == together["sit_ssp/ravdess/twin of 1"].text
    assert together["sit_ssp/ravdess/1"].text == alone["sit_ssp/ravdess/1"].text


@pytest.mark.model
@pytest.mark.slow
def test_64_rows_are_answered_alike_at_three_batch_sizes(
    small_engine: TransformersEngine, make_prompt: MakePrompt
) -> None:
    texts = ("i got the job", "my keys are gone", "we won the game", "it is raining")
    rows = [make_prompt("sift_s", texts[n % 4], seed=n, sample=str(n)) for n in range(64)]
    small, large, whole = (answer(small_engine, rows, batch_size=size) for size in (5, 16, 64))
    same = [small[key].text == large[key].text == whole[key].text for key in small]
    # Exact within equal lengths, else within rounding: a near tie may fall the other way.
    assert sum(same) >= 61


@pytest.mark.model
def test_greedy_answers_are_those_of_generate(
    small_model_dir: Path, small_engine: TransformersEngine, make_prompt: MakePrompt
) -> None:
    settings = Settings(model_name=str(small_model_dir), sampling={"temperature": 0, "max_new_tokens": 24})
    engine = TransformersEngine(settings)
    engine.tokenizer, engine.model, engine._end_tokens = (
        small_engine.tokenizer,
        small_engine.model,
        small_engine._end_tokens,
    )
    rows = [make_prompt("sift_s", text, sample=text) for text in ("hello there", "it is raining and i am late", "oh")]
    ours = answer(engine, rows)
    for prompt in rows:
        inputs = engine.tokenizer(engine.render(prompt), add_special_tokens=False, return_tensors="pt")
        expected = engine.model.generate(**inputs, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
        text = engine.tokenizer.decode(expected, skip_special_tokens=True)
        assert ours[f"sift_s/{prompt.sample_id}"].text == text


@pytest.mark.model
def test_rows_that_have_ended_leave_the_batch(
    small_engine: TransformersEngine, make_prompt: MakePrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = small_engine.model.forward

    def counted(*args: object, **kwargs: Any) -> object:
        sizes.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(small_engine.model, "forward", counted)
    rows = [make_prompt("sit_ssp", ANGRY, seed=n, sample=str(n)) for n in range(16)]
    answers = answer(small_engine, rows, batch_size=16)
    lengths = [response.response_tokens for response in answers.values()]
    assert len(sizes) == max(lengths) and sizes[0] == 16 and sizes[-1] < 16
    assert sizes == sorted(sizes, reverse=True)
    # At most an eighth of the rows in the batch has ended already.
    assert sum(sizes) <= 8 / 7 * sum(lengths) + len(sizes)


@pytest.mark.slow
@pytest.mark.model
def test_out_of_memory_halves_the_batch_and_goes_on(
    small_engine: TransformersEngine, make_prompt: MakePrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_batch = small_engine._answer

    def short_of_memory(rows: Sequence[Any]) -> list[Response]:
        if len(rows) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return answer_batch(rows)

    monkeypatch.setattr(small_engine, "_answer", short_of_memory)
    rows = [make_prompt("sift_s", "oh", seed=n, sample=str(n)) for n in range(5)]
    assert len(answer(small_engine, rows, batch_size=8)) == 5
    assert small_engine.batch_size == 2


@pytest.mark.model
def test_limits_say_so(small_model_dir: Path, small_engine: TransformersEngine, make_prompt: MakePrompt) -> None:
    story = make_prompt("sift_s", "tell me a long story about a dog", seed=1)

    def limited(**sampling: float) -> Response:
        engine = TransformersEngine(Settings(model_name=str(small_model_dir), sampling={"temperature": 0, **sampling}))
        engine.tokenizer, engine.model = small_engine.tokenizer, small_engine.model
        return next(engine.generate([story]))[0]

    one = limited(stop_after_sentences=1)
    assert one.finish_reason == "sentences"
    assert one.text == one.text.strip()
    assert one.text.rstrip('"')[-1] in ".!?"
    cut = limited(stop_after_sentences=2, max_new_tokens=8)
    assert (cut.finish_reason, cut.response_tokens) == ("length", 8)


@pytest.mark.model
def test_no_prompts_no_batches(small_engine: TransformersEngine) -> None:
    assert list(small_engine.generate([])) == []
