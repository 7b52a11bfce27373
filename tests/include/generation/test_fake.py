"""The fake engine: the same prompt and seed give the same text, and faults come as often as told."""

from __future__ import annotations

import multiprocessing
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from include.generation import fake, make_engine
from include.generation.answer import clean_answer
from include.generation.fake import FAULTS, FakeEngine, parse_faults
from include.modes import MODES
from include.quality.rules import RULES, Answer, judge
from include.schema import Prompt, Response
from include.settings import PROJECT_ROOT, Settings

CONTEXT = "<audio><meta>gender: female, emotion: angry</meta><text>leave me alone</text></audio>"


def fake_prompt(seed: int, mode: str = "sift_s", user_message: str = "i got the job") -> Prompt:
    return Prompt(
        source="ravdess",
        sample_id=f"ravdess/{seed}",
        mode=mode,
        prompt_hash="0" * 64,
        system_prompt="Respond.",
        user_message=user_message,
        attempt=1,
        seed=seed,
    )


def answers(faults: str, prompts: list[Prompt], batch_size: int = 7) -> list[Response]:
    engine = FakeEngine(Settings(engine="fake", fake_faults=faults, batch_size=batch_size))
    engine.load()
    return [response for batch in engine.generate(prompts) for response in batch]


def test_every_prompt_is_answered_once_in_batches() -> None:
    prompts = [fake_prompt(seed) for seed in range(20)]
    engine = make_engine(Settings(engine="fake", batch_size=7))
    batches = list(engine.generate(prompts))
    assert [len(batch) for batch in batches] == [7, 7, 6]
    assert [response.prompt for batch in batches for response in batch] == prompts


def test_text_depends_on_mode_message_and_seed_alone() -> None:
    prompts = [fake_prompt(seed) for seed in range(50)]
    one_way, other_way = answers("", prompts), answers("", prompts[::-1], batch_size=3)
    assert {r.prompt.sample_id: r.text for r in one_way} == {r.prompt.sample_id: r.text for r in other_way}
    assert len({r.text for r in one_way}) > 5
    moved = replace(prompts[0], sample_id="tess/1", source="tess", attempt=2)
    assert answers("", [moved])[0].text == one_way[0].text


@pytest.mark.parametrize("mode", ["sift_s", "sift_ssp", "sit_ssp"])
def test_plain_answers_are_accepted(mode: str) -> None:
    for response in answers("", [fake_prompt(seed, mode, CONTEXT) for seed in range(100)]):
        labels = {"gender": "female", "emotion": "angry"}
        assert judge(Answer(mode, response.text, response.finish_reason, "leave me alone", labels)) == "accepted"
        assert response.prompt_tokens > 0 and response.response_tokens > 0


def test_a_description_says_what_its_labels_say() -> None:
    text = answers("", [fake_prompt(1, "sit_ssp", CONTEXT)])[0].text
    assert text.startswith('Sounds like an angry woman saying "leave me alone" in a ')
    assert answers("", [fake_prompt(1, "sit_ssp", "<audio></audio>")])[0].text.startswith("Sounds like a calm person")


# The rule that each fault breaks, in replies and in descriptions.
VERDICTS = {
    "empty": ("empty", "empty"),
    "think": ("empty", "empty"),
    "tag": ("leaked_tag", "leaked_tag"),
    "unprintable": ("unprintable", "unprintable"),
    "role_echo": ("leaked_prompt", "leaked_prompt"),
    "refused": ("refused_prompt", "refused_prompt"),
    "length": ("truncated", "truncated"),
    "refusal": ("refusal", "refusal"),
    "copied_prompt": ("copied_prompt", "copied_prompt"),
    "copied_example": ("describes_audio", "copied_example"),
    "opening": ("accepted", "not_sounds_like"),
    "sentences": ("accepted", "several_sentences"),
    "duplicate": ("accepted", "no_quote"),
}
EVENTS = {"crash", "oom", "hang", "slow"}


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("fault", VERDICTS)
def test_faults_break_their_rule(fault: str, mode: str, make_prompt: Callable[..., Prompt]) -> None:
    prompts = [make_prompt(mode, "<audio><text>it is late</text></audio>", seed=seed) for seed in range(20)]
    responses = answers(f"{fault}:1", prompts)
    verdicts = {judged(response) for response in responses}
    assert verdicts == {VERDICTS[fault][mode == "sit_ssp"]}
    assert (len({response.text for response in responses}) == 1) == (
        fault in ("empty", "refused", "refusal", "copied_example", "duplicate")
    )


def judged(response: Response) -> str:
    prompt = response.prompt
    answer = Answer(
        prompt.mode,
        clean_answer(response.text),
        response.finish_reason,
        transcript="it is late",
        labels={"emotion": None},
        system_prompt=prompt.system_prompt,
    )
    return judge(answer)


def test_every_fault_is_tested_and_every_hard_rule_is_broken_by_one() -> None:
    assert {*VERDICTS, *EVENTS} == set(FAULTS)
    hard = {name for name, rule in RULES.items() if rule.hard}
    assert hard <= {verdict for verdicts in VERDICTS.values() for verdict in verdicts}


def test_the_settings_name_every_fault() -> None:
    described = Settings.model_fields["fake_faults"].description or ""
    example = (PROJECT_ROOT / ".env.example").read_text(encoding="utf-8").partition("# Faults of the fake engine")[2]
    for text in (described, example):
        assert set(FAULTS) <= set(re.findall(r"\w+", text))


def test_out_of_memory_reads_as_torch_says_it() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        answers("oom:1", [fake_prompt(1)])


def test_a_slow_row_takes_its_time_and_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "SLOW_S", 0.1)
    started = time.monotonic()
    slow = answers("slow:1", [fake_prompt(seed) for seed in range(3)])
    assert time.monotonic() - started >= 0.3
    assert [r.text for r in slow] == [r.text for r in answers("", [fake_prompt(seed) for seed in range(3)])]


def test_a_hanging_row_never_ends_until_it_is_killed() -> None:
    process = multiprocessing.get_context("fork").Process(target=answers, args=("hang:1", [fake_prompt(1)]))
    process.start()
    process.join(1)
    assert process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_faults_come_as_often_as_told_and_go_with_another_seed() -> None:
    responses = answers("empty:0.2,tag:0.1", [fake_prompt(seed) for seed in range(2000)])
    empty = [r.prompt.seed for r in responses if not r.text]
    assert 320 < len(empty) < 480
    assert 130 < sum("<audio>" in r.text for r in responses) < 270
    again = answers("empty:0.2,tag:0.1", [fake_prompt(seed + 10_000) for seed in empty])
    assert any(r.text for r in again)


def test_a_crash_takes_its_batch_and_leaves_the_earlier_ones() -> None:
    engine = FakeEngine(Settings(engine="fake", fake_faults="crash:0.02", batch_size=10))
    done: list[Response] = []
    with pytest.raises(RuntimeError, match="crash dealt to ravdess/"):
        for batch in engine.generate([fake_prompt(seed) for seed in range(1000)]):
            done.extend(batch)
    assert 0 < len(done) < 1000 and len(done) % 10 == 0


@pytest.mark.parametrize("setting", ["explode:0.1", "empty", "empty:much", "empty:-0.1", "empty:0.6,tag:0.6"])
def test_wrong_faults_are_refused_by_name(setting: str) -> None:
    with pytest.raises(ValueError, match="SIFT_FAKE_FAULTS"):
        FakeEngine(Settings(engine="fake", fake_faults=setting))


def test_an_unknown_fault_is_named() -> None:
    with pytest.raises(ValueError, match="unknown fault 'explode'"):
        parse_faults("empty:0.1,explode:0.1")
    assert parse_faults(" empty:0.1, tag:0.2,") == {"empty": 0.1, "tag": 0.2}
    assert set(parse_faults(",".join(f"{fault}:0.05" for fault in FAULTS))) == set(FAULTS)


def test_batches_take_as_long_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("include.generation.fake.time.sleep", slept.append)
    engine = FakeEngine(Settings(engine="fake", batch_size=2), seconds_per_batch=0.5)
    assert len(list(engine.generate([fake_prompt(seed) for seed in range(5)]))) == 3
    assert slept == [0.5, 0.5, 0.5]
